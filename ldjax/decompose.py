"""The paper's equation: `A`, `K` and `G` of one step, and their product."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from ldjax.linear_map import LinearMap, jacobian
from ldjax.log_probs import log_softmax

__all__ = ["StepDecomposition", "decompose"]


class StepDecomposition(NamedTuple):
    r"""The three terms of one gradient step, in the order they multiply.

    .. math:: \Delta \log \pi(\chi_o) = -\eta\, A(\chi_o)\, K(\chi_o, \chi_u)\,
              G(\chi_u) + O(\eta^2)

    Attributes:
      adaptation: `A = d log pi / d z` at the probe, a `LinearMap` on probe logits.
      kernel: `K`, a `LinearMap` from update logits to probe logits. Any
        representation fits: `decomposition._replace(kernel=dense)`.
      residual: `G = d loss / d z` at the update, shaped like its logits.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda w: 2.0 * w
      >>> terms = decompose(logits_fn, logits_fn, jnp.zeros(2), loss_fn=jnp.sum)
      >>> A, K, G = terms
      >>> K @ G
      Array([4., 4.], dtype=...)
      >>> -0.1 * A @ K @ G  # adding the same to all logits moves no log-prob
      Array([...0., ...0.], dtype=...)
    """

    adaptation: LinearMap
    kernel: LinearMap
    residual: Any

    def predict(self, learning_rate: float | Float[Array, ""]) -> Any:
        r"""First-order change of every log-prob of the probe, in nats.

        :math:`-\eta A K G`, the change a plain SGD step of this size makes up to
        :math:`O(\eta^2)`; for other optimizers see `ldjax.make_step`.

        Args:
          learning_rate: The step size eta of gradient *descent*.

        Returns:
          A pytree shaped like the probe's logits; positive means "went up".
        """
        return -learning_rate * self.adaptation @ self.kernel @ self.residual


def decompose(
    probe_fn: Callable[[Any], Any],
    update_fn: Callable[[Any], Any],
    params: Any,
    *,
    loss_fn: Callable[[Any], Float[Array, ""]],
) -> StepDecomposition:
    r"""Decompose a gradient step on one set of examples as seen by another.

    The kernel is lazy: a backward pass through the update and a forward-mode pass
    through the probe per application. Nothing is compiled here; use it inside
    `jax.jit`.

    Args:
      probe_fn: `params -> logits` of the watched examples, a pytree of
        `[..., vocab]` float32 (or wider) arrays.
      update_fn: `params -> logits` of the trained examples, likewise, for example
        `{"chosen": ..., "rejected": ...}`.
      params: Parameters before the step, a pytree of floating-point arrays.
      loss_fn: `logits -> scalar` of the update, with its own reduction;
        `functools.partial(ldjax.losses.sft, batch=batch)`.

    Returns:
      A `StepDecomposition`.

    Raises:
      TypeError: If logits are narrower than float32, parameters are not floating
        point, or the probe has no forward derivative.
      ValueError: If the update cannot be differentiated backwards.

    References:
      Ren & Sutherland 2025, Proposition 1 and equations 5 and 7.

    Examples:
      A two-parameter model of two classes, trained on class 0 of one input:

      >>> import jax.numpy as jnp
      >>> inputs = jnp.array([1.0, 2.0])
      >>> logits_fn = lambda w: w * inputs.sum()
      >>> loss_fn = lambda z: -jax.nn.log_softmax(z)[0]
      >>> terms = decompose(logits_fn, logits_fn, jnp.zeros(2), loss_fn=loss_fn)
      >>> terms.residual
      Array([-0.5,  0.5], dtype=...)
      >>> terms.predict(0.5)
      Array([ 2.25, -2.25], dtype=...)
    """
    update_jacobian = jacobian(update_fn, params)
    kernel = jacobian(probe_fn, params) @ update_jacobian.T
    residual = jax.grad(loss_fn)(update_fn(params))
    jax.eval_shape(kernel.mv, residual)  # what cannot be differentiated says so now
    return StepDecomposition(
        adaptation=jacobian(log_softmax, probe_fn(params)),
        kernel=kernel,
        residual=residual,
    )
