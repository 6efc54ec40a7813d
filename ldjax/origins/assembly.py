"""From the sums of a sweep to its ledger."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ldjax.equation import resolution
from ldjax.equation.sequences import sides_of
from ldjax.origins.kept import Arrays
from ldjax.origins.table import COLUMNS, GRADIENT, Ledger
from ldjax.origins.tally import Rows
from ldjax.origins.trajectory import Responses, Trajectory

if TYPE_CHECKING:
    import polars as pl

__all__ = ["assembled"]


def assembled(
    sums: Arrays,
    rows: Rows,
    probes: Responses,
    trajectory: Trajectory,
    *,
    nodes: int,
    by_token: int,
    layers: Sequence[str],
    num_parameters: int,
) -> Ledger:
    """A ledger of the sums of all responses.

    Args:
      sums: As of `Tally`, and `floor`, `[step, probe]`.
      rows: What the batches consist of.
      probes: The responses.
      trajectory: The run.
      nodes: Nodes along an update.
      by_token: How many responses, the first ones, have token maps.
      layers: Names of the layers.
      num_parameters: How many were trained.
    """
    quadrature = sums["measured"] - sums["integrated"]
    names = list(zip(probes.prompt_names, probes.types, strict=True))
    about = {
        "nodes": nodes,
        "num_steps": trajectory.num_steps,
        "num_parameters": num_parameters,
        "by_token": by_token,
        "probes": [
            {
                "probe": name,
                "type": type_,
                "measured": float(sums["measured"][:, k].sum()),
                "floor": float(resolution.rounding_of_sum(sums["floor"][:, k])),
                "quadrature": float(quadrature[:, k].sum()),
            }
            for k, (name, type_) in enumerate(names)
        ],
    }
    return Ledger(
        _table(sums | {"quadrature": quadrature}, rows, names),
        about,
        _layers(sums, rows, names, layers),
        _tokens(sums, rows, probes, trajectory, by_token) if by_token else None,
    )


def _table(sums: Arrays, rows: Rows, names: list[tuple[str, str]]) -> "pl.DataFrame":
    import polars as pl

    steps = np.arange(len(rows.counts))
    # Of all rows of all updates, those that there are.
    step, row = np.nonzero(np.arange(rows.counts.max()) < rows.counts[:, None])
    example = None
    if rows.places is not None:
        example = pl.Series(rows.names, dtype=pl.String).gather(rows.places[step, row])
    parts = []
    for k, (probe, type_) in enumerate(names):
        of = functools.partial(_rows, probe, type_)
        for side in rows.sides:
            values = sums[f"examples/{side}"][step, k, row]
            parts.append(of(GRADIENT, step, values, example=example, side=side))
        for origin in ("weight_decay", "noise"):
            if sums[origin].any():
                parts.append(of(origin, steps, sums[origin][:, k]))
        if sums["before"].any():
            parts.append(of("before", steps[:1], sums["before"][k : k + 1]))
        for origin in ("rounding", "quadrature"):
            parts.append(of(origin, steps, sums[origin][:, k]))
    # In the order in which it happened.
    place = pl.struct("probe", "type").rle_id().alias("place")
    table = pl.concat(parts).with_columns(place)
    return table.sort("place", "step", maintain_order=True).select(COLUMNS)


def _rows(
    probe: str,
    type_: str,
    origin: str,
    steps: np.ndarray,
    values: np.ndarray,
    *,
    example: "pl.Series | None" = None,
    side: str | None = None,
) -> "pl.DataFrame":
    import polars as pl

    text = lambda value: pl.lit(value, dtype=pl.String)
    frame = pl.DataFrame({"step": steps.astype(np.int32), "value": values})
    return frame.select(
        text(probe).alias("probe"),
        text(type_).alias("type"),
        "step",
        text(origin).alias("origin"),
        (text(None) if example is None else example).alias("example"),
        text(side).alias("side"),
        "value",
    )


def _layers(
    sums: Arrays, rows: Rows, names: list[tuple[str, str]], layers: Sequence[str]
) -> "pl.DataFrame":
    import polars as pl

    of_side = [(side, GRADIENT, sums[f"layers/{side}"]) for side in rows.sides]
    origins: list[Any] = [*of_side, (None, "weight_decay", sums["layers/weight_decay"])]
    found = [
        (*name, layer, side, origin, float(values[k, place]))
        for k, name in enumerate(names)
        for place, layer in enumerate(layers)
        for side, origin, values in origins
    ]
    columns = ("probe", "type", "layer", "side", "origin")
    schema = dict.fromkeys(columns, pl.String) | {"value": pl.Float64}
    return pl.DataFrame(found, schema=schema, orient="row")


def _tokens(
    sums: Mapping[str, np.ndarray],
    rows: Rows,
    probes: Responses,
    trajectory: Trajectory,
    count: int,
) -> Arrays:
    """The maps from tokens to tokens, and what was at their places."""
    shape = (len(rows.names), len(rows.sides), int(rows.lengths.max()))
    targets, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    assert rows.places is not None
    for step, places in enumerate(rows.places):
        batch = sides_of(trajectory.batch_fn(step))
        for i, side in enumerate(batch.values()):
            known = np.asarray(side.mask)
            where = places[: len(known)], i, slice(known.shape[1])
            mask[where] = known
            targets[where] = np.where(known, np.asarray(side.targets), 0)
    found: Arrays = {"rows": np.array(rows.names), "sides": np.array(rows.sides)}
    found |= {"targets": targets, "mask": mask}
    watched = jax.tree.map(
        lambda leaf: np.asarray(leaf)[:count], probes.sequences.plain
    )
    owners = np.nonzero(watched.mask)[0]  # of the responses of one token each
    stacked = np.stack([sums[f"map/{side}"] for side in rows.sides], axis=2)
    for k, scored in enumerate(watched.mask):
        found[f"targets_{k}"] = watched.targets[k, scored]
        found[f"mask_{k}"] = scored[scored]
        tokens = stacked[: len(owners)][owners == k]
        found[f"map_{k}"] = tokens.astype(np.float32)
    return found
