"""The table of a ledger with its names as numbers, to be added up."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ldjax.report.ledger.shares import Rows

__all__ = ["Table", "read_table"]

#: Whose a part of a change is: that of examples by whether it is the response's own.
OWN, OTHERS = "own", "others"
_KNOWN = (OWN, OTHERS, "weight_decay", "before", "noise", "rounding", "quadrature")
_GRADIENT = "gradient"


class Table(NamedTuple):
    """The rows of a ledger.

    Attributes:
      whose: Whose parts there are, its own example's first.
      sides: The sides of examples.
      examples: The names of examples.
      num_responses: Number of responses.
      response: The response that moved, `[row]`.
      step: The update that the row counts for, `[row]`.
      of: The place of its origin among `whose`, `[row]`.
      side: The place of the side, -1 of none, `[row]`.
      example: The place of the example, -1 of none, `[row]`.
      value: Its share, in nats, `[row]`.
    """

    whose: list[str]
    sides: list[str]
    examples: list[str]
    num_responses: int
    response: np.ndarray
    step: np.ndarray
    of: np.ndarray
    side: np.ndarray
    example: np.ndarray
    value: np.ndarray

    def rows(self) -> Rows:
        """The rows about examples."""
        kept = self.example >= 0
        columns = self.response, self.step, self.example, self.side, self.value
        return Rows(*(column[kept] for column in columns))

    def dated(self, width: int, num_windows: int) -> np.ndarray:
        """What a response's own examples, and others, gave in each window of updates.

        Returns:
          Sums, `[response, window, own or others]`.
        """
        shape = self.num_responses, num_windows, 2
        kept = self.example >= 0
        is_other = np.array([name == OTHERS for name in self.whose])[self.of[kept]]
        place = self.response[kept], self.step[kept] // width, is_other.astype(np.int64)
        flat = np.ravel_multi_index(place, shape)
        sums = np.bincount(flat, self.value[kept], math.prod(shape))
        return sums.reshape(shape)

    def balance(self) -> tuple[list[tuple[str, str | None]], np.ndarray]:
        """The parts that there are, and their sums over the run, `[response, part]`."""
        names = [None, *self.sides]
        key = self.of * len(names) + self.side + 1
        found, place = np.unique(key, return_inverse=True)
        shape = self.num_responses, len(found)
        parts = [
            (self.whose[of], names[side])
            for of, side in zip(*np.divmod(found, len(names)), strict=True)
        ]
        flat = np.ravel_multi_index((self.response, place), shape)
        return parts, np.bincount(flat, self.value, math.prod(shape)).reshape(shape)


def read_table(path: Path, responses: Sequence[tuple[str, str]]) -> Table:
    """The rows of a ledger about some responses.

    Args:
      path: Its `ledger.parquet`.
      responses: Probe and type of each.
    """
    known = pl.DataFrame(
        [(*names, place) for place, names in enumerate(responses)],
        schema={"probe": pl.String, "type": pl.String, "response": pl.Int64},
        orient="row",
    )
    prompt = pl.col("example").str.split(":").list.first()
    whose = (
        pl.when(pl.col("origin") != _GRADIENT)
        .then("origin")
        .when(prompt == pl.col("probe"))
        .then(pl.lit(OWN))
        .otherwise(pl.lit(OTHERS))
    )
    table = pl.read_parquet(path, glob=False).with_columns(whose=whose)
    table = table.join(known, on=["probe", "type"], maintain_order="left")
    found = set(table["whose"].unique())
    order = [name for name in dict.fromkeys((*_KNOWN, *sorted(found))) if name in found]
    sides, examples = (
        table[name].drop_nulls().unique().sort().to_list()
        for name in ("side", "example")
    )
    return Table(
        whose=order,
        sides=sides,
        examples=examples,
        num_responses=len(responses),
        response=table["response"].to_numpy(),
        step=table["step"].to_numpy().astype(np.int64),
        of=_places(table["whose"], order),
        side=_places(table["side"], sides),
        example=_places(table["example"], examples),
        value=table["value"].to_numpy(),
    )


def _places(names: pl.Series, known: Sequence[str]) -> np.ndarray:
    """The place of each name among the known ones, -1 of none."""
    places: Mapping[str, int] = {name: place for place, name in enumerate(known)}
    return names.replace_strict(
        list(places), list(places.values()), default=-1, return_dtype=pl.Int64
    ).to_numpy()
