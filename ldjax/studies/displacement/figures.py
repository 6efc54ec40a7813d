"""The figures of `displacement.py`."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ldjax.report.figures import COLORS, figure
from ldjax.runs.folder import Run
from ldjax.studies.displacement.results import PAIRS, REST, Account
from ldjax.studies.displacement.settings import RATES, RateName
from ldjax.watch.record import MEASURED

__all__ = ["draw_figures"]

Accounts = Mapping[RateName, Account]

#: What moved an answer: a column of the ledger, what it says, and the colour.
_LINES: dict[str, tuple[str, Collection[str], str]] = {
    PAIRS["own"]: ("whose", ("own",), COLORS["chosen"]),
    PAIRS["others"]: ("whose", ("others",), COLORS["negative"]),
    "the rest": ("origin", REST, COLORS["remainder"]),
}
_CONTEXTS = {"chosen": COLORS["chosen"], "rejected": COLORS["rejected"]}


def draw_figures(run: Run, accounts: Accounts) -> list[Path]:
    """Draw every figure of a run; the files.

    Args:
      run: Where they go.
      accounts: What was measured in each training, by its rate.
    """
    return [draw(run, accounts) for draw in (draw_why, draw_criterion, draw_labels)]


def draw_why(run: Run, accounts: Accounts) -> Path:
    """What moved the chosen answers, by the update whose batch it was."""
    path = run.figure_path("why")
    with figure(
        path,
        "Why did the chosen answer fall? Mean over the watched pairs",
        ncols=len(accounts),
        figsize=(4.5 * len(accounts), 4),
    ) as axes:
        for ax, (name, account) in zip(axes[0], accounts.items(), strict=True):
            steps = account.table["train"]
            x = steps["step"] + 1
            for label, (column, names, color) in _LINES.items():
                changes = _so_far(account, column, names)
                ax.plot(x, changes, color=color, label=label)
            measured = steps[MEASURED].astype(float).cumsum(0).mean(1)
            ax.plot(x, measured, color="black", linewidth=2, label="measured")
            ax.axhline(0, color="black", linewidth=0.5)
            ax.set(
                title=f"{RATES[name]}: {measured[-1]:+.3g} nats",
                xlabel="updates",
                ylabel="change of log-prob, nats",
            )
        axes[0, 0].legend(fontsize=7)
    return path


def draw_criterion(run: Run, accounts: Accounts) -> Path:
    """Whether each pair would lower its own chosen answer, over time."""
    path = run.figure_path("criterion")
    with figure(
        path,
        "Above 1 a pair's own sides, as the step scaled them, lower its chosen answer",
        ncols=len(accounts),
        figsize=(4.5 * len(accounts), 3.5),
        sharey=True,
    ) as axes:
        for ax, (name, account) in zip(axes[0], accounts.items(), strict=True):
            steps = account.table["train"]
            ratio = steps["product:cross"] / steps["product:chosen"]
            ax.plot(steps["step"], ratio, color=COLORS["rejected"], alpha=0.5)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(
                title=RATES[name],
                xlabel="updates",
                ylabel=r"$\langle g^+, g^-\rangle_P \;/\; \|g^+\|_P^2$",
            )
    return path


def draw_labels(run: Run, accounts: Accounts) -> Path:
    """Which labels rise, where the mass goes, and which theory knows."""
    path = run.figure_path("labels")
    quantities = {
        "rising": ("labels that rise", "-"),
        "to_greedy": ("moved mass that y* receives", "--"),
    }
    theories = {
        "exact": ("exact first order", "-"),
        "multiple": ("if K were k I", ":"),
    }
    with figure(
        path,
        "Squeezing: every label in the context of the chosen and rejected answers",
        nrows=2,
        ncols=len(accounts),
        figsize=(4.5 * len(accounts), 6),
        sharey="row",
    ) as axes:
        for column, (name, account) in enumerate(accounts.items()):
            labels = account.table["labels"]
            for row, shown in enumerate((quantities, theories)):
                ax = axes[row, column]
                for side, color in _CONTEXTS.items():
                    for quantity, (words, dashes) in shown.items():
                        values = 100 * labels[f"{side}:{quantity}"].mean(1)
                        ax.plot(
                            labels["step"],
                            values,
                            dashes,
                            color=color,
                            label=f"{side}: {words}",
                        )
                ax.set(xlabel="updates")
            axes[0, column].set(title=RATES[name], ylabel="%", ylim=(0, 100))
            axes[1, column].set(ylabel="% of signs right", ylim=(0, 100))
        axes[0, 0].legend(fontsize=7)
        axes[1, 0].legend(fontsize=7)
    return path


def _so_far(account: Account, column: str, names: Collection[str]) -> np.ndarray:
    """What some origins of all updates so far do until the end, mean over the pairs."""
    ledger = account.ledger
    changes = np.zeros(ledger.about["num_steps"])
    for name, step, value in ledger.by(column, "step").iter_rows():
        if name in names:
            changes[step] += value
    return changes.cumsum() / len(ledger.about["probes"])
