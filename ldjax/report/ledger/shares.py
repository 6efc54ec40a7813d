"""The shares of training examples in a change: added up, and the largest of them."""

from typing import NamedTuple

import numpy as np

__all__ = ["Rows", "Shares", "extremes", "sum_up", "when"]


class Rows(NamedTuple):
    """The rows of a ledger that are about examples, by number.

    Attributes:
      response: The response that moved, `[row]`.
      step: The update that the example was trained on in, `[row]`.
      example: The example, `[row]`.
      side: Its side, `[row]`.
      value: What it gave, in nats, `[row]`.
    """

    response: np.ndarray
    step: np.ndarray
    example: np.ndarray
    side: np.ndarray
    value: np.ndarray


class Shares(NamedTuple):
    """What examples gave in groups, such as those of a response; ordered by group.

    Attributes:
      group: The group, `[share]`.
      example: The example, once in a group, `[share]`.
      sides: What its sides gave, in nats, `[share, side]`.
    """

    group: np.ndarray
    example: np.ndarray
    sides: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """What an example's sides gave together, `[share]`."""
        return self.sides.sum(1)


def sum_up(rows: Rows, group: np.ndarray) -> Shares:
    """What each example gave in each group of rows.

    Args:
      rows: The rows.
      group: That of each.

    Examples:
      >>> zero = np.zeros(3, int)
      >>> rows = Rows(zero, zero, np.array([4, 1, 4]), zero, np.array([1.0, 3.0, 1.5]))
      >>> shares = sum_up(rows, zero)
      >>> shares.example.tolist(), shares.total.tolist()
      ([1, 4], [3.0, 2.5])
    """
    size = int(rows.example.max(initial=0)) + 1
    num_sides = int(rows.side.max(initial=0)) + 1
    keys, place = np.unique(group * size + rows.example, return_inverse=True)
    sums = np.bincount(place * num_sides + rows.side, rows.value, len(keys) * num_sides)
    return Shares(keys // size, keys % size, sums.reshape(-1, num_sides))


def extremes(shares: Shares, count: int) -> Shares:
    """The largest positive and the largest negative shares of each group.

    Args:
      shares: All of them.
      count: So many of each sign, at most.

    Returns:
      Those, from the one that lifted most to the one that lowered most.

    Examples:
      >>> values = np.array([[1], [-2], [3], [2]])
      >>> shares = Shares(np.zeros(4, int), np.arange(4), values)
      >>> extremes(shares, 1).example.tolist()
      [2, 1]
    """
    total = shares.total
    order = np.lexsort((-total, shares.group))
    group, total = shares.group[order], total[order]
    place = np.arange(len(order))
    from_start = place - np.searchsorted(group, group, "left")
    from_end = np.searchsorted(group, group, "right") - 1 - place
    lifted = (from_start < count) & (total > 0)
    lowered = (from_end < count) & (total < 0)
    kept = order[lifted | lowered]
    return Shares(*(array[kept] for array in shares))


def when(
    rows: Rows, shares: Shares, window: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In which windows of updates some shares of the responses were earned.

    Args:
      rows: The rows that were summed.
      shares: Some of their sums by response.
      window: That of each row.

    Returns:
      The place of the share, the window, and what was earned in it, in nats; ordered by
      share and window.
    """
    size = int(rows.example.max(initial=0)) + 1
    wanted = shares.group * size + shares.example
    order = np.argsort(wanted)
    found = rows.response * size + rows.example
    near = np.searchsorted(wanted[order], found).clip(max=max(0, len(wanted) - 1))
    is_wanted = wanted[order][near] == found if len(wanted) else np.zeros(0, bool)
    of, num_windows = order[near[is_wanted]], int(window.max(initial=0)) + 1
    keys, place = np.unique(of * num_windows + window[is_wanted], return_inverse=True)
    sums = np.bincount(place, rows.value[is_wanted], len(keys))
    return keys // num_windows, keys % num_windows, sums
