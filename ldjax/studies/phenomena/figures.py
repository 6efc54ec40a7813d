"""The figures of `phenomena.py`, drawn from its run folder and nothing else.

Thin lines and points are seeds, thick lines their means.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.report.figures import COLORS, figure, heat_map
from ldjax.runs.folder import Run

__all__ = ["draw_figures"]

_OTHER = COLORS["other"]


def draw_figures(run: Run) -> list[Path]:
    """Draw a figure for each phenomenon that was studied; the files."""
    # A probe is called PHENOMENON/SEED/ARM.
    parts = pl.col("probe").str.split("/").list
    metrics = run.metrics().with_columns(
        parts.get(0).alias("phenomenon"),
        parts.get(1).cast(pl.Int64).alias("seed"),
        parts.get(2).alias("arm"),
    )
    paths = []
    for name in run.summary["phenomena"]:
        path = run.figure_path(name)
        _DRAW[name](metrics.filter(pl.col("phenomenon") == name), path)
        paths.append(path)
    return paths


def hallucination(numbers: pl.DataFrame, path: Path) -> None:
    """Which pairs move the watched text, and how it moves."""
    title = "Another prompt's answer: which training pairs lift it, and how it rises"
    parts = {
        "answer": "the answer's own pair",
        "prompt": "the prompt's own pair",
        "others": "all other pairs",
        "whole": "all pairs",
    }
    colors = (COLORS["positive"], COLORS["negative"], COLORS["before"], "black")
    with figure(path, title, ncols=3, figsize=(15, 4.5)) as axes:
        for ax, type_ in zip(axes[0], ("irr_train", "irr_test"), strict=False):
            for (part, told), color in zip(parts.items(), colors, strict=True):
                found = _of(numbers, arm="terms", type=type_, quantity=part)
                if len(found):
                    _lines(ax, found, color=color, label=told)
            ax.set(
                title=f"{type_}: first order",
                xlabel="updates of SFT",
                ylabel="nats per unit of learning rate",
            )
            ax.set_yscale("symlog", linthresh=1)
            ax.axhline(0, color="black", linewidth=0.6)
        ax = axes[0, 2]
        for type_, color in zip(
            ("chosen", "irr_train", "irr_test"), _OTHER, strict=False
        ):
            _lines(ax, _of(numbers, arm="sft", type=type_), color=color, label=type_)
        ax.set(title="measured", xlabel="updates of SFT", ylabel="change (nats)")
        for ax in axes[0]:
            ax.legend(fontsize=8)


def fingerprint(numbers: pl.DataFrame, path: Path) -> None:
    """Both tables, mean over the seeds."""
    title = "Texts to different prompts, mean over seeds"
    with figure(path, title, ncols=2, figsize=(17, 7)) as axes:
        tables: tuple[dict[str, Any], ...] = (
            {
                "arm": "alignment",
                "title": "alignment of the exact kernels of two sources",
                "rows": "source",
                "columns": "source",
                "diverging": False,
                "label": "|K(a, b)|² / (|K(a, a)| |K(b, b)|)",
            },
            {
                "arm": "heat",
                "title": "what learning a text does to another, to first order",
                "rows": "observed",
                "columns": "learned",
                "diverging": True,
                "label": "change, by that of the learned text itself",
            },
        )
        for ax, look in zip(axes[0], tables, strict=True):
            cells = _of(numbers, arm=look.pop("arm"))
            names = cells["type"].unique(maintain_order=True).to_list()
            means = cells.group_by("type", "quantity").agg(pl.col("value").mean())
            value = {
                (row["type"], row["quantity"]): row["value"] for row in means.to_dicts()
            }
            heat_map(
                ax, np.array([[value[o, u] for u in names] for o in names]), **look
            )
            ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
            ax.set_yticks(range(len(names)), names)


def repeater(numbers: pl.DataFrame, path: Path) -> None:
    """What is forced and what is free, along a long DPO."""
    title = "Long DPO after SFT: y* beside free-running responses to held-out prompts"
    dpo = _of(numbers, arm="dpo")
    with figure(path, title, ncols=3, nrows=2, figsize=(14, 8)) as axes:
        ax = axes[0, 0]
        _lines(ax, _of(dpo, quantity="y*"), color=COLORS["chosen"], label="y*")
        ax.set(title="y*, teacher-forced", ylabel="nats along the chosen answer")
        ax = axes[1, 0]
        for drawn, color in zip(("sampled", "greedy"), _OTHER, strict=False):
            found = _of(dpo, type=drawn, quantity="words")
            _lines(ax, found, color=color, label=drawn)
        ax.set(title="length", ylabel="words")
        verdicts = ("correct", "wrong", "off-topic", "malformed", "degenerate")
        grams = ("distinct-1", "distinct-2", "distinct-3")
        for row, drawn in zip(axes, ("sampled", "greedy"), strict=True):
            panels = zip(
                row[1:],
                (grams, verdicts),
                ("different n-grams", "verdicts"),
                strict=True,
            )
            for ax, quantities, told in panels:
                for quantity, color in zip(quantities, _OTHER, strict=False):
                    found = _of(dpo, type=drawn, quantity=quantity)
                    _lines(ax, found, color=color, label=quantity)
                ax.set(title=f"{told}, {drawn}", ylabel="share", ylim=(0, 1.02))
        for ax in axes.flat:
            ax.set_xlabel("updates of DPO")
            ax.legend(fontsize=8)


def longer_sft(numbers: pl.DataFrame, path: Path) -> None:
    """What the same DPO does after SFT of several lengths."""
    title = "The same DPO after shorter and longer SFT"
    panels = {
        "log-probs, change over DPO": (
            "nats",
            [name for name in _quantities(numbers) if name.startswith("change")],
        ),
        "at the start of DPO, on the rejected answers": (
            "probability",
            ["p(y-) of a token at the start", "squeezing threshold at the start"],
        ),
        "y* at the start of DPO": ("nats", ["y* at the start (nats)"]),
    }
    lengths = numbers.with_columns(pl.col("arm").cast(pl.Int64).alias("step"))
    with figure(path, title, ncols=3, figsize=(15, 4.5)) as axes:
        for ax, (told, (unit, names)) in zip(axes[0], panels.items(), strict=True):
            for name, color in zip(names, _OTHER, strict=False):
                _lines(ax, _of(lengths, quantity=name), color=color, label=_short(name))
            ax.set(title=told, xlabel="epochs of SFT before", ylabel=unit, xscale="log")
            ticks = lengths["step"].unique().sort().to_list()
            ax.set_xticks(ticks, ticks)
            ax.minorticks_off()
            ax.legend(fontsize=8)


def on_policy(numbers: pl.DataFrame, path: Path) -> None:
    """How far the arms move what they do not train on, and what they then say."""
    title = "DPO on pairs from a valley, off-policy and on-policy, at an equal budget"
    arms = numbers["arm"].unique(maintain_order=True).to_list()
    changes = [name for name in _quantities(numbers) if name.startswith("change")]
    verdicts = [name for name in _quantities(numbers) if name.startswith("samples")]
    with figure(path, title, ncols=3, figsize=(16, 4.5)) as axes:
        ax = axes[0, 0]
        for arm, color in zip(arms, _OTHER, strict=False):
            of_arm = _of(numbers, arm=arm)
            likely, change = (
                _of(of_arm, quantity=name).sort("seed")["value"].to_numpy()
                for name in (
                    "p(y-) of a token at the start",
                    "change of the untrained types (nats)",
                )
            )
            ax.scatter(likely, change, color=color, label=arm)
        ax.set(
            title="types that no arm trains on",
            xlabel="p(y-) of a token before",
            ylabel="change (nats)",
            xscale="log",
        )
        for ax, names, unit in zip(
            axes[0, 1:], (changes, verdicts), ("change (nats)", "share"), strict=True
        ):
            for i, (arm, color) in enumerate(zip(arms, _OTHER, strict=False)):
                _columns(
                    ax, _of(numbers, arm=arm), names, i - 1, color=color, label=arm
                )
            ax.set_xticks(
                range(len(names)), map(_short, names), rotation=30, ha="right"
            )
            ax.set(ylabel=unit)
            ax.axhline(0, color="black", linewidth=0.6)
        for ax in axes[0]:
            ax.legend(fontsize=8)


_DRAW = {
    "hallucination": hallucination,
    "fingerprint": fingerprint,
    "repeater": repeater,
    "longer_sft": longer_sft,
    "on_policy": on_policy,
}


def _of(numbers: pl.DataFrame, **values: str) -> pl.DataFrame:
    """The rows with these values."""
    return numbers.filter(**values)


def _quantities(numbers: pl.DataFrame) -> list[str]:
    return numbers["quantity"].unique(maintain_order=True).to_list()


def _short(quantity: str) -> str:
    """A name without what its panel says already."""
    for words in (
        "change of ",
        "samples that are ",
        " at the start",
        " (nats)",
        "the ",
    ):
        quantity = quantity.replace(words, "")
    return quantity


def _lines(ax: Any, numbers: pl.DataFrame, *, color: str, label: str) -> None:
    """A thin line for each seed, a thick one for their mean."""
    for _, of_seed in numbers.group_by("seed"):
        ordered = of_seed.sort("step")
        ax.plot(
            ordered["step"], ordered["value"], color=color, linewidth=0.6, alpha=0.7
        )
    mean = numbers.group_by("step").agg(pl.col("value").mean()).sort("step")
    ax.plot(mean["step"], mean["value"], ".-", color=color, linewidth=2, label=label)


def _columns(
    ax: Any,
    numbers: pl.DataFrame,
    names: list[str],
    shift: int,
    *,
    color: str,
    label: str,
) -> None:
    """A bar for the mean of each quantity, a point for each seed."""
    values = [_of(numbers, quantity=name)["value"].to_numpy() for name in names]
    places = np.arange(len(names)) + 0.26 * shift
    means = [of.mean() for of in values]
    ax.bar(places, means, 0.24, color=color, alpha=0.6, label=label)
    for place, of in zip(places, values, strict=True):
        ax.plot(np.full(len(of), place), of, ".", color="black", markersize=3)
