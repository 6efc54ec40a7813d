r"""The squeezing effect in one softmax: the paper's toy rows, and the exact border.

One input, a linear readout, one gradient step. A positive gradient lifts its label; a
negative one lowers it and gives the mass mostly to the likeliest other label, the more
so the peakier the distribution and the less probable the label that is pushed down.
`ldjax.theory.squeezing` knows exactly which labels rise: those above a threshold.

Then three sweeps (over the probability of the label pushed down, over peakiness, over
the size of the step) show that threshold between the labels that rise and that fall.

Claims, checked on every run (exit status 1 if one does not hold): in every row and at
every point of the sweeps exactly the labels above the threshold rise in a step that is
taken, the label pushed down falls and the likeliest other one rises; the changes are
those of Lemma 1; and with the default seed rows A to D have the numbers of the paper's
notebook. (Of row E the notebook's draws are not known, so only the claims.)

    python experiments/squeezing.py --out runs/squeezing
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax import command
from ldjax.command import options
from ldjax.runs.folder import create_run
from ldjax.studies.squeezing.figures import draw_figures
from ldjax.theory import squeezing
from ldjax.theory.claims import Claim, failures, stored, told

# The notebook's, whose draws are those of NumPy's global generator.
SEED = 10086
# Of log-ratios in float64, whose terms are some tens of nats.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Config:
    """The squeezing effect in one softmax."""

    out: Path = Path("runs/squeezing")
    """Run folder to write."""
    seed: int = SEED
    """Of the input and the readouts; the default is that of the paper's notebook."""
    points: int = 41
    """Points of each sweep."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """Few points."""

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        points = options.Range(2, 100_000, "at least 2 and at most 100000")
        options.check_numbers(self, {"points": points, "seed": options.SEED})


class Step(NamedTuple):
    """One gradient step on one distribution.

    Attributes:
      series: The row or sweep that it belongs to.
      x: Where in a sweep; the strength in a row.
      logits: Before the step, `[vocab]`.
      label: Its target.
      strength: How hard the target is pushed down, eta times the squared norm of the
        features; negative where it is pushed up.
    """

    series: str
    x: float
    logits: np.ndarray
    label: int
    strength: float


class Outcome(NamedTuple):
    """What a step did, by brute force, and what the theory says.

    Attributes:
      step: The step.
      before: Probabilities.
      after: Likewise.
      error: Largest difference of a log-ratio from Lemma 1, in nats.
      threshold: Above which a label rises.
      greedy: The likeliest label but the target.
      holds: Whether all claims about it hold.
    """

    step: Step
    before: np.ndarray
    after: np.ndarray
    error: float
    threshold: float
    greedy: int
    holds: bool

    @property
    def num_rising(self) -> int:
        """Labels that rose."""
        return int((self.after > self.before).sum())

    @property
    def share(self) -> float:
        """Of the mass that moved, what the likeliest other label received."""
        before, after = (jnp.log(jnp.asarray(p)) for p in (self.before, self.after))
        return float(squeezing.mass_share(before, after, jnp.asarray(self.greedy)))


class Row(NamedTuple):
    """A row of the toy figure as the notebook has it.

    Attributes:
      title: What it shows.
      label: Whose probability is printed.
      before: Its probability before the step, to the digits that are known.
      after: After it.
      moved: How many labels but the target rise (negative: fall) together.
    """

    title: str
    label: int = 0
    before: str = ""
    after: str = ""
    moved: int = 0


ROWS = {
    "A": Row("positive, on a drawn readout", 21, "0.072", "0.947", -49),
    "B": Row("negative, on a flat distribution", 42, "0.0233", "0.0011", 49),
    "C": Row("negative, on a peak", 8, "0.763", "0.987", -48),
    "D": Row("negative, in a valley", 8, "0.763", "0.986", -48),
    "E": Row("negative, 1000 labels"),
}


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config.check()
        run = create_run(
            config.out, dataclasses.asdict(config), overwrite=config.overwrite
        )
    # A toy: every digit is to be seen.
    jax.config.update("jax_enable_x64", True)
    rows = toy_rows(config.seed)
    points = 5 if config.smoke else config.points
    outcomes = [take(step) for step in (*rows.values(), *sweeps(rows, points))]
    run.write_metrics([row for outcome in outcomes for row in metric_rows(outcome)])
    claims = check_claims(outcomes, is_published=config.seed == SEED)
    run.write_summary({"claims": stored(claims), "rows": summaries(outcomes)})
    figures = draw_figures(run)
    print_rows(outcomes)
    print(told(claims))
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures(claims) else 0


def toy_rows(seed: int) -> dict[str, Step]:
    """The five rows, in the order in which the notebook draws them."""
    draw = np.random.RandomState(seed)
    x = draw.randn(4)
    square = x @ x
    drawn, flat, peaky = (draw.randn(4, 50) for _ in range(3))
    logits = x @ peaky
    # One step of rate 1 towards all of eight labels at once (each with weight one).
    target = np.isin(np.arange(50), range(5, 13))
    peaked = logits - square * (softmax(logits) - target)
    wide = draw.randn(50)
    many = wide @ (0.5 * draw.randn(50, 1000))
    steps = {
        "A": (x @ drawn, 21, -0.5 * square),
        "B": (x @ (1 + 0.05 * flat), 42, 0.3 * square),
        "C": (peaked, 11, 0.5 * square),
        "D": (peaked, 42, 0.5 * square),
        "E": (many, 100, wide @ wide),
    }
    return {
        name: Step(f"row {name}", float(strength), logits, label, float(strength))
        for name, (logits, label, strength) in steps.items()
    }


def sweeps(rows: dict[str, Step], points: int) -> Iterator[Step]:
    """One quantity at a time, from the distribution of row A."""
    drawn = rows["A"]
    order = np.argsort(drawn.logits)[:-1]  # every label but the peak
    probs = softmax(drawn.logits)
    for place in np.linspace(0, len(order) - 1, points).round().astype(int):
        label = int(order[place])
        yield Step("probability", float(probs[label]), drawn.logits, label, 1.0)
    for scale in np.geomspace(0.05, 3, points):
        logits = scale * drawn.logits
        yield Step("peakiness", scale, logits, drawn.label, 1.0)
    for strength in np.geomspace(0.01, 30, points):
        yield Step("strength", strength, drawn.logits, drawn.label, strength)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def take(step: Step) -> Outcome:
    """The step by brute force, beside the theory of it."""
    before = softmax(step.logits)
    onehot = np.eye(len(before))[step.label]
    after = softmax(step.logits + step.strength * (before - onehot))
    log_probs, label = jnp.log(jnp.asarray(before)), jnp.asarray(step.label)
    ratios = np.asarray(squeezing.log_ratios(log_probs, label, step.strength))
    error = abs(np.log(after) - np.log(before) - ratios).max()
    greedy = int(squeezing.greedy_label(log_probs, label))
    threshold = float(squeezing.threshold(log_probs, label, step.strength))
    holds = error < ROUNDING
    if step.strength > 0:
        rising = np.asarray(squeezing.rising_labels(log_probs, label, step.strength))
        clear = abs(ratios) > ROUNDING
        holds &= ((after > before) == rising)[clear].all()
        holds &= ratios[greedy] > -ROUNDING and after[step.label] < before[step.label]
    return Outcome(step, before, after, float(error), threshold, greedy, bool(holds))


def check_claims(outcomes: list[Outcome], *, is_published: bool) -> list[Claim]:
    """The theory of every step, and the notebook's numbers."""
    error = max(outcome.error for outcome in outcomes)
    failed = [outcome.step for outcome in outcomes if not outcome.holds]
    claims = [
        Claim(
            f"in {len(outcomes)} steps the labels above the threshold rise, the others "
            "fall; the target falls, the likeliest other label rises; largest "
            f"difference from Lemma 1 {error:.0e} nats"
            + "".join(f"; not {s.series} at {s.x:.4g}" for s in failed[:3]),
            not failed,
            "identity",
        )
    ]
    if is_published:
        for outcome, row in zip(outcomes, ROWS.values(), strict=False):
            if row.before:
                claims.append(published_claim(outcome, row))
    return claims


def published_claim(outcome: Outcome, row: Row) -> Claim:
    """Whether a row has the notebook's numbers."""
    before, after = outcome.before[row.label], outcome.after[row.label]
    others = np.arange(len(outcome.before)) != outcome.step.label
    is_moved = (outcome.after - outcome.before) * np.sign(row.moved) > 0
    moved = int(np.sign(row.moved) * is_moved[others].sum())
    digits = [
        len(text.partition(".")[2]) for text in (row.before, row.after)
    ]  # as many as are printed
    is_same = [
        f"{value:.{n}f}" == text
        for value, n, text in zip(
            (before, after), digits, (row.before, row.after), strict=True
        )
    ]
    return Claim(
        f"{outcome.step.series}: label {row.label} {before:.4f} -> {after:.4f} "
        f"(notebook {row.before} -> {row.after}), {moved:+d} others ({row.moved:+d})",
        all(is_same) and moved == row.moved,
        "identity",
    )


def metric_rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The numbers as a long table; a row's label or a sweep's place is the probe."""
    step = outcome.step
    numbers = {
        "threshold": outcome.threshold,
        "strength": step.strength,
        "num_rising": outcome.num_rising,
        "greedy_prob": outcome.before[outcome.greedy],
        "greedy_log_ratio": np.log(
            outcome.after[outcome.greedy] / outcome.before[outcome.greedy]
        ),
        "target_prob": outcome.before[step.label],
    }
    if step.strength > 0:
        numbers["greedy_share"] = outcome.share
    table = [
        (0, 0, f"{step.x:.6g}", step.series, name, float(value))
        for name, value in numbers.items()
    ]
    if step.series.startswith("row"):
        for label in range(len(outcome.before)):
            both = (outcome.before[label], outcome.after[label])
            table += [
                (time, time, str(label), step.series, "prob", float(prob))
                for time, prob in enumerate(both)
            ]
    return table


def summaries(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """What became of the target and of the likeliest other label, by row."""
    return {
        name: {
            "title": ROWS[name].title,
            "target": outcome.step.label,
            "target_prob": [float(p[outcome.step.label]) for p in outcome[1:3]],
            "greedy": outcome.greedy,
            "greedy_prob": [float(p[outcome.greedy]) for p in outcome[1:3]],
            "num_rising": outcome.num_rising,
            "threshold": outcome.threshold,
        }
        for name, outcome in zip(ROWS, outcomes, strict=False)
    }


def print_rows(outcomes: list[Outcome]) -> None:
    """The table of the rows."""
    print("row                                  target            likeliest other  up")
    for name, row in summaries(outcomes).items():
        pairs = [
            f"{row[who]:>3}: {row[f'{who}_prob'][0]:.3g} -> {row[f'{who}_prob'][1]:.3g}"
            for who in ("target", "greedy")
        ]
        print(f"{name} {row['title']:34}", *pairs, row["num_rising"], sep="  ")
    print()


parse = functools.partial(command.parse, Config, __doc__)
