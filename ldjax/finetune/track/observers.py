"""What is observed between the updates of a finetuning run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ldjax.equation.path import Nodes, trust_radius
from ldjax.equation.sequences import ApplyFn
from ldjax.finetune.probes import Watched
from ldjax.finetune.track.nodes import SlopeFn, integral
from ldjax.finetune.track.step import State
from ldjax.models.decoder.scoring import make_score_fn
from ldjax.runs.devices import data_mesh
from ldjax.runs.loop import Observer
from ldjax.watch.probes import (
    ProbeSet,
    make_change_fn,
    make_observe_fn,
    make_slope_fn,
)
from ldjax.watch.record import INTEGRATED, PREDICTED, is_part, single_step
from ldjax.watch.sharing import on_devices, spread_fn

__all__ = ["even_steps", "make_observers"]

#: Where the order of the remainder is checked, first order leaves this share of the
#: change; the third order then bends the ratio of 4 by about as much.
SMALL_REMAINDER = 0.05
#: By as much an update is stretched or shrunk to get there.
LARGEST_SCALE = 2.0**40

#: The predicted and the measured change of probes between two sets of parameters.
ChangeFn = Callable[[Any, Any], dict[str, np.ndarray]]
#: The log-prob of every token of each batch of probes, `[row, pos]`.
ScoresFn = Callable[[Any], list[np.ndarray]]

#: Observed besides the even intervals: most happens early.
EARLY_STEPS = (1, 2, 4, 8)


def even_steps(num_steps: int, evaluations: int) -> set[int]:
    """The steps of the observations in equal intervals, both ends included."""
    return {round(i * num_steps / evaluations) for i in range(evaluations + 1)}


def make_observers(
    apply_fn: ApplyFn,
    watched: Watched,
    *,
    num_steps: int,
    evaluations: int,
    probe_batch_size: int,
    is_explained: bool,
    nodes: Nodes = None,
) -> dict[str, Observer]:
    """What is measured between updates.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      watched: Who is watched.
      num_steps: Of the run.
      evaluations: Number of equal intervals.
      probe_batch_size: Most tracked probes that are computed at a time.
      is_explained: Whether to have the series `one_step`.
      nodes: Those of the updates' account.

    Returns:
      The series `observed` (quantities of every probe), `one_step` (the change of every
      observed probe by the update that follows, predicted and measured), `tokens` (the
      log-prob of every tracked token), `everything` at both ends, and at the start and
      half-way, unless nothing moves, `order` (by how much the remainder of the tracked
      probes falls when the update is halved) and `trust` (the multiple of the update
      at which first order is off by a tenth); and `tied` (by how much the update's own
      account misses the derivatives along what it moved) there too.
    """
    due = even_steps(num_steps, evaluations) | set(EARLY_STEPS)
    halfway = {0, num_steps // 2}.__contains__
    mesh = data_mesh()
    observed = on_devices(apply_fn, watched.observed, mesh, probe_batch_size)
    observe = make_observe_fn(apply_fn, observed)
    # In slices that fit the memory.
    tracked = on_devices(apply_fn, watched.tracked, mesh, probe_batch_size)
    scores_fn = functools.partial(_scores, make_score_fn(apply_fn), tracked)
    slope_fn = make_slope_fn(apply_fn, tracked)
    first_order = _FirstOrder(slope_fn, scores_fn, tracked)
    ahead = functools.partial(Observer, looks_ahead=True)
    observers = {
        "observed": Observer(lambda state: observe(state.params), due.__contains__),
        "tokens": Observer(
            functools.partial(_tokens, scores_fn, spread_fn(watched.tracked, tracked)),
            due.__contains__,
        ),
        "order": ahead(first_order.order, halfway),
        "trust": ahead(first_order.trust, halfway),
        "tied": ahead(functools.partial(_tied, slope_fn, nodes), halfway),
    }
    if is_explained:
        of_observed = make_change_fn(apply_fn, observed)
        observers["one_step"] = ahead(
            functools.partial(_one_step, of_observed), due.__contains__
        )
    if watched.everything is not None:
        everything = on_devices(apply_fn, watched.everything, mesh, probe_batch_size)
        observe_all = make_observe_fn(apply_fn, everything)
        observers["everything"] = Observer(
            lambda state: observe_all(state.params), lambda step: step == 0
        )
    return observers


def _one_step(
    change_fn: ChangeFn, state: State, following: State, metrics: Any
) -> dict[str, np.ndarray]:
    """What the update that follows does to every observed response."""
    del metrics
    changes = change_fn(state.params, following.params)
    return {single_step(name): change for name, change in changes.items()}


def _tokens(
    scores_fn: ScoresFn, spread: Callable[[Any], Any], state: State
) -> dict[str, np.ndarray]:
    """The log-prob of every tracked token."""
    of_batches = spread(scores_fn(state.params))
    return {f"log_prob_{place}": of for place, of in enumerate(of_batches)}


def _scores(
    score_fn: Callable[[Any, Any], Array], probes: ProbeSet, params: Any
) -> list[np.ndarray]:
    """The log-prob of every token, of each batch."""
    return [np.asarray(score_fn(params, batch)) for _, batch in probes.batches]


class _Scaled:
    """What an update does that is stretched or shrunk."""

    def __init__(
        self,
        slope_fn: SlopeFn,
        scores_fn: ScoresFn,
        probes: ProbeSet,
        ends: tuple[Any, Any],
    ):
        self._slope_fn, self._scores_fn, self._probes = slope_fn, scores_fn, probes
        self._ends = ends
        self._known: dict[float, dict[str, np.ndarray]] = {}

    @property
    def moves(self) -> bool:
        """Whether a parameter does; not by what was measured, whose programs round."""
        leaves = map(jax.tree.leaves, self._ends)
        return any(bool((old != new).any()) for old, new in zip(*leaves, strict=True))

    @functools.cached_property
    def _scores(self) -> list[np.ndarray]:
        return self._scores_fn(self._ends[0])

    @functools.cached_property
    def _slope(self) -> np.ndarray:
        return self._slope_fn(*self._ends, 0.0)

    def at(self, scale: float) -> dict[str, np.ndarray]:
        """The predicted and the measured change of every probe.

        An update that is stretched by a power of two is stored as exactly as it is, so
        that its derivative is a multiple; one that is shrunk is rounded anew.
        """
        if scale not in self._known:
            start, end = self._ends
            there = jax.tree.map(lambda old, new: old + scale * (new - old), start, end)
            if scale >= 1:
                predicted = scale * self._slope
            else:
                predicted = self._slope_fn(start, there, 0.0)
            # Per token first: less is lost.
            pairs = zip(self._scores_fn(there), self._scores, strict=True)
            measured = self._probes.gather([(new - old).sum(-1) for new, old in pairs])
            self._known[scale] = {"predicted": predicted, "measured": measured}
        return self._known[scale]

    def remainder(self, scale: float) -> float:
        """What first order leaves, the norm over the probes in nats."""
        change = self.at(scale)
        return float(np.linalg.norm(change["measured"] - change["predicted"]))

    def largest(self, share: float) -> float:
        """The largest power of two at which it leaves no more of the change."""

        def is_small(scale: float) -> bool:
            moved = float(np.linalg.norm(self.at(scale)["measured"]))
            return self.remainder(scale) <= share * moved

        scale = 1.0
        while is_small(scale) and scale < LARGEST_SCALE:
            scale *= 2
        while not is_small(scale) and scale > 1 / LARGEST_SCALE:
            scale /= 2
        return scale


class _FirstOrder:
    """How far first order reaches, of an update that two observers look at.

    Both are about one search for a scale, each trial of which passes over all tracked
    probes: `order` makes it, and `trust`, which is asked after it, tells what it found.
    """

    def __init__(self, slope_fn: SlopeFn, scores_fn: ScoresFn, probes: ProbeSet):
        self._watched = slope_fn, scores_fn, probes
        self._radius: dict[str, float] = {}

    def order(self, state: State, following: State, metrics: Any) -> dict[str, float]:
        """By how much the remainder falls when the update is halved: fourfold."""
        del metrics
        self._radius = {}
        update = _Scaled(*self._watched, (state.params, following.params))
        if not update.moves:
            return {}  # there is no remainder to halve
        # The largest scale at which it is small: there it is best resolved, too.
        scale = update.largest(SMALL_REMAINDER)
        change = update.at(scale)
        radius = scale * trust_radius(change["predicted"], change["measured"])
        if np.isfinite(radius):  # else linear to the last bit
            self._radius = {"radius": radius}
        whole, half = update.remainder(scale), update.remainder(scale / 2)
        # A change that is linear to the last bit has no order either.
        return {"scale": scale, "remainder_ratio": whole / half} if half else {}

    def trust(self, state: State, following: State, metrics: Any) -> dict[str, float]:
        """The multiple of the update at which first order is off by a tenth."""
        del state, following, metrics
        return self._radius


def _tied(
    slope_fn: SlopeFn, nodes: Nodes, state: State, following: State, metrics: Any
) -> dict[str, float]:
    """The update's own account, against the derivatives along what it moved."""
    slope_at = functools.partial(slope_fn, state.params, following.params)
    gap = abs(metrics[PREDICTED] - slope_at(0.0))
    if nodes is not None:
        gap = np.maximum(gap, abs(metrics[INTEGRATED] - integral(slope_at, nodes)))
    parts = [abs(of) for name, of in metrics.items() if is_part(name)]
    scale = sum(parts, start=metrics["floor"])
    # Where nothing moved, and a response is certain, there is nothing to divide by.
    return {"gap": float((gap / np.maximum(scale, 1e-30)).max())}
