"""The figures of `squeezing.py`, drawn from its run folder and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.report.figures import COLORS, figure
from ldjax.runs.folder import Run

__all__ = ["draw_figures"]

_SWEEPS = {
    "probability": "probability of the label pushed down, before",
    "peakiness": "scale of the logits (1: as drawn)",
    "strength": "strength of the step, rate times |features|^2",
}


def draw_figures(run: Run) -> list[Path]:
    """Draw every figure of a run; the files."""
    metrics, rows = run.metrics(), run.summary["rows"]
    paths = [run.figure_path(name) for name in ("rows", "thresholds")]
    toy_rows(metrics, rows, paths[0])
    thresholds(metrics, paths[1])
    return paths


def toy_rows(metrics: pl.DataFrame, rows: dict[str, Any], path: Path) -> None:
    """Before and after, on a linear and on a logarithmic axis."""
    title = (
        "One gradient step: probabilities before (grey) and after (blue); "
        "target (orange), threshold (dotted)"
    )
    layout: dict[str, Any] = {"nrows": len(rows), "ncols": 2}
    with figure(path, title, figsize=(11, 2.1 * len(rows)), **layout) as axes:
        for pair, (name, row) in zip(axes, rows.items(), strict=True):
            probs = _of(metrics, f"row {name}", "prob")
            before, after = (
                probs.filter(pl.col("step") == time)["value"].to_numpy()
                for time in (0, 1)
            )
            for ax, scale in zip(pair, ("linear", "log"), strict=True):
                ax.bar(range(len(before)), before, width=0.9, color=COLORS["before"])
                ax.plot(after, ".", color=COLORS["measured"], markersize=3)
                ax.axvline(row["target"], color=COLORS["negative"], linewidth=0.6)
                if row["threshold"] > 0:
                    ax.axhline(row["threshold"], color="black", linewidth=0.8, ls=":")
                ax.set(yscale=scale, xlabel="label", ylabel="probability")
            pair[1].set_ylim(max(1e-16, after.min() / 10), 3)
            pair[0].set_title(f"{name}: {row['title']}, target {row['target']}")
            pair[1].set_title(f"{row['num_rising']} of {len(before)} labels rise")


def thresholds(metrics: pl.DataFrame, path: Path) -> None:
    """The border between what rises and what falls, and how many rise."""
    title = "Labels above the threshold rise, all others fall"
    layout: dict[str, Any] = {"nrows": 3, "ncols": 3, "sharex": "col"}
    with figure(path, title, figsize=(13, 8), **layout) as axes:
        for column, (sweep, label) in zip(axes.T, _SWEEPS.items(), strict=True):
            x, border = _series(metrics, sweep, "threshold")
            ax = column[0]
            ax.plot(x, border, color="black", label="threshold")
            for quantity, color, name in (
                ("greedy_prob", COLORS["chosen"], "likeliest other label, before"),
                ("target_prob", COLORS["negative"], "label pushed down, before"),
            ):
                ax.plot(*_series(metrics, sweep, quantity), color=color, label=name)
            ax.set(title=sweep, ylabel="probability", xscale="log")
            column[1].plot(
                *_series(metrics, sweep, "num_rising"), color=COLORS["update"]
            )
            column[1].set(ylabel="labels that rise")
            column[1].set_ylim(bottom=0)
            column[2].plot(
                *_series(metrics, sweep, "greedy_share"), color=COLORS["chosen"]
            )
            column[2].set(ylabel="likeliest label's share of moved mass", xlabel=label)
            column[2].set_ylim(0, 1.05)
        axes[0, 0].legend(fontsize="small")


def _of(metrics: pl.DataFrame, series: str, quantity: str) -> pl.DataFrame:
    return metrics.filter((pl.col("type") == series) & (pl.col("quantity") == quantity))


def _series(
    metrics: pl.DataFrame, sweep: str, quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places of a sweep, ascending, and a number at each."""
    table = _of(metrics, sweep, quantity)
    x = table["probe"].cast(pl.Float64).to_numpy()
    order = np.argsort(x)
    return x[order], table["value"].to_numpy()[order]
