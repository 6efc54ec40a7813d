"""The figures of a finetuning run, drawn from its run folder and nothing else.

Response types come in four groups of one colour; within a group they differ in shade
and, where lines do not tell predicted from measured, in dashes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.colors import to_rgb

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
_OUTSIDE: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (1.01, 1.0),
    "borderaxespad": 0.0,
    "fontsize": 8,
}


class Curve(NamedTuple):
    """Numbers in the order of training.

    Attributes:
      x: Training examples seen, or updates done.
      y: The numbers.
    """

    x: np.ndarray
    y: np.ndarray


# What is drawn


def change_curves(
    metrics: pl.DataFrame, quantity: str, probe_set: str
) -> dict[str, Curve]:
    """Mean over prompts of a quantity since step 0, by response type.

    Args:
      metrics: Of a run.
      quantity: Such as `log_prob`.
      probe_set: `train` or `test`.

    Returns:
      Curves over the training examples seen; no entry for a type that was not observed.
    """
    means = _means(metrics, quantity, probe_set)
    return {
        name: Curve(rows["examples"].to_numpy(), y - y[0])
        for name, rows in means.items()
        for y in [rows["value"].to_numpy()]
    }


def accumulated_curves(metrics: pl.DataFrame, quantity: str) -> dict[str, Curve]:
    """Sum over the steps of the mean over tracked sequences, by response type.

    Args:
      metrics: Of a run.
      quantity: Such as `measured`; `remainder` is measured - predicted.

    Returns:
      Curves over the updates done, from 0 before the first of them.
    """
    if quantity == "remainder":
        measured, predicted = (
            accumulated_curves(metrics, name) for name in ("measured", "predicted")
        )
        return {
            name: Curve(measured[name].x, measured[name].y - predicted[name].y)
            for name in measured
        }
    return {
        name: Curve(
            np.concatenate((rows["step"][:1], rows["step"] + 1)),
            np.concatenate(([0.0], rows["value"].cum_sum())),
        )
        for name, rows in _means(metrics, quantity, "tracked").items()
    }


def remainder_ratio(
    metrics: pl.DataFrame, types: tuple[str, ...], numerator: str = "remainder"
) -> Curve:
    """The size of what first order misses, as a fraction of the measured change.

    .. math:: ‖measured - predicted‖ / ‖measured‖

    with norms over the tracked sequences of some types, at every step.

    Args:
      metrics: Of a run.
      types: Response types to count.
      numerator: `floor` for the size of the rounding errors instead.

    Returns:
      A curve over steps, without those at which nothing moved.
    """
    rows = _tracked_pairs(metrics).filter(pl.col("type").is_in(types))
    norm = lambda column: (pl.col(column) ** 2).sum().sqrt()
    norms = (
        rows.group_by("step")
        .agg(norm(numerator).alias("numerator"), norm("measured"))
        .filter(pl.col("measured") > 0)
        .sort("step")
    )
    return Curve(
        norms["step"].to_numpy(), (norms["numerator"] / norms["measured"]).to_numpy()
    )


def part_names(metrics: pl.DataFrame) -> list[str]:
    """The parts of `PARTS` that add up to the measured change in this run."""
    logged = set(metrics["quantity"].unique())
    parts = [name for name in PARTS if name in logged]
    if "part:chosen" in parts and "part:update" in parts:
        parts.remove("part:update")  # it is the two sides together
    return [*parts, "remainder"] if {"measured", "predicted"} <= logged else parts


def final_parts(metrics: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The accumulated change at the end of training, by part and response type."""
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
    """Mean over the prompts of a set at every step, by response type in their order."""
    rows = metrics.filter(
        (pl.col("quantity") == quantity)
        & pl.col("probe").str.starts_with(f"{probe_set}/")
    )
    means = rows.group_by("type", "step", "examples").agg(pl.col("value").mean())
    parts = means.sort("step").partition_by("type", as_dict=True)
    return {name: parts[name,] for name in _types() if (name,) in parts}


def _tracked_pairs(metrics: pl.DataFrame) -> pl.DataFrame:
    """One row per tracked sequence and step, with a column per quantity."""
    quantities = ("predicted", "measured", "floor")
    rows = metrics.filter(
        pl.col("quantity").is_in(quantities)
        & pl.col("probe").str.starts_with("tracked/")
    )
    wide = rows.pivot(
        "quantity", index=["step", "probe", "type"], values="value", sort_columns=True
    )
    return wide.with_columns(
        (pl.col("measured") - pl.col("predicted")).alias("remainder")
    )


# Drawing it


def draw_curves(run: Run, baseline: Run | None = None) -> list[Path]:
    """The paper's Figures 3 and 4: how the log-probs of all response types moved.

    Args:
      run: What to draw.
      baseline: A run to compare with, in thin pale lines.

    Returns:
      The files written.
    """
    tables = [each.metrics() for each in (run, baseline) if each is not None]
    sets = [name for name in PROBE_SETS if _means(tables[0], "log_prob", name)]
    if not sets:
        return []
    title = f"Change of the log-probs since the start: {run.path.name}"
    if baseline is not None:
        title += f" (thin and pale: {baseline.path.name})"
    path = run.figure_path("curves")
    layout = {"nrows": 3, "ncols": 2 * len(sets), "figsize": (4 + 5 * len(sets), 9)}
    with figure(path, title, **layout) as axes:
        places = [axes[row, half * len(sets) :] for row in range(3) for half in (0, 1)]
        for panel, pair in zip((*GROUPS, "margin", "greedy"), places, strict=True):
            for ax, probe_set in zip(pair, sets, strict=False):
                ax.sharey(pair[0])
                for metrics, width in zip(tables, (1.8, 0.8), strict=False):
                    for line in _panel_lines(metrics, panel, probe_set):
                        _draw_line(ax, line, width)
                _finish(ax, title=f"{_panel_title(panel)}, {PROBE_SETS[probe_set]}")
            pair[0].set_ylabel("change (nats)")
            pair[len(sets) - 1].legend(**_OUTSIDE)
        for ax in axes[-1]:
            ax.set_xlabel("training examples seen")
    return [path]


class _Line(NamedTuple):
    label: str
    curve: Curve
    color: Any
    dashes: Any = "-"


def _panel_lines(metrics: pl.DataFrame, panel: str, probe_set: str) -> list[_Line]:
    curves = change_curves(metrics, "log_prob", probe_set)
    if panel in GROUPS:
        return [
            _Line(name, curves[name], _color(name), _dashes(name))
            for name in GROUPS[panel]
            if name in curves
        ]
    if panel == "margin":
        if not {"chosen", "rejected"} <= curves.keys():
            return []
        (x, chosen), (_, rejected) = curves["chosen"], curves["rejected"]
        return [_Line("chosen - rejected", Curve(x, chosen - rejected), "black")]
    greedy = change_curves(metrics, "argmax_log_prob", probe_set)
    mean = np.mean([curve.y for curve in curves.values()], axis=0)
    every = Curve(next(iter(curves.values())).x, mean)
    lines = [_Line(f"mean of {len(curves)} types", every, "#777777", _DASHES[1])]
    if "chosen" in greedy:
        lines.insert(0, _Line("greedy tokens y*", greedy["chosen"], "black"))
    return lines


def _panel_title(panel: str) -> str:
    titles = {"margin": "margin", "greedy": "squeezing"}
    return titles.get(panel, panel)


def draw_predicted_against_measured(run: Run) -> list[Path]:
    """Changes of the tracked sequences: each step as points, and added up as curves."""
    metrics = run.metrics()
    measured = accumulated_curves(metrics, "measured")
    if not measured:
        return []
    predicted = accumulated_curves(metrics, "predicted")
    pairs = _tracked_pairs(metrics)
    path = run.figure_path("predicted_against_measured")
    title = f"First-order prediction and measurement: {run.path.name}"
    with figure(path, title, nrows=2, ncols=4, figsize=(16, 7.5)) as axes:
        for (group, types), points, sums in zip(GROUPS.items(), *axes, strict=True):
            for name in reversed(types):
                rows = pairs.filter(pl.col("type") == name)
                if name not in measured:
                    continue
                scatter(
                    points,
                    rows["predicted"].to_numpy(),
                    rows["measured"].to_numpy(),
                    title=f"{group}: single steps",
                    xlabel="predicted change (nats)",
                    ylabel="measured change (nats)",
                    color=_color(name),
                    diagonal=name == types[0],
                )
                line = _Line("", predicted[name], _color(name), (0, (4, 2)))
                _draw_line(sums, line, 1.5)
                _draw_line(sums, _Line(name, measured[name], _color(name)), 1.5)
            _finish(
                sums,
                title=f"{group}: steps added up",
                xlabel="updates",
                ylabel="change (nats)",
            )
            sums.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    return [path]


def draw_remainder(run: Run) -> list[Path]:
    """How much of each step's change first order misses."""
    metrics = run.metrics()
    pairs = _tracked_pairs(metrics)
    del pairs
    raise NotImplementedError
