"""The look that all figures share, and the few panels they are made of.

Zero is neutral and the two signs are blue and orange, which readers with any colour
vision tell apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files, never windows

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from ldjax.files.whole import whole_file

__all__ = ["COLORS", "figure", "heat_map", "paired_bars", "scatter"]

# Okabe & Ito's palette without its yellow, which is too light for lines.
COLORS = {
    "predicted": "#E69F00",
    "measured": "#0072B2",
    "before": "#B0B0B0",
    "positive": "#0072B2",
    "negative": "#D55E00",
    # groups of response types, and the two sides of an update by preferences
    "chosen": "#0072B2",
    "rejected": "#E69F00",
    "irrelevant": "#D55E00",
    "random": "#56B4E9",
    # other parts of a change
    "update": "#009E73",
    "history": "#CC79A7",
    "accumulated": "#8C6D31",
    "weight_decay": "#555555",
    "noise": "#7A68A6",
    "rounding": "#A3A3A3",
    "history of chosen": "#56B4E9",
    "history of rejected": "#F0C869",
    "history of update": "#66C2A5",
    "remainder": "#C0C0C0",
    "quadrature": "#C0C0C0",
    "other": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
}
_STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def figure(path: Path, title: str, **subplots: Any) -> Iterator[Any]:
    """Axes to draw on; the figure is saved to `path` at the end.

    Args:
      path: A PNG file.
      title: Says what the figure shows.
      **subplots: What `plt.subplots` takes (`nrows`, `ncols`, `figsize`, ...).

    Yields:
      The array of axes, always two-dimensional.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "figure.png"
      >>> with figure(path, "nothing", ncols=2) as axes:
      ...     axes.shape
      (1, 2)
      >>> path.exists()
      True
    """
    with plt.rc_context(_STYLE):
        drawn, axes = plt.subplots(squeeze=False, layout="constrained", **subplots)
        try:
            yield axes
            drawn.suptitle(title)
            with whole_file(path) as partial:
                drawn.savefig(partial, format="png")
        finally:
            plt.close(drawn)


def heat_map(
    ax: Any,
    table: Float[np.ndarray, "rows columns"],
    *,
    title: str,
    rows: str,
    columns: str,
    diverging: bool,
    label: str,
    emphasise_off_diagonal: bool = False,
) -> None:
    """A table as colours, with the number in each cell of a small one.

    Args:
      ax: Where to draw.
      table: The numbers.
      title: The panel's title.
      rows: What a row is.
      columns: What a column is.
      diverging: Whether zero is the neutral middle of the colours.
      label: The label of the colour bar, with its unit.
      emphasise_off_diagonal: End the colours at the largest number off the diagonal.

    Examples:
      >>> import tempfile
      >>> with figure(Path(tempfile.mkdtemp()) / "f.png", "a table") as axes:
      ...     heat_map(axes[0, 0], np.eye(3), title="I", rows="row", columns="column",
      ...              diverging=False, label="entry")
    """
    shown = table
    if emphasise_off_diagonal:
        shown = table[~np.eye(len(table), dtype=bool)]
    largest = np.abs(shown).max()
    low = -largest if diverging else min(0, shown.min())
    image = ax.imshow(
        table, cmap="PuOr_r" if diverging else "Blues", vmin=low, vmax=largest
    )
    ax.set(title=title, ylabel=rows, xlabel=columns)
    ax.set_xticks(range(table.shape[1]))
    ax.set_yticks(range(table.shape[0]))
    ax.spines[:].set_visible(False)
    digits = 1 if largest >= 1 else 2
    if table.size <= 100:
        for (i, j), value in np.ndenumerate(table):
            dark = (value - low) / (largest - low) > 0.6
            if diverging:
                dark = abs(value) > 0.6 * largest
            color = "white" if dark else "black"
            text = f"{value:.0f}" if largest >= 100 else f"{value:.{digits}f}"
            ax.text(j, i, text, ha="center", va="center", size=6, color=color)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label=label)


def paired_bars(
    ax: Any,
    series: dict[str, Float[np.ndarray, " labels"]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    colors: Sequence[str] | None = None,
) -> None:
    """Bars side by side for each label.

    Args:
      ax: Where to draw.
      series: Bars by name; a name of `COLORS` has its colour.
      title: The panel's title.
      xlabel: What the labels are.
      ylabel: What the height is, with its unit.
      colors: One for each series, instead.

    Examples:
      >>> import tempfile
      >>> with figure(Path(tempfile.mkdtemp()) / "f.png", "bars") as axes:
      ...     paired_bars(axes[0, 0], {"predicted": np.ones(3), "measured": np.ones(3)},
      ...                 title="", xlabel="label", ylabel="nats")
    """
    width = 0.8 / len(series)
    chosen = colors or [COLORS.get(name, "#777777") for name in series]
    for i, ((name, heights), color) in enumerate(
        zip(series.items(), chosen, strict=True)
    ):
        places = np.arange(len(heights)) + (i - (len(series) - 1) / 2) * width
        ax.bar(places, heights, width, label=name, color=color)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.set_xticks(range(len(next(iter(series.values())))))


def scatter(
    ax: Any,
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    color: str = COLORS["measured"],
    label: str | None = None,
    diagonal: bool = False,
) -> None:
    """Points, with the line y = x where the two should be equal.

    Args:
      ax: Where to draw.
      x: Abscissae.
      y: Ordinates.
      title: The panel's title.
      xlabel: What x is, with its unit.
      ylabel: What y is, with its unit.
      color: The points' colour.
      label: For the legend.
      diagonal: Whether to draw y = x.

    Examples:
      >>> import tempfile
      >>> with figure(Path(tempfile.mkdtemp()) / "f.png", "points") as axes:
      ...     scatter(axes[0, 0], np.ones(2), np.ones(2), title="", xlabel="x",
      ...             ylabel="y", diagonal=True)
    """
    if diagonal:
        ax.axline((x.mean(), x.mean()), slope=1, color="#999999", linewidth=0.8)
    ax.scatter(x, y, s=12, color=color, alpha=0.7, linewidths=0, label=label)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
