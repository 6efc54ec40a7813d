"""The figures of `kernel.py`, drawn from its run folder and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.report.figures import COLORS, figure, heat_map
from ldjax.runs.folder import Run

__all__ = ["draw_figures"]

# Beside heat maps, whose two colours are signs.
_BARS = COLORS["before"]


class Tables:
    """The long table, cut into arrays again, and the tokens it is about."""

    def __init__(self, run: Run):
        self.settings = run.config["settings"]
        self.metrics = run.metrics()
        summary = run.summary
        self.pushed = summary["pushed"]
        self.tokens = {
            side: [_shown(token) for token in tokens]
            for side, tokens in summary["tokens"].items()
        }

    @property
    def vocab(self) -> int:
        """Number of logits."""
        return self.settings["model"]["vocab_size"]

    def blocks(self, quantity: str) -> np.ndarray:
        """`[probe token, update token]`."""
        shape = len(self.tokens["probe"]), len(self.tokens["update"])
        return self._rows(quantity)["value"].to_numpy().reshape(shape)

    def groups(self, quantity: str) -> dict[str, float]:
        """A number of each group of parameters, in the order of the network."""
        rows = self._rows(quantity)
        values = dict(zip(rows["probe"], rows["value"], strict=True))
        return dict(sorted(values.items(), key=_depth))

    def _rows(self, quantity: str) -> pl.DataFrame:
        return self.metrics.filter(pl.col("quantity") == quantity)


def draw_figures(run: Run) -> list[Path]:
    """Draw every figure of a run; the files."""
    tables = Tables(run)
    drawn = []
    for draw in (block_norms, head_and_body, groups, token_map, pushed_tokens):
        path = run.figure_path(draw.__name__)
        draw(tables, path)
        drawn.append(path)
    return drawn


def block_norms(tables: Tables, path: Path) -> None:
    """How large each block is, and how far from a multiple of the identity."""
    norm, trace = tables.blocks("norm"), tables.blocks("trace")
    relative = tables.blocks("distance") / np.where(norm > 0, norm, 1)
    title = f"The exact kernel between two texts, {tables.vocab:,} logits each"
    with _wide(tables, path, title, ncols=3) as axes:
        _tokens_map(tables, axes[0, 0], norm, title="|K[m, l]|_F", diverging=False)
        _tokens_map(
            tables,
            axes[0, 1],
            trace / tables.vocab,
            title="k = tr K[m, l] / V",
            diverging=True,
        )
        _tokens_map(
            tables,
            axes[0, 2],
            relative,
            title="distance from k I: |K - k I|_F / |K|_F",
            diverging=False,
            top=1.0,
        )


def head_and_body(tables: Tables, path: Path) -> None:
    """K = c I + Q B Q^T: what the head alone would give, and the rest."""
    head = np.abs(tables.blocks("head")) * np.sqrt(tables.vocab)
    body = tables.blocks("body_norm")
    share = head**2 / np.maximum(head**2 + body**2, np.finfo(float).tiny)
    with _wide(
        tables, path, "Head and body of the kernel, K = c I + Q B Q'", ncols=3
    ) as axes:
        _tokens_map(tables, axes[0, 0], head, title="head |c I|_F", diverging=False)
        _tokens_map(tables, axes[0, 1], body, title="body |Q B Q'|_F", diverging=False)
        _tokens_map(
            tables,
            axes[0, 2],
            share,
            title="share of the head, |c I|^2 / (|c I|^2 + |Q B Q'|^2)",
            diverging=False,
            top=1.0,
        )


def groups(tables: Tables, path: Path) -> None:
    """Which parameters the kernel and the prediction come from."""
    panels = {
        "group_norm": ("|K|_F of the group alone", "|K|_F"),
        "group_trace_share": ("share of tr K (sums to 1)", "share"),
        "group_change": ("share of the predicted change (sums to it)", "nats"),
    }
    title = "The kernel and the prediction by group of parameters"
    layout: dict[str, Any] = {"ncols": 3, "figsize": (13, 4), "sharey": True}
    with figure(path, title, **layout) as axes:
        for ax, (quantity, (text, label)) in zip(axes[0], panels.items(), strict=True):
            values = tables.groups(quantity)
            ax.barh(list(values), list(values.values()), color=_BARS)
            ax.axvline(0, color="black", linewidth=0.6)
            ax.set(title=text, xlabel=label)
        axes[0, 0].invert_yaxis()


def token_map(tables: Tables, path: Path) -> None:
    """What each update token does to each probe token."""
    contributions = tables.blocks("token_map")
    rate = tables.settings["learning_rate"]
    title = f"First-order change of the probe text by a step at rate {rate:g}"
    with _wide(tables, path, title, ncols=2) as axes:
        _tokens_map(
            tables,
            axes[0, 0],
            contributions,
            title="by update token (nats; colours end at the 99th percentile)",
            diverging=True,
            top=float(np.quantile(np.abs(contributions), 0.99)) or None,
        )
        change = contributions.sum(1)
        places = range(len(change))
        axes[0, 1].barh(places, change, color=_BARS)
        axes[0, 1].axvline(0, color="black", linewidth=0.6)
        axes[0, 1].set_yticks(places, tables.tokens["probe"], fontsize=7)
        axes[0, 1].set_ylim(len(change) - 0.5, -0.5)
        axes[0, 1].set(
            title=f"in all: {change.sum():+.3g} nats", xlabel="change (nats)"
        )


def pushed_tokens(tables: Tables, path: Path) -> None:
    """The tokens whose probability moves most, at each position of the probe."""
    entries = tables.pushed
    top = max((len(both[way]) for both in entries for way in both), default=0)
    size = (3 + 3.2 * top, 1.2 + 0.28 * len(entries))
    title = "Pushed up (left) and down (right) most, with the change in nats"
    with figure(path, title, figsize=size) as axes:
        ax = axes[0, 0]
        largest = max(
            (abs(e["change"]) for both in entries for way in both for e in both[way]),
            default=1.0,
        )
        table = np.zeros((len(entries), 2 * top))
        for row, both in enumerate(entries):
            for start, way in ((0, "up"), (top, "down")):
                for column, entry in enumerate(both[way], start):
                    table[row, column] = entry["change"]
                    ax.text(
                        column,
                        row,
                        f"{_shown(entry['token'])} {entry['change']:+.2g}",
                        ha="center",
                        va="center",
                        size=7,
                        color="white"
                        if abs(entry["change"]) > 0.6 * largest
                        else "black",
                    )
        ax.imshow(table, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
        ax.set_yticks(range(len(entries)), tables.tokens["probe"], fontsize=7)
        ax.set_xticks([])
        ax.spines[:].set_visible(False)
        ax.set_ylabel("token of the probe text that follows")


def _wide(tables: Tables, path: Path, title: str, *, ncols: int) -> Any:
    """Panels that leave room for the tokens beside and below."""
    rows, columns = (len(tables.tokens[side]) for side in ("probe", "update"))
    size = (
        ncols * max(4.5, 1.5 + 0.16 * columns),
        max(4.0, 1.5 + 0.16 * rows),
    )
    return figure(path, title, ncols=ncols, figsize=size)


def _tokens_map(
    tables: Tables,
    ax: Any,
    table: np.ndarray,
    *,
    title: str,
    diverging: bool,
    top: float | None = None,
) -> None:
    """A heat map of probe tokens by update tokens."""
    heat_map(
        ax,
        table,
        title=title,
        rows="probe",
        columns="update",
        diverging=diverging,
        label="",
    )
    if top is not None:
        ax.images[0].set_clim(-top if diverging else 0, top)
    for axis, side in ((ax.yaxis, "probe"), (ax.xaxis, "update")):
        axis.set_ticks(range(len(tables.tokens[side])), tables.tokens[side], size=6)
    ax.tick_params(axis="x", rotation=90)


def _shown(token: str) -> str:
    """A token as a label: white space is seen, `$` starts no formula."""
    text = token.strip(" ").replace("\n", "\\n") or "' '"
    return text.replace("<|endoftext|>", "END").replace("$", "\\$")


def _depth(item: tuple[str, float]) -> tuple[bool, bool, str]:
    """Embeddings, blocks, what follows them."""
    name = item[0]
    return "embedding" not in name.split("_"), not name.startswith("blocks"), name
