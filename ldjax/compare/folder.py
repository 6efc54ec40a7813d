"""What a comparison leaves behind: a run folder of one update, from before to after.

So the page of a run shows it, and `ldjax report` lays several over each other. Besides
what a run folder has, `difference.parquet`: probe, type, layer, kind and value (nats),
whose values of a response sum to what was measured but for the quadrature.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldjax.compare.difference import Difference
from ldjax.compare.texts import Watched, tracked
from ldjax.files.whole import whole_file
from ldjax.report import write_page
from ldjax.report.difference import FROM_AFTER, TABLE
from ldjax.runs.folder import Run
from ldjax.theory.claims import Claim, stored
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    part,
    table_rows,
    write_probe_lines,
)

__all__ = ["write_folder"]


def write_folder(
    run: Run,
    found: Difference,
    claims: Sequence[Claim],
    *,
    watched: Watched,
    told: Mapping[str, Any],
    parts: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write everything but `config.json`, and the page.

    Args:
      run: The folder.
      found: What changed.
      claims: What was checked.
      watched: What was watched.
      told: What the summary says besides: `headline`, `sentences` and others.
      parts: What the change of each response is the sum of, `[probe]`; by default what
        each kind of matrix did.
    """
    import polars as pl

    parts = found.shares_by("kind") if parts is None else parts
    assert watched.encode is not None
    watched.encode.tokenizer.save(run.path)
    write_probe_lines(run.path, watched.lines)
    with whole_file(run.path / TABLE) as partial:
        found.table.write_parquet(partial)
    _write_tokens(run, found)
    changes = {
        PREDICTED: found.from_before,
        INTEGRATED: found.integrated,
        MEASURED: found.measured,
        FLOOR: found.floor,
        FROM_AFTER: found.from_after,
        **{part(name): of for name, of in parts.items()},
    }
    ends = found.ends
    rows = [
        table_rows(np.arange(2), {"log_prob": ends}, found.probes, examples_per_step=1),
        table_rows(
            np.zeros(1, int),
            {name: of[None] for name, of in changes.items()},
            [*map(tracked, found.probes)],
            examples_per_step=1,
        ),
    ]
    run.write_metrics(pl.concat(rows))
    identities = [claim for claim in claims if claim.kind == "identity"]
    others = [claim for claim in claims if claim.kind != "identity"]
    run.write_summary(
        {
            **told,
            "kind": "difference",
            "nodes": found.nodes,
            "trust_radius": _number(found.trust_radius),
            "r_squared": _number(found.r_squared),
            "claims": stored(others),
            "identities": stored(identities),
        }
    )
    write_page([run])


def _write_tokens(run: Run, found: Difference) -> None:
    """`tokens.npz`, as a run has it, and by layer where that was asked for."""
    arrays: dict[str, np.ndarray] = {"step": np.arange(2)}
    for i, ((probes, batch), of) in enumerate(
        zip(found.batches, found.tokens, strict=True)
    ):
        count = len(probes)
        arrays |= {
            f"probes_{i}": probes,
            f"targets_{i}": np.asarray(batch.targets)[:count],
            f"mask_{i}": np.asarray(batch.mask)[:count],
            f"log_prob_{i}": of["log_prob"][:, :count],
            f"predicted_{i}": of["from_before"][:count],
        }
        for name in ("measured", "integrated", "from_after"):
            arrays[f"{name}_{i}"] = of[name][:count]
    if found.layers:
        arrays["layers"] = np.array(found.places.layers)
        arrays |= {f"layers_{number}": of for number, of in found.layers.items()}
    with whole_file(run.path / "tokens.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _number(value: float | None) -> float | None:
    """What JSON has no number for is None."""
    return value if value is not None and np.isfinite(value) else None
