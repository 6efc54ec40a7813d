"""What a kernel costs by each method, before anything is compiled or allocated."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax

from ldjax.equation.sequences import LogitsFn
from ldjax.equation.spaces import dtype_of, struct_of
from ldjax.equation.subset import make_weights
from ldjax.ntk.cost.estimate import cost_of
from ldjax.ntk.cost.rates import machine_rates
from ldjax.ntk.methods import Method, make_kernel

__all__ = ["METHODS", "Plan", "plan"]

# What a method raises for functions that it cannot serve.
_REFUSALS = (ImportError, MemoryError, NotImplementedError, TypeError, ValueError)
# `(probe_fn, update_fn, params, where=, preconditioner=)` to the arrays that a method
# computes. It is only traced.
Builder = Callable[..., Any]


class Plan(NamedTuple):
    """What one method asks for.

    Attributes:
      method: The name `empirical_ntk` takes.
      flops: Floating-point operations.
      peak_bytes: The most that temporaries and the result take at one time;
        parameters and data, which exist already, are not counted.
      result_bytes: The part that stays: the kernel itself.
      seconds: Expected on this machine as it was when its rates were measured, once
        compiled.
      refusal: Why the method cannot serve these functions; empty if it can.

    Examples:
      >>> Plan("jacobian", flops=10, peak_bytes=8, result_bytes=4, seconds=0.5).refusal
      ''
    """

    method: str
    flops: int
    peak_bytes: int
    result_bytes: int
    seconds: float
    refusal: str = ""


def _builder(method: str) -> Builder:
    def build(
        probe_fn: LogitsFn,
        update_fn: LogitsFn,
        params: Any,
        *,
        where: Any,
        preconditioner: Any,
    ) -> Any:
        weights = make_weights(params, where=where, preconditioner=preconditioner)
        kernel = make_kernel(method, probe_fn, update_fn, params, weights)
        return kernel.dense(memory_limit=math.inf)

    return build


METHODS: dict[str, Builder] = {method: _builder(method) for method in get_args(Method)}


def plan(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    methods: Mapping[str, Builder] | None = None,
    where: Any = None,
    preconditioner: Any = None,
) -> tuple[Plan, ...]:
    """What the kernel of two functions costs by each method, the fastest first.

    Every method is traced, and FLOPs and memory are read off what it would compute;
    nothing is compiled or allocated, so an impossible kernel can be planned too. The
    rates of the machine are measured once in a process.

    Args:
      probe_fn: `params -> logits` of the watched examples.
      update_fn: `params -> logits` of the trained examples.
      params: The parameters; only shapes and dtypes are read.
      methods: By name, functions of `(probe_fn, update_fn, params, where=,
        preconditioner=)` that return the arrays a method computes; `METHODS` by
        default.
      where: Which parameters take part, as in `empirical_ntk`.
      preconditioner: Their diagonal `P`, likewise.

    Returns:
      One `Plan` per method by `seconds`; those with a `refusal` last.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda w: jnp.sin(jnp.ones((4, 30), w.dtype) @ w)
      >>> params = jax.ShapeDtypeStruct((30, 10), "float32")
      >>> plans = plan(logits_fn, logits_fn, params)
      >>> sorted(one.method for one in plans if not one.refusal)
      ['jacobian', 'lazy', 'ntk_vp']
      >>> plans[0].result_bytes
      6400
    """
    arguments = struct_of((params, preconditioner))
    logits = jax.eval_shape(probe_fn, arguments[0])
    rates = machine_rates(dtype_of((logits, arguments[0])))

    def make(name: str, builder: Builder) -> Plan:
        def build(params: Any, preconditioner: Any) -> Any:
            return builder(
                probe_fn, update_fn, params, where=where, preconditioner=preconditioner
            )

        try:
            program = jax.make_jaxpr(build)(*arguments)
        except _REFUSALS as error:
            return Plan(name, 0, 0, 0, math.inf, str(error) or type(error).__name__)
        cost = cost_of(program)
        return Plan(
            name,
            cost.flops,
            cost.peak_bytes,
            cost.result_bytes,
            rates.seconds(cost),
        )

    builders = METHODS if methods is None else methods
    plans = [make(name, builder) for name, builder in builders.items()]
    return tuple(sorted(plans, key=lambda one: one.seconds))
