"""What a finetuning run leaves behind, and what it says of itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldjax import linen
from ldjax.files.whole import whole_file, whole_folder
from ldjax.finetune.prepare import Prepared
from ldjax.finetune.recipes import Recipe
from ldjax.finetune.results import (
    check_balance,
    check_claims,
    check_first_order,
    check_identities,
    curves_of,
    type_changes,
)
from ldjax.finetune.settings.config import Config
from ldjax.finetune.start import Base, base_of
from ldjax.finetune.track.observers import even_steps
from ldjax.finetune.track.step import State
from ldjax.models import Pretrained, load
from ldjax.models.hub.peft import write_adapters
from ldjax.report import write_page
from ldjax.report.curves import (
    draw_by_side,
    draw_curves,
    draw_predicted_against_measured,
    draw_remainder,
)
from ldjax.report.measures import final_parts
from ldjax.runs.checkpoints import Table
from ldjax.runs.folder import Run
from ldjax.theory.claims import Claim, failures, stored, told
from ldjax.theory.fidelity import (
    Fidelity,
    fidelity,
    legible,
    r_squared_within_types,
)
from ldjax.theory.signatures import Verdict, evaluate
from ldjax.theory.signatures import table as signature_table
from ldjax.watch.probes import Probe, ProbeSet
from ldjax.watch.record import (
    INTEGRATED,
    PREDICTED,
    TEST,
    TRACKED,
    TRAIN,
    everything_name,
    part_name,
    probe_line,
    prompt_of,
    series_rows,
    set_of,
)
from ldjax.watch.token_maps import moved_tokens

__all__ = ["FinetunedRun", "conclude", "probe_lines", "write_table"]


class FinetunedRun(NamedTuple):
    """A run that is complete.

    Attributes:
      run: The run folder.
      summary: What came out, as in its `summary.json`.
      checks: Identities, which hold of any run, and the claims of this one.
      figures: Pictures of it.
      page: The page about it, for a browser.
    """

    run: Run
    summary: dict[str, Any]
    checks: list[Claim]
    figures: tuple[Path, ...]
    page: Path

    @property
    def holds(self) -> bool:
        """Whether all identities and claims hold."""
        return not failures(self.checks)

    def load(self) -> Pretrained:
        """The model after the last update."""
        return load(self.run.path)

    def __str__(self) -> str:
        """What a terminal shows."""
        lines = [*_signatures(self.summary), *_fits(self.summary)]
        lines += _balance(self.summary)
        lines += [told(self.checks), "", "figures:", *map(str, self.figures)]
        lines += [f"run folder: {self.run.path}"]
        return "\n".join([*lines, f"the report, for a browser: {self.page}"])


def probe_lines(prepared: Prepared) -> list[str]:
    """The lines of `probes.jsonl`: what the probes of the table say.

    Of a conversation that is what the model reads, with the special tokens.
    """
    watched = prepared.watched
    texts = {TRAIN: watched.texts.train, TEST: watched.texts.test}
    texts[TRACKED] = texts[TRAIN]
    decode = prepared.encode.tokenizer.decode
    lines = []
    for probe in (*watched.observed.probes, *watched.tracked.probes):
        row = texts[set_of(probe.prompt_name)][int(prompt_of(probe.prompt_name))]
        prompt, text = row.prompt, row.responses[probe.type]
        if not isinstance(prompt, str):
            prompt = decode(probe.example.prompt_ids)
            text = decode(probe.example.response_ids)
        lines.append(probe_line(probe, prompt, text, source=row.source))
    return lines


def write_table(
    run: Run, prepared: Prepared, table: Table, *, examples_per_step: int
) -> None:
    """`metrics.parquet`, from what was measured so far."""
    watched = prepared.watched
    probes = {
        "train": watched.tracked.probes,
        "observed": watched.observed.probes,
        "one_step": watched.observed.probes,
    }
    if watched.everything is not None:
        probes["everything"] = tuple(
            probe._replace(prompt_name=everything_name(probe.prompt_name))
            for probe in watched.everything.probes
        )
    run.write_metrics(series_rows(table, probes, examples_per_step=examples_per_step))


def conclude(
    run: Run,
    settings: Config,
    prepared: Prepared,
    table: Table,
    state: State,
    *,
    start: Callable[[], Any],
) -> FinetunedRun:
    """Write the account of single tokens, the summary, the figures and the page.

    A toy run has to show the published signatures, and a smoke test looks for none.

    Args:
      run: The run folder, with its table.
      settings: Those of the run.
      prepared: What the run was made of; the shapes of its parameters suffice.
      table: What was measured.
      state: The state after the last update.
      start: Gives the parameters before the first update. They are asked for once the
        account is complete: a run that kept them would hold one more copy all along.
    """
    watched = prepared.watched
    _write_tokens(run, prepared, table, state, start)
    if prepared.base.is_adapted:
        _write_adapter(run, prepared.base, state)
    has_claims = settings.texts.data == "toy"
    even = even_steps(prepared.num_steps, settings.watch.evaluations)
    is_even = np.isin(table["observed"]["step"], list(even))
    series = {name: values[is_even] for name, values in table["observed"].items()}
    changes, signatures, claims = {}, {}, []
    for name, rows in (("train", watched.texts.train), ("test", watched.texts.test)):
        if not rows:
            continue
        curves = curves_of(series, watched.observed.probes, name)
        changes[name] = type_changes(curves)
        if prepared.regime is None or settings.smoke:
            continue
        verdicts = evaluate(curves, prepared.regime)
        signatures[name] = [verdict._asdict() for verdict in verdicts]
        if name == "train" and has_claims:
            order = table.get("order", {}).get("remainder_ratio", np.zeros(0))
            claims = check_claims(prepared.regime, curves, verdicts, order)
    identities = check_identities(table, _at_both_ends(watched.tracked, table))
    claims += check_balance(
        table["train"], tolerance=settings.watch.tolerance, is_claim=has_claims
    )
    account, findings = _account(table, watched.tracked.probes, settings.recipe)
    summary = {
        "changes": changes,
        "signatures": signatures,
        "regime": prepared.regime,
        "explanations": _why(series, watched.observed, final_parts(run.metrics())),
        "claims": stored(claims),
        "identities": stored(identities),
        "findings": stored(findings),
        **account,
        "counts": prepared.counts,
        "first_example": [shown.summary() for shown in prepared.shown],
        "data": watched.texts.summary | {"left_out": prepared.left_out},
        "notes": prepared.notes,
    }
    run.write_summary(summary)
    figures = (
        *draw_curves(run),
        *draw_predicted_against_measured(run),
        *draw_remainder(run),
        *draw_by_side(run),
    )
    checks = [*identities, *claims, *findings]
    return FinetunedRun(run, summary, checks, figures, write_page([run]))


def _write_tokens(
    run: Run,
    prepared: Prepared,
    table: Table,
    state: State,
    start: Callable[[], Any],
) -> None:
    """`tokens.npz`: the account of every tracked token."""
    tracked = prepared.watched.tracked
    arrays: dict[str, np.ndarray] = {"step": table["tokens"]["step"]}
    arrays |= moved_tokens(
        linen.apply_fn(prepared.base.model),
        start(),
        state.params,
        tracked,
        probe_batch_size=prepared.plan.probes,
    )
    for i, (places, batch) in enumerate(tracked.batches):
        arrays |= {
            f"probes_{i}": places,
            f"targets_{i}": np.asarray(batch.targets),
            f"mask_{i}": np.asarray(batch.mask),
            f"log_prob_{i}": table["tokens"][f"log_prob_{i}"],
            f"predicted_{i}": np.asarray(state.predicted[i]),
            f"measured_{i}": np.asarray(state.measured[i]),
        }
        if state.integrated:
            arrays[f"integrated_{i}"] = np.asarray(state.integrated[i])
    with whole_file(run.path / "tokens.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_adapter(run: Run, base: Base, state: State) -> None:
    """`adapter/`: the trained adapters in PEFT's layout."""
    # What is there is of the same run, which was resumed.
    with whole_folder(run.path / "adapter", replaces=True) as folder:
        write_adapters(
            folder, state.params, base.model.config, base=base_of(base.source)
        )


def _account(
    table: Table, tracked: Sequence[Probe], recipe: Recipe
) -> tuple[dict[str, Any], list[Claim]]:
    """How well the changes of the tracked responses are explained, for the summary."""
    series = table["train"]
    prompts, types = zip(*((p.prompt_name, p.type) for p in tracked), strict=True)
    fits = {
        name: fidelity(series, prompts, types, by=name)
        for name in (PREDICTED, INTEGRATED)
        if name in series
    }
    trust = table.get("trust", {"step": np.zeros(0, int), "radius": np.zeros(0)})
    told = {name: {k: v._asdict() for k, v in of.items()} for name, of in fits.items()}
    account = {
        "fidelity": told[PREDICTED],
        "balance": told.get(INTEGRATED, {}),
        "r_squared_within_types": r_squared_within_types(series, types),
        "trust_radius": [
            {
                "step": int(step),
                "multiple": float(multiple),
                "learning_rate": float(multiple * recipe.rate(int(step))),
            }
            for step, multiple in zip(trust["step"], trust["radius"], strict=True)
        ],
    }
    if INTEGRATED not in fits:
        return account, []
    first, integrated = (fits[name]["all"] for name in (PREDICTED, INTEGRATED))
    return account, [check_first_order(first, integrated, account["trust_radius"])]


def _why(
    series: Mapping[str, np.ndarray],
    observed: ProbeSet,
    parts: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """The exact quantities behind the curves.

    Args:
      series: Quantities of the observed set.
      observed: The observed probes.
      parts: What each part of the updates did to the tracked responses of each type
        over the whole run, mean nats.
    """
    types = np.array([probe.type for probe in observed.probes])
    both_ends = series["squeezing_threshold"][[0, -1]]
    thresholds = {
        type_: both_ends[:, types == type_].mean(1).tolist()
        for type_ in next(iter(parts.values()))
    }
    return {"parts": parts, "squeezing_threshold": thresholds}


def _at_both_ends(tracked: ProbeSet, table: Table) -> dict[str, np.ndarray]:
    """Log-probs of the tracked probes before and after the run, `[2, probe]`."""
    ends = [
        tracked.gather(
            [
                {"log_prob": table["tokens"][f"log_prob_{i}"][at].sum(-1)}
                for i in range(len(tracked.batches))
            ]
        )["log_prob"]
        for at in (0, -1)
    ]
    return {"log_prob": np.stack(ends).astype(float)}


def _signatures(summary: Mapping[str, Any]) -> list[str]:
    """The table of the published signatures of the trained prompts, if it has one."""
    if "train" not in summary["signatures"]:
        return []
    verdicts = [Verdict(**verdict) for verdict in summary["signatures"]["train"]]
    head = f"Published signatures ({summary['regime']}), trained prompts:"
    return ["", head, signature_table(verdicts)]


def _fits(summary: Mapping[str, Any]) -> list[str]:
    """The table of measured changes and what explains them, by type."""
    first = {name: Fidelity(**fit) for name, fit in summary["fidelity"].items()}
    lines = [
        "",
        "Tracked responses over the whole run, nats per sequence; by first order, at "
        "the start of each update:",
        f"{'type':20} {'measured':>9} {'predicted':>9} {'R2':>7} {'R2 end':>7} "
        f"{'signs':>6} {'rest':>6} {'rest/step':>9} {'floor':>8}",
    ]
    lines += [
        f"{name:20} {fit.change:+9.2f} {fit.predicted_change:+9.2f} "
        f"{legible(fit.r_squared):>7} {legible(fit.r_squared_at_end):>7} "
        f"{legible(fit.sign_agreement):>6} {legible(fit.remainder_ratio):>6} "
        f"{legible(fit.step_remainder_ratio):>9} "
        f"{legible(fit.floor_ratio, '.1e'):>8}"
        for name, fit in first.items()
    ]
    if first["all"].step_remainder_ratio is None:
        lines.append("nothing moved: no update changed a tracked response")
    if (within := summary["r_squared_within_types"]) is not None:
        lines.append(f"R2 of all about the mean of each type: {within:.3f}")
    return lines


def _balance(summary: Mapping[str, Any]) -> list[str]:
    """What each part did to each type: with what is left, they are what was measured.

    And which labels a push-down raises.
    """
    parts = summary["explanations"]["parts"]
    thresholds = summary["explanations"]["squeezing_threshold"]
    fits = summary["balance"] or summary["fidelity"]
    heads = [part_name(name).replace("_", " ").rpartition(" ") for name in parts]
    above, below = ("".join(f"{head[row]:>11}" for head in heads) for row in (0, 2))
    lines = [
        "",
        "Where they come from, nats per sequence: the parts sum to what was measured; "
        "threshold: |p|^2 - p(y)",
        *([f"{'':20}{above}"] if above.strip() else []),
        f"{'type':20}{below} = measured      R2   threshold",
    ]
    for type_, (start, end) in thresholds.items():
        numbers = "".join(f"{values[type_]:+11.2f}" for values in parts.values())
        fit = Fidelity(**fits[type_])
        lines.append(
            f"{type_:20}{numbers} = {fit.change:+8.2f} "
            f"{legible(fit.r_squared, '.4f'):>7}   {start:.3f} -> {end:.3f}"
        )
    return lines
