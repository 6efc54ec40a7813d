"""A traced function as one list of operations on numbered values.

Bodies of calls (`jit`, `remat`) are put in their place, so that a value has one number
wherever it is read. Functions with a derivative of their own stay closed.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from ldjax.programs.calls import CALLS

_OPEN = {name: body for name, body in CALLS.items() if not name.startswith("custom")}


class Op(NamedTuple):
    """An operation on numbered values.

    Attributes:
      eqn: The equation of the traced program.
      inputs: The numbers of the values that it reads.
      outputs: The numbers of the values that it makes.
    """

    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Flat(NamedTuple):
    """A function in operations.

    Attributes:
      inputs: The numbers of the function's arguments.
      outputs: The numbers of its results.
      ops: Its operations, in an order in which they can be done.
      constants: Values that are part of the function, by their numbers. (What it
        closes over and is being traced, or is a random key, has no entry here.)
      shapes: The shape of each value, by its number.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ops: tuple[Op, ...]
    constants: Mapping[int, Any]
    shapes: Mapping[int, tuple[int, ...]]


def flatten(closed: Any) -> Flat:
    """The operations of a `jax.extend.core.ClosedJaxpr`.

    Args:
      closed: The program, from `jax.make_jaxpr`.
    """
    ops: list[Op] = []
    constants: dict[int, Any] = {}
    numbers = itertools.count()

    def constant(value: Any) -> int:
        number = next(numbers)
        if not isinstance(value, jax.core.Tracer) and not _is_key(value):
            constants[number] = value
        return number

    def inline(body: Any, arguments: tuple[int, ...]) -> tuple[int, ...]:
        jaxpr = getattr(body, "jaxpr", body)  # closed or open
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        consts = map(constant, getattr(body, "consts", ()))
        values |= zip(jaxpr.constvars, consts, strict=True)

        def read(atom: Any) -> int:
            return constant(atom.val) if hasattr(atom, "val") else values[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(map(read, eqn.invars))
            name = eqn.primitive.name
            if name in _OPEN:
                outputs = inline(eqn.params[_OPEN[name]], inputs)
            else:
                outputs = tuple(next(numbers) for _ in eqn.outvars)
                ops.append(Op(eqn, inputs, outputs))
            values |= zip(eqn.outvars, outputs, strict=True)
        return tuple(map(read, jaxpr.outvars))

    inputs = tuple(next(numbers) for _ in closed.jaxpr.invars)
    outputs = inline(closed, inputs)
    shapes = {
        number: atom.aval.shape
        for op in ops
        for numbers, atoms in (
            (op.inputs, op.eqn.invars),
            (op.outputs, op.eqn.outvars),
        )
        for number, atom in zip(numbers, atoms, strict=True)
        if hasattr(atom.aval, "shape")
    }
    return Flat(inputs, outputs, tuple(ops), constants, shapes)


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended)
