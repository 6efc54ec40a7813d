"""The balance of a run: what its measured changes are the sum of, by response type."""

from typing import NamedTuple

import polars as pl

from ldjax.report.measures import accumulated_curves, part_names
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    QUADRATURE,
    REMAINDER,
    TRACKED,
    in_set,
)

__all__ = ["Balance", "balances"]


class Balance(NamedTuple):
    """What the measured change of a type of response is the sum of, over a run.

    All but the number are means over the tracked responses, in nats.

    Attributes:
      num_responses: Over how many tracked responses.
      measured: Their change.
      predicted: First order at the start of each update, added up.
      integrated: The integral along each update, added up; None if it was not recorded.
      floor: What rounding may make of it, added up; None if it was not recorded.
      parts: Of the change, by quantity: their sum is `measured`.
    """

    num_responses: int
    measured: float
    predicted: float
    integrated: float | None
    floor: float | None
    parts: dict[str, float]


def balances(metrics: pl.DataFrame) -> dict[str, Balance]:
    """The balance of each type of response that is tracked.

    Args:
      metrics: The table of a run.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> numbers = {"measured": 2.0, "predicted": 1.5, "part:update": 1.5}
      >>> rows = [(0, 0, "tracked/0", "chosen", k, v) for k, v in numbers.items()]
      >>> table = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> balances(table)["chosen"].parts
      {'part:update': 1.5, 'remainder': 0.5}
    """
    tracked = metrics.filter(in_set(TRACKED))
    if not {MEASURED, PREDICTED} <= set(tracked["quantity"].unique()):
        return {}
    counts = dict(tracked.group_by("type").agg(pl.col("probe").n_unique()).iter_rows())
    names = part_names(metrics) or _unsplit(metrics)
    ends = {
        name: _ends(metrics, name)
        for name in (MEASURED, PREDICTED, INTEGRATED, FLOOR, *names)
    }
    return {
        type_: Balance(
            num_responses=counts[type_],
            measured=measured,
            predicted=ends[PREDICTED][type_],
            integrated=ends[INTEGRATED].get(type_),
            floor=ends[FLOOR].get(type_),
            parts={name: ends[name][type_] for name in names if type_ in ends[name]},
        )
        for type_, measured in ends[MEASURED].items()
    }


def _unsplit(metrics: pl.DataFrame) -> list[str]:
    """The account as a whole, and what it leaves."""
    if INTEGRATED in metrics["quantity"]:
        return [INTEGRATED, QUADRATURE]
    return [PREDICTED, REMAINDER]


def _ends(metrics: pl.DataFrame, quantity: str) -> dict[str, float]:
    curves = accumulated_curves(metrics, quantity)
    return {type_: float(curve.y[-1]) for type_, curve in curves.items()}
