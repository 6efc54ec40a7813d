"""Statistics of a sample: 95 % intervals by the jackknife, ranks, win rates.

A rank correlation, a minimum or a mean over pairs is no plain mean, and the resamples
of a bootstrap are a bad copy of the sample for it: they contain a unit twice (a pair of
an image with itself, a tie of ranks), which adds noise that the sample has not. The
jackknife only ever leaves a unit out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, t

__all__ = ["Interval", "jackknife", "mean_rate", "rank_correlations", "win_rate"]


class Interval(NamedTuple):
    """An estimate between the ends of its 95 % interval; arrays for several at once."""

    value: Any
    low: Any
    high: Any


def jackknife(
    statistic: Callable[[np.ndarray], Any],
    strata: Sequence[Any] | np.ndarray,
    *,
    limits: tuple[float, float] = (-np.inf, np.inf),
    groups: int = 10,
) -> Interval:
    r"""The 95 % interval of a statistic, from what each part of the sample does to it.

    .. math:: \hat\theta \pm t_{G - S} \Big(\sum_s \frac{G_s - 1}{G_s} \sum_{g \in s}
              (\hat\theta_{(g)} - \bar\theta_{(s)})^2\Big)^{1/2}

    with :math:`\hat\theta_{(g)}` the statistic without group `g`, and :math:`G` groups
    in :math:`S` strata: every unit of a stratum on its own, or where there are more
    units, as many groups as are asked for. It covers where the statistic is nearly
    linear in the means that it is made of, and not much biased. A rank correlation is
    biased: noise lowers it, so with few units of much noise the lower end is safe and
    the upper one is not.

    Args:
      statistic: From the places of the units that are there, in order, to a number or
        to an array of them.
      strata: Of each unit. Units of one stratum were drawn alike, in any order; the
        strata are those that there are. Samples of two kinds (images, and those that
        watch them) are strata of one list.
      limits: What the statistic cannot leave, such as -1 and 1.
      groups: At most so many of a stratum. Leaving out a single one of many units moves
        a mean so little that a rank jumps or stays, and the jumps make the interval too
        long; for a mean itself, the more the better.

    Returns:
      `Interval(value, low, high)`.

    Raises:
      ValueError: If a stratum has a single unit, of whose spread nothing is known.

    Examples:
      Of a mean it is the textbook's:

      >>> sample = np.array([1.0, 2.0, 4.0, 5.0])
      >>> interval = jackknife(lambda places: sample[places].mean(), [0] * 4)
      >>> [round(float(end), 2) for end in interval]
      [3.0, 0.09, 5.91]
    """
    strata = np.asarray(strata)
    value = np.asarray(statistic(np.arange(len(strata))), float)
    variance, freedom = np.zeros_like(value), 0
    for name in np.unique(strata):
        (places,) = np.nonzero(strata == name)
        count = min(len(places), groups)
        if count < 2:
            raise ValueError(
                f"Stratum {name} has one unit; an interval takes at least two in each."
            )
        without = [
            statistic(np.delete(np.arange(len(strata)), places[group::count]))
            for group in range(count)
        ]
        variance += (count - 1) * np.var(without, axis=0)
        freedom += count - 1
    reach = t.ppf(0.975, freedom) * np.sqrt(variance)
    return Interval(value, *np.clip([value - reach, value + reach], *limits))


def mean_rate(rates: Sequence[float] | np.ndarray) -> Interval:
    """A mean of rates (or of wins) that were drawn alike, and its 95 % interval.

    Examples:
      >>> [round(float(end), 2) for end in mean_rate([0.4, 0.5, 0.6])]
      [0.5, 0.25, 0.75]
    """
    rates = np.asarray(rates)
    return jackknife(
        lambda places: rates[places].mean(),
        np.zeros(len(rates)),
        limits=(0.0, 1.0),
        groups=len(rates),
    )


def win_rate(
    ours: Sequence[str], theirs: Sequence[str], best_first: Sequence[str]
) -> Interval:
    """How often the first of two verdicts on the same thing is the better one.

    An equal one counts half.

    Args:
      ours: Verdicts on the responses of one policy.
      theirs: Verdicts on the other's, to the same prompts.
      best_first: All verdicts, from the best to the worst.

    Returns:
      The rate and its 95 % interval over prompts, these two policies being what they
      are. Where all verdicts compare alike it has no length, and says nothing.

    Examples:
      >>> float(win_rate(["good", "bad"], ["bad", "bad"], ["good", "bad"]).value)
      0.75
    """
    rank = {verdict: place for place, verdict in enumerate(best_first)}
    gap = np.array([rank[b] - rank[a] for a, b in zip(ours, theirs, strict=True)])
    return mean_rate((np.sign(gap) + 1) / 2)


def rank_correlations(*series: np.ndarray) -> np.ndarray:
    """Spearman's correlation between every two of several lists of numbers.

    Examples:
      >>> rank_correlations(np.array([1.0, 2.0, 9.0]), np.array([3.0, 2.0, 1.0]))
      array([[ 1., -1.],
             [-1.,  1.]])
    """
    return np.corrcoef(rankdata(np.stack(series), axis=1))
