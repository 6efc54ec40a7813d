"""The updates of a finetuning run, each with its account of the tracked responses.

On all devices that JAX sees: parameters on each, rows divided over them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ldjax.equation.path import Nodes
from ldjax.equation.sequences import ApplyFn, LossFn
from ldjax.equation.step import StepState, make_step
from ldjax.runs.devices import data_mesh, replicate, shard
from ldjax.watch.probes import ProbeSet
from ldjax.watch.record import FLOOR, INTEGRATED, MEASURED, PREDICTED, part
from ldjax.watch.sharing import on_devices, spread_fn

__all__ = ["State", "make_tracked_step", "on_all_devices"]


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
      integrated: Change of each tracked token by the nodes along the updates, added up;
        empty without nodes, as in checkpoints of runs that had none.
      origins: The moments by where they come from, where history has a date.
    """

    params: Any
    opt_state: Any
    step: Array
    loss: Array
    noise: Array
    predicted: tuple[Array, ...]
    measured: tuple[Array, ...]
    integrated: tuple[Array, ...] = ()
    origins: Any = None

    @property
    def training(self) -> StepState:
        """What the update itself continues from.

        Not a field: a checkpoint names its leaves by their place in the state.
        """
        return StepState(*(getattr(self, name) for name in StepState._fields))


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
    *,
    nodes: Nodes = None,
    **options: Any,
) -> tuple[
    Callable[..., State], Callable[[State, Any], tuple[State, dict[str, Array]]]
]:
    """An update that accounts for the tracked probes.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: Any optax transformation.
      tracked: What is watched.
      nodes: Where along the update derivatives are taken; None for its start alone.
      **options: Of `ldjax.make_step`, such as `watch_fn` and `dated`.

    Returns:
      `init(params, batch) -> state`, of whose batch only the shapes are read, where
      history is dated; and `step(state, batch) -> (state, metrics)` with the metrics
      `loss`, and per probe (sums over tokens, in nats) `predicted`, `measured`,
      `floor`, with nodes `integrated`, and one `part:...` for each part of the update.
    """
    init_step, step = make_step(apply_fn, loss_fn, optimizer, nodes=nodes, **options)
    mesh = data_mesh()
    watch_fn, at_once = (options.get(of) for of in ("watch_fn", "probe_batch_size"))
    computed = on_devices(watch_fn or apply_fn, tracked, mesh, together=at_once)
    watched = tuple(batch for _, batch in computed.batches)
    spread = spread_fn(tracked, computed)
    order = np.argsort(np.concatenate([places for places, _ in tracked.batches]))
    summed = (PREDICTED, MEASURED) + (() if nodes is None else (INTEGRATED,))

    def init(params: Any, batch: Any = None) -> State:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        nothing = tuple(jnp.zeros(at.targets.shape, dtype) for _, at in tracked.batches)
        training = init_step(params, batch)._asdict()
        # As the updates leave it: elsewhere, the second one would be compiled anew.
        return replicate(State(**training, **dict.fromkeys(summed, nothing)), mesh)

    @jax.jit
    def digest(state: State, comparison: Any) -> Any:
        def per_probe(batches: tuple[Array, ...]) -> Array:
            return jnp.concatenate([leaf.sum(-1) for leaf in spread(batches)])[order]

        changes = {name: getattr(comparison, name) for name in (*summed, FLOOR)}
        # In whole texts, whatever was computed: a checkpoint fits any devices.
        sums = {
            name: jax.tree.map(jnp.add, getattr(state, name), spread(changes[name]))
            for name in summed
        }
        changes |= {part(name): of for name, of in comparison.parts.items()}
        return sums, {name: per_probe(change) for name, change in changes.items()}

    def tracked_step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        training, comparison = step(state.training, batch, watched)
        sums, changes = digest(state, comparison)
        new_state = State(**training._asdict(), **sums)
        return new_state, {"loss": training.loss, **changes}

    return init, tracked_step
