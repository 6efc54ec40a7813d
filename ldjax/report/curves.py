"""The figures of a finetuning run, drawn from its run folder and nothing else.

Response types come in four groups, each with a colour; within a group they differ in
shade and, where dashes do not mean "predicted", in dashes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.colors import to_hex, to_rgb

from ldjax.data.response_types import GROUPS, RESPONSE_TYPES
from ldjax.report.figures import COLORS, figure, scatter
from ldjax.report.measures import (
    PROBE_SETS,
    Curve,
    accumulated_curves,
    change_curves,
    final_parts,
    part_label,
    part_names,
    remainder_ratio,
    tracked_steps,
)
from ldjax.runs.folder import Run
from ldjax.watch.record import FLOOR, MEASURED, PREDICTED, part_name

__all__ = [
    "draw_by_side",
    "draw_curves",
    "draw_predicted_against_measured",
    "draw_remainder",
]

_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_SHADES = (0.0, -0.5, 0.35, -0.75)  # towards white, or black where negative


def draw_curves(run: Run, baseline: Run | None = None) -> list[Path]:
    """The paper's Figures 3 and 4: how the log-prob of every response type moved.

    Args:
      run: The run to draw.
      baseline: A run to compare it with, in thin and pale lines.

    Returns:
      The files written.
    """
    tables = [each.metrics() for each in (run, baseline) if each is not None]
    sets = [name for name in PROBE_SETS if change_curves(tables[0], "log_prob", name)]
    if not sets:
        return []
    title = f"Change of the mean log-probs since the start: {run.path.name}"
    if baseline is not None:
        title += f" (thin and pale: {baseline.path.name})"
    path = run.figure_path("curves")
    size = (4 + 5.5 * len(sets), 9)
    with figure(path, title, nrows=3, ncols=2 * len(sets), figsize=size) as axes:
        pairs = axes.reshape(6, len(sets))
        for panel, pair in zip((*GROUPS, "margin", "squeezing"), pairs, strict=True):
            for ax, probe_set in zip(pair, sets, strict=True):
                ax.sharey(pair[0])
                for metrics, pale in zip(tables, (False, True), strict=False):
                    for name, line in _panel_lines(metrics, panel, probe_set).items():
                        _draw_line(ax, line, **_look(name, pale=pale))
                _finish(ax, f"{panel}: {PROBE_SETS[probe_set]}", "examples seen")
            pair[0].set_ylabel("change (nats)")
            _legend_beside(pair[-1])
    return [path]


def draw_predicted_against_measured(run: Run) -> list[Path]:
    """Changes of the tracked sequences: single steps as points, and steps added up.

    Args:
      run: The run to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    measured = accumulated_curves(metrics, MEASURED)
    if not measured:
        return []
    predicted = accumulated_curves(metrics, PREDICTED)
    steps = tracked_steps(metrics).partition_by("type", as_dict=True)
    path = run.figure_path("predicted_against_measured")
    title = f"First-order prediction and measurement: {run.path.name}"
    with figure(path, title, nrows=2, ncols=4, figsize=(16, 8)) as axes:
        for (group, types), points, sums in zip(GROUPS.items(), *axes, strict=True):
            present = [name for name in types if name in measured]
            for name in present:
                color = _color(name)
                scatter(
                    points,
                    steps[name,][PREDICTED].to_numpy(),
                    steps[name,][MEASURED].to_numpy(),
                    title="",
                    xlabel="",
                    ylabel="",
                    color=color,
                    diagonal=name == present[0],
                )
                _draw_line(sums, measured[name], color=color, label=name)
                _draw_line(sums, predicted[name], color=color, linestyle=(0, (3, 2)))
            _finish(points, f"{group}: single steps", "predicted change (nats)")
            _finish(sums, f"{group}: added up (dashed: predicted)", "updates")
            if present:
                sums.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        axes[0, 0].set_ylabel("measured change (nats)")
        axes[1, 0].set_ylabel("change (nats)")
    return [path]


def draw_remainder(run: Run) -> list[Path]:
    """How much of each step's change first order misses, by group of types.

    Args:
      run: The run to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    if not accumulated_curves(metrics, MEASURED):
        return []
    path = run.figure_path("remainder")
    title = f"What first order misses, step by step: {run.path.name}"
    with figure(path, title, figsize=(8, 4.5)) as axes:
        ax = axes[0, 0]
        for group, types in GROUPS.items():
            ratio = remainder_ratio(metrics, types)
            if len(ratio.y):
                _draw_smoothed(ax, ratio, color=COLORS[group], label=group)
        _draw_smoothed(
            ax, remainder_ratio(metrics, RESPONSE_TYPES), color="k", label="all"
        )
        if FLOOR in metrics["quantity"]:
            floor = remainder_ratio(metrics, RESPONSE_TYPES, FLOOR)
            _draw_smoothed(
                ax, floor, color="#777777", linestyle=":", label="rounding floor"
            )
        ax.set(
            yscale="log",
            xlabel="updates",
            ylabel="|measured - predicted| / |measured|",
            title="pale: each step; bold: running median",
        )
        _legend_beside(ax)
    return [path]


def draw_by_side(run: Run) -> list[Path]:
    """The accumulated changes split into what caused them.

    Args:
      run: The run to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    measured = accumulated_curves(metrics, MEASURED)
    if not measured:
        return []
    parts = {name: accumulated_curves(metrics, name) for name in part_names(metrics)}
    path = run.figure_path("by_side")
    title = f"Where the changes come from: {run.path.name}"
    layout = {"ncols": 3, "width_ratios": (1, 1, 1.7), "figsize": (16, 5)}
    with figure(path, title, **layout) as axes:
        for ax, name in zip(axes[0], ("chosen", "rejected"), strict=False):
            for part, curves in parts.items():
                if name in curves:
                    _draw_line(ax, curves[name], color=_part_color(part))
            if name in measured:
                _draw_line(ax, measured[name], color="black")
            _finish(ax, f"log-prob of {name} (black: measured)", "updates")
        axes[0, 0].set_ylabel("accumulated change (nats)")
        _stacked_bars(axes[0, 2], final_parts(metrics), measured)
    return [path]


def _panel_lines(metrics: pl.DataFrame, panel: str, probe_set: str) -> dict[str, Curve]:
    curves = change_curves(metrics, "log_prob", probe_set)
    if panel in GROUPS:
        return {name: curves[name] for name in GROUPS[panel] if name in curves}
    if panel == "margin":
        if not {"chosen", "rejected"} <= curves.keys():
            return {}
        (x, chosen), (_, rejected) = curves["chosen"], curves["rejected"]
        return {"chosen - rejected": Curve(x, chosen - rejected)}
    greedy = change_curves(metrics, "argmax_log_prob", probe_set)
    x = next(iter(curves.values())).x
    mean = Curve(x, np.mean([curve.y for curve in curves.values()], axis=0))
    lines = {"greedy tokens (y*)": greedy["chosen"]} if "chosen" in greedy else {}
    return {**lines, f"mean of {len(curves)} types": mean}


def _look(name: str, *, pale: bool) -> dict[str, Any]:
    look: dict[str, Any] = {"color": _color(name), "linestyle": "-", "label": name}
    if name in RESPONSE_TYPES:
        look["linestyle"] = _DASHES[_place(name)]
    elif name.startswith("mean"):
        look |= {"color": "#777777", "linestyle": _DASHES[1]}
    if pale:
        look |= {"label": None, "linewidth": 0.9, "alpha": 0.65}
    return look


def _color(name: str) -> str:
    """Its group's colour in its shade; black for what is no type."""
    for group, types in GROUPS.items():
        if name in types:
            base, shade = np.array(to_rgb(COLORS[group])), _SHADES[types.index(name)]
            return to_hex(tuple((1 - abs(shade)) * base + max(shade, 0)))
    return "black"


def _part_color(part: str) -> str:
    return COLORS.get(part_name(part), "#777777")


def _place(name: str) -> int:
    return next(types.index(name) for types in GROUPS.values() if name in types)


def _draw_line(ax: Any, curve: Curve, **look: Any) -> None:
    ax.plot(curve.x, curve.y, **{"linewidth": 1.8, **look})


def _draw_smoothed(ax: Any, curve: Curve, color: str, **look: Any) -> None:
    window = max(1, len(curve.y) // 20)
    median = pl.Series(curve.y).rolling_median(window, min_samples=1, center=True)
    _draw_line(ax, curve, color=color, linewidth=0.6, alpha=0.3)
    _draw_line(ax, Curve(curve.x, median.to_numpy()), color=color, **look)


def _stacked_bars(
    ax: Any, parts: dict[str, dict[str, float]], measured: dict[str, Curve]
) -> None:
    names, places = list(measured), np.arange(len(measured))
    tops, bottoms = np.zeros(len(names)), np.zeros(len(names))
    for part, changes in parts.items():
        heights = np.array([changes[name] for name in names])
        starts = np.where(heights > 0, tops, bottoms)
        look = {"color": _part_color(part), "label": part_label(part)}
        ax.bar(places, heights, 0.7, bottom=starts, **look)
        tops, bottoms = tops + heights.clip(min=0), bottoms + heights.clip(max=0)
    ends = [measured[name].y[-1] for name in names]
    ax.plot(places, ends, "D", color="black", markersize=5, label="measured")
    _finish(ax, "all types, at the end of training", "")
    ax.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
    _legend_beside(ax)


def _finish(ax: Any, title: str, xlabel: str) -> None:
    ax.axhline(0, color="black", linewidth=0.6, zorder=0)
    ax.set(title=title, xlabel=xlabel)


def _legend_beside(ax: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
