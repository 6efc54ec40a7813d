"""From what a finetuning run measured to its table, its claims and its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.equation.resolution import rounding_of_sum
from ldjax.runs.checkpoints import Table
from ldjax.theory.claims import Claim
from ldjax.theory.curves import Curves
from ldjax.theory.fidelity import Fidelity, legible
from ldjax.theory.signatures import Verdict
from ldjax.watch.probes import Probe
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    is_part,
    part,
    set_of,
)

__all__ = [
    "GATED",
    "SUM_ROUNDING",
    "check_balance",
    "check_claims",
    "check_first_order",
    "check_identities",
    "check_order",
    "curves_of",
    "gap_of_parts",
    "type_changes",
    "whole_of",
]

# Signatures that the toy world has to show; the others are reported.
GATED = {
    "sft": ("SFT3", "SFT8", "SFT11"),
    "dpo_from_base": ("DPO1", "DPO7"),
    "dpo_after_sft": ("DPO1", "DPO7"),
}
#: When an update is halved, a remainder of second order falls fourfold.
ORDER_BOUNDS = (3.8, 4.2)

#: Of the accumulated changes, where first order is said to explain a run.
EXPLAINS = 0.9

#: What float32 may lose of a sum of products over all parameters, as a share of its
#: parts: roundings add up as a random walk, to 6e-8 sqrt(n), for n up to 3e8.
SUM_ROUNDING = 1e-3


def curves_of(
    series: Mapping[str, np.ndarray], probes: Sequence[Probe], set_name: str
) -> Curves:
    """The curves that the signatures are about, of one set of probes.

    Args:
      series: Quantities of the observed set, `[observation, probe]`, evenly spaced.
      probes: The observed ones.
      set_name: `"train"` or `"test"`.
    """
    is_in_set = np.array([set_of(p.prompt_name) == set_name for p in probes])
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


def check_identities(table: Table, observed: Mapping[str, np.ndarray]) -> list[Claim]:
    """What holds whatever the run does, up to rounding in float32.

    Args:
      table: From the training loop; the series `train` has the tracked probes, and
        `tied` how their predictions compare with the derivative along the update.
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
        Claim(
            f"the parts of every step and of all sum to the {whole_of(series)} change: "
            f"{parts:.1e} of what rounding allows",
            parts <= 1,
            "identity",
            numbers={"value": parts, "bound": 1},
        ),
        *_check_tied(table),
        Claim(
            "the measured steps sum to the change of the whole run: "
            f"{whole.max():.1e} nats",
            bool((whole <= allowed).all()),
            "identity",
            numbers={"value": float(whole.max()), "bound": float(allowed.min())},
        ),
    ]


def whole_of(series: Mapping[str, np.ndarray]) -> str:
    """What the parts of an update sum to."""
    return INTEGRATED if INTEGRATED in series else PREDICTED


def check_balance(
    series: Mapping[str, np.ndarray], *, tolerance: float, is_claim: bool
) -> list[Claim]:
    """Whether all parts of all updates are the measured change of the run.

    Args:
      series: Of the tracked probes; nothing is checked where none was integrated.
      tolerance: What may be left, as a share of the change: norms over the probes.
      is_claim: Whether it fails the run, whose updates may become larger than those
        that the nodes were chosen by.
    """
    if INTEGRATED not in series:
        return []
    parts = np.sum(
        [of.astype(float) for name, of in series.items() if is_part(name)], axis=0
    )
    measured = series[MEASURED].astype(float)
    left = float(np.linalg.norm((measured - parts).sum(0)))
    change = float(np.linalg.norm(measured.sum(0)))
    floor = float(np.linalg.norm(rounding_of_sum(series[FLOOR])))
    text = (
        "the balance closes: the parts of all updates leave "
        f"{left / max(change, 1e-30):.1e} of what the run changed "
        f"({change:.3g} nats); allowed {tolerance:g} and {floor:.1e} nats of rounding"
    )
    bound = tolerance * change + floor
    kind = "claim" if is_claim else "finding"
    numbers = {"value": left, "bound": bound}
    return [Claim(text, left <= bound, kind, numbers=numbers)]


def check_first_order(
    first: Fidelity, integrated: Fidelity, trust: Sequence[Mapping[str, Any]]
) -> Claim:
    """Whether the derivative at the start of each update explains a run as well.

    Args:
      first: Of all tracked changes by first order.
      integrated: The same by the nodes along the updates.
      trust: Where first order is off by a tenth: at some updates, their `multiple` and
        `learning_rate`.
    """
    text = (
        "added up, first order at the start of each update explains the changes: "
        f"R2 {legible(first.r_squared)}, along it "
        f"{legible(integrated.r_squared, '.5f')}"
    )
    if trust:
        rates = ", ".join(f"{at['learning_rate']:.1e}" for at in trust)
        text += f"; it is off by a tenth at rates of {rates}"
    numbers = {
        "value": first.r_squared,
        "integrated": integrated.r_squared,
        "bound": EXPLAINS,
    }
    holds = first.r_squared is None or first.r_squared >= EXPLAINS
    return Claim(text, holds, "finding", numbers=numbers)


def _check_tied(table: Table) -> list[Claim]:
    """Whether an account is of what moved, in the order that the claims are about."""
    if "tied" not in table:
        return []
    gap = float(table["tied"]["gap"].max())
    text = f"a step's account is by derivatives along what it moved: {gap:.1e}"
    numbers = {"value": gap, "bound": SUM_ROUNDING}
    holds = gap < SUM_ROUNDING
    return [Claim(f"{text} of its parts", holds, "identity", numbers=numbers)]


def gap_of_parts(series: Mapping[str, np.ndarray]) -> float:
    """By how much parts miss the whole, over what rounding allows; at most 1.

    The whole is the integrated change, or the predicted one where there is no other.
    What they leave of it is called `rounding` (parameters are rounded as they move);
    with that they would sum by construction. Of every step, where it is a floor and
    `SUM_ROUNDING` of the parts (sums over tokens and parameters in float32), and of all
    steps added up, where the floors add up as a root.
    """
    named = np.array(
        [
            values
            for name, values in series.items()
            if is_part(name) and name != part("rounding")
        ],
        float,
    )
    gap = named.sum(0) - series[whole_of(series)]
    size = SUM_ROUNDING * abs(named).sum(0)
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
) -> list[Claim]:
    """What the toy world has to show.

    Args:
      regime: Which signatures it is compared with.
      curves: Of the trained prompts.
      verdicts: Of the signatures.
      order: By how much the remainder fell when an update was halved, where one moved.
    """
    gated = GATED.get(regime, ())
    claims = [
        Claim(
            f"{verdict.id}: {verdict.text}",
            verdict.verdict == "holds",
            numbers={"numbers": verdict.numbers},
        )
        for verdict in verdicts
        # A run that hardly moved has nothing to show, and its table says so.
        if verdict.id.split("_")[0] in gated and verdict.verdict != "not applicable"
    ]
    change = {name: float(curves[name][-1] - curves[name][0]) for name in _SIDES}
    if regime.startswith("sft"):
        text = f"chosen ends above its start: {change['chosen']:+.2f} nats"
        claims.append(Claim(text, change["chosen"] > 0))
    else:
        text = (
            f"rejected falls more than chosen: {change['rejected']:+.2f} "
            f"against {change['chosen']:+.2f} nats"
        )
        claims.append(Claim(text, change["rejected"] < min(change["chosen"], 0)))
    return [*claims, check_order(order)]


def check_order(order: Sequence[float] | np.ndarray) -> Claim:
    """Whether the remainder is of second order, as far as anything moved."""
    least, most = ORDER_BOUNDS
    ratios = ", ".join(f"{ratio:.2f}" for ratio in order)
    text = f"the remainder falls {ratios} times when an update is halved"
    if not len(order):
        text = "nothing moved, so there is no remainder that falls with the update"
    numbers = {"value": [float(ratio) for ratio in order], "bound": ORDER_BOUNDS}
    holds = all(least < ratio < most for ratio in order)
    return Claim(text, holds, numbers=numbers)


_SIDES = ("chosen", "rejected")
