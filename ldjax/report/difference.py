"""Where in the model two checkpoints differ, as the content of a page."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.report.damage import Damage
from ldjax.report.packing import packed
from ldjax.runs.folder import Run
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    TRACKED,
    in_set,
)

__all__ = ["FROM_AFTER", "TABLE", "difference_content"]

#: The file that a comparison writes: probe, type, layer, kind and value (nats).
TABLE = "difference.parquet"
#: First order at the second checkpoint.
FROM_AFTER = "from_after"
#: Numbers of single responses; of more only the means over types are shown.
MOST_NUMBERS = 250_000


def difference_content(
    run: Run, metrics: pl.DataFrame, damage: Damage
) -> dict[str, Any] | None:
    """The page's part about the places of a model.

    Args:
      run: A run.
      metrics: Its table.
      damage: Takes note of the file if it is damaged, and left out.

    Returns:
      JSON content, arrays as `packed`; None if the run compares no checkpoints.

    Examples:
      >>> import tempfile
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {})
      >>> difference_content(run, pl.DataFrame(), Damage()) is None
      True
    """
    path = run.path / TABLE
    if not path.is_file():
        return None
    return damage.instead(None, lambda: _content(path, metrics), path, "its places")


def _content(path: Path, metrics: pl.DataFrame) -> dict[str, Any]:
    table = pl.read_parquet(path, glob=False)
    responses = table["probe", "type"].unique(maintain_order=True).rows()
    places = table["layer", "kind"].unique(maintain_order=True).rows()
    # Every response has a value at every place, in one order.
    values = table["value"].to_numpy().reshape(len(responses), len(places))
    types = list(dict.fromkeys(type_ for _, type_ in responses))
    of = np.array([types.index(type_) for _, type_ in responses])
    means = np.stack([values[of == i].mean(0) for i in range(len(types))])
    shown = min(len(responses), MOST_NUMBERS // max(1, len(places)))
    layers = list(dict.fromkeys(layer for layer, _ in places))
    kinds = list(dict.fromkeys(kind for _, kind in places))
    return {
        "layers": layers,
        "kinds": kinds,
        "places": [[layers.index(layer), kinds.index(kind)] for layer, kind in places],
        "types": types,
        "means": packed(means),  # [type, place]
        "responses": [list(names) for names in responses[:shown]],
        "values": packed(values[:shown]),  # [response, place]
        "ends": _ends(metrics),
    }


def _ends(metrics: pl.DataFrame) -> list[dict[str, Any]]:
    """What was measured, and first order at both ends, mean by type."""
    names = (MEASURED, INTEGRATED, PREDICTED, FROM_AFTER, FLOOR)
    rows = metrics.filter(in_set(TRACKED) & pl.col("quantity").is_in(names))
    wide = rows.group_by("type", "quantity", maintain_order=True).agg(
        pl.col("value").mean(), pl.len().alias("count")
    )
    found: dict[str, dict[str, Any]] = {}
    for type_, quantity, value, count in wide.iter_rows():
        of = found.setdefault(type_, {"type": type_, "count": count})
        of[quantity] = value
    return list(found.values())
