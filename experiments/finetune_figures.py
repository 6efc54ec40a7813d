"""The figures of a finetuning run, drawn from its run folder and nothing else.

Response types come in four groups, each with a colour; within a group they differ in
shade and, where dashes do not mean "predicted", in dashes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.colors import to_hex, to_rgb

from ldjax.report.figures import COLORS, figure, scatter
from ldjax.runs import Run

__all__ = [
    "Curve",
    "accumulated_curves",
    "change_curves",
    "draw_by_side",
    "draw_curves",
    "draw_predicted_against_measured",
    "draw_remainder",
    "final_parts",
    "part_names",
    "remainder_ratio",
]

GROUPS = {
    "chosen": ("chosen", "chosen_initial", "chosen_gptsemantic", "chosen_gptformat"),
    "rejected": ("rejected", "reject_gptsemantic", "reject_gptformat"),
    "irrelevant": ("irr_train", "irr_test", "irr_hum"),
    "random": ("random_permute", "random_nonhum"),
}
TYPES = tuple(name for types in GROUPS.values() for name in types)
PROBE_SETS = {"train": "trained prompts", "test": "held-out prompts"}
PARTS = {
    "part:chosen": ("chosen side", COLORS["chosen"]),
    "part:rejected": ("rejected side", COLORS["rejected"]),
    "part:update": ("this step's gradient", COLORS["update"]),
    "part:history": ("optimizer's history", COLORS["history"]),
    "part:weight_decay": ("weight decay", COLORS["weight_decay"]),
    "remainder": ("remainder", COLORS["remainder"]),
}
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_SHADES = (0.0, -0.5, 0.35, -0.75)  # towards white, or black where negative


class Curve(NamedTuple):
    """Numbers in the order of training.

    Attributes:
      x: Training examples seen, or updates.
      y: The numbers.
    """

    x: np.ndarray
    y: np.ndarray


# What is drawn


def change_curves(
    metrics: pl.DataFrame, quantity: str, probe_set: str
) -> dict[str, Curve]:
    """Mean over the prompts of a set, since step 0, by response type.

    Args:
      metrics: Of a run.
      quantity: Such as `log_prob`.
      probe_set: One of `PROBE_SETS`.

    Returns:
      Curves over the training examples seen, of the types that were observed.
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
      metrics: Of a run.
      quantity: Such as `measured`; `remainder` is measured - predicted.

    Returns:
      Curves over the updates done, from 0 before the first.
    """
    if quantity == "remainder":
        predicted = accumulated_curves(metrics, "predicted")
        return {
            name: Curve(curve.x, curve.y - predicted[name].y)
            for name, curve in accumulated_curves(metrics, "measured").items()
        }
    return {
        name: Curve(
            np.concatenate((rows["step"][:1], rows["step"] + 1)),
            np.concatenate(([0.0], rows["value"].cum_sum())),
        )
        for name, rows in _means(metrics, quantity, "tracked").items()
    }


def remainder_ratio(
    metrics: pl.DataFrame, types: Sequence[str], numerator: str = "remainder"
) -> Curve:
    """What first order misses at each step, as a fraction of what was measured.

    This is |measured - predicted| / |measured|, with Euclidean norms over the tracked
    sequences of some types.

    Args:
      metrics: Of a run.
      types: The response types that count.
      numerator: `floor` puts the size of the rounding errors there instead.

    Returns:
      A curve over the updates, without those at which nothing moved.
    """
    norm = lambda column: (pl.col(column) ** 2).sum().sqrt()
    norms = (
        _tracked(metrics)
        .filter(pl.col("type").is_in(types))
        .group_by("step")
        .agg(norm(numerator).alias("numerator"), norm("measured"))
        .filter(pl.col("measured") > 0)
        .sort("step")
    )
    ratio = norms["numerator"] / norms["measured"]
    return Curve(norms["step"].to_numpy(), ratio.to_numpy())


def part_names(metrics: pl.DataFrame) -> list[str]:
    """The parts that were recorded and that add up to the measured change."""
    logged = set(metrics["quantity"].unique())
    if {"measured", "predicted"} <= logged:
        logged.add("remainder")
    if "part:chosen" in logged:
        logged.discard("part:update")  # the two sides together
    return [name for name in PARTS if name in logged]


def final_parts(metrics: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The accumulated change at the end of training by part, then by response type."""
    return {
        part: {
            name: float(curve.y[-1])
            for name, curve in accumulated_curves(metrics, part).items()
        }
        for part in part_names(metrics)
    }


def _means(
    metrics: pl.DataFrame, quantity: str, probe_set: str
) -> dict[str, pl.DataFrame]:
    """Mean over the prompts of a set at every step, by response type."""
    of_set = pl.col("probe").str.starts_with(f"{probe_set}/")
    means = (
        metrics.filter((pl.col("quantity") == quantity) & of_set)
        .group_by("type", "step", "examples")
        .agg(pl.col("value").mean())
        .sort("step")
    )
    by_type = means.partition_by("type", as_dict=True)
    return {name: by_type[name,] for name in TYPES if (name,) in by_type}


def _tracked(metrics: pl.DataFrame) -> pl.DataFrame:
    """One row per tracked sequence and step, with a column per quantity."""
    quantities = ("predicted", "measured", "floor")
    of_set = pl.col("probe").str.starts_with("tracked/")
    wide = metrics.filter(pl.col("quantity").is_in(quantities) & of_set).pivot(
        "quantity", index=["step", "probe", "type"], values="value"
    )
    remainder = pl.col("measured") - pl.col("predicted")
    return wide.with_columns(remainder.alias("remainder"))


# How it is drawn


def draw_curves(run: Run, baseline: Run | None = None) -> list[Path]:
    """The paper's Figures 3 and 4: how the log-prob of every response type moved.

    Args:
      run: What to draw.
      baseline: A run to compare it with, in thin and pale lines.

    Returns:
      The files written.
    """
    tables = [each.metrics() for each in (run, baseline) if each is not None]
    sets = [name for name in PROBE_SETS if _means(tables[0], "log_prob", name)]
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
      run: What to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    measured = accumulated_curves(metrics, "measured")
    if not measured:
        return []
    predicted = accumulated_curves(metrics, "predicted")
    steps = _tracked(metrics).partition_by("type", as_dict=True)
    path = run.figure_path("predicted_against_measured")
    title = f"First-order prediction and measurement: {run.path.name}"
    with figure(path, title, nrows=2, ncols=4, figsize=(16, 8)) as axes:
        for (group, types), points, sums in zip(GROUPS.items(), *axes, strict=True):
            present = [name for name in types if name in measured]
            for name in present:
                color = _color(name)
                scatter(
                    points,
                    steps[name,]["predicted"].to_numpy(),
                    steps[name,]["measured"].to_numpy(),
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
      run: What to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    if not _means(metrics, "measured", "tracked"):
        return []
    path = run.figure_path("remainder")
    title = f"What first order misses, step by step: {run.path.name}"
    with figure(path, title, figsize=(8, 4.5)) as axes:
        ax = axes[0, 0]
        for group, types in GROUPS.items():
            ratio = remainder_ratio(metrics, types)
            if len(ratio.y):
                _draw_smoothed(ax, ratio, color=COLORS[group], label=group)
        _draw_smoothed(ax, remainder_ratio(metrics, TYPES), color="k", label="all")
        if "floor" in metrics["quantity"]:
            floor = remainder_ratio(metrics, TYPES, "floor")
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
      run: What to draw.

    Returns:
      The files written.
    """
    metrics = run.metrics()
    measured = accumulated_curves(metrics, "measured")
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
                    _draw_line(ax, curves[name], color=PARTS[part][1])
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
    if name in TYPES:
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
            return to_hex((1 - abs(shade)) * base + max(shade, 0))
    return "black"


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
        label, color = PARTS[part]
        ax.bar(places, heights, 0.7, bottom=starts, color=color, label=label)
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
