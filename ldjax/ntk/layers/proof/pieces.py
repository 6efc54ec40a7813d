"""Numbers of a piece of a traced model: between what layers read and what they give."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.ntk.layers.proof.flat import Flat, Op
from ldjax.ntk.layers.proof.terms import Terms, has_leaf
from ldjax.programs.calls import CALLS


class Piece(NamedTuple):
    """The operations between some values of a program and another one.

    Attributes:
      ops: The operations, in order.
      constants: The constants of the program that they read, by their numbers.
      target: The number of the value that they make.
    """

    ops: tuple[Op, ...]
    constants: Mapping[int, Any]
    target: int

    def __call__(self, given: Mapping[int, Array]) -> Array:
        """The target, in float32, where values are given by their numbers.

        Casts between floating-point formats are left out, so that numbers that are
        exact in float32 are exact whatever the model computes in. What is not given is
        zero.
        """
        arrays = {**self.constants, **given}
        for op in self.ops:
            _do(op, arrays)
        return arrays[self.target]

    def text(self, given: Iterable[int]) -> str:
        """What tells this function of given values from another one."""
        names: dict[int, int] = {}
        name = lambda number: names.setdefault(number, len(names))
        lines = [f"given {[name(number) for number in given]}"]
        for op in self.ops:
            reads, makes = (list(map(name, n)) for n in (op.inputs, op.outputs))
            avals = [atom.aval for atom in op.eqn.invars]
            lines.append(f"{makes} {op.eqn.primitive} {reads} {avals} {op.eqn.params}")
        for number, array in self.constants.items():
            digest = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
            lines.append(f"{name(number)} {digest}")
        return "\n".join([*lines, f"makes {name(self.target)}"])


def cut(
    program: Flat, terms: Mapping[int, Terms], given: Iterable[int], target: int
) -> Piece:
    """The piece of a program that makes a value of others.

    What neither follows from those and constants nor has a leaf in it is left out.

    Args:
      program: The model.
      terms: The terms of the model's values, by their numbers.
      given: The numbers of the values that will be given.
      target: The number of the value that is asked for.
    """
    start = set(program.constants).union(given)
    follows = set(start)
    for op in program.ops:
        # The bodies of functions with a derivative of their own are not looked into.
        is_closed = op.eqn.primitive.name in CALLS
        if not is_closed and follows.issuperset(op.inputs):
            follows.update(op.outputs)
    needed, ops = {target}, []
    for op in reversed(program.ops):
        asked = needed.intersection(op.outputs) - start
        if any(value in follows or has_leaf(terms[value]) for value in asked):
            needed.update(op.inputs)
            ops.append(op)
    constants = {n: array for n, array in program.constants.items() if n in needed}
    return Piece(tuple(reversed(ops)), constants, target)


def _do(op: Op, arrays: dict[int, Any]) -> None:
    primitive, params = op.eqn.primitive, dict(op.eqn.params)
    given = []
    for number, atom in zip(op.inputs, op.eqn.invars, strict=True):
        array = arrays.get(number, np.zeros(atom.aval.shape, np.int8))
        is_float = jnp.issubdtype(atom.aval.dtype, jnp.floating)
        given.append(jnp.asarray(array, jnp.float32 if is_float else atom.aval.dtype))
    is_float = jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.floating)
    if primitive.name == "convert_element_type" and is_float:
        made = [jnp.asarray(given[0], jnp.float32)]
    else:
        if "preferred_element_type" in params:
            params["preferred_element_type"] = None
        made = primitive.bind(*given, **params)
        made = made if primitive.multiple_results else [made]
    arrays.update(zip(op.outputs, made, strict=True))
