"""Operations, and what the compiler may do with each."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "MOVES",
    "REDUCTIONS",
    "TRANSCENDENTAL",
    "Op",
    "has_fast_order",
    "is_elementwise",
    "is_fusable",
    "num_bytes",
    "num_terms",
]

# Copied or rearranged on the way into another kernel; no arithmetic.
MOVES = frozenset(
    (
        *("broadcast_in_dim", "iota", "convert_element_type", "transpose", "slice"),
        *("pad", "rev", "concatenate", "gather", "dynamic_slice", "select_n"),
        *("copy", "split"),
    )
)
REDUCTIONS = frozenset(
    (
        *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
        *("reduce_or", "reduce_xor", "argmax", "argmin"),
    )
)
# Elementwise by their shapes, yet kernels of their own.
_OPAQUE = frozenset(
    (
        *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft"),
        *("scatter", "scatter-add", "dynamic_update_slice", "while", "scan", "cond"),
        *("dot_general", "conv_general_dilated", "cholesky", "triangular_solve"),
    )
)
# Too expensive to be computed again for every reader.
TRANSCENDENTAL = frozenset(
    (
        *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"),
        *("erf_inv", "sin", "cos", "tan", "pow", "rsqrt", "sqrt", "cbrt", "atan2"),
        *("lgamma", "digamma", "rem"),
    )
)


class Op(NamedTuple):
    """An operation; its equation is None where the compiler inserts it.

    Attributes:
      name: The primitive.
      eqn: The equation of the jaxpr.
      inputs: Numbers of the values it reads; 0 for every literal.
      outputs: Numbers of the values it returns.
      in_loop: Whether it stands in the body of a loop or a branch.

    Examples:
      >>> Op("copy", None, (1,), (2,)).outputs
      (2,)
    """

    name: str
    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    in_loop: bool = False


def is_elementwise(op: Op) -> bool:
    """Whether each number of the result depends on one number of each operand.

    Examples:
      >>> is_elementwise(Op("select_n", None, (1, 2, 3), (4,)))
      True
    """
    if op.name in ("convert_element_type", "select_n"):
        return True
    if op.eqn is None or op.name in _OPAQUE | MOVES or len(op.eqn.outvars) != 1:
        return False
    shape = op.eqn.outvars[0].aval.shape
    return all(_fits(atom.aval.shape, shape) for atom in op.eqn.invars)


def _fits(shape: Sequence[int], larger: Sequence[int]) -> bool:
    """Whether an array of one shape is spread over another, axis by axis."""
    if not shape:
        return True
    return len(shape) == len(larger) and all(
        length in (1, longer) for length, longer in zip(shape, larger, strict=True)
    )


def is_fusable(op: Op) -> bool:
    """Whether a result can be computed inside the kernel that reads it.

    Examples:
      >>> is_fusable(Op("transpose", None, (1,), (2,)))
      True
    """
    return op.name in MOVES or is_elementwise(op)


def num_terms(product: Any) -> int:
    """How many products are summed for one number of a matrix product.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> num_terms(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 5)), jnp.ones(5)).eqns[0])
      5
    """
    (contracted, _), _ = product.params["dimension_numbers"]
    return math.prod(product.invars[0].aval.shape[axis] for axis in contracted)


def has_fast_order(eqn: Any, side: int) -> bool:
    """Whether an operand of a convolution has its features (or outputs) last.

    Args:
      eqn: The convolution.
      side: 0 for the images, 1 for the kernel.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> arrays = jnp.ones((1, 3, 4, 4)), jnp.ones((2, 3, 3, 3))
      >>> convolve = lambda x, y: jax.lax.conv(x, y, (1, 1), "SAME")
      >>> has_fast_order(jax.make_jaxpr(convolve)(*arrays).eqns[0], 0)
      False
    """
    spec = eqn.params["dimension_numbers"][side]
    rank = len(spec)
    space = tuple(range(1, rank - 1)) if side == 0 else tuple(range(rank - 2))
    ends = (0, rank - 1) if side == 0 else (rank - 1, rank - 2)
    return tuple(spec) == (*ends, *space)


def num_bytes(aval: Any) -> int:
    """Zero for what has no dtype of known width (a token, a key).

    Examples:
      >>> import jax
      >>> num_bytes(jax.ShapeDtypeStruct((2, 3), "float32"))
      24
    """
    width = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return width * math.prod(getattr(aval, "shape", ()))
