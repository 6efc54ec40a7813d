"""From what a finetuning run measured to its table, its claims and its summary."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ldjax.data.preferences import RESPONSE_TYPES
from ldjax.equation.resolution import rounding_of_sum
from ldjax.runs.checkpoints import Table
from ldjax.runs.folder import METRIC_COLUMNS
from ldjax.theory.curves import Curves
from ldjax.theory.signatures import Verdict
from ldjax.watch.probes import Probe

__all__ = [
    "GATED",
    "Check",
    "Fidelity",
    "check_claims",
    "check_identities",
    "check_order",
    "curves_of",
    "fidelity",
    "gap_of_parts",
    "legible",
    "metrics_table",
    "r_squared",
    "r_squared_within_types",
    "type_changes",
]

# Signatures that the toy world has to show; the others are reported.
GATED = {
    "sft": ("SFT3", "SFT8", "SFT11"),
    "dpo_from_base": ("DPO1", "DPO7"),
    "dpo_after_sft": ("DPO1", "DPO7"),
}
#: When an update is halved, a remainder of second order falls fourfold.
ORDER_BOUNDS = (3.8, 4.2)

Check = dict[str, Any]


class Fidelity(NamedTuple):
    r"""How well the predictions of all steps, added up, explain what happened.

    Over all sequences and steps of a type, of the changes accumulated since the start.
    A share of nothing, such as of a change within its rounding, is None.

    Attributes:
      r_squared: :math:`1 - \sum (m - p)^2 / \sum (m - \bar m)^2`; None without a
        spread to explain, such as that of one update and one sequence.
      r_squared_at_end: The same for the whole run's change, over sequences alone.
      sign_agreement: Share of single steps above the rounding floor whose predicted and
        measured change have the same sign.
      remainder_ratio: :math:`\|m - p\| / \|m\|` of the whole run's change.
      step_remainder_ratio: The same of single steps.
      floor_ratio: Norm of the rounding floor of the single steps over :math:`\|m\|`.
      change: Mean change of a sequence over the run, measured, in nats.
      predicted_change: The same, predicted.
    """

    r_squared: float | None
    r_squared_at_end: float | None
    sign_agreement: float | None
    remainder_ratio: float | None
    step_remainder_ratio: float | None
    floor_ratio: float | None
    change: float
    predicted_change: float


def fidelity(series: Mapping[str, np.ndarray], probes: Sequence[Probe]) -> Any:
    """`Fidelity` of each response type, of all of them, and of the margin.

    That of all is pooled: types whose changes differ by tens of nats make R² large (see
    `r_squared_within_types`).

    Args:
      series: `"predicted"`, `"measured"` and `"floor"` of every step, `[step, probe]`.
      probes: The tracked ones.
    """
    names = np.array([probe.prompt_name for probe in probes])
    types = np.array([probe.type for probe in probes])
    found = {
        type_: _fidelity({k: series[k][:, types == type_] for k in _COMPARED})
        for type_ in RESPONSE_TYPES
        if (types == type_).any()
    }
    found["all"] = _fidelity({k: series[k] for k in _COMPARED})
    with_rejected = set(names[types == "rejected"])
    both = [name for name in names[types == "chosen"] if name in with_rejected]
    if both:
        place = {(p.prompt_name, p.type): i for i, p in enumerate(probes)}
        sides = [[place[name, side] for name in both] for side in _SIDES]
        margin = {
            k: series[k][:, sides[0]] - series[k][:, sides[1]]
            for k in ("predicted", "measured")
        }
        margin["floor"] = series["floor"][:, sides[0]] + series["floor"][:, sides[1]]
        found["margin"] = _fidelity(margin)
    return found


_COMPARED = ("predicted", "measured", "floor")
_SHARES = (
    *("r_squared", "r_squared_at_end", "remainder_ratio"),
    *("step_remainder_ratio", "floor_ratio"),
)


def _fidelity(series: Mapping[str, np.ndarray]) -> Fidelity:
    predicted, measured, floor = (series[k].astype(float) for k in _COMPARED)
    sums = {"p": predicted.cumsum(0), "m": measured.cumsum(0)}
    resolved = np.maximum(abs(predicted), abs(measured)) > floor
    agrees = np.sign(predicted) == np.sign(measured)
    found = Fidelity(
        r_squared=r_squared(sums["m"], sums["p"]),
        r_squared_at_end=r_squared(sums["m"][-1], sums["p"][-1]),
        sign_agreement=float(agrees[resolved].mean()) if resolved.any() else None,
        remainder_ratio=_ratio(sums["m"][-1] - sums["p"][-1], sums["m"][-1]),
        step_remainder_ratio=_ratio(measured - predicted, measured),
        floor_ratio=_ratio(floor, measured),
        change=float(sums["m"][-1].mean()),
        predicted_change=float(sums["p"][-1].mean()),
    )
    largest = np.maximum(abs(sums["p"]), abs(sums["m"]))
    if (largest > floor.cumsum(0)).any():
        return found
    # Nothing moved that is more than the rounding of two programs: no share of it.
    return found._replace(**dict.fromkeys(_SHARES))


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float | None:
    r"""How much of what was measured is predicted, :math:`1 - SS_r / SS_t`.

    None where all that was measured is the same: there is no spread to explain.
    """
    # Exactly: the mean of equal numbers may be off by a rounding.
    if not np.ptp(measured):
        return None
    spread = ((measured - measured.mean()) ** 2).sum()
    return float(1 - ((measured - predicted) ** 2).sum() / spread)


def _ratio(part: np.ndarray, whole: np.ndarray) -> float | None:
    size = np.linalg.norm(whole)
    return float(np.linalg.norm(part) / size) if size else None


def legible(share: float | None, digits: str = ".3f") -> str:
    """A share for a table: a dash where there is none, few digits where it is absurd.

    Examples:
      >>> legible(0.98765), legible(None), legible(-3e12)
      ('0.988', '–', '< -1000')
    """
    if share is None:
        return "–"
    return format(share, digits) if share > -1000 else "< -1000"


def metrics_table(
    table: Table, probes: Mapping[str, Sequence[Probe]], *, examples_per_step: int
) -> pl.DataFrame:
    """The long table of a run, of the series `train`, `one_step` and the observed sets.

    Args:
      table: From the training loop.
      probes: Of each series that has one number per probe.
      examples_per_step: Training examples of an update.
    """
    frames = []
    for name, series in table.items():
        if name not in probes:
            continue
        watched = [(probe.prompt_name, probe.type) for probe in probes[name]]
        for quantity, values in series.items():
            if quantity != "step":
                of = watched if values.ndim == 2 else [("", "")]
                frames.append(_long(series["step"], values, of, quantity))
    examples = (pl.col("step") * examples_per_step).alias("examples")
    return pl.concat(frames).with_columns(examples).select(METRIC_COLUMNS)


def _long(
    steps: np.ndarray, values: np.ndarray, of: Sequence[tuple[str, str]], quantity: str
) -> pl.DataFrame:
    """One row for each step and thing measured, a prompt's name and a type."""
    names, types = zip(*of, strict=True)
    # Texts are copied inside of polars: a long run is written at every observation.
    place = np.tile(np.arange(len(of)), len(steps))
    return pl.DataFrame(
        {
            "step": np.repeat(steps.astype(np.int64), len(of)),
            "probe": pl.Series(names, dtype=pl.String).gather(place),
            "type": pl.Series(types, dtype=pl.String).gather(place),
            "quantity": pl.repeat(quantity, values.size, dtype=pl.String, eager=True),
            "value": values.astype(np.float64).ravel(),
        }
    )


def curves_of(
    series: Mapping[str, np.ndarray], probes: Sequence[Probe], set_name: str
) -> Curves:
    """The curves that the signatures are about, of one set of probes.

    Args:
      series: Quantities of the observed set, `[observation, probe]`, evenly spaced.
      probes: The observed ones.
      set_name: `"train"` or `"test"`.
    """
    is_in_set = np.array([p.prompt_name.startswith(f"{set_name}/") for p in probes])
    types = np.array([probe.type for probe in probes])
    curves = {}
    for type_ in RESPONSE_TYPES:
        watched = is_in_set & (types == type_)
        if watched.any():
            curves[type_] = series["log_prob"][:, watched].mean(1).astype(float)
            norms = series["adaptation_norm_published"][:, watched]
            curves[f"A_o:{type_}"] = norms.mean(1).astype(float)
            if type_ == "chosen":
                greedy = series["argmax_log_prob"][:, watched]
                curves["argmax"] = greedy.mean(1).astype(float)
    return Curves(curves)


def type_changes(curves: Curves) -> dict[str, dict[str, float]]:
    """Start, end and highest point of each type's mean log-prob, in nats."""
    return {
        name: {
            "start": float(curves[name][0]),
            "end": float(curves[name][-1]),
            "highest": float(curves[name].max()),
        }
        for name in (*RESPONSE_TYPES, "argmax")
        if name in curves
    }


def r_squared_within_types(
    series: Mapping[str, np.ndarray], probes: Sequence[Probe]
) -> float | None:
    """R² of the accumulated changes of all probes, about the mean of each's own type.

    That the types differ explains nothing here. None where no type has a spread.
    """
    types = np.array([probe.type for probe in probes])
    measured, predicted = (
        series[k].astype(float).cumsum(0) for k in ("measured", "predicted")
    )
    spread = sum(
        ((of_type - of_type.mean()) ** 2).sum()
        for of_type in (measured[:, types == type_] for type_ in set(types))
    )
    return float(1 - ((measured - predicted) ** 2).sum() / spread) if spread else None


def check_identities(
    table: Table, probes: Sequence[Probe], observed: Mapping[str, np.ndarray]
) -> list[Check]:
    """What holds whatever the run does, up to rounding in float32.

    Args:
      table: From the training loop; the series `train` has the tracked probes, and
        `tied` how their predictions compare with the derivative along the update.
      probes: The tracked ones.
      observed: Log-probs of the tracked probes at the start and the end, `[2, probe]`,
        in nats.
    """
    series = table["train"]
    parts = gap_of_parts(series)
    whole = np.abs(
        series["measured"].astype(float).sum(0) - np.diff(observed["log_prob"], axis=0)
    )
    # The steps telescope: this tells whether what one left is what the next one found.
    allowed = rounding_of_sum(series["floor"])
    return [
        {
            "text": "the parts of every step and of all sum to their prediction: "
            f"{parts:.1e} of what rounding allows",
            "holds": parts <= 1,
            "value": parts,
            "bound": 1,
        },
        *_check_tied(table),
        {
            "text": "the measured steps sum to the change of the whole run: "
            f"{whole.max():.1e} nats",
            "holds": bool((whole <= allowed).all()),
            "value": float(whole.max()),
            "bound": float(allowed.min()),
        },
    ]


def _check_tied(table: Table) -> list[Check]:
    """Whether what is predicted is of the order that the claims are about."""
    if "tied" not in table:
        return []
    gap = float(table["tied"]["gap"].max())
    return [
        {
            "text": "a step's prediction is the derivative along what it moved: "
            f"{gap:.1e} of its parts",
            "holds": gap < 1e-3,
            "value": gap,
            "bound": 1e-3,
        }
    ]


def gap_of_parts(series: Mapping[str, np.ndarray]) -> float:
    """By how much parts miss their prediction, over what rounding allows; at most 1.

    What they leave of it is called `rounding` (parameters are rounded as they move);
    with that they would sum by construction. Of every step, where it is a floor and a
    thousandth of the parts (sums over tokens and parameters in float32), and of all
    steps added up, where the floors add up as a root.
    """
    named = np.array(
        [
            part
            for name, part in series.items()
            if name.startswith("part:") and name != "part:rounding"
        ],
        float,
    )
    gap = named.sum(0) - series["predicted"]
    size = 1e-3 * abs(named).sum(0)
    floor = series["floor"].astype(float)
    gaps = (gap, gap.sum(0)), (size + floor, size.sum(0) + rounding_of_sum(floor))
    # Where nothing moved, and a response is certain, there is nothing to divide by.
    return max(
        float((abs(missed) / np.maximum(allowed, 1e-250)).max())
        for missed, allowed in zip(*gaps, strict=True)
    )


def check_claims(
    regime: str,
    curves: Curves,
    verdicts: Sequence[Verdict],
    order: Sequence[float] | np.ndarray,
) -> list[Check]:
    """What the toy world has to show.

    Args:
      regime: Which signatures it is compared with.
      curves: Of the trained prompts.
      verdicts: Of the signatures.
      order: By how much the remainder fell when an update was halved, where one moved.
    """
    gated = GATED.get(regime, ())
    claims = [
        {
            "text": f"{verdict.id}: {verdict.text}",
            "holds": verdict.verdict == "holds",
            "numbers": verdict.numbers,
        }
        for verdict in verdicts
        # A run that hardly moved has nothing to show, and its table says so.
        if verdict.id.split("_")[0] in gated and verdict.verdict != "not applicable"
    ]
    change = {name: float(curves[name][-1] - curves[name][0]) for name in _SIDES}
    if regime.startswith("sft"):
        claims.append(
            {
                "text": f"chosen ends above its start: {change['chosen']:+.2f} nats",
                "holds": change["chosen"] > 0,
            }
        )
    else:
        claims.append(
            {
                "text": f"rejected falls more than chosen: {change['rejected']:+.2f} "
                f"against {change['chosen']:+.2f} nats",
                "holds": change["rejected"] < min(change["chosen"], 0),
            }
        )
    return [*claims, check_order(order)]


def check_order(order: Sequence[float] | np.ndarray) -> Check:
    """Whether the remainder is of second order, as far as anything moved."""
    least, most = ORDER_BOUNDS
    ratios = ", ".join(f"{ratio:.2f}" for ratio in order)
    text = f"the remainder falls {ratios} times when an update is halved"
    if not len(order):
        text = "nothing moved, so there is no remainder that falls with the update"
    return {
        "text": text,
        "holds": all(least < ratio < most for ratio in order),
        "value": [float(ratio) for ratio in order],
        "bound": ORDER_BOUNDS,
    }


_SIDES = ("chosen", "rejected")
