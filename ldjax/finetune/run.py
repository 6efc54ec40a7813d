"""Finetune a language model, with an exact account of every response.

By SFT, DPO, or any other loss of `ldjax.losses.LOSSES` (`--loss NAME`).

Watches typed responses to trained and to held-out prompts (the paper's probing set).
All of them are observed on a schedule, dense early: log-probs, greedy log-probs,
norms, and the predicted and measured change of the update that follows. A fixed
tracked subset is predicted and measured at every update, split into its parts, and
added up.

Claims, checked on full runs on the toy world (exit status 1 if one does not hold):
the published signatures that the toy world is made to show (SFT3, SFT8, SFT11 or DPO1,
DPO7); chosen ends above its start (SFT), rejected falls more than chosen (DPO); the
remainder of an update falls fourfold when the update is halved. On any data: the parts
of every step sum to its prediction, the measured steps to the change of the whole run.

    python experiments/finetune.py --out runs/sft                    (toy world; ~5 min)
    python experiments/finetune.py --loss dpo --init runs/sft --out runs/dpo
    python experiments/finetune.py --data pairs.jsonl.gz --out runs/mine
"""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldjax import command, linen
from ldjax.data.reference import add_reference
from ldjax.files.whole import whole_file
from ldjax.finetune.budget import account_options, map_sizes
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.results import (
    check_claims,
    check_identities,
    curves_of,
    type_changes,
)
from ldjax.finetune.rows import cropped, summed_over_sides, told_of, with_advantages
from ldjax.finetune.settings import Config, from_command_line
from ldjax.finetune.setup import Setup, describe, make_setup, notes
from ldjax.finetune.start import base_of, load_base
from ldjax.finetune.track import (
    State,
    even_steps,
    make_observers,
    make_tracked_step,
    on_all_devices,
)
from ldjax.losses import make_loss
from ldjax.models import Pretrained, save_adapters
from ldjax.progress import progress
from ldjax.report import write_page
from ldjax.report.curves import (
    draw_by_side,
    draw_curves,
    draw_predicted_against_measured,
    draw_remainder,
)
from ldjax.report.measures import final_parts
from ldjax.runs.checkpoints import Checkpoints, Table
from ldjax.runs.folder import Run, start_run
from ldjax.runs.loop import NonFiniteError, make_batch_fn, train
from ldjax.runs.sinks import make_sink
from ldjax.theory.fidelity import fidelity, legible, r_squared_within_types
from ldjax.theory.signatures import evaluate
from ldjax.theory.signatures import table as signature_table
from ldjax.watch.record import (
    TEST,
    TRACKED,
    TRAIN,
    everything_name,
    part_name,
    probe_line,
    prompt_of,
    series_rows,
    set_of,
    write_probe_lines,
)
from ldjax.watch.token_maps import make_token_map_fn, moved_tokens, token_map_observer

# What may differ when a run is resumed: where things are. The model it starts from and
# the rows it trains on are compared by their fingerprints.
FREE = {"out", "resume", "overwrite", "checkpoint_every", "cache", "init", "data"} | {
    "log",
    "test_data",
    "initial_from",
    "base_model",
}


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config = config.resolved()
        config.check()
        with progress("reading the data and the model"):
            setup = make_setup(config)
        watch_fn = linen.apply_fn(setup.base.model)
        apply_fn = linen.apply_fn(setup.base.trained_model)
        rows = setup.rows
        if config.named_loss.has_reference:
            # By the model that is trained: in bfloat16 both round alike.
            with progress("scoring the reference"):
                rows = add_reference(
                    apply_fn,
                    setup.base.params,
                    rows,
                    batch_size=config.batch_size,
                    cache=config.cache,
                )
        loss_fn = make_loss(config.loss, **config.coefficients)
        if config.named_loss.trains_on == "samples":
            rows = with_advantages(
                apply_fn, setup.base.params, rows, batch_size=config.batch_size
            )
            loss_fn = summed_over_sides(loss_fn)
        batch_fn = cropped(
            make_batch_fn(rows, batch_size=config.batch_size, seed=config.seed)
        )
        batch_fn, devices = on_all_devices(batch_fn, config.batch_size)
        run = start_run(
            config.out,
            all_settings(config, setup),
            resume=config.resume,
            overwrite=config.overwrite,
            free=FREE,
        )
        sinks = [make_sink(name, run) for name in config.log]
    setup.base.tokenizer.save(run.path)
    write_probes(run, setup)
    print(devices + describe(config, setup) + told_of(setup.counts), flush=True)

    optimizer, options = make_optimizer(config.as_recipe()), account_options(setup.base)
    init, step_fn = make_tracked_step(
        apply_fn,
        loss_fn,
        optimizer,
        setup.tracked,
        probe_batch_size=setup.memory.probes,
        **options,
    )
    map_observer = token_map_observer(
        make_token_map_fn(
            apply_fn,
            loss_fn,
            optimizer,
            **map_sizes(setup.memory),
            **options,
        ),
        setup.tracked,
        batch_fn,
        folder=run.path / "token_maps",
        steps=first_steps(setup.num_steps, config.token_maps),
        probe_batch_size=setup.memory.probes,
    )
    initial = init(setup.base.params)
    # The run goes on from them; a second copy would be kept for nothing.
    setup = setup._replace(base=setup.base.without_params())
    sets = {"observed": setup.observed, "tracked": setup.tracked}
    if setup.everything is not None:
        sets["everything"] = setup.everything

    def on_table(table: Table) -> None:
        write_table(config, run, setup, table)
        for sink in sinks:
            sink.write(run.metrics())

    table, state = {}, None
    progress_of_run = train(
        initial,
        num_steps=setup.num_steps,
        step_fn=step_fn,
        batch_fn=batch_fn,
        save_every=config.checkpoint_every,
        checkpoints=Checkpoints(run.path / "checkpoints"),
        observers=make_observers(
            watch_fn,
            sets=sets,
            num_steps=setup.num_steps,
            evaluations=config.evaluations,
            probe_batch_size=setup.memory.probes,
            is_explained=config.one_step,
        )
        | {"token_maps": map_observer},
        on_table=on_table,
    )
    del initial
    try:
        for stage in progress_of_run:
            table, state = stage.table, stage.state
    except NonFiniteError as error:
        sys.exit(f"finetune: {error}")
    for sink in sinks:
        sink.close()
    with progress("writing the report"):
        return report(config, run, setup, table, state)


def all_settings(config: Config, setup: Setup) -> dict[str, Any]:
    """What `config.json` says of the run."""
    return dataclasses.asdict(config) | {
        "base_model": config.model,
        "model": dataclasses.asdict(setup.base.model.config),
        # As they were used, not as they were asked for.
        "max_length": setup.lengths.limit,
        "max_prompt_length": setup.lengths.prompt_limit,
        "sample_length": setup.lengths.sample,
        "num_steps": setup.num_steps,
        "regime": setup.regime,
        "fingerprints": setup.fingerprints,
        "reductions": {
            "loss": "sum over tokens, mean over the batch",
            "probes": "sum over tokens",
        },
    }


def write_probes(run: Run, setup: Setup) -> None:
    """`probes.jsonl`: what the probes of the table say."""
    texts = {TRAIN: setup.data.train, TEST: setup.data.test}
    texts[TRACKED] = texts[TRAIN]
    lines = []
    for probe in (*setup.observed.probes, *setup.tracked.probes):
        row = texts[set_of(probe.prompt_name)][int(prompt_of(probe.prompt_name))]
        text = row.responses[probe.type]
        lines.append(probe_line(probe, row.prompt, text, source=row.source))
    write_probe_lines(run.path, lines)


def write_table(config: Config, run: Run, setup: Setup, table: Table) -> None:
    """`metrics.parquet`, from what was measured so far."""
    probes = {
        "train": setup.tracked.probes,
        "observed": setup.observed.probes,
        "one_step": setup.observed.probes,
    }
    if setup.everything is not None:
        probes["everything"] = tuple(
            probe._replace(prompt_name=everything_name(probe.prompt_name))
            for probe in setup.everything.probes
        )
    run.write_metrics(series_rows(table, probes, examples_per_step=config.batch_size))


def first_steps(num_steps: int, count: int) -> set[int]:
    """So many updates in equal intervals, from the first one on."""
    return {i * num_steps // count for i in range(count)}


def write_tokens(
    config: Config, run: Run, setup: Setup, table: Table, state: State
) -> None:
    """`tokens.npz`: the account of every tracked token."""
    arrays: dict[str, np.ndarray] = {"step": table["tokens"]["step"]}
    arrays |= moved_tokens(
        linen.apply_fn(setup.base.model),
        load_base(config, setup.source).params,
        state.params,
        setup.tracked,
        probe_batch_size=setup.memory.probes,
    )
    for i, (places, batch) in enumerate(setup.tracked.batches):
        arrays |= {
            f"probes_{i}": places,
            f"targets_{i}": np.asarray(batch.targets),
            f"mask_{i}": np.asarray(batch.mask),
            f"log_prob_{i}": table["tokens"][f"log_prob_{i}"],
            f"predicted_{i}": np.asarray(state.predicted[i]),
            f"measured_{i}": np.asarray(state.measured[i]),
        }
    with whole_file(run.path / "tokens.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_adapter(run: Run, setup: Setup, state: State) -> None:
    """`adapter/`: the trained adapters in PEFT's layout."""
    folder, model = run.path / "adapter", setup.base.model
    shutil.rmtree(folder, ignore_errors=True)  # of the same run, which was resumed
    trained = Pretrained(model, state.params, model.config, setup.base.tokenizer)
    save_adapters(folder, trained, base=base_of(setup.source))


def report(config: Config, run: Run, setup: Setup, table: Table, state: Any) -> int:
    """Write the summary and the figures, print the numbers; the exit status."""
    write_tokens(config, run, setup, table, state)
    if setup.base.is_adapted:
        write_adapter(run, setup, state)
    tracked = setup.tracked.probes
    prompts, types = zip(*((p.prompt_name, p.type) for p in tracked), strict=True)
    fits = fidelity(table["train"], prompts, types)
    within = r_squared_within_types(table["train"], types)
    identities = check_identities(table, tracked, _at_both_ends(setup, table))
    is_even = np.isin(
        table["observed"]["step"], list(even_steps(setup.num_steps, config.evaluations))
    )
    series = {name: values[is_even] for name, values in table["observed"].items()}
    summary: dict[str, Any] = {"changes": {}, "signatures": {}}
    claims = []
    for name, rows in (("train", setup.data.train), ("test", setup.data.test)):
        if not rows:
            continue
        curves = curves_of(series, setup.observed.probes, name)
        summary["changes"][name] = type_changes(curves)
        if setup.regime is None or config.smoke:
            continue
        verdicts = evaluate(curves, setup.regime)
        summary["signatures"][name] = [verdict._asdict() for verdict in verdicts]
        if name == "train":
            print(f"\nPublished signatures ({setup.regime}), trained prompts:")
            print(signature_table(verdicts))
            if config.data == "toy":
                order = table.get("order", {}).get("remainder_ratio", np.zeros(0))
                claims = check_claims(setup.regime, curves, verdicts, order)
    why = explanations(series, setup, final_parts(run.metrics()))
    summary |= {
        "regime": setup.regime,
        "explanations": why,
        "claims": claims,
        "identities": identities,
        "fidelity": {name: fit._asdict() for name, fit in fits.items()},
        "r_squared_within_types": within,
        "counts": setup.counts,
        "data": setup.data.summary | {"left_out": setup.left_out},
        "notes": notes(config, setup),
    }
    run.write_summary(summary)
    figures = [
        *draw_curves(run),
        *draw_predicted_against_measured(run),
        *draw_remainder(run),
        *draw_by_side(run),
    ]
    print_fidelity(fits)
    if within is not None:
        print(f"R2 of all about the mean of each type: {within:.3f}")
    print_explanations(why)
    checks = [*identities, *claims]
    for check in checks:
        print(f"{'holds' if check['holds'] else 'FAILS'}: {check['text']}")
    page = write_page([run])
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    print(f"the report, for a browser: {page}")
    return 0 if all(check["holds"] for check in checks) else 1


def print_fidelity(fits: dict[str, Any]) -> None:
    """The table of predicted and measured changes, by type."""
    print(
        "\nTracked responses over the whole run, nats per sequence:\n"
        f"{'type':20} {'measured':>9} {'predicted':>9} {'R2':>7} {'R2 end':>7} "
        f"{'signs':>6} {'rest':>6} {'rest/step':>9} {'floor':>8}"
    )
    for name, fit in fits.items():
        print(
            f"{name:20} {fit.change:+9.2f} {fit.predicted_change:+9.2f} "
            f"{legible(fit.r_squared):>7} {legible(fit.r_squared_at_end):>7} "
            f"{legible(fit.sign_agreement):>6} {legible(fit.remainder_ratio):>6} "
            f"{legible(fit.step_remainder_ratio):>9} "
            f"{legible(fit.floor_ratio, '.1e'):>8}"
        )
    if fits["all"].step_remainder_ratio is None:
        print("nothing moved: no update changed a tracked response")


def explanations(
    series: Mapping[str, np.ndarray], setup: Setup, parts: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """The exact quantities behind the curves.

    Args:
      series: Quantities of the observed set.
      setup: With the observed probes.
      parts: What each part of the updates did to the tracked responses of each type
        over the whole run, mean nats.
    """
    types = np.array([probe.type for probe in setup.observed.probes])
    both_ends = series["squeezing_threshold"][[0, -1]]
    thresholds = {
        type_: both_ends[:, types == type_].mean(1).tolist()
        for type_ in next(iter(parts.values()))
    }
    return {"parts": parts, "squeezing_threshold": thresholds}


def print_explanations(why: dict[str, Any]) -> None:
    """Where the changes come from, and which labels a push-down raises."""
    parts = why["parts"]
    print("\nWhere they come from, nats per sequence; threshold: |p|^2 - p(y)")
    heads = [f"{part_name(name)[:9]:>9}" for name in parts]
    print(" ".join([f"{'type':20}", *heads, "  threshold"]))
    for type_, (start, end) in why["squeezing_threshold"].items():
        numbers = " ".join(f"{values[type_]:+9.2f}" for values in parts.values())
        print(f"{type_:20} {numbers}   {start:.3f} -> {end:.3f}")


def _at_both_ends(setup: Setup, table: Table) -> dict[str, np.ndarray]:
    """Log-probs of the tracked probes before and after the run, `[2, probe]`."""
    ends = [
        setup.tracked.gather(
            [
                {"log_prob": table["tokens"][f"log_prob_{i}"][at].sum(-1)}
                for i in range(len(setup.tracked.batches))
            ]
        )["log_prob"]
        for at in (0, -1)
    ]
    return {"log_prob": np.stack(ends).astype(float)}


parse = functools.partial(from_command_line, Config, __doc__)
