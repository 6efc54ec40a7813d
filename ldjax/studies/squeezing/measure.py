"""Single gradient steps in one softmax, by brute force and by the theory of them."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ldjax.theory import squeezing

__all__ = ["Outcome", "Step", "sweeps", "take", "toy_rows"]

# Of log-ratios in float64, whose terms are some tens of nats.
ROUNDING = 1e-12


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
