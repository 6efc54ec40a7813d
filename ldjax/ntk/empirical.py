"""`empirical_ntk`: one name for every way to the same kernel."""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from ldjax import memory
from ldjax.linear_map import LinearMap, jacobian
from ldjax.ntk.dense import LogitsFn, dense_ntk
from ldjax.ntk.plan import Plan, plan_dense

__all__ = ["empirical_ntk"]

_log = logging.getLogger(__name__)

_INSTEAD = (
    "keep it lazy (`jacobian(probe_fn, params) @ jacobian(update_fn, params).T`, or "
    '`method="auto"`), or take fewer positions'
)


def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: str = "auto",
    memory_limit: memory.Bytes | None = None,
) -> LinearMap:
    r"""The empirical neural tangent kernel of the logits, the `K` of `A K G`.

    .. math:: K(\chi_o, \chi_u) = \nabla_\theta z(\chi_o)\, \nabla_\theta z(\chi_u)^\top

    It maps residuals at the update's logits to (minus, per unit of learning rate)
    first-order changes of the probe's logits. It is never averaged over outputs, and
    :math:`K(\chi_o, \chi_u)^\top = K(\chi_u, \chi_o)`.

    Every method gives the same numbers on the same contract (`ldjax.LinearMap`):

    * `"jacobian"`: neural-tangents' Jacobian contraction; fast for few parameters,
      stores two Jacobians.
    * `"ntk_vp"`: neural-tangents' NTK-vector products, one backward and one forward
      pass per output of the narrower side; for many parameters.
    * `"auto"`: the cheaper dense method by planned memory that fits, otherwise the
      lazy product of Jacobians.

    Args:
      probe_fn: `params -> logits` of the watched examples, a pytree of
        `[..., vocab]` arrays.
      update_fn: `params -> logits` of the trained examples, likewise.
      params: Parameters, a pytree of floating-point arrays.
      method: How it is computed.
      memory_limit: Bytes a dense kernel and the work beside it may take; by default
        a fraction of the free memory.

    Returns:
      A `LinearMap` from the update's logits to the probe's.

    Raises:
      MemoryError: If the method asked for does not fit; nothing was allocated.
      ImportError: If the method asked for needs neural-tangents and it cannot be
        loaded.

    References:
      Ren & Sutherland 2025, Proposition 1. Novak, Sohl-Dickstein & Schoenholz,
      `Fast Finite Width Neural Tangent Kernel
      <https://arxiv.org/abs/2206.08720>`_, 2022.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda w: w @ jnp.array([1.0, 2.0, 2.0])
      >>> empirical_ntk(logits_fn, logits_fn, jnp.ones((2, 3))).dense()
      Array([[9., 0.],
             [0., 9.]], dtype=...)
    """
    _check_differentiable(probe_fn, update_fn, params)
    plans = plan_dense(probe_fn, update_fn, params)
    limit = memory.default_limit() if memory_limit is None else memory_limit
    if method == "auto":
        return _cheapest(probe_fn, update_fn, params, plans=plans, limit=limit)
    chosen = {plan.method: plan for plan in plans}.get(method)
    if chosen is None:
        names = ["auto", *sorted(plan.method for plan in plans)]
        raise ValueError(f"Unknown `method` {method!r}; choose one of {names}.")
    memory.refuse_above(
        limit,
        chosen.total_bytes,
        what=f"the dense kernel ({memory.human_bytes(chosen.result_bytes)}) with the "
        f'work of `method="{method}"` '
        f"({memory.human_bytes(chosen.work_bytes)})",
        instead=_INSTEAD,
    )
    return dense_ntk(probe_fn, update_fn, params, method=method)


def _lazy_ntk(probe_fn: LogitsFn, update_fn: LogitsFn, params: Any) -> LinearMap:
    return jacobian(probe_fn, params) @ jacobian(update_fn, params).T


def _check_differentiable(probe_fn: LogitsFn, update_fn: LogitsFn, params: Any) -> None:
    """Trace one application of the kernel: what cannot be differentiated says so."""

    def apply_once(params: Any) -> Any:
        kernel = _lazy_ntk(probe_fn, update_fn, params)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kernel.in_struct)
        return kernel @ zeros

    jax.eval_shape(apply_once, params)


def _cheapest(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    plans: tuple[Plan, ...],
    limit: memory.Bytes,
) -> LinearMap:
    """The first dense plan that fits, otherwise the lazy kernel; logs which and why."""
    best = plans[0]
    need = f"{memory.human_bytes(best.total_bytes)} of {memory.human_bytes(limit)}"
    if best.total_bytes > limit:
        _log.info("lazy kernel: dense needs at least %s", need)
        return _lazy_ntk(probe_fn, update_fn, params)
    try:
        kernel = dense_ntk(probe_fn, update_fn, params, method=best.method)
    except ImportError as error:
        _log.info("lazy kernel: %s", error)
        return _lazy_ntk(probe_fn, update_fn, params)
    _log.info('dense kernel by method="%s": %s', best.method, need)
    return kernel
