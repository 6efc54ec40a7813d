"""Finetune a language model, with an exact account of every response.

By SFT, DPO, or any other loss of `ldjax.losses.LOSSES` (`--loss NAME`).

Watches typed responses to trained and to held-out prompts (the paper's probing set).
All of them are observed on a schedule, dense early: log-probs, greedy log-probs,
norms, and the predicted and measured change of the update that follows. The changes of
a fixed tracked subset are measured at every update and divided among its parts, by
derivatives at nodes along the update, so that added up the parts are the change of the
run; what first order says, at the start of each update, stands beside them.

Claims, checked on full runs on the toy world (exit status 1 if one does not hold):
the published signatures that the toy world is made to show (SFT3, SFT8, SFT11 or DPO1,
DPO7); chosen ends above its start (SFT), rejected falls more than chosen (DPO); the
remainder of an update falls fourfold when the update is halved; the balance closes (the
parts of all updates are what was measured, but for `--tolerance`). On any data: the
parts of every step sum to its account, the measured steps to the change of the run.

    python experiments/finetune.py --out runs/sft                    (toy world; ~5 min)
    python experiments/finetune.py --loss dpo --init runs/sft --out runs/dpo
    python experiments/finetune.py --data pairs.jsonl.gz --out runs/mine
"""

import collections
import functools
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ldjax import command, linen
from ldjax.data.reference import add_reference
from ldjax.finetune.account import as_kept, resumed, settled
from ldjax.finetune.budget import account_options, map_sizes
from ldjax.finetune.conclude import (
    FinetunedRun,
    conclude,
    probe_lines,
    write_table,
)
from ldjax.finetune.prepare import Prepared, prepare
from ldjax.finetune.rows import cropped, with_advantages
from ldjax.finetune.settings.config import Config, from_command_line, kept
from ldjax.finetune.start import load_base, load_shapes
from ldjax.finetune.track.observers import make_observers
from ldjax.finetune.track.step import make_tracked_step, on_all_devices
from ldjax.progress import progress
from ldjax.runs.checkpoints import Checkpoints, Table
from ldjax.runs.devices import data_mesh
from ldjax.runs.folder import Run, start_run
from ldjax.runs.loop import make_batch_fn, train
from ldjax.runs.sinks import make_sink
from ldjax.watch.probes import Probe
from ldjax.watch.record import TRAIN, set_of, write_probe_lines
from ldjax.watch.token_maps import TokenMaps, token_map_observer

__all__ = [
    "Config",
    "FinetunedRun",
    "Updates",
    "finetune",
    "main",
    "make_batches",
    "make_updates",
    "parse",
    "program_of",
]

# What may differ when a run is resumed: where things are, and how it is computed. The
# model it starts from and the rows it trains on, whatever a chat template made of them,
# are compared by their fingerprints.
FREE = {"out", "resume", "overwrite", "checkpoint_every", "cache", "init", "data"} | {
    "log",
    "test_data",
    "initial_from",
    "split",
    "chat_template",
    "chat_date",
    "base_model",
    "program",
    "tolerance",
}


def finetune(
    settings: Config, *, tell: Callable[[Any], None] = lambda said: None
) -> FinetunedRun:
    """Finetune a language model, with an exact account of every response.

    Args:
      settings: What is trained on what, and how it is watched.
      tell: Is told, before the first update, what will be done, as a text; then given
        each of the first examples as a `ShownExample`, whose `text()` marks what is
        scored.

    Returns:
      The run, complete: its folder, summary, figures and page.

    Raises:
      FileExistsError: If there is a run already, which is neither resumed nor replaced.
      FileNotFoundError: If there is no such model or file.
      MemoryError: If the run does not fit, before any weights are read.
      NonFiniteError: If a loss or an observation is not finite.
      ValueError: If settings, texts or model cannot be used.

    Examples:
      >>> import pathlib
      >>> finetune(Config.of(init=pathlib.Path("/nowhere")))
      Traceback (most recent call last):
        ...
      FileNotFoundError: there is no folder /nowhere
    """
    with command.set_up():
        settings = settings.resolved()
        settings.check()
        settings = resumed(settings)
        with progress("reading the data and the model"):
            prepared = prepare(settings)
        batch_fn, devices = make_batches(settings, prepared)
        settings, account = settled(settings, prepared, batch_fn)
        run = start_run(
            settings.out,
            all_settings(settings, prepared),
            resume=settings.resume,
            overwrite=settings.overwrite,
            free=FREE,
        )
        sinks = [make_sink(name, run) for name in settings.log]
    prepared.encode.tokenizer.save(run.path)
    write_probe_lines(run.path, probe_lines(prepared))
    tell(f"{devices}{prepared.told(settings.objective.loss)}\n{account}")
    for shown in prepared.shown:
        tell(shown)

    watch = settings.watch
    tracked, probes = prepared.watched.tracked, probes_of(run, prepared)
    init, step_fn, how = make_updates(settings, prepared, probes)
    nodes = watch.nodes or None
    how_maps: dict[str, Any] = how | map_sizes(prepared.plan) | {"nodes": nodes}
    observers = make_observers(
        how["watch_fn"],
        prepared.watched,
        num_steps=prepared.num_steps,
        evaluations=watch.evaluations,
        probe_batch_size=probes,
        is_explained=watch.one_step,
        nodes=nodes,
    ) | {
        "token_maps": token_map_observer(
            TokenMaps(**how_maps),
            tracked,
            batch_fn,
            folder=run.path / "token_maps",
            steps=first_steps(prepared.num_steps, watch.token_maps or 0),
            probe_batch_size=probes,
        )
    }

    def on_table(table: Table) -> None:
        write_table(run, prepared, table, examples_per_step=settings.recipe.batch_size)
        if [*table] == ["observed"]:
            tell(first_row(table, prepared.watched.observed.probes))
        for sink in sinks:
            sink.write(run.metrics())

    stages = train(
        init(prepared.base.params, batch_fn(0)),
        num_steps=prepared.num_steps,
        step_fn=step_fn,
        batch_fn=batch_fn,
        save_every=settings.checkpoint_every,
        checkpoints=Checkpoints(run.path / "checkpoints"),
        observers=observers,
        on_table=on_table,
    )
    # The run goes on from them; a second copy would be kept for nothing.
    prepared = prepared.without_params()
    (last,) = collections.deque(stages, maxlen=1)
    for sink in sinks:
        sink.close()
    with progress("writing the report"):
        return conclude(
            run,
            settings,
            prepared,
            last.table,
            last.state,
            start=lambda: (
                load_base(
                    load_shapes(prepared.base.source, settings.model),
                    seed=settings.seed,
                ).params
            ),
        )


@command.experiment
def main(config: Config) -> int:
    """Run the program; the exit status."""
    done = finetune(config, tell=command.teller(config))
    print(done)
    return 0 if done.holds else 1


class Updates(NamedTuple):
    """The updates of a run: those of one that is replayed are the same to the bit.

    Attributes:
      init: From parameters and a batch to the state before the first one.
      step_fn: `(state, batch) -> (state, metrics)`, compiled.
      made_of: What both are made of: `apply_fn`, `loss_fn`, `optimizer` and options of
        `ldjax.make_step`.
    """

    init: Callable[[Any, Any], Any]
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    made_of: dict[str, Any]


def make_updates(settings: Config, prepared: Prepared, probes: int) -> Updates:
    """The updates of a run.

    Args:
      settings: Settled ones.
      prepared: What the run needs.
      probes: Tracked responses that are computed at a time.
    """
    made_of = account_options(prepared.base, settings.objective, settings.recipe)
    init, step_fn = make_tracked_step(
        tracked=prepared.watched.tracked,
        probe_batch_size=probes,
        nodes=settings.watch.nodes or None,
        dated=settings.watch.history == "dated",
        **made_of,
    )
    return Updates(init, step_fn, made_of)


def make_batches(
    settings: Config, prepared: Prepared
) -> tuple[Callable[[int], Any], str]:
    """The batch of each update, and a line that says on which devices it lies.

    With what the model at the start says of it, where the loss needs that.
    """
    objective, batch_size = settings.objective, settings.recipe.batch_size
    # By the model that is trained: in bfloat16 both round alike.
    apply_fn = linen.apply_fn(prepared.base.trained_model)
    params, rows = prepared.base.params, prepared.rows
    if objective.named.has_reference:
        with progress("scoring the reference"):
            rows = add_reference(
                apply_fn, params, rows, batch_size=batch_size, cache=settings.cache
            )
    if objective.named.trains_on == "samples":
        rows = with_advantages(apply_fn, params, rows, batch_size=batch_size)
    batch_fn = make_batch_fn(rows, batch_size=batch_size, seed=settings.seed)
    return on_all_devices(cropped(batch_fn), batch_size)


def program_of(probes: int) -> dict[str, Any]:
    """What the bits of a run depend on, besides its settings and versions.

    Args:
      probes: Tracked responses that are computed at a time.
    """
    options = ("enable_x64", "default_matmul_precision", "disable_most_optimizations")
    return {
        "probes": probes,
        "devices": data_mesh().size,
        "backend": jax.default_backend(),
        **{name: jax.config.values.get(f"jax_{name}") for name in options},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def probes_of(run: Run, prepared: Prepared) -> int:
    """Tracked responses at a time: as when the run was begun, or fewer, to fit."""
    begun = run.config["settings"].get("program", {})
    return min(prepared.plan.probes, begun.get("probes", prepared.plan.probes))


def all_settings(settings: Config, prepared: Prepared) -> dict[str, Any]:
    """What `config.json` says of the run."""
    return kept(settings) | {
        **as_kept(settings),
        # A run that another one is begun from says where that began.
        "base_model": settings.model.model if settings.init is None else None,
        "model": prepared.base.model.config.settings(),
        # As they were used, not as they were asked for.
        "max_length": prepared.encode.max_length,
        "max_prompt_length": prepared.encode.max_prompt_length,
        "sample_length": prepared.lengths.sample,
        "num_steps": prepared.num_steps,
        "regime": prepared.regime,
        "fingerprints": prepared.fingerprints,
        "program": program_of(prepared.plan.probes),
        "reductions": {
            "loss": "sum over tokens, mean over the batch",
            "probes": "sum over tokens",
        },
    }


def first_row(table: Table, observed: Sequence[Probe]) -> str:
    """A line with the log-probs of the trained prompts' responses at the start."""
    of_types: dict[str, list[float]] = {}
    for probe, log_prob in zip(observed, table["observed"]["log_prob"][0], strict=True):
        if set_of(probe.prompt_name) == TRAIN:
            of_types.setdefault(probe.type, []).append(float(log_prob))
    means = ", ".join(
        f"{type_} {statistics.fmean(values):.1f}" for type_, values in of_types.items()
    )
    return f"at the start, nats per sequence: {means}"


def first_steps(num_steps: int, count: int) -> set[int]:
    """So many updates in equal intervals, from the first one on."""
    return {i * num_steps // count for i in range(count)}


parse = functools.partial(from_command_line, Config, __doc__)
