"""From what `displacement.py` measured to its numbers, identities and claims."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ldjax.origins import Ledger
from ldjax.runs.checkpoints import Table
from ldjax.studies.displacement.measure import SIDES
from ldjax.studies.displacement.settings import RATES, RateName
from ldjax.theory.claims import Claim
from ldjax.theory.fidelity import legible, r_squared
from ldjax.watch.probes import Probe
from ldjax.watch.record import MEASURED, PREDICTED, series_rows

__all__ = [
    "PAIRS",
    "REST",
    "Account",
    "check_claims",
    "check_identities",
    "explained",
    "long_table",
    "why",
]

#: Whose pairs moved an answer, and what else did; columns of `Ledger.sum`.
PAIRS = {"own": "its own pair", "others": "other pairs"}
REST = {
    "before": "before the run",
    "weight_decay": "weight decay",
    "noise": "noise",
    "rounding": "rounding",
    "quadrature": "quadrature",
}
#: Of the changes of single updates at the small rate.
LEAST_R_SQUARED = 0.95
#: Most that a balance may leave open, as a share of the way that an answer went: what
#: the nodes along the updates and float32 leave.
MOST_OPEN = 1e-3
#: They push the chosen side up exactly as hard as the rejected one down, always.
EQUAL_PUSH = ("dpo", "sigmoid", "spin", "reference_free", "hinge")


class Account(NamedTuple):
    """What is known of one training.

    Attributes:
      table: From the training loop.
      change: Measured change of each watched chosen answer over the whole run, nats.
      ledger: Where it came from.
      batch_size: Pairs of an update.
    """

    table: Table
    change: np.ndarray
    ledger: Ledger
    batch_size: int


class Alone(NamedTuple):
    """The criterion of each pair beside a step on that pair alone, `[time, pair]`.

    Attributes:
      said: Whether <g+, g-> > |g+|^2, scaled as by the batch's step.
      own: Whether the pair's own sides lower its chosen answer in the step alone, to
        first order and as that step scaled them.
      fell: Whether the chosen answer fell in the step alone, by momentum too.
      is_clear: Whether first order of its own sides is more than all else in that
        (momentum, remainder and rounding).
    """

    said: np.ndarray
    own: np.ndarray
    fell: np.ndarray
    is_clear: np.ndarray

    @classmethod
    def of(cls, table: Table) -> "Alone":
        """The two series at the same updates."""
        steps, alone = table["train"], table["alone"]
        said = _own_sides_lower(steps)[np.isin(steps["step"], alone["step"])]
        own, measured = alone["own"], alone["measured"]
        return cls(said, own < 0, measured < 0, abs(own) > abs(measured - own))

    def counts(self) -> dict[str, int]:
        """How many steps were taken, and what became of them."""
        return {
            "taken": self.said.size,
            "said_to_fall": int(self.said.sum()),
            "own_sides_lower_it": int(self.own.sum()),
            "said_otherwise": int((self.own != self.said).sum()),
            "fell": int(self.fell.sum()),
        }


def explained(account: Account) -> dict[str, Any]:
    """The whole run's account: mean over the watched pairs, in nats."""
    steps, balance = account.table["train"], account.ledger.sum()
    falls, labels = _own_sides_lower(steps), account.table["labels"]
    return {
        "change": float(account.change.mean()),
        "balance": balance.drop("probe", "type").mean().row(0, named=True),
        "r_squared": r_squared(steps[MEASURED], steps[PREDICTED]),
        "r_squared_accumulated": r_squared(
            steps[MEASURED].cumsum(0), steps[PREDICTED].cumsum(0)
        ),
        "share_whose_own_sides_lower_it": {
            "start": float(falls[0].mean()),
            "end": float(falls[-1].mean()),
            "all": float(falls.mean()),
        },
        "steps_on_a_pair_alone": Alone.of(account.table).counts(),
        "labels": {
            side: {
                f"labels:{name}": float(values.mean())
                for name, values in _of_side(labels, side).items()
            }
            for side in SIDES
        },
    }


def _of_side(labels: Mapping[str, np.ndarray], side: str) -> dict[str, np.ndarray]:
    """Means over the labels of the contexts of a side, by name."""
    return {
        name.partition(":")[2]: values
        for name, values in labels.items()
        if name.startswith(side) and not name.endswith(":rises")
    }


def long_table(
    name: RateName, account: Account, watched: Mapping[str, Sequence[Probe]]
) -> pl.DataFrame:
    """A training's part of `metrics.parquet`; a probe is `RATE/PROMPT`.

    Args:
      name: Of the rate.
      account: What was measured.
      watched: The responses of the watched pairs, by side.
    """
    steps, labels, alone = (account.table[k] for k in ("train", "labels", "alone"))
    of_sides = {
        side: {f"labels:{k}": v for k, v in _of_side(labels, side).items()}
        | {"step": labels["step"]}
        for side in SIDES
    }
    of_alone = {k if k == "step" else f"alone:{k}": v for k, v in alone.items()}
    frame = series_rows(
        {"chosen:steps": steps, "alone": of_alone, **of_sides},
        dict.fromkeys(("chosen:steps", "alone"), watched["chosen"]) | dict(watched),
        examples_per_step=account.batch_size,
    )
    named = pl.concat_str(pl.lit(f"{name}/"), "probe").alias("probe")
    return frame.with_columns(named)


def check_identities(name: RateName, account: Account) -> list[Claim]:
    """What holds whatever the loss: the balance closes, up to rounding in float32."""
    rate, steps = RATES[name], account.table["train"]
    probes = account.ledger.about["probes"]
    floor, quadrature = (
        np.array([probe[key] for probe in probes]) for key in ("floor", "quadrature")
    )
    # Every origin of every update, and what two passes measured that know of none.
    whole = account.ledger.by("probe")["value"].to_numpy()
    gap, way = abs(whole - account.change), abs(steps[MEASURED]).sum(0)
    rounding = abs(account.ledger.sum()["rounding"].to_numpy())
    return [
        Claim(
            f"{rate}: the balance closes: all origins sum to the change of the whole "
            f"run within {gap.max():.1e} nats",
            bool((gap <= floor).all()),
            "identity",
        ),
        Claim(
            f"{rate}: nothing else is in it: the nodes along the updates leave "
            f"{abs(quadrature).max():.1e} nats",
            bool((abs(quadrature) <= floor + MOST_OPEN * way).all()),
            "identity",
        ),
        Claim(
            f"{rate}: nothing is paid wrongly: what the origins leave of the updates "
            f"is rounding, {rounding.max():.1e} nats",
            bool((rounding <= account.ledger.rounding_bounds()).all()),
            "identity",
        ),
    ]


def check_claims(name: RateName, account: Account, *, loss: str) -> list[Claim]:
    """What a small rate has to show."""
    steps = account.table["train"]
    share = r_squared(steps[MEASURED], steps[PREDICTED])
    claims = [
        Claim(
            f"{RATES[name]}: first order explains R2 = {legible(share, '.4f')} of the "
            f"changes of single updates (at least {LEAST_R_SQUARED})",
            share is not None and share >= LEAST_R_SQUARED,
        )
    ]
    if loss in EQUAL_PUSH:
        claims.append(_check_alone(name, Alone.of(account.table)))
    return claims


def _check_alone(name: RateName, alone: Alone) -> Claim:
    """Whether a real step on a pair alone does what its inner products say."""
    agree = (alone.fell == alone.said)[alone.is_clear]
    return Claim(
        f"{RATES[name]}: a step on a pair alone lowers its chosen answer where, and "
        f"only where, <g+, g-> > |g+|^2: {agree.sum()} of {agree.size} times that "
        f"first order was the larger part ({alone.said.size} steps taken), of which "
        f"it fell in {alone.fell[alone.is_clear].sum()}",
        bool(agree.size and agree.all()),
    )


def _line(balance: Mapping[str, float], whose: str, words: str) -> str:
    sides = ", ".join(f"{side} {balance[f'{whose} {side}']:+.4g}" for side in SIDES)
    return f"  {words:12} {balance[whose]:+10.4g}  ({sides})"


def _own_sides_lower(steps: Mapping[str, np.ndarray]) -> np.ndarray:
    return steps["product:cross"] > steps["product:chosen"]


def why(rate: str, numbers: dict[str, Any]) -> str:
    """The answer, in numbers and words."""
    balance, share, alone = (
        numbers[name]
        for name in (
            "balance",
            "share_whose_own_sides_lower_it",
            "steps_on_a_pair_alone",
        )
    )
    lines = [
        "",
        f"{rate.capitalize()}: the chosen answer moved by {numbers['change']:+.3g} "
        "nats (mean over the watched pairs), by training on",
        *(_line(balance, *of) for of in PAIRS.items()),
        "  and the rest: "
        + ", ".join(f"{name} {balance[origin]:+.2g}" for origin, name in REST.items()),
        f"First order explains R2 = {legible(numbers['r_squared'])} of single updates, "
        f"{legible(numbers['r_squared_accumulated'])} accumulated.",
        "A pair's own two sides, as the batch's step scaled them, lower its chosen "
        f"answer in {share['start']:.0%} of the pairs at the start, {share['end']:.0%} "
        f"at the end, {share['all']:.1%} over all updates.",
        f"Of {alone['taken']} steps on a pair alone its own sides lower it in "
        f"{alone['own_sides_lower_it']} (said of {alone['said_to_fall']}, wrongly "
        f"either way of {alone['said_otherwise']}); with momentum and higher orders it "
        f"fell in {alone['fell']}.",
    ]
    lines += [
        f"In the context of the {side} answer {labels['labels:rising']:.0%} of the "
        f"labels rise, y* gets {labels['labels:to_greedy']:.0%} of the mass that "
        f"moves; signs right: {labels['labels:exact']:.1%} by the exact first "
        f"order, {labels['labels:multiple']:.1%} if K were k I."
        for side, labels in numbers["labels"].items()
    ]
    return "\n".join(lines)
