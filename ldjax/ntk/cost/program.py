"""A jaxpr as one list of operations on numbered values.

Calls are inlined, dead operations dropped, views (a reshape) resolved to what they
show.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ldjax.programs.calls import CALLS

__all__ = ["MOVES", "REDUCTIONS", "Op", "Program", "is_fusable", "num_bytes"]

# Rearranged on the way into another kernel; no arithmetic.
MOVES = frozenset(
    (
        *("broadcast_in_dim", "iota", "convert_element_type", "transpose", "slice"),
        *("pad", "rev", "concatenate", "gather", "dynamic_slice", "select_n"),
        *("copy", "split", "reshape"),
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
# The same numbers in the same order under another shape.
_VIEWS = frozenset(("reshape", "squeeze", "expand_dims", "optimization_barrier"))
# Views where they neither repeat nor drop nor change a number.
_SOMETIMES_VIEWS = frozenset(
    (
        *("broadcast_in_dim", "convert_element_type", "slice", "split", "pad"),
        *("reduce_sum", "reduce_max", "reduce_min"),
    )
)


class Op(NamedTuple):
    """An operation.

    Attributes:
      name: The primitive.
      eqn: The equation of the jaxpr; None of the slices that a loop takes.
      inputs: Numbers of the values it reads; 0 for every literal.
      outputs: Numbers of the values it returns.
    """

    name: str
    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program:
    """The operations of a jaxpr, in its order.

    Args:
      jaxpr: A `jax.extend.core.Jaxpr`.
      num_slices: How many of its last arguments are slices that a loop takes.

    Attributes:
      ops: The operations.
      sizes: Bytes of each value.
      arguments: Values that exist before, constants among them.
      constants: Those of them that the compiler knows.
      outputs: The values returned.

    Examples:
      >>> import jax
      >>> jaxpr = jax.make_jaxpr(lambda x: jax.nn.relu(x).reshape(-1))(1.0).jaxpr
      >>> [op.name for op in Program(jaxpr).ops]
      ['max']
    """

    def __init__(self, jaxpr: Any, *, num_slices: int = 0):
        self.sizes = [0]
        arguments = [self._new(var.aval) for var in jaxpr.invars]
        constants = [self._new(var.aval) for var in jaxpr.constvars]
        first_slice = len(arguments) - num_slices
        self.constants = {0, *constants}
        self.arguments = {*arguments[:first_slice], *self.constants}
        self.ops = [Op("slice", None, (), (v,)) for v in arguments[first_slice:]]
        self.outputs = set(self._inline(jaxpr, arguments, constants))
        self.ops = _live(self.ops, self.outputs)

    def _new(self, aval: Any) -> int:
        self.sizes.append(num_bytes(aval))
        return len(self.sizes) - 1

    def _inline(
        self, jaxpr: Any, arguments: Sequence[int], constants: Sequence[int]
    ) -> list[int]:
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        values |= zip(jaxpr.constvars, constants, strict=True)

        def read(atom: Any) -> int:
            return 0 if hasattr(atom, "val") else values[atom]

        for eqn in jaxpr.eqns:
            name, inputs = eqn.primitive.name, [read(atom) for atom in eqn.invars]
            if name in CALLS:
                body = eqn.params[CALLS[name]]
                body = getattr(body, "jaxpr", body)  # closed or open
                outputs = self._inline(body, inputs, [0] * len(body.constvars))
            elif inputs and _is_view(eqn):
                outputs = inputs
            else:
                outputs = [self._new(var.aval) for var in eqn.outvars]
                self.ops.append(Op(name, eqn, tuple(inputs), tuple(outputs)))
            # A view's further operands are lengths of its axes.
            values |= zip(eqn.outvars, outputs, strict=False)
        return [read(atom) for atom in jaxpr.outvars]


def is_fusable(op: Op) -> bool:
    """Whether its result can be computed inside the kernel that reads it.

    So it is if each number of it depends on one number of each operand at most.
    """
    if op.name in MOVES:
        return True
    if op.name in _OPAQUE or len(op.eqn.outvars) != 1:
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


def num_bytes(aval: Any) -> int:
    """Bytes of an array; zero for what has no dtype of known width (a token, a key)."""
    width = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return width * math.prod(getattr(aval, "shape", ()))


def _is_view(eqn: Any) -> bool:
    name = eqn.primitive.name
    if name in _VIEWS:
        return not eqn.params.get("dimensions")  # those of a transposing reshape
    given, returned = (atoms[0].aval for atoms in (eqn.invars, eqn.outvars))
    if name == "transpose":
        axes = [a for a in eqn.params["permutation"] if given.shape[a] != 1]
        return axes == sorted(axes)
    return (
        name in _SOMETIMES_VIEWS
        and math.prod(given.shape) == math.prod(returned.shape)
        and given.dtype == returned.dtype
    )


def _live(ops: Sequence[Op], outputs: set[int]) -> list[Op]:
    """The operations that an output depends on."""
    needed, kept = set(outputs), []
    for op in reversed(ops):
        if needed.intersection(op.outputs):
            needed.update(op.inputs)
            kept.append(op)
    return kept[::-1]
