"""The ways to a kernel by name."""

from typing import Any, Literal

from ldjax import memory
from ldjax.equation.linear_map import LinearMap
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.subset import Weights
from ldjax.ntk.dense import dense_ntk
from ldjax.ntk.lazy import lazy_ntk

__all__ = ["Method", "make_kernel"]

Method = Literal["jacobian", "ntk_vp", "lazy", "structured", "factored"]


def make_kernel(
    method: str,
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    weights: Weights,
    *,
    memory_limit: memory.Bytes | None = None,
    contraction: str = "auto",
) -> LinearMap:
    """The kernel by one method, as `empirical_ntk` describes them.

    Args:
      method: The name of the method.
      probe_fn: `params -> logits` of the watched examples.
      update_fn: `params -> logits` of the trained examples.
      params: The parameters.
      weights: The part of the parameters that takes part, and its preconditioner.
      memory_limit: The bytes that the structured and factored kernels may take.
      contraction: The contraction of the structured kernel, by name.

    Returns:
      The dense kernels, evaluated; the others as they are asked.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ldjax.equation.subset import make_weights
      >>> at = jnp.ones(2)
      >>> make_kernel("lazy", jnp.sum, jnp.sum, at, make_weights(at)).dense()
      Array(2., dtype=...)
    """
    if method == "lazy":
        return lazy_ntk(probe_fn, update_fn, params, weights)
    if method in ("jacobian", "ntk_vp"):
        return dense_ntk(
            weights.restrict(probe_fn, params, preconditioned=False),
            weights.restrict(update_fn, params, preconditioned=True),
            weights.pick(params),
            method=method,
        )
    # Only here does Flax enter.
    from ldjax.ntk.layers.factored import LinenFactoredMap
    from ldjax.ntk.layers.structured import StructuredMap

    arguments: Any = probe_fn, update_fn, params, weights
    if method == "factored":
        return LinenFactoredMap(*arguments, memory_limit=memory_limit)
    return StructuredMap(*arguments, contraction=contraction, memory_limit=memory_limit)
