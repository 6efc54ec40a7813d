"""What `mnist.py` claims, and the identities that every run of it must satisfy.

A claim has its 95 % `interval`, by the jackknife over what was drawn, and holds if the
whole interval is above its `bound`.
"""

from typing import Any

import numpy as np

from ldjax.equation.resolution import rounding_of_sum
from ldjax.studies.mnist.results import (
    NUM_CLASSES,
    Results,
    by_class,
    class_means,
)
from ldjax.studies.statistics import Interval, jackknife, rank_correlations
from ldjax.theory.claims import Claim

__all__ = ["check_claims", "check_identities"]

# Stretches of a run that are left out, one at a time, for the interval of its R^2:
# neighbouring steps are alike.
NUM_STRETCHES = 10

_CLASSES = np.arange(NUM_CLASSES)
_OFF_DIAGONAL = ~np.eye(NUM_CLASSES, dtype=bool)


def check_claims(results: Results) -> list[Claim]:
    """The four claims, each on the whole run."""
    return [
        own_class_is_pulled_up_most(results),
        accumulated_change_follows_confusion(results),
        kernel_ranking_is_stable(results),
        first_order_explains_each_step(results),
    ]


def own_class_is_pulled_up_most(results: Results) -> Claim:
    """The trained image's own class gains more of its label than the other nine."""
    _, per_class, _, probes_per_class = results.pull_ups.shape
    trained = np.repeat(_CLASSES, per_class)
    watching = np.repeat(_CLASSES, probes_per_class)
    pull_ups = results.pull_ups.reshape(len(trained), len(watching))

    def gap(places: np.ndarray) -> float:
        """Without some trained and some watching images: both were drawn."""
        steps = places[places < len(trained)]
        probes = places[len(steps) :] - len(trained)
        by_step = by_class(pull_ups[np.ix_(steps, probes)], trained[steps])
        table = by_class(by_step.T, watching[probes])
        return float(np.diagonal(table).mean() - table[_OFF_DIAGONAL].mean())

    first = np.mean(results.pull_ups.mean(3).argmax(2) == _CLASSES[:, None])
    return _claim(
        "own class pulled up more than the mean of the nine others (nats, "
        f"{len(trained)} drawn steps; own class first of ten in {first:.0%})",
        jackknife(gap, np.concatenate([trained, NUM_CLASSES + watching])),
        bound=0.0,
    )


def accumulated_change_follows_confusion(results: Results) -> Claim:
    """Labels that rose on a class are those it is confused with.

    From a network that starts uniform the change is what it ends with, and this holds
    nearly by itself; so the spread of the start is told with it.
    """
    first, *_, last = results.test_log_probs
    labels, change = results.test_labels, results.test_change(last)
    probs = np.exp(results.test_log_probs[last])

    def cells(values: np.ndarray, images: Any = slice(None)) -> np.ndarray:
        return by_class(values[images], labels[images])[_OFF_DIAGONAL]

    def correlation(images: np.ndarray) -> float:
        return rank_correlations(cells(change, images), cells(probs, images))[0, 1]

    spread, started = (
        cells(values).std() for values in (change, results.test_log_probs[first])
    )
    return _claim(
        "Spearman of off-diagonal accumulated change and mean confusion over "
        f"{len(labels)} test images (the change spreads by {spread:.2g} nats, the "
        f"start by {started:.2g})",
        jackknife(correlation, labels, limits=(-1.0, 1.0)),
        bound=0.5,
    )


def kernel_ranking_is_stable(results: Results) -> Claim:
    """The order of class pairs by |K|_F, at its worst over the last quarter's pairs.

    Each pair of epochs has an interval; all of them have to be above the bound.
    """
    last = max(results.pair_norms)
    late = [
        norms for epoch, norms in results.pair_norms.items() if epoch >= 0.75 * last
    ]
    per_class = len(late[0]) // NUM_CLASSES
    upper = np.triu_indices(NUM_CLASSES)
    pairs = np.triu_indices(len(late), k=1)

    def correlations(images: np.ndarray) -> np.ndarray:
        ranked = [class_means(norms, images)[upper] for norms in late]
        return rank_correlations(*ranked)[pairs]

    of_pairs = jackknife(
        correlations, np.repeat(_CLASSES, per_class), limits=(-1.0, 1.0)
    )
    return _claim(
        f"lowest Spearman of |K|_F over class pairs between {len(late)} late epochs",
        Interval(*(ends.min() for ends in of_pairs)),
        bound=0.9,
    )


def first_order_explains_each_step(results: Results) -> Claim:
    """R^2 of the predicted against the measured change of every step."""
    num_steps = len(results.fits.num_entries)
    count = min(NUM_STRETCHES, num_steps)
    stretch = np.arange(num_steps) * count // num_steps

    def r_squared(stretches: np.ndarray) -> float:
        return results.fits.r_squared(np.isin(stretch, stretches))

    return _claim(
        f"R^2 of predicted against measured over {num_steps} steps",
        jackknife(r_squared, np.zeros(count), limits=(-np.inf, 1.0)),
        bound=0.95,
    )


def check_identities(results: Results) -> list[Claim]:
    """What holds exactly, up to the rounding of the steps' log-probs."""
    parts = dict(results.totals)
    predicted, measured = parts.pop("predicted"), parts.pop("measured")
    # What is left of a prediction is called rounding: is it no more than that?
    parts.pop("rounding", None)
    rounding = float(rounding_of_sum(results.floors))
    numbers = np.array([row[-1] for row in results.rows])
    return [
        _identity(
            "the parts of all steps sum to their predictions, nats",
            sum(parts.values()) - predicted,
            rounding,
        ),
        # The steps telescope: this tells whether what one step left behind is what the
        # next one began with.
        _identity(
            "the measured steps sum to the change of the whole run, nats",
            measured - results.change,
            rounding,
        ),
        _identity("recorded numbers that are not", ~np.isfinite(numbers), 0.0),
    ]


def _claim(text: str, found: Interval, *, bound: float) -> Claim:
    value, low, high = map(float, found)
    return Claim(
        f"{text}: {value:.3f} [{low:.3f}, {high:.3f}] > {bound:g}",
        low > bound,
        numbers={"value": value, "interval": [low, high], "bound": bound},
    )


def _identity(text: str, violation: Any, allowed: float) -> Claim:
    value = float(np.abs(violation).max())
    return Claim(
        f"{text}: {value:.1e} (rounding allows {allowed:.1e})",
        value <= allowed,
        "identity",
        numbers={"value": value},
    )
