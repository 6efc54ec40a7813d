"""FLOPs, memory and traffic of a computation, read off its jaxpr.

Nothing is compiled or allocated. One rule stands for what compilers fuse: a result of
which every number depends on one number of each operand (a sum, a `sin`, a slice) is
computed where it is read, if one such operation reads it; every other result is stored
until its last reader has run. Kernels run in the order of the program or breadth first,
whichever takes more.

Why the compiler is not asked. Its FLOPs, `jit(f).lower(...).cost_analysis()`, count the
body of a loop once, however often it runs. Of kernels that loop over their columns they
are 1/2 to 1/10000 of what is done, so methods cannot be compared by them. Its bytes,
`.compile().memory_analysis()`, ask for a compilation: of 1 to 6 seconds of a processor
for a kernel and 8 to 11 for the step of a decoder of four blocks, where this takes
0.001 to 0.3. A plan asks for five kernels, that of a run for three programs at two
depths and up to seven sizes, of which at most one is compiled afterwards; and what
cannot be run need not compile. JAX documents both as debugging aids of arbitrary
structure, None where a backend has none.

How near it is to the bytes of XLA on CPU (JAX 0.10): 0.8 to 1.4 times as much for
updates and observations of decoders of 0.05 to 42 M parameters, 0.7 to 1.9 times for
kernels. The exceptions: 0.5 to 0.7 times for Jacobians of convolutions and for factored
kernels of some 20 MB; up to 8 times for NTK-vector products of wide layers with more
examples than `_STREAMED_TERMS`.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from ldjax.ntk.cost.program import (
    MOVES,
    REDUCTIONS,
    Op,
    Program,
    is_fusable,
    num_bytes,
)

__all__ = ["Cost", "cost_of", "estimate", "peak_bytes"]

# Read only as much of their operand as they return.
_PICKS = frozenset(("gather", "dynamic_slice", "slice", "split"))
# A product over at most this many terms (an outer product of a few examples) is not
# stored if its one reader is a product with a constant: XLA on CPU multiplies the two
# as they are. NTK-vector products are the fastest method where this is so.
_STREAMED_TERMS = 16


class Cost(NamedTuple):
    """What a computation asks of the machine.

    Attributes:
      flops: Floating-point operations: two for each multiply-add of a matrix product
        or a convolution (padding included), one for each number that an elementwise
        operation returns or a reduction reads.
      peak_bytes: The most that temporaries and results take at one time. Arguments
        and constants exist before and are not counted.
      result_bytes: The part of them that is returned.
      traffic_bytes: What all kernels read and write.
      kernels: How many kernels are started.
      convolution_flops: The part of `flops` in convolutions.
      naive_flops: The part of those that no fast kernel takes: grouped ones, and in
        the body of a loop those whose axes are in another order.

    Examples:
      >>> estimate(lambda x: x @ x, jax.ShapeDtypeStruct((10, 10), "float32"))
      Cost(flops=2000, peak_bytes=400, result_bytes=400, traffic_bytes=800, ...)
    """

    flops: int
    peak_bytes: int
    result_bytes: int
    traffic_bytes: int
    kernels: int
    convolution_flops: int
    naive_flops: int


def estimate(fn: Callable[..., Any], *args: Any) -> Cost:
    """What `fn(*args)` will cost once it is compiled, without compiling it.

    A loop counts as often as it runs where that is known before (`scan`, `lax.map`, a
    `fori_loop` with constant bounds), once otherwise; of a conditional the most
    expensive branch counts.

    Args:
      fn: A function that JAX can trace.
      *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`; only shapes are read.

    Returns:
      Its `Cost`.

    Examples:
      >>> from jax import lax
      >>> xs = jax.ShapeDtypeStruct((7, 10, 10), "float32")
      >>> estimate(lambda xs: lax.map(lambda x: x @ x, xs), xs).flops
      14000
    """
    return cost_of(jax.make_jaxpr(fn)(*args))


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that temporaries and results of a call take at most.

    Args:
      fn: A function that JAX can trace.
      *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`; only shapes are read.

    Examples:
      >>> peak_bytes(lambda x: x @ x, jax.ShapeDtypeStruct((10, 10), "float32"))
      400
    """
    return estimate(fn, *args).peak_bytes


def cost_of(program: Any) -> Cost:
    """What a `jax.extend.core.ClosedJaxpr` will cost once it is compiled.

    Args:
      program: From `jax.make_jaxpr`.

    Examples:
      >>> cost_of(jax.make_jaxpr(lambda x: x + 1)(1.0)).flops
      1
    """
    return _cost(program.jaxpr)


class _Kernel(NamedTuple):
    """One launch: bytes read and stored, by value."""

    op: Op
    reads: dict[int, int]
    writes: dict[int, int]


def _cost(jaxpr: Any, *, num_slices: int = 0, in_loop: bool = False) -> Cost:
    program = Program(jaxpr, num_slices=num_slices)
    total: Counter[str] = Counter()
    for op in program.ops:
        count = _flops(op)
        total["flops"] += count
        if op.name == "conv_general_dilated":
            total["convolution_flops"] += count
            total["naive_flops"] += count * _is_naive(op, in_loop=in_loop)
    kernels = _fuse(program)
    scratch = []
    for op, reads, writes in kernels:
        total["traffic_bytes"] += sum((*reads.values(), *writes.values()))
        body = _inner(op)
        scratch.append(body.peak_bytes if body else 0)
        if body is None:
            total["kernels"] += 1
            continue
        times = op.eqn.params.get("length", 1)
        total.update({field: times * n for field, n in body._asdict().items()})
    orders = range(len(kernels)), _breadth_first(kernels)
    kept = program.outputs | program.arguments
    total["peak_bytes"] = max(_peak(kernels, scratch, kept, order) for order in orders)
    total["result_bytes"] = sum(num_bytes(var.aval) for var in jaxpr.outvars)
    return Cost(*(total[field] for field in Cost._fields))


def _flops(op: Op) -> int:
    """Of the operation itself, without the body of a loop."""
    if op.name in MOVES:
        return 0
    size = math.prod(op.eqn.outvars[0].aval.shape)
    if op.name == "dot_general":
        return 2 * size * _num_terms(op)
    if op.name == "conv_general_dilated":
        kernel = op.eqn.invars[1].aval.shape
        out_features = kernel[op.eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * (math.prod(kernel) // out_features)
    if op.name in REDUCTIONS:
        return math.prod(op.eqn.invars[0].aval.shape)
    return size if is_fusable(op) else 0


def _num_terms(product: Op) -> int:
    (contracted, _), _ = product.eqn.params["dimension_numbers"]
    shape = product.eqn.invars[0].aval.shape
    return math.prod(shape[axis] for axis in contracted)


def _is_naive(op: Op, *, in_loop: bool) -> bool:
    params = op.eqn.params
    if max(params["feature_group_count"], params["batch_group_count"]) > 1:
        return True
    images, kernel, _ = params["dimension_numbers"]
    last = len(images) - 1
    # Features last; of the kernel, what it returns.
    fast = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    return in_loop and (tuple(images), tuple(kernel)) != fast


def _inner(op: Op) -> Cost | None:
    """The cost of one pass through the body of a loop or a branch."""
    if op.name == "scan":
        params = op.eqn.params
        body = params["jaxpr"].jaxpr
        kept = params["num_consts"] + params["num_carry"]
        return _cost(body, num_slices=len(body.invars) - kept, in_loop=True)
    if op.name == "while":
        return _cost(op.eqn.params["body_jaxpr"].jaxpr, in_loop=True)
    if op.name == "cond":
        branches = (_cost(b.jaxpr, in_loop=True) for b in op.eqn.params["branches"])
        return Cost(*map(max, zip(*branches, strict=True)))
    return None


def _fuse(program: Program) -> list[_Kernel]:
    """The kernels of a program, in its order: what each of them reads and stores."""
    readers: dict[int, list[Op]] = defaultdict(list)
    for op in program.ops:
        for value in set(op.inputs):
            readers[value].append(op)

    def is_streamed(value: int) -> bool:
        if value in program.outputs or len(readers[value]) != 1:
            return False
        (reader,) = readers[value]
        if reader.name == "transpose":
            return is_streamed(reader.outputs[0])
        is_product = reader.name == "dot_general"
        return is_product and not program.constants.isdisjoint(reader.inputs)

    streamed: set[int] = set()

    def is_stored(op: Op, value: int) -> bool:
        is_short = op.name == "dot_general" and _num_terms(op) <= _STREAMED_TERMS
        if (is_short or not streamed.isdisjoint(op.inputs)) and is_streamed(value):
            streamed.add(value)
            return False
        if value in program.outputs or len(readers[value]) != 1:
            return True
        return not (is_fusable(op) and is_fusable(readers[value][0]))

    # Of a value that is not stored, what its reader reads instead; of a literal, none.
    instead: dict[int, dict[int, int]] = {0: {}}
    kernels = []
    for op in program.ops:
        reads: dict[int, int] = {}
        for value in op.inputs:
            stored = {value: program.sizes[value]}
            for source, size in instead.get(value, stored).items():
                reads[source] = max(size, reads.get(source, 0))
        if op.name in _PICKS:
            picked = sum(program.sizes[value] for value in op.outputs)
            reads = {value: min(size, picked) for value, size in reads.items()}
        writes = {
            value: program.sizes[value] for value in op.outputs if is_stored(op, value)
        }
        instead |= {value: reads for value in op.outputs if value not in writes}
        if writes:
            kernels.append(_Kernel(op, reads, writes))
    return kernels


def _peak(
    kernels: Sequence[_Kernel],
    scratch: Sequence[int],
    kept: set[int],
    order: Iterable[int],
) -> int:
    """The most bytes in use while kernels run in some order.

    `scratch` is what each of them has in use only while it runs; values in `kept` are
    never freed.
    """
    unread = Counter(value for kernel in kernels for value in kernel.reads)
    sizes = {v: size for kernel in kernels for v, size in kernel.writes.items()}
    in_use = peak = 0
    for i in order:
        _, reads, writes = kernels[i]
        in_use += sum(writes.values())
        peak = max(peak, in_use + scratch[i])
        unread.subtract(reads.keys())
        done = {v for v in (*reads, *writes) if not unread[v]} - kept
        in_use -= sum(sizes[value] for value in done)
    return peak


def _breadth_first(kernels: Sequence[_Kernel]) -> Iterable[int]:
    """Each kernel as soon as its operands exist, those ready earlier first."""
    makers = {v: i for i, kernel in enumerate(kernels) for v in kernel.writes}
    readers: dict[int, list[int]] = defaultdict(list)
    waiting = []
    for i, kernel in enumerate(kernels):
        operands = {makers[v] for v in kernel.reads if v in makers}
        waiting.append(len(operands))
        for operand in operands:
            readers[operand].append(i)
    ready = deque(i for i, count in enumerate(waiting) if not count)
    while ready:
        i = ready.popleft()
        yield i
        for reader in readers[i]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
