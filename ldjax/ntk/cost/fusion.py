"""Which operations become one kernel, so that their results are never stored.

Cheap operations are computed where they are read. Matrix products, reductions along
leading axes and sums of them go to a matrix library, which fuses them by rules of its
own. Both sets of rules are those of XLA's CPU compiler.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ldjax.ntk.cost.operations import (
    REDUCTIONS,
    TRANSCENDENTAL,
    Op,
    is_elementwise,
    is_fusable,
    num_terms,
)
from ldjax.ntk.cost.program import Program

__all__ = ["Kernel", "fuse"]

# Read only as much of their operand as they return.
_PICKS = frozenset({"gather", "dynamic_slice", "slice", "split"})
_LITERAL = 0  # the number of every value that is one
_SUMS = frozenset({"add", "add_any", "sub"})
# The last terms of a sum of matrix products are one kernel that reads all operands.
_SUMMED_PRODUCTS = 20
_SUMMED_ELEMENTS = 2048  # small products are left alone
# A product over at most this many terms is not stored if its one reader is a product
# with a constant.
_STREAMED_TERMS = 16


class Kernel(NamedTuple):
    """One launch.

    Attributes:
      op: The operation at its root.
      reads: Bytes read, by value.
      writes: Bytes stored, by value.
      overwrites: Whether it may write over an operand that nobody reads later.

    Examples:
      >>> Kernel(Op("sin", None, (1,), (2,)), {1: 8}, {2: 8}, True).writes
      {2: 8}
    """

    op: Op
    reads: dict[int, int]
    writes: dict[int, int]
    overwrites: bool


def fuse(program: Program, *, in_loop: bool) -> list[Kernel]:
    """The kernels of a program, in its order: what each of them reads and stores.

    Args:
      program: The operations.
      in_loop: Whether they are the body of a loop, where no value is a constant.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> program = Program(jax.make_jaxpr(lambda x: jnp.sin(x) * x + 1)(1.0).jaxpr)
      >>> [kernel.op.name for kernel in fuse(program, in_loop=False)]
      ['add']
    """
    rules = _Rules(program, in_loop=in_loop)
    # Of a value that is not stored, what its readers read instead.
    instead: dict[int, dict[int, int]] = {_LITERAL: {}}
    kernels = []
    for op in program.ops:
        reads: dict[int, int] = {}
        for value in op.inputs:
            stored = {value: program.num_bytes(value)}
            for source, size in instead.get(value, stored).items():
                reads[source] = max(size, reads.get(source, 0))
        if op.name in _PICKS:
            picked = sum(map(program.num_bytes, op.outputs))
            reads = {value: min(size, picked) for value, size in reads.items()}
        writes = {}
        for value in op.outputs:
            if rules.is_stored(op, value):
                writes[value] = program.num_bytes(value)
            else:
                instead[value] = reads
        if writes:
            kernels.append(Kernel(op, reads, writes, rules.overwrites(op)))
    return kernels


class _Rules:
    def __init__(self, program: Program, *, in_loop: bool):
        self._outputs = program.outputs
        self._constants = set() if in_loop else program.constants
        self._readers: dict[int, list[Op]] = defaultdict(list)
        for op in program.ops:
            for value in set(op.inputs):
                self._readers[value].append(op)
        self._depths = self._sum_depths(program.ops)
        # Not stored, made by the matrix library; the matrix products among them.
        self._in_library: set[int] = set()
        self._products: set[int] = set()

    def is_stored(self, op: Op, value: int) -> bool:
        """Asked of each result in program order."""
        readers = self._readers[value]
        if value in self._outputs or not readers:
            return True
        if len(readers) == 1 and self._is_taken_by_library(op, readers[0]):
            self._in_library.add(value)
            if op.name == "dot_general":
                self._products.add(value)
            return False
        if self._in_library.isdisjoint(op.inputs):
            return not _is_cheap(op, readers)
        if op.name in _SUMS:
            is_fused = all(reader.name in _SUMS for reader in readers)
        else:
            is_fused = _is_cheap(op, readers)
        if is_fused and op.name in _SUMS | {"broadcast_in_dim"}:
            self._in_library.add(value)
        return not is_fused

    def overwrites(self, op: Op) -> bool:
        """Whether each number depends on one number of each operand alone."""
        if op.name == "dynamic_update_slice":
            return True
        return is_elementwise(op) and self._products.isdisjoint(op.inputs)

    def _is_taken_by_library(self, op: Op, reader: Op) -> bool:
        if op.name in REDUCTIONS and _reads_memory(op):
            return reader.name in _SUMS | {"dot_general", "broadcast_in_dim"}
        if op.name != "dot_general":
            return False
        if reader.name == "dot_general":
            is_short = num_terms(op.eqn) <= _STREAMED_TERMS
            return is_short and not self._constants.isdisjoint(reader.inputs)
        is_large = math.prod(op.eqn.outvars[0].aval.shape) >= _SUMMED_ELEMENTS
        depth = self._depths.get(reader.outputs[0], math.inf)
        return is_large and depth < _SUMMED_PRODUCTS

    def _sum_depths(self, ops: Sequence[Op]) -> dict[int, int]:
        """How many terms each sum is away from the end of the sum it is part of."""
        depths: dict[int, int] = {}
        for op in reversed(ops):
            if op.name in _SUMS:
                (value,) = op.outputs
                readers = self._readers[value]
                is_partial = len(readers) == 1
                depths[value] = (
                    depths.get(readers[0].outputs[0], -1) + 1 if is_partial else 0
                )
        return depths


def _is_cheap(op: Op, readers: Sequence[Op]) -> bool:
    """Whether a result is rather computed again than stored."""
    if not is_fusable(op) or any(map(_reads_memory, readers)):
        return False
    return len(readers) == 1 or op.name not in TRANSCENDENTAL


def _reads_memory(op: Op) -> bool:
    """Whether an operation's operands are stored: whether it ends a fusion."""
    if op.name in REDUCTIONS:
        # Along the last axis it is fused with what it reduces.
        shape = op.eqn.invars[0].aval.shape
        long_axes = [axis for axis in range(len(shape)) if shape[axis] != 1]
        return bool(long_axes) and long_axes[-1] not in op.eqn.params["axes"]
    return not is_fusable(op)
