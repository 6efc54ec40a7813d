"""How well a run is accounted for: R², signs and remainders of the changes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldjax.data.response_types import RESPONSE_TYPES

__all__ = ["Fidelity", "fidelity", "legible", "r_squared", "r_squared_within_types"]


class Fidelity(NamedTuple):
    r"""How well the predictions of all steps, added up, explain what happened.

    Over all sequences and steps of a type, of the changes accumulated since the start.
    A share of nothing, such as of a change within its rounding, is None. Predicted is
    what first order says, or another account of the same steps.

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

    Examples:
      >>> steps = np.array([[0.5, 1.0], [0.5, 1.0]])
      >>> series = {"measured": steps, "predicted": 0.9 * steps, "floor": 0 * steps}
      >>> fit = fidelity(series, ["a", "b"], ["chosen", "chosen"])["all"]
      >>> round(fit.r_squared, 3), round(fit.remainder_ratio, 3), fit.sign_agreement
      (0.947, 0.1, 1.0)
    """

    r_squared: float | None
    r_squared_at_end: float | None
    sign_agreement: float | None
    remainder_ratio: float | None
    step_remainder_ratio: float | None
    floor_ratio: float | None
    change: float
    predicted_change: float


def fidelity(
    series: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    types: Sequence[str],
    *,
    by: str = "predicted",
) -> dict[str, Fidelity]:
    """`Fidelity` of each response type, of all of them, and of the margin.

    That of all is pooled: types whose changes differ by tens of nats make R² large (see
    `r_squared_within_types`). The margin is that of the prompts with both sides.

    Args:
      series: `"measured"`, `"floor"` and what is compared with them of every step,
        `[step, probe]`, in nats.
      prompts: The prompt of each probe.
      types: The response type of each probe.
      by: What is compared: `"predicted"`, or `"integrated"` along the updates.

    Examples:
      >>> steps = np.array([[0.5, -1.0]])
      >>> series = {"measured": steps, "predicted": steps, "floor": 0 * steps}
      >>> found = fidelity(series, ["a", "a"], ["chosen", "rejected"])
      >>> list(found), found["margin"].change
      (['chosen', 'rejected', 'all', 'margin'], 1.5)
    """
    of = np.array(types)
    series = {
        "predicted": series[by],
        "measured": series["measured"],
        "floor": series["floor"],
    }

    def at(places: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[:, places] for name, values in series.items()}

    found = {
        type_: _fidelity(at(of == type_))
        for type_ in RESPONSE_TYPES
        if (of == type_).any()
    }
    found["all"] = _fidelity(series)
    place = {each: i for i, each in enumerate(zip(prompts, types, strict=True))}
    sides = np.array(
        [
            (place[prompt, "chosen"], place[prompt, "rejected"])
            for prompt, type_ in place
            if type_ == "chosen" and (prompt, "rejected") in place
        ]
    ).T
    if sides.size:
        chosen, rejected = map(at, sides)
        margin = {k: chosen[k] - rejected[k] for k in ("predicted", "measured")}
        margin["floor"] = chosen["floor"] + rejected["floor"]
        found["margin"] = _fidelity(margin)
    return found


_SHARES = (
    *("r_squared", "r_squared_at_end", "remainder_ratio"),
    *("step_remainder_ratio", "floor_ratio"),
)


def _fidelity(series: Mapping[str, np.ndarray]) -> Fidelity:
    predicted, measured, floor = (
        series[name].astype(float) for name in ("predicted", "measured", "floor")
    )
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

    Examples:
      >>> r_squared(np.array([0.0, 2.0]), np.array([0.0, 1.0]))
      0.5
    """
    # Exactly: the mean of equal numbers may be off by a rounding.
    if not np.ptp(measured):
        return None
    spread = ((measured - measured.mean()) ** 2).sum()
    return float(1 - ((measured - predicted) ** 2).sum() / spread)


def r_squared_within_types(
    series: Mapping[str, np.ndarray], types: Sequence[str]
) -> float | None:
    """R² of the accumulated changes of all probes, about the mean of each's own type.

    That the types differ explains nothing here. None where no type has a spread.

    Args:
      series: `"predicted"` and `"measured"` of every step, `[step, probe]`.
      types: The response type of each probe.

    Examples:
      >>> measured = np.array([[9.0, 11.0, -9.0, -11.0]])
      >>> series = {"measured": measured, "predicted": 10 * np.sign(measured)}
      >>> r_squared_within_types(series, ["chosen"] * 2 + ["rejected"] * 2)
      0.0
    """
    of = np.array(types)
    measured, predicted = (
        series[k].astype(float).cumsum(0) for k in ("measured", "predicted")
    )
    spread = sum(
        ((of_type - of_type.mean()) ** 2).sum()
        for of_type in (measured[:, of == type_] for type_ in set(types))
    )
    return float(1 - ((measured - predicted) ** 2).sum() / spread) if spread else None


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
