r"""What learning one response does to another, to first order, for many pairs at once.

A step of gradient descent of rate :math:`\eta` on :math:`-\log \pi(u)` changes
:math:`\log \pi(o)` by :math:`\eta \langle \nabla \log\pi(o), \nabla \log\pi(u) \rangle`
to first order; this is :math:`-\eta A K G` at the response's own tokens, summed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ldjax import losses
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.equation.sequences import ApplyFn, Sequences
from ldjax.precision import exact_products, watched

__all__ = ["make_influence_fn", "make_step_fn"]

# Rows whose gradients are computed at once; a batch with fewer is filled up.
_AT_A_TIME = 16


def make_influence_fn(
    apply_fn: ApplyFn,
) -> Callable[[Any, Sequences, Sequences], np.ndarray]:
    """A function to all inner products of log-prob gradients.

    Args:
      apply_fn: `(params, sequences) -> logits`.

    Returns:
      `(params, probes, updates) -> [probe, update]`, in nats per unit of learning rate.
      One backward pass for each response, however many pairs there are. The gradients
      of all probes are in memory together.
    """
    apply_fn = watched(apply_fn)

    @jax.jit
    def gradients(params: Any, rows: Sequences) -> Array:
        """`[row, parameter]`."""

        def gradient(row: Sequences) -> Array:
            one = jax.tree.map(lambda leaf: leaf[None], row)

            def log_prob(params: Any) -> Array:
                logits = apply_fn(params, one)
                return sequence_log_probs(logits, one.targets, one.mask)[0]

            return ravel_pytree(jax.grad(log_prob)(params))[0]

        return jax.vmap(gradient)(rows)

    def influence(params: Any, probes: Sequences, updates: Sequences) -> np.ndarray:
        of_probes = [gradients(params, rows) for rows in _parts(probes)]
        stacked = jnp.concatenate(of_probes)
        with exact_products():
            columns = [stacked @ gradients(params, rows).T for rows in _parts(updates)]
        table = np.asarray(jnp.concatenate(columns, axis=1), np.float64)
        return table[: len(probes.mask), : len(updates.mask)]

    return influence


def _parts(rows: Sequences) -> Iterator[Sequences]:
    """So many rows at a time; those that fill up the last part score nothing."""
    extra = -len(rows.mask) % _AT_A_TIME
    full = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, extra), (0, 0))), rows)
    for start in range(0, len(rows.mask), _AT_A_TIME):
        yield jax.tree.map(lambda leaf: leaf[start : start + _AT_A_TIME], full)  # noqa: B023


def make_step_fn(
    apply_fn: ApplyFn,
) -> Callable[[Any, Sequences, Sequences], np.ndarray]:
    """A function to the first-order change by a step of SFT on all updates together.

    Args:
      apply_fn: `(params, sequences) -> logits`.

    Returns:
      `(params, probes, updates) -> [probe]`, in nats per unit of learning rate: the
      derivative along minus the gradient of the loss, which is a mean over the updates.
    """
    apply_fn = watched(apply_fn)

    @jax.jit
    def change(params: Any, probes: Sequences, updates: Sequences) -> Array:
        def loss(params: Any) -> Array:
            return losses.sft(apply_fn(params, updates), updates)

        def log_probs(params: Any) -> Array:
            logits = apply_fn(params, probes)
            return sequence_log_probs(logits, probes.targets, probes.mask)

        descent = jax.tree.map(jnp.negative, jax.grad(loss)(params))
        return jax.jvp(log_probs, (params,), (descent,))[1]

    return lambda *arguments: np.asarray(change(*arguments), np.float64)
