"""A jaxpr as the compiler sees it: one list of operations on numbered values.

Calls are inlined, dead operations dropped, views (a reshape) resolved to what they
show, and the copies made explicit that matrix products need.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldjax.ntk.cost.operations import (
    TRANSCENDENTAL,
    Op,
    has_fast_order,
    is_fusable,
    num_bytes,
)
from ldjax.programs.calls import CALLS

__all__ = ["Program"]

# The same numbers in the same order under another shape.
_VIEWS = frozenset(
    ("reshape", "squeeze", "expand_dims", "optimization_barrier", "copy_p")
)
# Views where they neither repeat nor drop nor change a number.
_SOMETIMES_VIEWS = frozenset(
    (
        *("broadcast_in_dim", "convert_element_type", "slice", "split", "pad"),
        *("reduce_sum", "reduce_max", "reduce_min"),
    )
)


class Program:
    """The operations of a jaxpr, in its order.

    Args:
      jaxpr: A `jax.extend.core.Jaxpr`.
      num_slices: How many of its last arguments are slices that a loop takes.
      in_loop: Whether it is the body of a loop or a branch.

    Attributes:
      avals: Shape and dtype of each value.
      ops: The operations.
      outputs: The values returned.
      arguments: Values that exist before, constants among them.
      constants: Values that the compiler knows.

    Examples:
      >>> import jax
      >>> jaxpr = jax.make_jaxpr(lambda x: jax.nn.relu(x).reshape(-1))(1.0).jaxpr
      >>> [op.name for op in Program(jaxpr).ops]
      ['max']
    """

    def __init__(self, jaxpr: Any, *, num_slices: int = 0, in_loop: bool = False):
        self.avals: list[Any] = [None]
        self.ops: list[Op] = []
        self._aliases: dict[int, int] = {}
        arguments = [self._new(var.aval) for var in jaxpr.invars]
        constants = [self._new(var.aval) for var in jaxpr.constvars]
        first_slice = len(arguments) - num_slices
        for value in arguments[first_slice:]:
            self.ops.append(Op("slice", None, (), (value,)))
        self.constants = {0, *constants}
        self.arguments = {*arguments[:first_slice], *self.constants}
        outputs = self._inline(jaxpr, arguments, constants, in_loop=in_loop)
        self.ops = _live(self.ops, set(outputs))
        self.outputs = {self._root(value) for value in outputs}
        self._resolve()

    def num_bytes(self, value: int) -> int:
        """Bytes of a value."""
        return num_bytes(self.avals[value])

    def _new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _root(self, value: int) -> int:
        """The value whose bytes this one shows."""
        while value in self._aliases:
            value = self._aliases[value]
        return value

    def _inline(
        self,
        jaxpr: Any,
        arguments: Sequence[int],
        constants: Sequence[int],
        *,
        in_loop: bool,
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
                constants = [0] * len(body.constvars)
                outputs = self._inline(body, inputs, constants, in_loop=in_loop)
            elif name == "scan" and eqn.params["length"] == 1:
                outputs = self._inline_only_pass(eqn, inputs)
            else:
                outputs = [self._new(var.aval) for var in eqn.outvars]
                self.ops.append(Op(name, eqn, tuple(inputs), tuple(outputs), in_loop))
                if inputs and _is_view(eqn):
                    self._aliases |= zip(outputs, inputs, strict=False)
            values |= zip(eqn.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _inline_only_pass(self, eqn: Any, inputs: Sequence[int]) -> list[int]:
        """A loop that runs once is no loop; its axis of length one is a view."""
        body = eqn.params["jaxpr"].jaxpr
        arguments = [
            self._view(value, var.aval)
            for value, var in zip(inputs, body.invars, strict=True)
        ]
        constants = [0] * len(body.constvars)
        results = self._inline(body, arguments, constants, in_loop=True)
        return [
            self._view(value, var.aval)
            for value, var in zip(results, eqn.outvars, strict=True)
        ]

    def _view(self, value: int, aval: Any) -> int:
        view = self._new(aval)
        self._aliases[view] = value
        self.ops.append(Op("reshape", None, (value,), (view,)))
        return view

    def _resolve(self) -> None:
        """Read through views; give each product operands in the order it takes."""
        self._store_views()
        self._merge_scatters()
        ops, self.ops = self.ops, []
        transposes: dict[int, tuple[int, Sequence[int]]] = {}
        copies: dict[tuple[int, Any], int] = {}
        for op in ops:
            if op.outputs and op.outputs[0] in self._aliases:
                continue
            inputs = tuple(map(self._root, op.inputs))
            if op.name == "transpose":
                permutation = op.eqn.params["permutation"]
                source, inner = inputs[0], range(len(permutation))
                if op.inputs[0] in transposes:
                    source, inner = transposes[op.inputs[0]]
                composed = tuple(inner[axis] for axis in permutation)
                transposes[op.outputs[0]] = source, composed
            if op.name == "dot_general":
                inputs = tuple(
                    self._operand(op, side, value, transposes, copies)
                    for side, value in enumerate(inputs)
                )
            if op.name == "conv_general_dilated" and not op.in_loop:
                inputs = tuple(
                    value
                    if value in self.constants or has_fast_order(op.eqn, side)
                    else self._copy(value, side, copies)
                    for side, value in enumerate(inputs)
                )
            self.ops.append(op._replace(inputs=inputs))
        self.ops = _live(self.ops, self.outputs)

    def _merge_scatters(self) -> None:
        """What is scattered into zeros and then added is scattered into the sum."""
        makers = {value: op for op in self.ops for value in op.outputs}
        readers = Counter(self._root(v) for op in self.ops for v in set(op.inputs))

        def scatters(value: int) -> Op | None:
            op = makers.get(self._root(value))
            if op is None or op.name != "scatter-add" or readers[op.outputs[0]] > 1:
                return None
            zeros = self._root(op.inputs[0])
            while zeros in makers and makers[zeros].name == "broadcast_in_dim":
                zeros = self._root(makers[zeros].inputs[0])
            return None if zeros else op

        merged: list[Op] = []
        for op in self.ops:
            if op.name in ("add", "add_any"):
                for value, other in (op.inputs, op.inputs[::-1]):
                    scatter = scatters(value)
                    if scatter and not scatters(other):
                        inputs = (other, *scatter.inputs[1:])
                        op = scatter._replace(inputs=inputs, outputs=op.outputs)
                        break
            merged.append(op)
        self.ops = _live(merged, self.outputs)

    def _store_views(self) -> None:
        """A view of a result that is cheap to compute again is computed again."""
        makers = {value: op for op in self.ops for value in op.outputs}
        forms: dict[int, set[Any]] = defaultdict(set)
        for op in self.ops:
            if op.outputs[0] not in self._aliases:
                for value in filter(None, op.inputs):
                    forms[self._root(value)].add(self.avals[value].shape)
        again = {
            root
            for root, shapes in forms.items()
            if len(shapes) > 1
            and root in makers
            and is_fusable(makers[root])
            and makers[root].name not in TRANSCENDENTAL
        }
        firsts: dict[tuple[int, Any], int] = {}
        for value in sorted(self._aliases):  # a view comes after what it shows
            root, shape = self._root(value), self.avals[value].shape
            if root not in again or shape == self.avals[root].shape:
                continue
            del self._aliases[value]
            first = firsts.setdefault((root, shape), value)
            if first != value:
                self._aliases[value] = first
        stored = set(firsts.values())
        self.ops = [
            Op("copy", None, op.inputs, op.outputs)
            if stored.intersection(op.outputs)
            else op
            for op in self.ops
        ]

    def _copy(self, source: int, order: Any, copies: dict[tuple[int, Any], int]) -> int:
        """The same numbers in another order; made once."""
        if (source, order) not in copies:
            copies[source, order] = self._new(self.avals[source])
            self.ops.append(Op("copy", None, (source,), (copies[source, order],)))
        return copies[source, order]

    def _operand(
        self,
        op: Op,
        side: int,
        value: int,
        transposes: dict[int, tuple[int, Sequence[int]]],
        copies: dict[tuple[int, Any], int],
    ) -> int:
        """What a product reads: the operand, what it transposes, or a copy of that."""
        shape = op.eqn.invars[side].aval.shape
        stored = _long_axes(shape)  # the operand's axes as they lie in memory
        source = value
        if value in transposes:
            transposed = self.avals[value].shape
            axes = _long_axes(transposed)
            if [transposed[i] for i in axes] == [shape[i] for i in stored]:
                source, permutation = transposes[value]
                order = sorted(range(len(axes)), key=lambda i: permutation[axes[i]])
                stored = [stored[i] for i in order]
        batch, free, contracted = _axes(op.eqn, side)
        wanted = batch + (free + contracted if side == 0 else contracted + free)
        swapped = batch + (contracted + free if side == 0 else free + contracted)
        # The kernel takes a matrix or its transpose, unless merged axes lie between.
        foldable = len(free) <= 1 and len(contracted) <= 1
        if stored == wanted or (stored == swapped and foldable):
            return source
        if source in self.constants:  # copied when it is compiled
            return source
        order = tuple(stored.index(axis) for axis in wanted)
        return self._copy(source, order, copies)


def _is_view(eqn: Any) -> bool:
    name = eqn.primitive.name
    if name in _VIEWS:
        return True
    given, returned = (atoms[0].aval for atoms in (eqn.invars, eqn.outvars))
    if name == "transpose":
        axes = [a for a in eqn.params["permutation"] if given.shape[a] != 1]
        return axes == sorted(axes)
    if name in ("mul", "div"):
        is_one = np.array_equal(getattr(eqn.invars[1], "val", 0), 1)
        return given.shape == returned.shape and is_one
    return (
        name in _SOMETIMES_VIEWS
        and math.prod(given.shape) == math.prod(returned.shape)
        and given.dtype == returned.dtype
    )


def _long_axes(shape: Sequence[int]) -> list[int]:
    return [axis for axis, length in enumerate(shape) if length != 1]


def _axes(eqn: Any, side: int) -> tuple[list[int], list[int], list[int]]:
    """Batch, free and contracted axes of one operand, those of length one left out."""
    contracted, batch = (pair[side] for pair in eqn.params["dimension_numbers"])
    shape = eqn.invars[side].aval.shape
    free = [i for i in range(len(shape)) if i not in (*contracted, *batch)]
    batch, free, contracted = (
        [axis for axis in axes if shape[axis] != 1]
        for axes in (batch, free, contracted)
    )
    return batch, free, contracted


def _live(ops: Sequence[Op], outputs: set[int]) -> list[Op]:
    """The operations that an output depends on."""
    needed, kept = set(outputs), []
    for op in reversed(ops):
        if needed.intersection(op.outputs):
            needed.update(op.inputs)
            kept.append(op)
    return kept[::-1]
