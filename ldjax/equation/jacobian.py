"""The Jacobian of a function as a linear map, and why JAX may not have one.

And what it does to several directions at once.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation.linear_map import FunctionMap, LinearMap
from ldjax.equation.spaces import Vector, cast_like, struct_of
from ldjax.precision import watched

__all__ = ["derivatives", "jacobian"]

_Name = TypeVar("_Name", bound=Hashable)


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


def derivatives(
    fn: Callable[[Any], tuple[Array, Any]], at: Any, directions: Mapping[_Name, Any]
) -> tuple[Array, Any, dict[_Name, Array]]:
    """What a function returns at a point, and its derivative along some directions.

    Args:
      fn: Of a pytree; returns an array, which is differentiated, and what is not.
      at: The point.
      directions: At least one by its name, like the point, of any floating-point
        dtypes.

    Returns:
      The two that it returns, and the derivatives of the first by the names.

    Examples:
      >>> derivatives(lambda x: (x**2, None), jnp.array(3.0), {"up": jnp.array(0.5)})
      (Array(9., dtype=...), None, {'up': Array(3., dtype=...)})
    """

    def along(direction: Any) -> tuple[Array, Any, Array]:
        value, tangent, constant = jax.jvp(fn, (at,), (direction,), has_aux=True)
        return value, constant, tangent

    alike = [cast_like(direction, at) for direction in directions.values()]
    if len(alike) == 1:
        value, constant, tangent = along(*alike)
        return value, constant, dict.fromkeys(directions, tangent)
    # One pass for all directions takes half the time of one pass for each.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike)
    value, constant, tangents = jax.vmap(along, out_axes=(None, None, 0))(stacked)
    return value, constant, dict(zip(directions, tangents, strict=True))


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
