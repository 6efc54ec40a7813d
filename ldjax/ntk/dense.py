"""The dense kernel by neural-tangents' two contractions, which serve as references."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ldjax.equation.linear_map import DenseMap
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.spaces import size_of
from ldjax.ntk.neural_tangents import load_neural_tangents
from ldjax.precision import exact_products

__all__ = ["dense_ntk"]

_IMPLEMENTATIONS = {
    "jacobian": "JACOBIAN_CONTRACTION",
    "ntk_vp": "NTK_VECTOR_PRODUCTS",
}


def dense_ntk(
    probe_fn: LogitsFn, update_fn: LogitsFn, params: Any, *, method: str
) -> DenseMap:
    r"""Every entry of :math:`K = J_\text{probe} J_\text{update}^\top`, stored.

    Args:
      probe_fn: `params -> logits` of the watched examples, a pytree of arrays.
      update_fn: `params -> logits` of the trained examples, a pytree of arrays.
      params: The point at which both Jacobians are taken.
      method: `"jacobian"` contracts the two Jacobians; `"ntk_vp"` applies the kernel
        to every basis vector of the narrower side.

    Returns:
      The kernel, never averaged or traced, as a `DenseMap` from update logits to
      probe logits.

    Raises:
      ImportError: If neural-tangents cannot be loaded.

    Examples:
      >>> logits_fn = lambda w: jnp.array([[1.0, 2.0]]) * w
      >>> dense_ntk(logits_fn, logits_fn, 3.0, method="ntk_vp").dense()
      Array([[[[1., 2.]],
      <BLANKLINE>
              [[2., 4.]]]], dtype=...)
    """
    nt = load_neural_tangents()
    probe, update = (jax.eval_shape(fn, params) for fn in (probe_fn, update_fn))
    # neural-tangents takes one function of (params, inputs) and interleaves the
    # outputs' axes; two functions with one ravelled axis each avoid both.
    sides = [
        lambda p: ravel_pytree(probe_fn(p))[0],
        lambda p: ravel_pytree(update_fn(p))[0],
    ]
    # ntk_vp runs its basis over the first function's outputs.
    swap = method == "ntk_vp" and size_of(update) < size_of(probe)
    first, second = reversed(sides) if swap else sides

    def select(params, inputs):  # dispatches on a static shape
        return (first if inputs.shape == (1,) else second)(params)

    kernel_fn = nt.empirical_ntk_fn(
        select,
        trace_axes=(),  # its default averages over the outputs
        diagonal_axes=(),
        vmap_axes=None,
        implementation=nt.NtkImplementation[_IMPLEMENTATIONS[method]],
    )
    with exact_products(), warnings.catch_warnings():
        # It takes `jnp.size` of a `ShapeDtypeStruct`, which JAX deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        matrix = kernel_fn(jnp.zeros(1), jnp.zeros(2), params)
    return DenseMap(matrix.T if swap else matrix, update, probe)
