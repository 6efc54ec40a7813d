"""The figures of `kernel_stability.py`, drawn from its run folder and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.data.response_types import GROUPS
from ldjax.report.figures import COLORS, figure, heat_map, scatter
from ldjax.runs.folder import Run
from ldjax.watch.record import in_set

__all__ = ["draw_figures"]

_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_PROXIES = {
    "lbk:predicted": ("LBK, first order", "|K|²", 2, COLORS["predicted"]),
    "lbk:measured": ("LBK, measured", "|K|²", 2, COLORS["measured"]),
    "lbk:published": ("LBK of the code, one step", "|K|", 1, COLORS["other"][2]),
}


def draw_figures(run: Run) -> list[Path]:
    """Draw every figure of a run; the files."""
    stages = run.summary["stages"]
    metrics = run.metrics()
    return [
        _norms(stages, run.figure_path("norms")),
        _stability(stages, run.figure_path("stability")),
        _proxies(stages, metrics, run.figure_path("proxies")),
    ]


def _panels(stages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(stage, kernel) for stage, of in stages.items() for kernel in of["kernels"]]


def _norms(stages: dict[str, Any], path: Path) -> Path:
    """The norm of each type over time."""
    panels = _panels(stages)
    title = "Exact kernel norms between an update and the responses to its prompt"
    size = (4.5 * len(panels) + 2, 4.5)
    with figure(path, title, ncols=len(panels), figsize=size) as axes:
        for ax, (stage, kernel) in zip(axes[0], panels, strict=True):
            numbers = stages[stage]
            norms = numbers["kernels"][kernel]["norm"]
            for type_, norm in zip(numbers["types"], norms, strict=True):
                ax.plot(numbers["steps"], norm, label=type_, **_look(type_))
            ax.set(title=f"{stage}: {kernel}", xlabel="updates", yscale="log")
        axes[0, 0].set_ylabel("Frobenius norm, mean over update examples")
        axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return path


def _stability(stages: dict[str, Any], path: Path) -> Path:
    """How much the order of the types differs between every two times."""
    panels = _panels(stages)
    title = "1 - Spearman of the order of the response types, between two times"
    layout = {"nrows": 2, "ncols": len(panels), "figsize": (4.2 * len(panels), 8)}
    with figure(path, title, **layout) as axes:
        for column, (stage, kernel) in zip(axes.T, panels, strict=True):
            steps = stages[stage]["steps"]
            stability = stages[stage]["kernels"][kernel]["stability"]
            for ax, (name, told) in zip(
                column,
                (("norm", "norm"), ("influence:predicted", "influence")),
                strict=True,
            ):
                heat_map(
                    ax,
                    1 - np.array(stability[name]["matrix"]),
                    title=f"{stage}, {kernel}: by {told}",
                    rows="update",
                    columns="update",
                    diverging=False,
                    label="1 - Spearman",
                )
                ax.set_xticks(range(len(steps)), steps)
                ax.set_yticks(range(len(steps)), steps)
    return path


def _proxies(stages: dict[str, Any], metrics: pl.DataFrame, path: Path) -> Path:
    """What the proxies say against the exact norm, at all times."""
    panels = _panels(stages)
    title = "Proxies and the exact norm: all times, update examples and types"
    layout = {
        "nrows": len(_PROXIES),
        "ncols": len(panels),
        "figsize": (4.2 * len(panels), 4 * len(_PROXIES)),
    }
    with figure(path, title, **layout) as axes:
        for column, (stage, kernel) in zip(axes.T, panels, strict=True):
            of_stage = metrics.filter(in_set(stage))
            norm = _values(of_stage, f"{kernel}:norm")
            for ax, (name, (told, bound, power, color)) in zip(
                column, _PROXIES.items(), strict=True
            ):
                scatter(
                    ax,
                    norm**power,
                    _values(of_stage, f"{kernel}:{name}"),
                    title=f"{stage}, {kernel}: {told}",
                    xlabel=f"exact {bound}",
                    ylabel=f"LBK / rate{'²' if power == 2 else ''}",
                    color=color,
                )
                ax.set(xscale="log", yscale="log")
                if power == 2:
                    ax.axline((1, 1), (10, 10), color="#999999", linewidth=0.8)
    return path


def _values(metrics: pl.DataFrame, quantity: str) -> np.ndarray:
    rows = metrics.filter(pl.col("quantity") == quantity)
    return rows.sort("step", "probe", "type")["value"].to_numpy()


def _look(type_: str) -> dict[str, Any]:
    """Its group's colour, and dashes of its own within the group."""
    group, types = next(item for item in GROUPS.items() if type_ in item[1])
    return {
        "color": COLORS[group],
        "linestyle": _DASHES[types.index(type_)],
        "linewidth": 1.6,
    }
