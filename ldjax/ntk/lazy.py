"""The kernel as a product of Jacobians: nothing is stored, any function will do."""

from typing import Any

from ldjax.equation.jacobian import jacobian
from ldjax.equation.linear_map import LinearMap
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.subset import Weights

__all__ = ["lazy_ntk"]


def lazy_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    weights: Weights,
) -> LinearMap:
    r"""The kernel :math:`J_\text{probe}\,\mathrm{diag}(w)\,J_\text{update}^\top`.

    Applying it costs a backward pass through the update and a forward-mode pass
    through the probe.

    Args:
      probe_fn: `params -> logits` of the watched examples.
      update_fn: `params -> logits` of the trained examples.
      params: The point at which both Jacobians are taken.
      weights: The part of the parameters that takes part, and its preconditioner.

    Returns:
      A `LinearMap` from the update's logits to the probe's.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ldjax.equation.subset import make_weights
      >>> at = jnp.array([1.0, 2.0])
      >>> lazy_ntk(jnp.sum, lambda x: x**2, at, make_weights(at)) @ jnp.ones(2)
      Array(6., dtype=...)
    """
    chosen = weights.pick(params)
    probe, update = (
        jacobian(weights.restrict(fn, params, preconditioned=is_update), chosen)
        for fn, is_update in ((probe_fn, False), (update_fn, True))
    )
    return probe @ update.T
