"""The figures of `mnist.py`, drawn from its run folder and nothing else."""

from pathlib import Path

import numpy as np
import polars as pl

from ldjax.report.figures import COLORS, figure, heat_map, paired_bars, scatter
from ldjax.runs.folder import Run
from ldjax.studies.statistics import rank_correlations

__all__ = ["draw_figures"]


class Tables:
    """The long table, cut into `[class, label]` arrays again."""

    def __init__(self, run: Run):
        self.settings = run.config["settings"]
        self.metrics = run.metrics()
        self.steps_per_epoch = self.metrics["step"].max() // self.settings["epochs"]

    def steps(self, quantity: str) -> list[int]:
        """When a quantity was recorded."""
        rows = self.metrics.filter(pl.col("quantity") == quantity)
        return sorted(rows["step"].unique())

    def epochs(self, quantity: str) -> list[float]:
        """When a quantity was recorded, in epochs."""
        return [step / self.steps_per_epoch for step in self.steps(quantity)]

    def at(self, quantity: str, step: int | None = None) -> np.ndarray:
        """The array of a quantity at a step, by default the last."""
        step = self.steps(quantity)[-1] if step is None else step
        rows = self.metrics.filter(
            (pl.col("quantity") == quantity) & (pl.col("step") == step)
        )
        shape = rows["probe"].n_unique(), rows["type"].n_unique()
        return rows["value"].to_numpy().reshape(shape)

    def series(self, quantity: str) -> np.ndarray:
        """All arrays of a quantity, `[time, class, label]`."""
        return np.array([self.at(quantity, step) for step in self.steps(quantity)])


def draw_figures(run: Run) -> list[Path]:
    """Draw every figure of a run; the files."""
    tables = Tables(run)
    drawn = []
    for draw in (four_panels, one_step, accumulated, kernel):
        path = run.figure_path(draw.__name__)
        draw(tables, path)
        drawn.append(path)
    return drawn


def four_panels(tables: Tables, path: Path) -> None:
    """The slides' figure: adaptation vector, one step, accumulated change, its map."""
    settings = tables.settings
    title = (
        f"Learning ({settings['classes'][0]}, {settings['classes'][0]}) with SGD: "
        f"{'LeNet' if settings['model'] == 'lenet' else 'MLP'} on {settings['data']}"
    )
    with figure(path, title, nrows=2, ncols=3, figsize=(13, 7.5)) as axes:
        adaptation_vector(tables, axes[0, 0])
        one_step_probabilities(tables, axes[0, 1])
        mean_distributions(tables, axes[0, 2])
        heat_map(
            axes[1, 0],
            tables.at("mean_prob"),
            title="(d) mean prediction after training",
            rows="true class",
            columns="label",
            diverging=False,
            label="probability",
            emphasise_off_diagonal=True,
        )
        change_and_confusion(tables, axes[1, 1])
        change_and_kernel(tables, axes[1, 2])


def adaptation_vector(tables: Tables, ax) -> None:
    """Panel (a): where the residual pushes the prediction on the trained image."""
    probs, residual = tables.at("update_prob")[0], tables.at("update_residual")[0]
    paired_bars(
        ax,
        {"before": probs},
        title=f"(a) adaptation vector -G after {tables.settings['step_epoch']} epochs",
        xlabel="label",
        ylabel="probability",
    )
    for label, (prob, pull) in enumerate(zip(probs, -residual, strict=True)):
        color = COLORS["positive" if pull > 0 else "negative"]
        ax.annotate(
            "",
            (label, prob + pull),
            (label, prob),
            arrowprops={"color": color, "arrowstyle": "-|>", "linewidth": 1.5},
        )
    ax.set_ylim(-0.05, 1.05)


def one_step_probabilities(tables: Tables, ax) -> None:
    """Panel (b): one large step on the trained class as seen by three images."""
    settings, rate = tables.settings, tables.settings["step_rate"]
    before = tables.at("one_step_prob")
    after = before * np.exp(tables.at(f"one_step_measured@{rate:g}"))
    names = ("same", "similar", "dissimilar")
    watched = [f"{c} ({n})" for c, n in zip(settings["classes"], names, strict=True)]
    paired_bars(
        ax,
        {f"x_o is a {name}": after[row] for row, name in enumerate(watched)},
        title=f"(b) one step at rate {rate:g} (dashes: before)",
        xlabel="label",
        ylabel="probability",
        colors=COLORS["other"][:3],
    )
    for label, height in enumerate(before.mean(0)):
        ax.plot([label - 0.45, label + 0.45], [height, height], "k--", linewidth=1)
    ax.legend(fontsize=8)


def mean_distributions(tables: Tables, ax) -> None:
    """Panel (c): where whole classes ended."""
    probs = tables.at("mean_prob")
    paired_bars(
        ax,
        {f"images of {c}": probs[c] for c in tables.settings["classes"]},
        title=f"(c) mean prediction after {tables.settings['epochs']} epochs",
        xlabel="label",
        ylabel="probability",
        colors=COLORS["other"][:3],
    )
    ax.legend(fontsize=8)


def change_and_confusion(tables: Tables, ax) -> None:
    """Panel (d), as points: labels that rose on a class are those it is taken for."""
    change, confusion = tables.at("mean_change"), tables.at("mean_prob")
    off = ~np.eye(len(change), dtype=bool)
    correlation = rank_correlations(change[off], confusion[off])[0, 1]
    scatter(
        ax,
        change[off],
        confusion[off],
        title=f"(d) off the diagonal: Spearman {correlation:.2f}",
        xlabel="accumulated change of log-prob (nats)",
        ylabel="mean probability",
    )
    ax.set_yscale("log")


def change_and_kernel(tables: Tables, ax) -> None:
    """The accumulated change against the exact kernel of the class pair."""
    change, norms = tables.at("accumulated_measured"), tables.at("kernel_norm")
    off = ~np.eye(len(change), dtype=bool)
    correlation = rank_correlations(change[off], norms[off])[0, 1]
    scatter(
        ax,
        norms[off],
        change[off],
        title=f"(d) and the exact kernel: Spearman {correlation:.2f}",
        xlabel="|K|_F between images of the class and of the label",
        ylabel="accumulated change of log-prob (nats)",
    )


def one_step(tables: Tables, path: Path) -> None:
    """One step at three rates as seen by three images: where first order breaks."""
    settings, rate = tables.settings, tables.settings["step_rate"]
    names = ("same class", "similar class", "dissimilar class")
    title = f"One step on a {settings['classes'][0]}: predicted and measured"
    layout = {"nrows": 3, "ncols": 3, "figsize": (12, 8), "sharex": True}
    with figure(path, title, **layout) as axes:
        for row, eta in enumerate((rate, rate / 2, rate / 4)):
            predicted = tables.at(f"one_step_predicted@{eta:g}")
            measured = tables.at(f"one_step_measured@{eta:g}")
            for column, name in enumerate(names):
                error = np.linalg.norm((measured - predicted)[column])
                size = np.linalg.norm(measured[column])
                paired_bars(
                    axes[row, column],
                    {"predicted": predicted[column], "measured": measured[column]},
                    title=f"{name} ({settings['classes'][column]}), rate {eta:g}: "
                    f"remainder {error / size:.0%}",
                    xlabel="label" if row == 2 else "",
                    ylabel="change (nats)" if column == 0 else "",
                )
        axes[0, 0].legend(fontsize=8)


def accumulated(tables: Tables, path: Path) -> None:
    """The whole run: predicted changes added up, beside what really happened."""
    measured = tables.at("accumulated_measured")
    predicted = tables.at("accumulated_predicted")
    title = "Change of the log-probs over the whole run, by true class and label"
    with figure(path, title, nrows=2, ncols=2, figsize=(11, 9)) as axes:
        for ax, table, name in (
            (axes[0, 0], measured, "measured"),
            (axes[0, 1], predicted, "predicted, step by step"),
        ):
            heat_map(
                ax,
                table,
                title=name,
                rows="true class of the probe",
                columns="label",
                diverging=True,
                label="nats",
            )
        scatter(
            axes[1, 0],
            predicted.ravel(),
            measured.ravel(),
            title="each class pair",
            xlabel="accumulated prediction (nats)",
            ylabel="measured change (nats)",
            diagonal=True,
        )
        own_class_parts(tables, axes[1, 1])


def own_class_parts(tables: Tables, ax) -> None:
    """What lifted the right labels: this step's gradient, the history, the decay."""
    names = {
        "accumulated_measured": ("measured", COLORS["measured"], "-"),
        "accumulated_predicted": ("predicted", COLORS["predicted"], "--"),
        "accumulated_update": ("  own gradient", COLORS["other"][2], "-"),
        "accumulated_history": ("  momentum", COLORS["other"][3], "-"),
        "accumulated_weight_decay": ("  weight decay", "#777777", "-"),
    }
    for quantity, (name, color, line) in names.items():
        change = tables.series(quantity)
        own = change.diagonal(axis1=1, axis2=2).mean(1)
        ax.plot(tables.epochs(quantity), own, line, color=color, label=name)
    fit = tables.series("r_squared").ravel()
    ax.set(
        title=f"the right label (R^2 of single steps: lowest epoch {fit.min():.3f})",
        xlabel="epoch",
        ylabel="change (nats)",
    )
    ax.legend(fontsize=8)


def kernel(tables: Tables, path: Path) -> None:
    """The exact kernel along training (the paper's appendix C.1)."""
    epochs, norms = tables.epochs("kernel_norm"), tables.series("kernel_norm")
    trained = tables.settings["classes"][0]
    title = "The exact empirical NTK between images of two classes"
    with figure(path, title, nrows=2, ncols=2, figsize=(11, 9)) as axes:
        heat_map(
            axes[0, 0],
            norms[-1],
            title="|K|_F after training",
            rows="class",
            columns="class",
            diverging=False,
            label="mean |K|_F",
        )
        for label in range(norms.shape[1]):
            with_trained = norms[:, label, trained]
            axes[0, 1].plot(epochs, with_trained, color=f"C{label}", label=label)
        axes[0, 1].set(
            title=f"with images of {trained}", xlabel="epoch", ylabel="|K|_F"
        )
        axes[0, 1].legend(title="class", fontsize=7, ncols=2)
        axes[1, 0].plot(
            tables.epochs("kernel_drift_per_epoch"),
            tables.series("kernel_drift_per_epoch").ravel(),
            "o-",
            markersize=3,
            color=COLORS["measured"],
        )
        axes[1, 0].set(
            title="drift E|K(t) - K(t-1)|_F", xlabel="epoch", ylabel="per epoch"
        )
        upper = np.triu_indices(norms.shape[1])
        ranks = rank_correlations(*norms[:, *upper])
        heat_map(
            axes[1, 1],
            np.atleast_2d(ranks),
            title="ranking of class pairs: Spearman between epochs",
            rows="epoch",
            columns="epoch",
            diverging=False,
            label="Spearman",
        )
        shown = range(0, len(epochs), max(1, len(epochs) // 8))
        names = [f"{epochs[i]:g}" for i in shown]
        axes[1, 1].set_xticks(shown, names)
        axes[1, 1].set_yticks(shown, names)
