"""How many nodes along each update the account of a run takes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ldjax.equation.account import Account
from ldjax.equation.path import Nodes, enough_nodes, path_of
from ldjax.equation.sequences import ApplyFn, LossFn
from ldjax.runs.devices import data_mesh, replicate
from ldjax.watch.probes import ProbeSet, make_slope_fn
from ldjax.watch.sharing import on_devices

__all__ = ["FIRST_UPDATES", "MOST_NODES", "Choice", "SlopeFn", "choose", "integral"]

#: Updates that are looked at.
FIRST_UPDATES = 3
#: More are never chosen.
MOST_NODES = 5

#: The derivative of probes along a move between two sets of parameters, at a place.
SlopeFn = Callable[[Any, Any, float], np.ndarray]


class Choice(NamedTuple):
    """A number of nodes, and what one more would change.

    Attributes:
      nodes: Of Gauss and Legendre, along each update.
      difference: By how much one node more changes what the update does that needs
        most of them, as a share of it: norms over the probes.
    """

    nodes: int
    difference: float


def choose(
    tracked: ProbeSet,
    *,
    params: Any,
    batches: Sequence[Any],
    tolerance: float,
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    watch_fn: ApplyFn,
    where: Any = None,
    probe_batch_size: int,
) -> Choice:
    """The fewest nodes with which the first updates are integrated well enough.

    That is where one node more changes what the tracked probes are said to do by less
    than the tolerance, at each of these updates. They are taken and forgotten.

    Args:
      tracked: What is watched.
      params: Before the first update.
      batches: Those of the first updates.
      tolerance: Norm of the difference over that of the changes of all probes.
      apply_fn: `(params, sequences) -> logits` of what is trained.
      loss_fn: `(logits, batch) -> scalar`.
      optimizer: What it is trained by.
      watch_fn: `(params, sequences) -> logits` of what is watched.
      where: Which parameters are trained; by default all.
      probe_batch_size: Most probes that are computed at a time.
    """
    account = Account.checked(apply_fn, loss_fn, optimizer, parts=None, where=where)
    trainer = account.trainer
    mesh = data_mesh()
    probes = on_devices(watch_fn, tracked, mesh, probe_batch_size)
    slope_fn = make_slope_fn(watch_fn, probes)
    update = jax.jit(lambda state, batch: trainer.train(state, batch)[0])
    state = replicate(trainer.init(params), mesh)
    choice = Choice(1, 0.0)
    for batch in batches:
        following = update(state, batch)
        slope_at = functools.cache(
            functools.partial(slope_fn, state.params, following.params)
        )
        found = enough_nodes(
            functools.partial(integral, slope_at), tolerance, most=MOST_NODES
        )
        choice, state = max(choice, Choice(*found)), following
    return choice


def integral(slope_at: Callable[[float], np.ndarray], nodes: Nodes) -> np.ndarray:
    """The change of every probe by the derivatives at some nodes along an update.

    Examples:
      >>> integral(lambda place: np.array([place, 1.0]), "midpoint")
      array([0.5, 1. ])
    """
    path = path_of(nodes)
    slopes = [w * slope_at(t) for t, w in zip(path.places, path.weights, strict=True)]
    return np.sum(slopes, axis=0)
