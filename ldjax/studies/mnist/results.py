"""What `mnist.py` collects while it trains."""

import functools
from typing import Any, NamedTuple

import numpy as np

from ldjax.equation.step import StepComparison

__all__ = [
    "NUM_CLASSES",
    "Fit",
    "Results",
    "by_class",
    "class_means",
]

NUM_CLASSES = 10


class Fit(NamedTuple):
    """Sums over the entries of each step, from which R^2 of any steps follows."""

    num_entries: np.ndarray
    measured: np.ndarray
    measured_squared: np.ndarray
    error_squared: np.ndarray

    @classmethod
    def of(cls, measured: Any, predicted: Any) -> "Fit":
        """The sums; the first axis is the step."""
        measured, predicted = np.float64(measured), np.float64(predicted)
        axes = tuple(range(1, measured.ndim))
        terms = (np.ones_like(measured), measured, measured**2)
        return cls(*(t.sum(axes) for t in (*terms, (measured - predicted) ** 2)))

    def r_squared(self, steps: Any = slice(None)) -> float:
        """Share of the measured changes' variance that the prediction explains."""
        entries, total, squared, error = (sums[steps].sum() for sums in self)
        return float(1 - error / (squared - total**2 / entries))


class Results:
    """Numbers of a run; a table has the probe's class first and a label second.

    Attributes:
      rows: The long table of the run folder.
      totals: Sums of the steps' changes, `[class, probe, label]` in nats:
        `"predicted"`, `"measured"` and every part.
      fits: One `Fit` for each step.
      change: Change of the probes over the whole run, from its two ends.
      pair_norms: |K|_F of every pair of kernel images, by epoch.
      pull_ups: Change of the trained label by the single steps, `[trained class, draw,
        probe class, probe]`.
      test_labels: Of all test images, in order.
      test_log_probs: Of all labels on the test images, `[image, label]`, by epoch.
      floors: The largest rounding floor of each step, in nats.
    """

    def __init__(self, *, steps_per_epoch: int, batch_size: int):
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.rows: list[tuple[Any, ...]] = []
        self.totals: dict[str, np.ndarray] = {}
        self.fits = Fit(*np.zeros((4, 0)))
        self.change: np.ndarray = np.zeros(0)
        self.pair_norms: dict[int, np.ndarray] = {}
        self.pull_ups: np.ndarray = np.zeros(0)
        self.test_labels: np.ndarray = np.zeros(0, int)
        self.test_log_probs: dict[int, np.ndarray] = {}
        self.floors: np.ndarray = np.zeros(0)
        self._kernel: tuple[int, np.ndarray] | None = None

    def add(self, epoch: int, quantity: str, table: Any) -> None:
        """A table of numbers, as rows of the long one."""
        step = epoch * self.steps_per_epoch
        self.rows += [
            (step, step * self.batch_size, str(c), str(k), quantity, float(value))
            for (c, k), value in np.ndenumerate(np.asarray(table))
        ]

    def add_steps(self, epoch: int, steps: StepComparison) -> None:
        """An epoch's steps: what they add up to, and how well they were predicted."""
        fields = {"predicted": steps.predicted, "measured": steps.measured}
        for name, change in (fields | steps.parts).items():
            # [step, class * probe, pos = 1, label]; sums over a run need float64.
            new = np.asarray(change, np.float64).sum(0)
            new = new.reshape(NUM_CLASSES, -1, NUM_CLASSES)
            self.totals[name] = self.totals.get(name, 0) + new
            self.add(epoch, f"accumulated_{name}", self.totals[name].mean(1))
        fits = Fit.of(steps.measured, steps.predicted)
        self.fits = Fit(*map(np.append, self.fits, fits))
        of_steps = steps.floor.reshape(len(fits.num_entries), -1).max(1)
        self.floors = np.append(self.floors, of_steps)
        self.add(epoch, "r_squared", [[fits.r_squared()]])

    def add_test(self, epoch: int, log_probs: np.ndarray, labels: np.ndarray) -> None:
        """Predictions of all test images, and what happened to them since the first."""
        order = np.argsort(labels, kind="stable")
        self.test_labels = labels[order]
        self.test_log_probs[epoch] = log_probs[order].astype(np.float64)
        of_class = functools.partial(by_class, labels=self.test_labels)
        self.add(epoch, "mean_prob", of_class(np.exp(self.test_log_probs[epoch])))
        self.add(epoch, "mean_change", of_class(self.test_change(epoch)))

    def test_change(self, epoch: int) -> np.ndarray:
        """Of the log-probs of the test images since the first epoch."""
        return (
            self.test_log_probs[epoch] - self.test_log_probs[min(self.test_log_probs)]
        )

    def add_kernel(self, epoch: int, kernel: Any) -> None:
        """Norms of the kernel's class pairs, and its drift since the last time."""
        kernel = np.asarray(kernel, np.float64)
        self.pair_norms[epoch] = _pair_norms(kernel)
        self.add(epoch, "kernel_norm", class_means(self.pair_norms[epoch]))
        if self._kernel:
            before, earlier = self._kernel
            drift = _pair_norms(kernel - earlier).mean() / (epoch - before)
            self.add(epoch, "kernel_drift_per_epoch", [[drift]])
        self._kernel = (epoch, kernel)


def _pair_norms(kernel: np.ndarray) -> np.ndarray:
    """Frobenius norm of each image pair's block of `[image, label, image, label]`."""
    return np.sqrt((kernel**2).sum((1, 3)))


def class_means(pair_norms: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """Mean over the image pairs of each class pair, `[class, class]`.

    An image with itself is left out (where there is another one): its kernel is larger
    than that of any two images, and would make a class look closer to itself.

    Args:
      pair_norms: Of every two images, `[image, image]`, class by class.
      images: Those that count, by their places; by default all. One that is there twice
        makes no pair with its copy.
    """
    per_class = len(pair_norms) // NUM_CLASSES
    images = np.arange(len(pair_norms)) if images is None else images
    is_pair = (images[:, None] != images) | (per_class == 1)
    is_of = (images // per_class == np.arange(NUM_CLASSES)[:, None]).astype(float)

    def total(pairs: np.ndarray) -> np.ndarray:
        return is_of @ pairs @ is_of.T

    return total(is_pair * pair_norms[np.ix_(images, images)]) / total(is_pair)


def by_class(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means over the images of each class, `[class, ...]`; classes in order."""
    starts = np.searchsorted(labels, np.arange(NUM_CLASSES))
    counts = np.diff([*starts, len(labels)])
    return np.add.reduceat(values, starts) / counts[:, None]
