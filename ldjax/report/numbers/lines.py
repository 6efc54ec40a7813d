"""Means over the prompts of a set, with what they are uncertain by.

A prompt is a draw: what is said of a type of response is a mean over prompts, and its
standard error says how much other prompts might have changed it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from ldjax.data.response_types import RESPONSE_TYPES, SIDES
from ldjax.watch.record import in_set

__all__ = ["GREEDY", "MARGIN", "Line", "mean_lines", "per_token"]

#: What is derived from the responses: chosen - rejected of a prompt, and the log-prob
#: of the most likely token after each prefix of its chosen response.
MARGIN, GREEDY = "margin", "greedy"


class Line(NamedTuple):
    """How a mean over prompts moved.

    Attributes:
      x: Updates done before each observation.
      y: The mean of the changes since the first observation, in nats.
      error: Its standard error over the prompts; NaN for a single prompt.
      start: The mean at the first observation.
      num_prompts: Over how many prompts.
    """

    x: np.ndarray
    y: np.ndarray
    error: np.ndarray
    start: float
    num_prompts: int

    @property
    def end(self) -> float:
        """The change at the last observation."""
        return float(self.y[-1])


def mean_lines(metrics: pl.DataFrame, probe_set: str) -> dict[str, Line]:
    """The lines of a set of prompts, by response type; `MARGIN` and `GREEDY` too.

    Args:
      metrics: The table of a run.
      probe_set: A set of observed prompts, such as `train`.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [(s, s, f"train/{i}", "chosen", "log_prob", -9.0 + (1 + i) * s)
      ...         for s in (0, 1) for i in (0, 2)]
      >>> table = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
      >>> line = mean_lines(table, "train")["chosen"]
      >>> line.start, line.y.tolist(), line.error.tolist(), line.num_prompts
      (-9.0, [0.0, 2.0], [0.0, 1.0], 2)
    """
    value, one = pl.col("value"), ("probe", "type")
    rows = _sequences(metrics.filter(in_set(probe_set))).sort("step")
    means = (
        rows.with_columns(change=value - value.first().over(one))
        .group_by("type", "step")
        .agg(
            value.mean(),
            pl.len().alias("count"),
            y=pl.col("change").mean(),
            error=pl.col("change").std() / pl.len().sqrt(),
        )
        .sort("step")
    )
    by_type = {
        name: of for (name,), of in means.partition_by("type", as_dict=True).items()
    }
    order = [
        *RESPONSE_TYPES,
        *sorted(by_type.keys() - {MARGIN, GREEDY}),
        MARGIN,
        GREEDY,
    ]
    return {
        name: _line(by_type[name]) for name in dict.fromkeys(order) if name in by_type
    }


def per_token(
    metrics: pl.DataFrame, lengths: Mapping[tuple[str, str], int]
) -> pl.DataFrame:
    """The table with the nats of each response divided by its number of tokens.

    Args:
      metrics: The table of a run.
      lengths: The number of tokens, by the names of the probe and of the type.

    Returns:
      Its rows about these responses.

    Examples:
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> row = (0, 0, "train/0", "chosen", "log_prob", -9.0)
      >>> table = pl.DataFrame([row], schema=METRIC_COLUMNS, orient="row")
      >>> per_token(table, {("train/0", "chosen"): 3})["value"].to_list()
      [-3.0]
    """
    names, types = zip(*lengths, strict=True) if lengths else ((), ())
    known = pl.DataFrame(
        {"probe": names, "type": types, "tokens": list(lengths.values())},
        schema={"probe": pl.String, "type": pl.String, "tokens": pl.Int64},
    )
    joined = metrics.join(known, on=["probe", "type"])
    return joined.with_columns(pl.col("value") / pl.col("tokens")).drop("tokens")


def _sequences(rows: pl.DataFrame) -> pl.DataFrame:
    """Log-probs of the responses of each prompt, and what is derived from them."""
    of = lambda quantity: rows.filter(pl.col("quantity") == quantity).select(
        "step", "probe", "type", "value"
    )
    own, taken = of("log_prob"), set(rows["type"].unique())
    found = [own]
    chosen, rejected = (own.filter(pl.col("type") == side) for side in SIDES)
    if MARGIN not in taken:
        both = chosen.join(rejected, on=["step", "probe"])
        margin = both.select("step", "probe", "type", value=_difference)
        found.append(margin.with_columns(type=pl.lit(MARGIN)))
    if GREEDY not in taken:
        greedy = of("argmax_log_prob").filter(pl.col("type") == "chosen")
        found.append(greedy.with_columns(type=pl.lit(GREEDY)))
    return pl.concat(found)


_difference = pl.col("value") - pl.col("value_right")


def _line(means: pl.DataFrame) -> Line:
    error = means["error"].cast(pl.Float64).fill_null(float("nan"))
    return Line(
        means["step"].to_numpy(),
        means["y"].to_numpy(),
        error.to_numpy(),
        float(means["value"][0]),
        int(means["count"].max()),  # pyright: ignore[reportArgumentType]
    )
