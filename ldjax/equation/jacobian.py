"""The Jacobian of a function as a linear map, and why JAX may not have one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ldjax.equation.linear_map import FunctionMap, LinearMap
from ldjax.equation.spaces import Vector, struct_of
from ldjax.precision import watched

__all__ = ["jacobian"]


def jacobian(fn: Callable[[Any], Any], at: Any) -> LinearMap:
    r"""The Jacobian of `fn` at a point, as a lazy linear map.

    .. math:: J = \partial f(\theta) / \partial\theta, \qquad
              J v = \text{jvp}(v), \quad J^\top g = \text{vjp}(g)

    `fn` runs once, at `"highest"` matmul precision (on GPU and TPU the default would
    look like an error in a kernel); `mv` costs about one more forward pass, `rmv` one
    backward pass.

    Args:
      fn: Function of one pytree, for example a `LogitsFn`: `params -> logits`.
      at: Where to linearise; a pytree of floating-point arrays.

    Returns:
      A `LinearMap` from the space of `at` to the space of `fn(at)`.

    Raises:
      TypeError: If `at` has a leaf that is not floating point, if an output is not
        at least float32, or, from `mv`, if `fn` uses a `jax.custom_vjp` function
        without a forward derivative.
      ValueError: From `rmv`, if `fn` contains a `while_loop`, which JAX cannot
        differentiate backwards.

    Examples:
      >>> J = jacobian(jnp.sin, jnp.zeros(2))
      >>> J @ jnp.array([1.0, 2.0])
      Array([1., 2.], dtype=...)
    """
    _refuse_non_float(at, "`at` (the parameters)", fix=_INTEGER_FIX)
    with _derivative_errors_explained():
        value, jvp = jax.linearize(watched(fn), at)
        vjp = jax.linear_transpose(jvp, at)

    def mv(tangent: Vector) -> Vector:
        with _derivative_errors_explained():
            return jvp(tangent)

    def rmv(cotangent: Vector) -> Vector:
        with _derivative_errors_explained():
            return vjp(cotangent)[0]

    _refuse_non_float(value, "`fn(at)` (the logits)", fix=_NARROW_FIX, min_bits=32)
    return FunctionMap(mv, rmv, struct_of(at), struct_of(value))


_INTEGER_FIX = (
    "Differentiate with respect to floating-point leaves only: close over the others "
    "(`lambda floats: fn(merge(floats, integers))`)."
)
_NARROW_FIX = (
    "Return float32 (`logits.astype(jnp.float32)`); the compute inside may stay "
    "narrower."
)
_NO_JVP = (
    "`fn` uses a `jax.custom_vjp` function, which has no forward derivative, so "
    "`jacobian(fn, at) @ v` cannot be computed. Give that function a "
    "`jax.custom_jvp` rule instead, or use it on the update side of a kernel only "
    "(`jacobian(fn, at).T`)."
)
_NO_VJP = (
    "`fn` contains a `while_loop` (or a `fori_loop` with a traced bound), which JAX "
    "cannot differentiate backwards, so `jacobian(fn, at).T` cannot be applied. Use "
    "`lax.scan`, or a `fori_loop` with static bounds, on the update side."
)


@contextlib.contextmanager
def _derivative_errors_explained() -> Iterator[None]:
    """Say what to do where JAX has no derivative in the direction asked for."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if "custom_vjp" in str(error):
            raise TypeError(_NO_JVP) from error
        if "while_loop" in str(error):
            raise ValueError(_NO_VJP) from error
        raise


def _refuse_non_float(tree: Any, what: str, *, fix: str, min_bits: int = 16) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        narrow = jnp.issubdtype(dtype, jnp.floating) and (
            jnp.finfo(dtype).bits < min_bits
        )
        if narrow or not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise TypeError(
                f"{what} has dtype {dtype}{f' at {name}' * bool(name)}. {fix}"
            )
