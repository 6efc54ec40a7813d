"""The updates of a finetuning run, and what is observed between them.

On all devices that JAX sees: parameters on each, rows divided over them.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ldjax.equation.sequences import ApplyFn, LossFn
from ldjax.equation.step import StepState, make_step
from ldjax.finetune.probes import Watched
from ldjax.models.decoder.scoring import make_score_fn
from ldjax.runs.devices import data_mesh, replicate, shard
from ldjax.runs.loop import Observer
from ldjax.watch.probes import ProbeSet, make_change_fn, make_observe_fn, shard_probes
from ldjax.watch.record import FLOOR, MEASURED, PREDICTED, is_part, part, single_step

__all__ = [
    "State",
    "even_steps",
    "make_observers",
    "make_tracked_step",
    "on_all_devices",
]

#: Where the order of the remainder is checked, first order leaves this share of the
#: change; the third order then bends the ratio of 4 by about as much.
SMALL_REMAINDER = 0.05
#: By as much an update is stretched or shrunk to get there.
LARGEST_SCALE = 2.0**40

#: The predicted and the measured change of probes between two sets of parameters.
ChangeFn = Callable[[Any, Any], dict[str, np.ndarray]]

#: Observed besides the even intervals: most happens early.
EARLY_STEPS = (1, 2, 4, 8)


class State(NamedTuple):
    """What continues from one update to the next.

    Attributes:
      params: Parameters.
      opt_state: State of the optimizer.
      step: Number of updates taken.
      loss: Loss before the last update, in nats.
      noise: Whatever `ldjax.StepState` keeps of rounding.
      predicted: Predicted change of each tracked token, added up over the updates.
      measured: Measured change of each tracked token, added up over the updates.
    """

    params: Any
    opt_state: Any
    step: Array
    loss: Array
    noise: Array
    predicted: tuple[Array, ...]
    measured: tuple[Array, ...]

    @property
    def training(self) -> StepState:
        """What the update itself continues from.

        Not a field: a checkpoint names its leaves by their place in the state.
        """
        return StepState(self.params, self.opt_state, self.step, self.loss, self.noise)


def on_all_devices(
    batch_fn: Callable[[int], Any], batch_size: int
) -> tuple[Callable[[int], Any], str]:
    """The batches of a run on its devices, and a line that says how they lie.

    A batch whose rows cannot be divided is computed whole by every device: its loss is
    a mean, to which no row may be added.

    Args:
      batch_fn: The batch of each step.
      batch_size: Its rows.

    Returns:
      The same batches, and the line; empty where there is one device.
    """
    mesh = data_mesh()
    if batch_size % mesh.size:
        place = replicate
        rows = f"all {batch_size} rows of an update (not a multiple of {mesh.size})"
    else:
        place, rows = shard, f"{batch_size // mesh.size} rows of an update"
    line = f"{mesh.size} devices, on each {rows} and its share of what is watched\n"
    return lambda step: place(batch_fn(step), mesh), line if mesh.size > 1 else ""


def make_tracked_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    tracked: ProbeSet,
    **options: Any,
) -> tuple[
    Callable[[Any], State], Callable[[State, Any], tuple[State, dict[str, Array]]]
]:
    """An update that accounts for the tracked probes.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: Any optax transformation.
      tracked: What is watched.
      options: Of `ldjax.make_step`, such as `watch_fn`.

    Returns:
      `init(params) -> state`, and `step(state, batch) -> (state, metrics)` with the
      metrics `loss`, and per probe (sums over tokens, in nats) `predicted`, `measured`,
      `floor` and one `part:...` for each part of the update.
    """
    init_step, step = make_step(apply_fn, loss_fn, optimizer, **options)
    mesh = data_mesh()
    watched = tuple(batch for _, batch in shard_probes(tracked, mesh).batches)
    counts = [len(places) for places, _ in tracked.batches]
    order = np.argsort(np.concatenate([places for places, _ in tracked.batches]))

    def init(params: Any) -> State:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        nothing = own(tuple(jnp.zeros(w.targets.shape, dtype) for w in watched))
        # As the updates leave it: elsewhere, the second one would be compiled anew.
        return replicate(State(*init_step(params), nothing, nothing), mesh)

    def own(batches: tuple[Array, ...]) -> tuple[Array, ...]:
        """Without the rows that fill up: a checkpoint fits any number of devices."""
        return tuple(leaf[:n] for leaf, n in zip(batches, counts, strict=True))

    @jax.jit
    def digest(state: State, comparison: Any) -> Any:
        predicted, measured = own(comparison.predicted), own(comparison.measured)

        def per_probe(batches: tuple[Array, ...]) -> Array:
            return jnp.concatenate([leaf.sum(-1) for leaf in own(batches)])[order]

        changes = {
            PREDICTED: comparison.predicted,
            MEASURED: comparison.measured,
            FLOOR: comparison.floor,
        } | {part(name): of for name, of in comparison.parts.items()}
        sums = (
            jax.tree.map(jnp.add, state.predicted, predicted),
            jax.tree.map(jnp.add, state.measured, measured),
        )
        return sums, {name: per_probe(change) for name, change in changes.items()}

    def tracked_step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        training, comparison = step(state.training, batch, watched)
        sums, changes = digest(state, comparison)
        return State(*training, *sums), {"loss": training.loss, **changes}

    return init, tracked_step


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
) -> dict[str, Observer]:
    """What is measured between updates.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      watched: Who is watched.
      num_steps: Of the run.
      evaluations: Number of equal intervals.
      probe_batch_size: Most tracked probes that are computed at a time.
      is_explained: Whether to have the series `one_step`.

    Returns:
      The series `observed` (quantities of every probe), `one_step` (the change of every
      observed probe by the update that follows, predicted and measured), `tokens` (the
      log-prob of every tracked token), `everything` at both ends, and `order` (by how
      much the remainder of the tracked probes falls when the update is halved) at the
      start and half-way, unless nothing moves; and `tied` (by how much the update's own
      prediction misses the derivative that `order` is about) there too.
    """
    due = even_steps(num_steps, evaluations) | set(EARLY_STEPS)
    halfway = {0, num_steps // 2}.__contains__
    mesh = data_mesh()
    observed = shard_probes(watched.observed, mesh)
    observe = make_observe_fn(apply_fn, observed)
    tracked = watched.tracked
    # Each batch of tracked probes, in slices that fit the memory.
    slices = [
        shard_probes(
            tracked._replace(batches=(batch,)).in_slices(probe_batch_size), mesh
        ).batches
        for batch in tracked.batches
    ]
    score_fn = make_score_fn(apply_fn)
    change_fn = make_change_fn(
        apply_fn, tracked._replace(batches=tuple(itertools.chain(*slices)))
    )
    ahead = functools.partial(Observer, looks_ahead=True)
    observers = {
        "order": ahead(functools.partial(_order, change_fn), halfway),
        "tied": ahead(functools.partial(_tied, change_fn), halfway),
        "observed": Observer(lambda state: observe(state.params), due.__contains__),
        "tokens": Observer(
            functools.partial(_tokens, score_fn, slices), due.__contains__
        ),
    }
    if is_explained:
        of_observed = make_change_fn(apply_fn, observed)
        observers["one_step"] = ahead(
            functools.partial(_one_step, of_observed), due.__contains__
        )
    if watched.everything is not None:
        everything = shard_probes(watched.everything, mesh)
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
    score_fn: Callable[[Any, Any], Array],
    slices: list[tuple[tuple[Any, Any], ...]],
    state: State,
) -> dict[str, Array]:
    """The log-prob of every tracked token."""

    def scores(parts: tuple[tuple[Any, Any], ...]) -> Array:
        return jnp.concatenate(
            [score_fn(state.params, rows)[: len(at)] for at, rows in parts]
        )

    return {f"log_prob_{place}": scores(parts) for place, parts in enumerate(slices)}


def _order(
    change_fn: ChangeFn, state: State, following: State, metrics: Any
) -> dict[str, float]:
    """By how much the remainder falls when the update is halved: fourfold."""
    del metrics

    @functools.cache
    def remainder(scale: float) -> tuple[float, float]:
        params = jax.tree.map(
            lambda old, new: old + scale * (new - old),
            *(state.params, following.params),
        )
        change = change_fn(state.params, params)
        rest = np.linalg.norm(change["measured"] - change["predicted"])
        return float(rest), float(np.linalg.norm(change["measured"]))

    def is_small(scale: float) -> bool:
        rest, moved = remainder(scale)
        return rest <= SMALL_REMAINDER * moved

    # Not by what was measured: two programs round differently.
    leaves = map(jax.tree.leaves, (state.params, following.params))
    if all(bool((old == new).all()) for old, new in zip(*leaves, strict=True)):
        return {}  # nothing moved, so there is no remainder to halve
    # The largest scale at which it is small: there it is best resolved, too.
    scale = 1.0
    while is_small(scale) and scale < LARGEST_SCALE:
        scale *= 2
    while not is_small(scale) and scale > 1 / LARGEST_SCALE:
        scale /= 2
    whole, half = remainder(scale)[0], remainder(scale / 2)[0]
    # A change that is linear to the last bit has no order either.
    return {"scale": scale, "remainder_ratio": whole / half} if half else {}


def _tied(
    change_fn: ChangeFn, state: State, following: State, metrics: Any
) -> dict[str, float]:
    """The update's own prediction, against the derivative along what it moved."""
    along = change_fn(state.params, following.params)["predicted"]
    parts = [abs(of) for name, of in metrics.items() if is_part(name)]
    scale = sum(parts, start=metrics["floor"])
    # Where nothing moved, and a response is certain, there is nothing to divide by.
    gap = abs(metrics["predicted"] - along) / jnp.maximum(scale, 1e-30)
    return {"gap": float(gap.max())}
