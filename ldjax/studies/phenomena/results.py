"""What a phenomenon's study says: numbers, claims, identities, and its verdict."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ldjax.studies.tables import markdown
from ldjax.theory.claims import Claim, Standing, standing

__all__ = [
    "ROUNDING",
    "Number",
    "Outcome",
    "check_claims",
    "check_identities",
    "metric_rows",
    "overall",
    "tables",
]

#: What float32 may lose of an identity, relative (as in `kernel_stability.py`).
ROUNDING = 1e-4


class Number(NamedTuple):
    """A number of the long table.

    Attributes:
      arm: What was done, or what was looked at.
      updates: After so many.
      type: A response type or another kind of thing.
      quantity: What was measured.
      value: The number.
    """

    arm: str
    updates: int
    type: str
    quantity: str
    value: float


class Outcome(NamedTuple):
    """What one seed shows of a phenomenon.

    Attributes:
      table: The numbers that are reported, by what they are, with their unit.
      claims: Whether each is true.
      gaps: By how much each identity fails, relative; at most `ROUNDING`.
      numbers: What the figure shows.
    """

    table: dict[str, float]
    claims: dict[str, bool]
    gaps: dict[str, float]
    numbers: list[Number]


# By seed.
Outcomes = Mapping[int, Outcome]


def check_claims(
    outcomes: Outcomes, kind: Literal["claim", "finding"] = "claim"
) -> list[Claim]:
    """What has to be true under every seed, or of a smoke test may be."""

    def of(text: str) -> Claim:
        verdict = standing([outcome.claims[text] for outcome in outcomes.values()])
        return Claim(text, verdict == "held", kind, verdict)

    return [of(text) for text in next(iter(outcomes.values())).claims]


def overall(claims: Sequence[Claim]) -> Standing:
    """Of a phenomenon: that of its claims where they agree, else it depends."""
    verdicts = {claim.verdict for claim in claims}
    if verdicts == {"held"}:
        return "held"
    return "refuted" if verdicts == {"refuted"} else "depends"


def check_identities(outcomes: Outcomes) -> list[Claim]:
    """What holds whatever the models do, up to rounding; the worst of all seeds."""
    names = next(iter(outcomes.values())).gaps
    worst = {
        name: max(outcome.gaps[name] for outcome in outcomes.values()) for name in names
    }
    return [
        Claim(
            f"{name}: {gap:.1e} (at most {ROUNDING:.0e})",
            gap <= ROUNDING,
            "identity",
            numbers={"value": gap, "bound": ROUNDING},
        )
        for name, gap in worst.items()
    ]


def metric_rows(
    name: str, outcomes: Outcomes, *, batch_size: int
) -> list[tuple[Any, ...]]:
    """A phenomenon's part of `metrics.parquet`; a probe is `PHENOMENON/SEED/ARM`."""
    return [
        (
            number.updates,
            number.updates * batch_size,
            f"{name}/{seed}/{number.arm}",
            number.type,
            number.quantity,
            float(number.value),
        )
        for seed, outcome in outcomes.items()
        for number in outcome.numbers
    ]


def tables(title: str, outcomes: Outcomes) -> str:
    """The claims and the numbers of a phenomenon, in Markdown, by seed."""
    claims = check_claims(outcomes)
    seeds = [f"seed {seed}" for seed in outcomes]
    truths = [
        [text, *(_yes(outcome.claims[text]) for outcome in outcomes.values()), told]
        for text, told in ((claim.text, claim.verdict or "") for claim in claims)
    ]
    numbers = []
    for name in next(iter(outcomes.values())).table:
        values = np.array([outcome.table[name] for outcome in outcomes.values()])
        mean, low, high = map(_told, (values.mean(), values.min(), values.max()))
        numbers.append([name, *map(_told, values), f"{mean} [{low}, {high}]"])
    return "\n".join(
        [
            f"## {title}: {overall(claims)}",
            "",
            markdown(["claim", *seeds, "verdict"], truths),
            "",
            markdown(["number", *seeds, "mean [range]"], numbers),
        ]
    )


def _yes(truth: bool) -> str:
    return "true" if truth else "false"


def _told(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
