"""Curves of a finetuning run, and terms to state their shape in.

A curve has one number per evaluation: the mean log-prob of a response type over the
probe set, the greedy log-prob, the adaptation norm. A `Term` such as `D("chosen")` is a
number of a curve that is yet to be seen; comparing two terms gives a `Check`::

    peak("irr_train") >= 0.2 * D("chosen")

which can be evaluated on any run, and which prints as it is written.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ldjax.data.response_types import RESPONSE_TYPES, SIDES

__all__ = [
    "Check",
    "Curves",
    "D",
    "Term",
    "TooFewPointsError",
    "end",
    "fall",
    "highest",
    "lowest",
    "on_baseline",
    "peak",
    "slope",
    "start",
    "tpeak",
    "upfrac",
]

_LOGGED = frozenset((*RESPONSE_TYPES, "argmax", *(f"A_o:{k}" for k in RESPONSE_TYPES)))
_MEANS = {
    "all": RESPONSE_TYPES,
    "others": tuple(k for k in RESPONSE_TYPES if k not in SIDES),
}
_DERIVED = {"margin": SIDES, **_MEANS}
_COMPARISONS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class TooFewPointsError(ValueError):
    """A number of a curve that has too few evaluations for it.

    Examples:
      >>> slope("chosen", 0.0, 0.2).of(Curves({"chosen": np.arange(5.0)}))
      Traceback (most recent call last):
        ...
      ldjax.theory.curves.TooFewPointsError: slope(chosen, 0, 0.2) needs 2 ...
    """


class Curves(Mapping[str, np.ndarray]):
    """The curves of one run, by series.

    The series are the response types (mean over the probe set of the sequence
    log-prob, in nats), `argmax` (mean over the probe set of the greedy log-prob
    summed along the chosen response, in nats) and `A_o:TYPE` (mean adaptation norm of
    a type). Derived from them are `margin` (chosen - rejected), `all` (mean of the 12
    types) and `others` (mean of the 10 types other than chosen and rejected).

    Args:
      series: `[time]` arrays by name, all of one length: one number per evaluation,
        evenly spaced in training examples, the first before training. Twenty or more
        are recommended. A series that was not logged is left out.

    Raises:
      ValueError: If a name is unknown, an array is not of one axis, has fewer than
        two points, another length than the first, or a number that is not finite.

    Examples:
      >>> curves = Curves({"chosen": np.array([-9.0, -7.0]),
      ...                  "rejected": np.array([-8.0, -9.0])})
      >>> curves["margin"]
      array([-1.,  2.])
      >>> curves.missing("others")[:2]
      ('chosen_initial', 'chosen_gptsemantic')
    """

    def __init__(self, series: Mapping[str, np.ndarray]):
        shape = None
        for name, values in series.items():
            _check_series(name, values)
            shape = shape or values.shape
            if values.shape != shape:
                raise ValueError(
                    f"All series must have one number per evaluation: {name!r} has "
                    f"{len(values)}, {next(iter(series))!r} has {shape[0]}."
                )
        self._series = {k: np.asarray(v, np.float64) for k, v in series.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "margin":
            return self._series["chosen"] - self._series["rejected"]
        if name in _MEANS:
            return np.mean([self._series[k] for k in _MEANS[name]], axis=0)
        return self._series[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)

    def __len__(self) -> int:
        return len(self._series)

    def missing(self, name: str) -> tuple[str, ...]:
        """The series that were not logged and that `name` is made of."""
        return tuple(k for k in _DERIVED.get(name, (name,)) if k not in self._series)


@dataclasses.dataclass(frozen=True)
class Term:
    """A number of a run, or of a run and the baseline it is compared with.

    Terms are compared with each other and with numbers by `<`, `<=`, `>` and `>=`,
    which makes a `Check`; they can be multiplied by a number and have an `abs`.

    Attributes:
      label: The term as it is written.
      needs: What it is computed from: the place of the run (0, or 1 for the
        baseline), and the series.
      value: The number, given the runs.

    Examples:
      >>> term = 0.5 * abs(start("chosen"))
      >>> term.label, term.of(Curves({"chosen": np.array([-9.0, -7.0])}))
      ('0.5 |start(chosen)|', 4.5)
    """

    label: str
    needs: tuple[tuple[int, str], ...]
    value: Callable[[Sequence[Curves]], float]

    def of(self, *runs: Curves) -> float:
        """The number, of a run or of a run and its baseline."""
        return self.value(runs)

    def missing(self, *runs: Curves) -> tuple[str, ...]:
        """The series that the term needs and that were not logged."""
        return tuple(
            f"{name} of the baseline" if place else name
            for place, series in self.needs
            for name in runs[place].missing(series)
        )

    def __rmul__(self, factor: float) -> "Term":
        label = f"{factor:g} {self.label}"
        return Term(label, self.needs, lambda runs: factor * self.value(runs))

    def __abs__(self) -> "Term":
        return Term(f"|{self.label}|", self.needs, lambda runs: abs(self.value(runs)))

    def __gt__(self, other: "Term | float | int") -> "Check":
        return Check(self, ">", _as_term(other))

    def __ge__(self, other: "Term | float | int") -> "Check":
        return Check(self, ">=", _as_term(other))

    def __lt__(self, other: "Term | float | int") -> "Check":
        return Check(self, "<", _as_term(other))

    def __le__(self, other: "Term | float | int") -> "Check":
        return Check(self, "<=", _as_term(other))


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison of two terms; it has no truth of its own, only for given runs.

    Attributes:
      left: Its left side.
      comparison: `<`, `<=`, `>` or `>=`.
      right: Its right side.

    Examples:
      >>> check = D("chosen") > 0
      >>> check.label, check.holds(Curves({"chosen": np.array([-9.0, -7.0])}))
      ('D(chosen) > 0', True)
    """

    left: Term
    comparison: str
    right: Term

    @property
    def label(self) -> str:
        """The check as it is written."""
        return f"{self.left.label} {self.comparison} {self.right.label}"

    def holds(self, *runs: Curves) -> bool:
        """Whether it is true of a run, or of a run and its baseline."""
        compare = _COMPARISONS[self.comparison]
        return bool(compare(self.left.of(*runs), self.right.of(*runs)))

    def missing(self, *runs: Curves) -> tuple[str, ...]:
        """The series that the check needs and that were not logged."""
        return self.left.missing(*runs) + self.right.missing(*runs)

    def numbers(self, *runs: Curves) -> dict[str, float]:
        """Both sides by label, without those that are the same for every run."""
        sides = (self.left, self.right)
        return {side.label: side.of(*runs) for side in sides if side.needs}

    def __bool__(self) -> bool:
        # `a > b > c` would ask this and quietly forget its first half.
        raise TypeError(f"`{self.label}` is true or false of a run: ask `holds`.")


def _function(formula: Callable[..., float]) -> Callable[..., Term]:
    """The term that takes a curve by its name, of a formula that takes its numbers."""

    @functools.wraps(formula)
    def term(series: str, *window: float) -> Term:
        label = ", ".join((series, *(f"{u:g}" for u in window)))
        label = f"{formula.__name__}({label})"

        def value(runs: Sequence[Curves]) -> float:
            try:
                return float(formula(runs[0][series], *window))
            except TooFewPointsError as error:
                raise TooFewPointsError(f"{label} {error}") from None

        return Term(label, ((0, series),), value)

    del term.__wrapped__  # or the formula's signature would be shown for it
    return term


@_function
def start(y: Float[np.ndarray, " time"]) -> float:
    """The curve before training, `y[0]`.

    Examples:
      >>> start("chosen").of(Curves({"chosen": np.array([-9.0, -7.0])}))
      -9.0
    """
    return y[0]


@_function
def end(y: Float[np.ndarray, " time"]) -> float:
    """The mean of the last tenth of the evaluations, rounded down, at least one.

    Examples:
      >>> end("chosen").of(Curves({"chosen": np.arange(20.0)}))
      18.5
    """
    return _end(y)


@_function
def D(y: Float[np.ndarray, " time"]) -> float:
    """The change from start to end.

    Examples:
      >>> D("chosen").of(Curves({"chosen": np.array([-9.0, -7.0])}))
      2.0
    """
    return _end(y) - y[0]


@_function
def peak(y: Float[np.ndarray, " time"]) -> float:
    """The largest rise above the start; 0 for a curve that never rises above it.

    Examples:
      >>> peak("chosen").of(Curves({"chosen": np.array([-9.0, -6.0, -7.0])}))
      3.0
    """
    return y.max() - y[0]


@_function
def tpeak(y: Float[np.ndarray, " time"]) -> float:
    """When the curve is highest for the first time, as a fraction of training.

    Examples:
      >>> tpeak("chosen").of(Curves({"chosen": np.array([-9.0, -6.0, -7.0])}))
      0.5
    """
    return y.argmax() / (len(y) - 1)


@_function
def fall(y: Float[np.ndarray, " time"]) -> float:
    """How far the end is below the highest point.

    Examples:
      >>> fall("chosen").of(Curves({"chosen": np.array([-9.0, -6.0, -7.0])}))
      1.0
    """
    return y.max() - _end(y)


@_function
def upfrac(y: Float[np.ndarray, " time"]) -> float:
    """The fraction of evaluations that are above the one before.

    Examples:
      >>> upfrac("chosen").of(Curves({"chosen": np.array([-9.0, -6.0, -7.0])}))
      0.5
    """
    return (np.diff(y) > 0).mean()


@_function
def slope(y: Float[np.ndarray, " time"], first: float, last: float) -> float:
    """The least-squares slope over part of training, in the curve's unit per run.

    `first` and `last` are fractions of training; both ends count. Fewer than two
    evaluations between them are a `TooFewPointsError`.

    Examples:
      >>> slope("chosen", 0.0, 0.5).of(Curves({"chosen": np.array([0.0, 3, 6, 0, 0])}))
      12.0
    """
    time = np.arange(len(y)) / (len(y) - 1)
    inside = (first <= time) & (time <= last)
    if inside.sum() < 2:
        raise TooFewPointsError(
            f"needs 2 evaluations in its part of training, the curve has "
            f"{inside.sum()} of {len(y)} there; evaluate more often"
        )
    time = time[inside] - time[inside].mean()
    return time @ y[inside] / (time @ time)


def highest(label: str, terms: Sequence[Term]) -> Term:
    """The largest of some terms.

    Examples:
      >>> term = highest("max D(both)", [D("chosen"), D("rejected")])
      >>> term.of(Curves({"chosen": np.array([-9.0, -7.0]),
      ...                 "rejected": np.array([-9.0, -8.0])}))
      2.0
    """
    return _extreme(max, label, terms)


def lowest(label: str, terms: Sequence[Term]) -> Term:
    """The smallest of some terms.

    Examples:
      >>> term = lowest("min D(both)", [D("chosen"), D("rejected")])
      >>> term.of(Curves({"chosen": np.array([-9.0, -7.0]),
      ...                 "rejected": np.array([-9.0, -8.0])}))
      1.0
    """
    return _extreme(min, label, terms)


def on_baseline(term: Term) -> Term:
    """The term of the second run of a pair.

    Examples:
      >>> runs = [Curves({"chosen": np.array([0.0, x])}) for x in (2.0, 3.0)]
      >>> (D("chosen") < on_baseline(D("chosen"))).holds(*runs)
      True
    """
    needs = tuple((place + 1, series) for place, series in term.needs)
    return Term(f"baseline {term.label}", needs, lambda runs: term.value(runs[1:]))


def _extreme(choose: Callable[..., float], label: str, terms: Sequence[Term]) -> Term:
    needs = tuple(need for term in terms for need in term.needs)
    return Term(label, needs, lambda runs: choose(term.value(runs) for term in terms))


def _end(y: Float[np.ndarray, " time"]) -> float:
    return y[-max(1, len(y) // 10) :].mean()


def _as_term(side: Term | float | int) -> Term:
    if isinstance(side, Term):
        return side
    return Term(f"{side:g}", (), lambda _: float(side))


def _check_series(name: str, values: np.ndarray) -> None:
    if name not in _LOGGED:
        raise ValueError(
            f"There is no series {name!r}: expected a response type "
            f"({', '.join(RESPONSE_TYPES)}), 'argmax' or 'A_o:TYPE'. 'margin', 'all' "
            "and 'others' are derived."
        )
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"Series {name!r} must have one axis and at least 2 evaluations, got "
            f"shape {values.shape}."
        )
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise ValueError(
            f"Series {name!r} is {values[place]} at evaluation {place}: every number "
            "must be finite. Leave the series out to have the signatures that need it "
            "not applicable."
        )
