r"""What learning one response does to another, to first order, for many pairs at once.

A step of gradient descent of rate :math:`\eta` on :math:`-\log \pi(u)` changes
:math:`\log \pi(o)` by :math:`\eta \langle \nabla \log\pi(o), \nabla \log\pi(u) \rangle`
to first order; this is :math:`-\eta A K G` at the response's own tokens, summed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

import ldjax
from ldjax import Sequences, sequence_log_probs
from ldjax.probes import ApplyFn

__all__ = ["make_influence_fn", "make_step_fn"]

# Gradients that are held at once besides those of the watched responses.
_AT_A_TIME = 16


def make_influence_fn(
    apply_fn: ApplyFn,
) -> Callable[[Any, Sequences, Sequences], np.ndarray]:
    """A function to all inner products of log-prob gradients.

    Args:
      apply_fn: `(params, sequences) -> logits`.

    Returns:
      `(params, probes, updates) -> [probe, update]`, in nats per unit of learning rate.
      One backward pass for each response, however many pairs there are.
    """

    def gradient(params: Any, row: Sequences) -> Array:
        one = Sequences(*(leaf[None] for leaf in row))

        def log_prob(params: Any) -> Array:
            logits = apply_fn(params, one)
            return sequence_log_probs(logits, one.targets, one.mask)[0]

        return ravel_pytree(jax.grad(log_prob)(params))[0]

    @jax.jit
    def influence(params: Any, probes: Sequences, updates: Sequences) -> Array:
        def gradient_of(row: Sequences) -> Array:
            return gradient(params, row)

        with jax.default_matmul_precision("highest"):
            watched = jax.lax.map(gradient_of, probes, batch_size=_AT_A_TIME)

            def on_all_probes(row: Sequences) -> Array:
                return watched @ gradient_of(row)

            return jax.lax.map(on_all_probes, updates, batch_size=_AT_A_TIME).T

    return lambda *arguments: np.asarray(influence(*arguments), np.float64)


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

    @jax.jit
    def change(params: Any, probes: Sequences, updates: Sequences) -> Array:
        def loss(params: Any) -> Array:
            return ldjax.losses.sft(apply_fn(params, updates), updates)

        def log_probs(params: Any) -> Array:
            logits = apply_fn(params, probes)
            return sequence_log_probs(logits, probes.targets, probes.mask)

        with jax.default_matmul_precision("highest"):
            descent = jax.tree.map(jnp.negative, jax.grad(loss)(params))
            return jax.jvp(log_probs, (params,), (descent,))[1]

    return lambda *arguments: np.asarray(change(*arguments), np.float64)
