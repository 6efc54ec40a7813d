"""What `benchmarks.ntk` is to reach, as it was set before anything was measured."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.benchmarks.ntk.measure import Row

__all__ = ["ALL_PAIRS", "ONE_PAIR", "TARGETS", "Checked", "Target", "check_targets"]


class Target(NamedTuple):
    """What is to be reached.

    Attributes:
      quantity: A number of a measured row.
      at_most: Its largest allowed value, of ours over the peer's if there is a
        peer.
      at_least: Its smallest allowed value.
      peer: First words of the methods of which the fastest is the other side.
      method: Ours; by default the fastest of ours that makes what the peers make.
    """

    quantity: str
    at_most: float = float("inf")
    at_least: float = 0.0
    peer: str | None = None
    method: str | None = None


# "In the class of" a time: that much above it.
_CLASS = 1.5
# "As fast", "not slower": two medians of equal functions differ by this much here.
_EQUAL = 1.1
_OURS = ("ldjax structured", "ldjax factored")
_NT1, _NT2, _NT3 = (f"neural-tangents {i}" for i in (1, 2, 3))
ONE_PAIR, ALL_PAIRS = "ldjax factored, one pair", "ldjax factored, all pairs"

# Neural-tangents' third implementation is measured beside ours: seconds that are known
# of it are another machine's, whose matrix product is 1.6 times faster.
TARGETS: dict[str, tuple[Target, ...]] = {
    "A": (
        Target("seconds", 1 / 50, peer=_NT1),
        Target("seconds", 1 / 50, peer=_NT2),
        Target("seconds", 1 / 3, peer=_NT3),
        Target("bytes", 50e6),
    ),
    "B": (Target("seconds", 1.0, peer=_NT3), Target("seconds", 1 / 1.5, peer=_NT1)),
    "C": (Target("seconds", 1.0, peer=_NT3), Target("seconds", 1 / 50, peer=_NT2)),
    "D": (Target("seconds", 1 / 8, peer=_NT2),),
    "E": (Target("seconds", 1 / 15, peer=_NT2),),
    "F": (
        Target("seconds", 0.2 * _CLASS),
        Target("seconds", 1 / 2, peer="trunk NTK-vp, "),
        Target("bytes", 1 / 4, peer="trunk NTK-vp, "),
    ),
    "G": (Target("seconds", 1.5), Target("bytes", 100e6)),
    "H": (
        Target("seconds", 10 * _CLASS, method=ONE_PAIR),
        Target("seconds", 120, method=ALL_PAIRS),
        Target("resident_bytes", 4e9, method=ALL_PAIRS),
        Target("matmul_fraction", at_least=0.5, method=ONE_PAIR),
    ),
    "I": (Target("seconds", _EQUAL, peer="ldjax lazy"),),
    "LeNet": (Target("seconds", _EQUAL, peer="neural-tangents"),),
}


class Checked(NamedTuple):
    """A target and what was measured.

    Attributes:
      words: The target.
      value: Of the quantity, or the ratio; None where one of the sides did not run.
      holds: Whether it is reached; None where it was not measured.
    """

    words: str
    value: float | None
    holds: bool | None

    def __str__(self) -> str:
        """The target with the value."""
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{self.words}: {value}"


def check_targets(rows: Sequence[Row]) -> list[Checked]:
    """Each target of the cases that were run."""
    checked = []
    for name in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == name]
        for target in TARGETS[name]:
            value = measured(of_case, target)
            holds = None
            if value is not None:
                holds = target.at_least <= value <= target.at_most
            checked.append(Checked(in_words(name, target), value, holds))
    return checked


def measured(rows: Sequence[Row], target: Target) -> float | None:
    """What a target bounds, of the rows of its case."""
    ours = value_of_fastest(
        [
            row
            for row in rows
            if row.output == rows[0].output
            and row.method.startswith(target.method or _OURS)
        ],
        target.quantity,
    )
    if target.peer is None or ours is None:
        return ours
    peers = [row for row in rows if row.method.startswith(target.peer)]
    theirs = value_of_fastest(peers, target.quantity)
    return None if theirs is None else ours / theirs


def value_of_fastest(rows: Sequence[Row], quantity: str) -> float | None:
    """A number of the fastest of the rows that ran."""
    ran = [(row.seconds, row) for row in rows if row.seconds is not None]
    return getattr(min(ran, key=lambda pair: pair[0])[1], quantity) if ran else None


def in_words(case: str, target: Target) -> str:
    """A target as a line of the table."""
    method = f" ({target.method})" if target.method else ""
    what = f"{case}{method}: {target.quantity.replace('_', ' ')}"
    if target.peer is not None:
        what += f" over that of {target.peer.rstrip(', ')}"
    if target.at_least:
        return f"{what} at least {target.at_least:.3g}"
    return f"{what} at most {target.at_most:.3g}"
