"""FLOPs, memory and traffic of a computation, read off its jaxpr.

Nothing is allocated and nothing is compiled. What the compiler makes of a jaxpr is
modelled: cheap operations are fused into the kernels that read them, so only what a
kernel writes takes memory (`_fusion`); kernels run breadth first, as soon as their
operands exist, and a buffer is freed after its last reader (`_peak`). The rules are
those of XLA's CPU compiler, fitted to its own `memory_analysis`.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from ldjax.ntk.cost.fusion import Kernel, fuse
from ldjax.ntk.cost.operations import (
    MOVES,
    REDUCTIONS,
    Op,
    has_fast_order,
    is_elementwise,
    num_bytes,
    num_terms,
)
from ldjax.ntk.cost.program import Program

__all__ = ["Cost", "cost_of", "estimate", "peak_bytes"]


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


def cost_of(program: Any) -> Cost:
    """What a `jax.extend.core.ClosedJaxpr` will cost once it is compiled.

    Args:
      program: From `jax.make_jaxpr`.

    Examples:
      >>> cost_of(jax.make_jaxpr(lambda x: x + 1)(1.0)).flops
      1
    """
    return _cost(program.jaxpr)


def _cost(jaxpr: Any, *, num_slices: int = 0, in_loop: bool = False) -> Cost:
    program = Program(jaxpr, num_slices=num_slices, in_loop=in_loop)
    kernels = fuse(program, in_loop=in_loop)
    inner = [_inner(kernel.op) for kernel in kernels]
    total: Counter[str] = Counter()
    for op in program.ops:
        count = _flops(op)
        total["flops"] += count
        if op.name == "conv_general_dilated":
            total["convolution_flops"] += count
            total["naive_flops"] += count * _is_naive(op)
    for kernel, body in zip(kernels, inner, strict=True):
        moved = (*kernel.reads.values(), *kernel.writes.values())
        total["traffic_bytes"] += sum(moved)
        if body is None:
            total["kernels"] += 1
            continue
        times = kernel.op.eqn.params.get("length", 1)
        for field, count in body._asdict().items():
            total[field] += times * count
    scratch = [body.peak_bytes if body else 0 for body in inner]
    total["peak_bytes"] = _peak(program, kernels, scratch)
    total["result_bytes"] = sum(num_bytes(var.aval) for var in jaxpr.outvars)
    return Cost(*(total[field] for field in Cost._fields))


def _flops(op: Op) -> int:
    """Of the operation itself, without the body of a loop."""
    if op.eqn is None or op.name in MOVES:
        return 0
    if op.name == "dot_general":
        return 2 * num_terms(op.eqn) * _num_elements(op.eqn.outvars)
    if op.name == "conv_general_dilated":
        kernel = op.eqn.invars[1].aval.shape
        out_features = kernel[op.eqn.params["dimension_numbers"].rhs_spec[0]]
        terms = math.prod(kernel) // out_features
        return 2 * terms * _num_elements(op.eqn.outvars)
    if op.name in REDUCTIONS:
        return _num_elements(op.eqn.invars[:1])
    return _num_elements(op.eqn.outvars) if is_elementwise(op) else 0


def _is_naive(op: Op) -> bool:
    groups = ("feature_group_count", "batch_group_count")
    return any(op.eqn.params[name] > 1 for name in groups) or (
        op.in_loop and not all(has_fast_order(op.eqn, side) for side in (0, 1))
    )


def _num_elements(variables: Iterable[Any]) -> int:
    return sum(math.prod(var.aval.shape) for var in variables)


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


def _peak(program: Program, kernels: Sequence[Kernel], scratch: Sequence[int]) -> int:
    """The most bytes in use, over the kernels in the order they run.

    `scratch` is what each of them has in use only while it runs.
    """
    unread = Counter(value for kernel in kernels for value in kernel.reads)
    kept = program.outputs | program.arguments
    sizes = {v: size for kernel in kernels for v, size in kernel.writes.items()}
    in_use = peak = 0
    for i in _breadth_first(kernels):
        kernel = kernels[i]
        unread.subtract(kernel.reads.keys())
        freed = [v for v in kernel.reads if not unread[v] and v not in kept]
        written = sum(kernel.writes.values())
        shared = 0
        if kernel.overwrites:
            shared = max((sizes[v] for v in freed if sizes[v] <= written), default=0)
        peak = max(peak, in_use + written + scratch[i] - shared)
        in_use += written - sum(sizes[v] for v in freed)
        in_use -= sum(
            size for v, size in kernel.writes.items() if not unread[v] and v not in kept
        )
    return peak


def _breadth_first(kernels: Sequence[Kernel]) -> Iterable[int]:
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


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that temporaries and results of a call take at most.

    Read off its jaxpr by the rules of `ldjax.ntk.plan`; nothing is compiled or
    allocated. Arguments exist before and are not counted.

    Args:
      fn: A function that JAX can trace.
      *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`; only shapes are read.

    Examples:
      >>> peak_bytes(lambda x: x @ x, jax.ShapeDtypeStruct((10, 10), "float32"))
      400
    """
    return estimate(fn, *args).peak_bytes
