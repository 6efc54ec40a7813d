"""A run as the content of a page: everything it shows, ready for JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ldjax.data.response_types import GROUPS, RESPONSE_TYPES
from ldjax.report.browser import browser_content
from ldjax.report.damage import Damage
from ldjax.report.difference import difference_content
from ldjax.report.glossary import GLOSSARY
from ldjax.report.ledger import ledger_content
from ldjax.report.measures import (
    PARTS,
    PROBE_SETS,
    Curve,
    accumulated_curves,
    part_names,
    remainder_ratio,
)
from ldjax.report.numbers.balance import balances
from ldjax.report.numbers.lines import GREEDY, MARGIN, Line, mean_lines, per_token
from ldjax.report.packing import encoded, packed
from ldjax.report.words import MEANINGS, headline, sentences
from ldjax.runs.folder import Run
from ldjax.watch.record import (
    FLOOR,
    INTEGRATED,
    MEASURED,
    PREDICTED,
    TRACKED,
    in_set,
    probe_lengths,
)

__all__ = ["constants", "evenly", "run_content"]

#: More points than a chart has pixels for are left out.
MOST_POINTS = 300
#: Tables of more cells are left out, such as a kernel between long texts.
MOST_CELLS = 200_000


def constants() -> dict[str, Any]:
    """What does not depend on a run: names and what they mean.

    Examples:
      >>> constants()["groups"]["random"]
      ('random_permute', 'random_nonhum')
    """
    return {
        "groups": {**GROUPS, "margin and greedy": (MARGIN, GREEDY)},
        "meanings": MEANINGS,
        "parts": PARTS,
        "sets": PROBE_SETS,
        "glossary": GLOSSARY,
    }


def run_content(run: Run) -> dict[str, Any]:
    """All that the page shows of a run.

    Args:
      run: A run of any experiment; what it did not record is empty.

    Returns:
      JSON content, arrays as `packed`. Of a damaged file it says that it is left out.

    Raises:
      FileNotFoundError: If it has no `metrics.parquet`: it has not been written yet.
      ValueError: If that is damaged, without which there is nothing to show.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {"seed": 0})
      >>> run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
      >>> run_content(run)["curves"]["train"]["chosen"]["y"]["shape"]
      '1'
    """
    if not (run.path / "metrics.parquet").is_file():
        raise FileNotFoundError(
            f"{run.path} has no metrics.parquet: name a run that has begun, such as a "
            "stage of a pipeline."
        )
    metrics, damage = run.metrics(), Damage()
    config, head = damage.instead(
        ({"settings": {}}, ""),
        lambda: (config := run.config, headline(config["settings"])),
        run.path / "config.json",
        "the settings",
    )
    told = _of_summary(metrics, {})
    if (path := run.path / "summary.json").is_file():
        read = lambda: _of_summary(metrics, run.summary)
        told = damage.instead(told, read, path, "its numbers")
    probes = browser_content(run, metrics, damage)
    return finite(
        {
            "name": run.path.resolve().name,
            "headline": head,
            "updates": _updates(metrics),
            "sentences": sentences(_lines(metrics), balances(metrics)),
            # A comparison of checkpoints says in its own words what it found.
            **told,
            **_numbers(metrics),
            "per_token": _per_token(run, metrics) if probes else None,
            "remainder": _drawn(_remainder(metrics)),
            "probes": probes,
            "ledger": ledger_content(run, damage),
            "difference": difference_content(run, metrics, damage),
            "figures": [] if any(_lines(metrics).values()) else _figures(run),
            "config": config,
            "notes": damage.notes,
        }
    )


def _numbers(metrics: pl.DataFrame) -> dict[str, Any]:
    """What charts and the table at the top show."""
    parts = {name: accumulated_curves(metrics, name) for name in part_names(metrics)}
    compared = (MEASURED, PREDICTED, INTEGRATED)
    return {
        "curves": {
            name: {type_: _line(line) for type_, line in lines.items()}
            for name, lines in _lines(metrics).items()
        },
        "tracked": {
            name: _drawn(accumulated_curves(metrics, name)) for name in compared
        },
        "parts": {name: _drawn(lines) for name, lines in parts.items()},
        "balances": {
            name: balance._asdict() | {"count": balance.num_responses}
            for name, balance in balances(metrics).items()
        },
    }


def _per_token(run: Run, metrics: pl.DataFrame) -> dict[str, Any] | None:
    """The same numbers per token, where the lengths of the responses are known."""
    lengths = probe_lengths(run.path)
    return _numbers(per_token(metrics, lengths)) if lengths else None


def _lines(metrics: pl.DataFrame) -> dict[str, dict[str, Line]]:
    return {name: mean_lines(metrics, name) for name in PROBE_SETS}


def _line(line: Line) -> dict[str, Any]:
    places = evenly(len(line.x), MOST_POINTS)
    arrays = {name: getattr(line, name)[places] for name in ("x", "y", "error")}
    packs = {name: packed(array) for name, array in arrays.items()}
    return packs | {"start": line.start, "count": line.num_prompts}


def _updates(metrics: pl.DataFrame) -> int:
    """How many updates were done: an observation is before one, a comparison of one."""
    done = pl.col("step") + in_set(TRACKED).cast(pl.Int64)
    ends = metrics.select(done)["step"].to_list()
    return max(ends, default=0)


def _of_summary(metrics: pl.DataFrame, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a run with the help of its `summary.json`."""
    checks = [*summary.get("claims", []), *summary.get("identities", [])]
    words = {
        name: summary[name] for name in ("headline", "sentences") if name in summary
    }
    return words | {
        "checks": [{"text": of["text"], "holds": bool(of["holds"])} for of in checks],
        "signatures": {
            name: [dict(verdict) for verdict in verdicts]
            for name, verdicts in summary.get("signatures", {}).items()
        },
        "tables": _tables(metrics, summary.get("tokens", {})),
        "first": summary.get("first_example", []),
    }


def evenly(count: int, most: int) -> np.ndarray:
    """Places of at most so many of a number of points, the first and the last too.

    Examples:
      >>> evenly(5, 3).tolist(), evenly(2, 3).tolist()
      ([0, 2, 4], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def finite(content: Any) -> Any:
    """The content with None for numbers that are not finite, which JSON has not.

    Examples:
      >>> finite({"value": [1.0, float("nan")]})
      {'value': [1.0, None]}
    """
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def _drawn(lines: Mapping[str, Curve]) -> dict[str, Any]:
    drawn = {}
    for name, (x, y) in lines.items():
        places = evenly(len(x), MOST_POINTS)
        drawn[name] = {"x": packed(x[places]), "y": packed(y[places])}
    return drawn


def _remainder(metrics: pl.DataFrame) -> dict[str, Curve]:
    """Running medians of the ratio of single steps, and of the rounding floor."""
    quantities = set(metrics.filter(in_set(TRACKED))["quantity"].unique())
    if not {MEASURED, PREDICTED} <= quantities:
        return {}
    curves = {name: remainder_ratio(metrics, types) for name, types in GROUPS.items()}
    curves["all types"] = remainder_ratio(metrics, RESPONSE_TYPES)
    if FLOOR in quantities:
        curves["rounding floor"] = remainder_ratio(metrics, RESPONSE_TYPES, FLOOR)
    return {name: _smooth(curve) for name, curve in curves.items() if len(curve.y)}


def _figures(run: Run) -> list[dict[str, str]]:
    """The pictures of an experiment of another kind, whose numbers have no chart."""
    return [
        {
            "name": path.stem.replace("_", " "),
            "source": f"data:image/png;base64,{encoded(path.read_bytes())}",
        }
        for path in sorted((run.path / "figures").glob("*.png"))
    ]


def _smooth(curve: Curve) -> Curve:
    window = max(1, len(curve.y) // 20)
    median = pl.Series(curve.y).rolling_median(window, min_samples=1, center=True)
    return Curve(curve.x, median.to_numpy())


def _tables(
    metrics: pl.DataFrame, tokens: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Quantities with a number for each two places or labels: heat maps.

    Args:
      metrics: The table of the run.
      tokens: Names of rows (`probe`) and columns (`update`), where they are tokens.
    """
    is_number = [pl.col(name).str.contains(r"^\d+$") for name in ("probe", "type")]
    rows = metrics.filter(pl.all_horizontal(is_number)).with_columns(
        pl.col("probe", "type").cast(pl.Int64)
    )
    tables = []
    for (quantity,), cells in rows.group_by("quantity", maintain_order=True):
        shape = [cells[name].to_numpy().max() + 1 for name in ("probe", "type")]
        steps = cells["step"].unique().sort().to_numpy()
        if min(shape) < 2 or len(steps) * math.prod(shape) > MOST_CELLS:
            continue
        values = np.full((len(steps), *shape), np.nan, np.float32)
        step = np.searchsorted(steps, cells["step"].to_numpy())
        place = (step, cells["probe"].to_numpy(), cells["type"].to_numpy())
        values[place] = cells["value"].to_numpy()
        tables.append(
            {
                "name": quantity,
                "steps": steps.tolist(),
                "values": packed(values),
                "rows": tokens.get("probe", []),
                "columns": tokens.get("update", []),
            }
        )
    return tables
