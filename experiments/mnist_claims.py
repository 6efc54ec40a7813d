"""What `mnist.py` claims, and the identities that every run of it must satisfy.

Each check is a dict with `text` (one line with the numbers), `holds`, `value` and,
for a claim, its 95 % bootstrap `interval` and its `bound`. A claim holds if the whole
interval is above its bound.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mnist_results import NUM_CLASSES, Results, class_means, rank_correlations
from scipy.stats import bootstrap

__all__ = ["check_claims", "check_identities"]


def check_claims(results: Results, *, seed: int) -> list[dict[str, Any]]:
    """The four claims, each on the whole run."""
    return [
        own_class_is_pulled_up_most(results, seed),
        accumulated_change_follows_confusion(results, seed),
        kernel_ranking_is_stable(results, seed),
        first_order_explains_each_step(results, seed),
    ]


def own_class_is_pulled_up_most(results: Results, seed: int) -> dict[str, Any]:
    """The trained image's own class gains more of its label than the other nine."""
    # [trained class, draw, probe class] -> one row for each drawn step, own class last.
    classes = np.arange(NUM_CLASSES)
    ahead = np.array([np.roll(results.pull_ups[c], -1 - c, axis=-1) for c in classes])
    drawn = ahead.reshape(-1, NUM_CLASSES)
    gaps = drawn[:, -1] - drawn[:, :-1].mean(-1)
    first = np.mean(drawn.argmax(-1) == NUM_CLASSES - 1)
    return _claim(
        f"own class pulled up more than the mean of the nine others (nats, {len(gaps)} "
        f"drawn steps; own class first of ten in {first:.0%})",
        np.mean,
        gaps,
        bound=0.0,
        seed=seed,
    )


def accumulated_change_follows_confusion(results: Results, seed: int) -> dict[str, Any]:
    """Labels that rose on a class are those it is confused with."""
    confusion = results.mean_probs[max(results.mean_probs)]
    change = results.change  # [class, probe, label]

    def correlation(probes: np.ndarray) -> float:
        return _off_diagonal_rank_correlation(change[:, probes].mean(1), confusion)

    return _claim(
        "Spearman of off-diagonal accumulated change and mean confusion",
        correlation,
        np.arange(change.shape[1]),
        bound=0.5,
        seed=seed,
    )


def kernel_ranking_is_stable(results: Results, seed: int) -> dict[str, Any]:
    """The order of class pairs by |K|_F, at its worst over the last quarter's pairs."""
    last = max(results.pair_norms)
    late = [
        norms for epoch, norms in results.pair_norms.items() if epoch >= 0.75 * last
    ]
    per_class = len(late[0]) // NUM_CLASSES
    upper = np.triu_indices(NUM_CLASSES)

    def worst(images: np.ndarray) -> float:
        index = (np.arange(NUM_CLASSES)[:, None] * per_class + images).ravel()
        ranked = [class_means(norms[np.ix_(index, index)])[upper] for norms in late]
        return rank_correlations(*ranked).min()

    return _claim(
        f"lowest Spearman of |K|_F over class pairs between {len(late)} late epochs",
        worst,
        np.arange(per_class),
        bound=0.9,
        seed=seed,
    )


def first_order_explains_each_step(results: Results, seed: int) -> dict[str, Any]:
    """R^2 of the predicted against the measured change of every step."""
    num_steps = len(results.fits.num_entries)
    return _claim(
        f"R^2 of predicted against measured over {num_steps} steps",
        results.fits.r_squared,
        np.arange(num_steps),
        bound=0.95,
        seed=seed,
    )


def check_identities(results: Results) -> list[dict[str, Any]]:
    """What holds exactly, up to the rounding of the steps' log-probs."""
    parts = dict(results.totals)
    predicted, measured = parts.pop("predicted"), parts.pop("measured")
    numbers = np.array([row[-1] for row in results.rows])
    allowed = results.rounding
    return [
        _identity("parts - predicted", sum(parts.values()) - predicted, allowed),
        _identity("steps - whole run, measured", measured - results.change, allowed),
        _identity("recorded numbers that are not", ~np.isfinite(numbers), 0.0),
    ]


def _claim(
    text: str,
    statistic: Callable[[np.ndarray], float],
    sample: np.ndarray,
    *,
    bound: float,
    seed: int,
) -> dict[str, Any]:
    value = float(statistic(sample))
    result = bootstrap(
        (sample,),
        statistic,
        n_resamples=500,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    return {
        "text": f"{text}: {value:.3f} [{low:.3f}, {high:.3f}] > {bound:g}",
        "holds": low > bound,
        "value": value,
        "interval": [low, high],
        "bound": bound,
    }


def _identity(text: str, violation: Any, allowed: float) -> dict[str, Any]:
    value = float(np.abs(violation).max())
    return {
        "text": f"{text}: at most {value:.1e} nats (rounding allows {allowed:.1e})",
        "holds": value <= allowed,
        "value": value,
    }


def _off_diagonal_rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    off_diagonal = ~np.eye(NUM_CLASSES, dtype=bool)
    return rank_correlations(left[off_diagonal], right[off_diagonal])[0, 1]
