"""The numbers that figures and pages of a finetuning run show.

The paper's response types come in four groups; others follow them. `train` and `test`
are probes observed on a schedule, `tracked` ones are predicted and measured at every
update.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    QUADRATURE,
    REMAINDER,
    TEST,
    TRACKED,
    TRAIN,
    in_set,
    is_part,
    part,
    part_name,
)

__all__ = [
    "PARTS",
    "PROBE_SETS",
    "Curve",
    "accumulated_curves",
    "change_curves",
    "final_parts",
    "part_label",
    "part_names",
    "remainder_ratio",
    "tracked_steps",
]

PROBE_SETS = {TRAIN: "trained prompts", TEST: "held-out prompts"}
#: What adds up to a measured change, and in words.
PARTS = {
    part("chosen"): "chosen side",
    part("rejected"): "rejected side",
    part("update"): "this step's gradient",
    part("history"): "optimizer's history",
    part("history of chosen"): "history of the chosen side",
    part("history of rejected"): "history of the rejected side",
    part("history of update"): "history of the gradients",
    part("before"): "history before the run",
    part("accumulated"): "earlier micro-batches",
    part("weight_decay"): "weight decay",
    part("noise"): "noise",
    part("rounding"): "rounding",
    PREDICTED: "first order",
    INTEGRATED: "integrated along the updates",
    REMAINDER: "remainder",
    QUADRATURE: "quadrature",
}
#: What is left of the measured change, and of what account of it.
_ACCOUNTED = {REMAINDER: PREDICTED, QUADRATURE: INTEGRATED}


class Curve(NamedTuple):
    """Numbers in the order of training.

    Attributes:
      x: Training examples seen, or updates.
      y: The numbers.

    Examples:
      >>> Curve(np.arange(2), np.zeros(2)).x.tolist()
      [0, 1]
    """

    x: np.ndarray
    y: np.ndarray


def change_curves(
    metrics: pl.DataFrame, quantity: str, probe_set: str
) -> dict[str, Curve]:
    """Mean over the prompts of a set, since step 0, by response type.

    Args:
      metrics: The table of a run.
      quantity: A quantity of the table, such as `log_prob`.
      probe_set: One of `PROBE_SETS`.

    Returns:
      Curves over the training examples seen, of the types that were observed.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(s, 4 * s, "train/0", "chosen", "log_prob", -9.0 + s) for s in (0, 1)]
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> change_curves(metrics, "log_prob", "train")["chosen"].y.tolist()
      [0.0, 1.0]
    """
    return {
        name: Curve(
            rows["examples"].to_numpy(), (rows["value"] - rows["value"][0]).to_numpy()
        )
        for name, rows in _means(metrics, quantity, probe_set).items()
    }


def accumulated_curves(metrics: pl.DataFrame, quantity: str) -> dict[str, Curve]:
    """Mean over the tracked sequences, added up step by step, by response type.

    Args:
      metrics: The table of a run.
      quantity: A quantity such as `measured`; `remainder` is measured - predicted,
        and `quadrature` is measured - integrated.

    Returns:
      Curves over the updates done, from 0 before the first.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(s, s, "tracked/0", "chosen", "measured", 0.5) for s in (0, 1)]
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> accumulated_curves(metrics, "measured")["chosen"].y.tolist()
      [0.0, 0.5, 1.0]
    """
    if quantity in _ACCOUNTED:
        accounted = accumulated_curves(metrics, _ACCOUNTED[quantity])
        return {
            name: Curve(curve.x, curve.y - accounted[name].y)
            for name, curve in accumulated_curves(metrics, MEASURED).items()
        }
    return {
        name: Curve(
            np.concatenate((rows["step"][:1], rows["step"] + 1)),
            np.concatenate(([0.0], rows["value"].cum_sum())),
        )
        for name, rows in _means(metrics, quantity, TRACKED).items()
    }


def remainder_ratio(
    metrics: pl.DataFrame, types: Sequence[str], numerator: str = REMAINDER
) -> Curve:
    """What first order misses at each step, as a fraction of what was measured.

    This is |measured - predicted| / |measured|, with Euclidean norms over the tracked
    sequences of some types.

    Args:
      metrics: The table of a run.
      types: The response types that count.
      numerator: `floor` puts the size of the rounding errors there instead.

    Returns:
      A curve over the updates, without those at which nothing moved.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> numbers = {"measured": 2.0, "predicted": 1.5, "floor": 1e-6}
      >>> rows = [(0, 0, "tracked/0", "chosen", k, v) for k, v in numbers.items()]
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> remainder_ratio(metrics, ("chosen",)).y.tolist()
      [0.25]
    """
    norm = lambda column: (pl.col(column) ** 2).sum().sqrt()
    norms = (
        tracked_steps(metrics)
        .filter(pl.col("type").is_in(types))
        .group_by("step")
        .agg(norm(numerator).alias("numerator"), norm(MEASURED))
        .filter(pl.col(MEASURED) > 0)
        .sort("step")
    )
    ratio = norms["numerator"] / norms[MEASURED]
    return Curve(norms["step"].to_numpy(), ratio.to_numpy())


def tracked_steps(metrics: pl.DataFrame) -> pl.DataFrame:
    """One row per tracked sequence and step, with a column per quantity.

    Args:
      metrics: The table of a run.

    Returns:
      Columns `step`, `probe`, `type`, `predicted`, `measured`, `floor` where it was
      recorded, and `remainder`, which is measured - predicted; in nats.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(0, 0, "tracked/0", "chosen", "measured", 0.5)]
      >>> rows.append((0, 0, "tracked/0", "chosen", "predicted", 0.375))
      >>> metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> tracked_steps(metrics)["remainder"].to_list()
      [0.125]
    """
    is_compared = pl.col("quantity").is_in((PREDICTED, MEASURED, FLOOR))
    wide = metrics.filter(is_compared & in_set(TRACKED)).pivot(
        "quantity", index=["step", "probe", "type"], values="value"
    )
    remainder = pl.col(MEASURED) - pl.col(PREDICTED)
    return wide.with_columns(remainder.alias(REMAINDER))


def part_names(metrics: pl.DataFrame) -> list[str]:
    """The parts that were recorded and that add up to the measured change, in order.

    Examples:
      >>> part_names(pl.DataFrame({"quantity": ["part:history", "loss"]}))
      ['part:history']
    """
    logged = set(metrics["quantity"].unique())
    parts = {name for name in logged if is_part(name)}
    if part("chosen") in parts:
        parts.discard(part("update"))  # the two sides together
    found = [name for name in PARTS if name in parts]
    found += sorted(parts - PARTS.keys())
    # What is left of the measured change is a part only beside others.
    left = QUADRATURE if INTEGRATED in logged else REMAINDER
    is_compared = {MEASURED, _ACCOUNTED[left]} <= logged
    return [*found, left] if found and is_compared else found


def part_label(name: str) -> str:
    """A part in words.

    Examples:
      >>> part_label("part:weight_decay"), part_label("part:mine")
      ('weight decay', 'mine')
    """
    return PARTS.get(name, part_name(name))


def final_parts(metrics: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The accumulated change at the end of training by part, then by response type.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(0, 0, "tracked/0", "chosen", "part:update", 0.5)]
      >>> final_parts(pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row"))
      {'part:update': {'chosen': 0.5}}
    """
    return {
        name: {
            type_: float(curve.y[-1])
            for type_, curve in accumulated_curves(metrics, name).items()
        }
        for name in part_names(metrics)
    }


def _means(
    metrics: pl.DataFrame, quantity: str, probe_set: str
) -> dict[str, pl.DataFrame]:
    """Mean over the prompts of a set at every step, by response type."""
    means = (
        metrics.filter((pl.col("quantity") == quantity) & in_set(probe_set))
        .group_by("type", "step", "examples")
        .agg(pl.col("value").mean())
        .sort("step")
    )
    by_type = means.partition_by("type", as_dict=True)
    known = dict.fromkeys(RESPONSE_TYPES) | dict.fromkeys(
        sorted(name for (name,) in by_type)
    )
    return {name: by_type[name,] for name in known if (name,) in by_type}
