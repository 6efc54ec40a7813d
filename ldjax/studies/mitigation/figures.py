"""The figures of `mitigation.py`, drawn from its run folder and nothing else."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.data.response_types import RESPONSE_TYPES, SIDES
from ldjax.report.figures import COLORS, figure
from ldjax.runs.folder import Run
from ldjax.studies.mitigation.results import (
    ARMS,
    DECODINGS,
    LENGTHS,
    QUANTITIES,
    SAME_LENGTH,
    rivals,
)
from ldjax.studies.mitigation.tables import PUBLISHED, title_of
from ldjax.studies.policies import VERDICTS

__all__ = ["draw_figures"]

_OTHERS = [name for name in RESPONSE_TYPES if name not in SIDES]
#: Panels of the paper's Figure 5: a quantity, and the types it is the mean of.
_PANELS = {
    "chosen": ("log_prob", ["chosen"]),
    "rejected": ("log_prob", ["rejected"]),
    "y*, greedy tokens on chosen": ("argmax_log_prob", ["chosen"]),
    "mean of the ten other types": ("log_prob", _OTHERS),
}
_ARM_COLORS = dict(zip(ARMS, (COLORS["positive"], COLORS["negative"]), strict=True))
_VERDICT_COLORS = ("#009E73", "#56B4E9", "#B0B0B0", "#E69F00", "#D55E00")


def draw_figures(run: Run) -> list[Path]:
    """Draw every figure of a run; the files."""
    drawings = {
        "curves": curves,
        "win_rates": win_rates,
        "verdicts": verdicts,
        "losses": losses,
    }
    paths = []
    for name, draw in drawings.items():
        paths.append(run.figure_path(name))
        draw(run, paths[-1])
    return paths


def curves(run: Run, path: Path) -> None:
    """The paper's Figure 5: SFT, then DPO, of both arms."""
    metrics, seeds = run.metrics(), run.summary["seeds"]
    stages = {
        "sft": (-run.config["settings"]["sft_epochs"], 0),
        "dpo": (0, LENGTHS[-1]),
    }
    title = "SFT, then DPO: mean log-prob; thick: mean of the seeds"
    layout: dict[str, Any] = {"nrows": 2, "ncols": 2, "sharex": True}
    with figure(path, title, figsize=(11, 7), **layout) as axes:
        for ax, (name, (quantity, types)) in zip(
            axes.flat, _PANELS.items(), strict=True
        ):
            shown = metrics.filter(
                (pl.col("quantity") == quantity) & pl.col("type").is_in(types)
            )
            for (arm, color), (stage, ends) in itertools.product(
                _ARM_COLORS.items(), stages.items()
            ):
                lines = [_curve(shown, f"{seed}/{arm} {stage}") for seed in seeds]
                epochs = np.linspace(ends[0], ends[1], len(lines[0]))
                ax.plot(epochs, np.transpose(lines), color=color, lw=0.6, alpha=0.6)
                label = arm if stage == "dpo" else None
                ax.plot(epochs, np.mean(lines, 0), color=color, lw=2, label=label)
            ax.axvline(0, color="black", linewidth=0.6)
            ax.set(title=name, ylabel="log-prob [nats]")
        for ax in axes[-1]:
            ax.set_xlabel("epochs of SFT (before 0) and of DPO")
        axes[0, 0].legend()


def _curve(metrics: pl.DataFrame, stage: str) -> np.ndarray:
    """Mean over types, trained prompts."""
    rows = metrics.filter(pl.col("probe") == f"{stage}/train")
    means = rows.group_by("step").agg(pl.col("value").mean()).sort("step")
    return means["value"].to_numpy()


def win_rates(run: Run, path: Path) -> None:
    """The paper's Table 1: win rate of extend over baseline against epochs of DPO."""
    summary = run.summary
    title = (
        "Extend against baseline at equal epochs of DPO; intervals of 95 %, of a seed "
        "over prompts, of the mean over seeds"
    )
    layout: dict[str, Any] = {"ncols": len(DECODINGS), "sharey": True}
    with figure(path, title, figsize=(11, 4.5), **layout) as axes:
        for ax, decoding in zip(axes[0], DECODINGS, strict=True):
            for place, (seed, each) in enumerate(summary["seeds"].items()):
                color = COLORS["other"][place % len(COLORS["other"])]
                look = {"color": color, "linewidth": 0.8, "label": f"seed {seed}"}
                _win_line(ax, each["wins"][decoding], 0.08 * (place + 1), look)
            look = {"color": "black", "linewidth": 2, "label": "mean of the seeds"}
            _win_line(ax, summary["pooled_wins"][decoding], 0, look)
            ax.axhline(0.5, color="black", linewidth=0.6)
            ax.set(title=f"{decoding} responses", xlabel="epochs of DPO (0: SFT alone)")
        for (judge, rates), dashes in zip(PUBLISHED.items(), (":", "--"), strict=True):
            label = f"paper, {judge}"
            axes[0, 0].plot(
                list(rates), list(rates.values()), dashes, color="grey", label=label
            )
        axes[0, 0].set_ylabel("win rate of extend (tie: one half)")
        axes[0, 0].legend(fontsize="small")


def _win_line(
    ax: Any, wins: Mapping[str, Any], aside: float, look: dict[str, Any]
) -> None:
    """Rates with intervals, a little beside those of other lines."""
    epochs = np.array([0, *LENGTHS])
    rates, ends = _rates_and_ends([wins[f"extend@{number}"] for number in epochs])
    ax.errorbar(epochs + aside, rates, ends, elinewidth=0.8, capsize=2, **look)


def _rates_and_ends(wins: Sequence[Mapping[str, float]]) -> tuple[list[float], Any]:
    """Rates, and how far below and above them the intervals end."""
    rates = [win["rate"] for win in wins]
    below = [win["rate"] - win["low"] for win in wins]
    above = [win["high"] - win["rate"] for win in wins]
    return rates, np.maximum([below, above], 0)


def verdicts(run: Run, path: Path) -> None:
    """Shares of the judge's verdicts, mean over the seeds."""
    seeds = list(run.summary["seeds"].values())
    names = list(seeds[0]["changes"])
    layout: dict[str, Any] = {"nrows": len(DECODINGS), "sharex": True}
    title = "Verdicts on responses to held-out prompts, mean of the seeds"
    with figure(path, title, figsize=(13, 7), **layout) as axes:
        for ax, decoding in zip(axes[:, 0], DECODINGS, strict=True):
            rates = [
                [each["rates"][decoding][name] for name in names] for each in seeds
            ]
            below = np.zeros(len(names))
            for verdict, color in zip(VERDICTS, _VERDICT_COLORS, strict=True):
                shares = np.mean([[r[verdict] for r in row] for row in rates], axis=0)
                look = {"color": color, "label": verdict}
                ax.bar(range(len(names)), shares, 0.8, below, **look)
                below += shares
            ax.set(title=f"{decoding} responses", ylabel="share")
            _name_places(ax, names)
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))


def losses(run: Run, path: Path) -> None:
    """The other losses beside DPO and extend, after as many epochs."""
    summary = run.summary
    seeds = list(summary["seeds"].values())
    names = [name for name in seeds[0]["changes"] if name.endswith(f"@{SAME_LENGTH}")]
    title = f"After {SAME_LENGTH} epochs; bars: mean of the seeds, dots: each"
    with figure(path, title, nrows=2, ncols=3, figsize=(13, 7)) as axes:
        shown = ("chosen", "rejected", "argmax", "all")
        for ax, key in zip(axes.flat[: len(shown)], shown, strict=True):
            _bars(ax, names, [each["changes"] for each in seeds], (key,))
            ax.set(title=QUANTITIES[key], ylabel="change since SFT [nats]")
        rates = [each["rates"][DECODINGS[0]] for each in seeds]
        _bars(axes[1, 1], names, rates, ("malformed", "degenerate"))
        axes[1, 1].set(title="malformed or degenerate, sampled", ylabel="share")
        _wins_over_dpo(axes[1, 2], names, summary)


def _bars(
    ax: Any,
    names: Sequence[str],
    seeds: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
) -> None:
    """A sum of numbers of each policy: its mean as a bar and each seed as a dot."""
    heights = [[sum(each[name][k] for k in keys) for name in names] for each in seeds]
    colors = [_ARM_COLORS.get(name.split("@")[0], "#777777") for name in names]
    ax.bar(range(len(names)), np.mean(heights, 0), 0.7, color=colors, alpha=0.7)
    for values in heights:
        ax.plot(values, ".", color="black", markersize=4)
    ax.axhline(0, color="black", linewidth=0.6)
    _name_places(ax, names)


def _wins_over_dpo(ax: Any, names: Sequence[str], summary: Mapping[str, Any]) -> None:
    challengers = list(rivals(names))
    places = [names.index(name) for name in challengers]
    pooled = summary["pooled_wins"][DECODINGS[0]]
    rates, ends = _rates_and_ends([pooled[name] for name in challengers])
    ax.errorbar(places, rates, ends, fmt="o", color="black", capsize=3)
    for each in summary["seeds"].values():
        wins = each["wins"][DECODINGS[0]]
        ax.plot(places, [wins[name]["rate"] for name in challengers], ".", color="grey")
    ax.axhline(0.5, color="black", linewidth=0.6)
    ax.set(title="win rate over SFT, DPO; sampled", ylabel="rate (tie: one half)")
    _name_places(ax, names)


def _name_places(ax: Any, names: Sequence[str]) -> None:
    words = [title_of(name).replace(", ", "\n") for name in names]
    ax.set_xticks(range(len(names)), words)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_xlim(-0.5, len(names) - 0.5)
