"""From the steps to their claims, their long table and the table of the rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldjax.studies.squeezing.measure import Outcome
from ldjax.theory.claims import Claim

__all__ = ["check_claims", "metric_rows", "summaries", "table_of_rows"]


class Row(NamedTuple):
    """A row of the toy figure as the notebook has it.

    Attributes:
      title: What it shows.
      label: Whose probability is printed.
      before: Its probability before the step, to the digits that are known.
      after: After it.
      moved: How many labels but the target rise (negative: fall) together.
    """

    title: str
    label: int = 0
    before: str = ""
    after: str = ""
    moved: int = 0


ROWS = {
    "A": Row("positive, on a drawn readout", 21, "0.072", "0.947", -49),
    "B": Row("negative, on a flat distribution", 42, "0.0233", "0.0011", 49),
    "C": Row("negative, on a peak", 8, "0.763", "0.987", -48),
    "D": Row("negative, in a valley", 8, "0.763", "0.986", -48),
    "E": Row("negative, 1000 labels"),
}


def check_claims(outcomes: Sequence[Outcome], *, is_published: bool) -> list[Claim]:
    """The theory of every step, and the notebook's numbers."""
    error = max(outcome.error for outcome in outcomes)
    failed = [outcome.step for outcome in outcomes if not outcome.holds]
    claims = [
        Claim(
            f"in {len(outcomes)} steps the labels above the threshold rise, the others "
            "fall; the target falls, the likeliest other label rises; largest "
            f"difference from Lemma 1 {error:.0e} nats"
            + "".join(f"; not {s.series} at {s.x:.4g}" for s in failed[:3]),
            not failed,
            "identity",
        )
    ]
    if is_published:
        for outcome, row in zip(outcomes, ROWS.values(), strict=False):
            if row.before:
                claims.append(published_claim(outcome, row))
    return claims


def published_claim(outcome: Outcome, row: Row) -> Claim:
    """Whether a row has the notebook's numbers."""
    before, after = outcome.before[row.label], outcome.after[row.label]
    others = np.arange(len(outcome.before)) != outcome.step.label
    is_moved = (outcome.after - outcome.before) * np.sign(row.moved) > 0
    moved = int(np.sign(row.moved) * is_moved[others].sum())
    digits = [
        len(text.partition(".")[2]) for text in (row.before, row.after)
    ]  # as many as are printed
    is_same = [
        f"{value:.{n}f}" == text
        for value, n, text in zip(
            (before, after), digits, (row.before, row.after), strict=True
        )
    ]
    return Claim(
        f"{outcome.step.series}: label {row.label} {before:.4f} -> {after:.4f} "
        f"(notebook {row.before} -> {row.after}), {moved:+d} others ({row.moved:+d})",
        all(is_same) and moved == row.moved,
        "identity",
    )


def metric_rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The numbers as a long table; a row's label or a sweep's place is the probe."""
    step = outcome.step
    numbers = {
        "threshold": outcome.threshold,
        "strength": step.strength,
        "num_rising": outcome.num_rising,
        "greedy_prob": outcome.before[outcome.greedy],
        "greedy_log_ratio": np.log(
            outcome.after[outcome.greedy] / outcome.before[outcome.greedy]
        ),
        "target_prob": outcome.before[step.label],
    }
    if step.strength > 0:
        numbers["greedy_share"] = outcome.share
    table = [
        (0, 0, f"{step.x:.6g}", step.series, name, float(value))
        for name, value in numbers.items()
    ]
    if step.series.startswith("row"):
        for label in range(len(outcome.before)):
            both = (outcome.before[label], outcome.after[label])
            table += [
                (time, time, str(label), step.series, "prob", float(prob))
                for time, prob in enumerate(both)
            ]
    return table


def summaries(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """What became of the target and of the likeliest other label, by row."""
    return {
        name: {
            "title": ROWS[name].title,
            "target": outcome.step.label,
            "target_prob": [float(p[outcome.step.label]) for p in outcome[1:3]],
            "greedy": outcome.greedy,
            "greedy_prob": [float(p[outcome.greedy]) for p in outcome[1:3]],
            "num_rising": outcome.num_rising,
            "threshold": outcome.threshold,
        }
        for name, outcome in zip(ROWS, outcomes, strict=False)
    }


def table_of_rows(outcomes: Sequence[Outcome]) -> str:
    """What became of each row, as text."""
    lines = [
        "row                                  target            likeliest other  up"
    ]
    for name, row in summaries(outcomes).items():
        pairs = [
            f"{row[who]:>3}: {row[f'{who}_prob'][0]:.3g} -> {row[f'{who}_prob'][1]:.3g}"
            for who in ("target", "greedy")
        ]
        lines.append(
            "  ".join([f"{name} {row['title']:34}", *pairs, str(row["num_rising"])])
        )
    return "\n".join([*lines, ""])
