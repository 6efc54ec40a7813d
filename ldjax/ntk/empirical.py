"""`empirical_ntk`: one name for every way to the same kernel."""

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from ldjax import memory
from ldjax.equation.linear_map import DenseMap, LinearMap
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.subset import Weights, leaf_paths, make_weights
from ldjax.ntk.lazy import lazy_ntk
from ldjax.ntk.methods import make_kernel
from ldjax.ntk.plan import METHODS, Plan, plan

if TYPE_CHECKING:  # Flax, which the other kernels do without
    from ldjax.ntk.layers import FactoredMap, StructuredMap

__all__ = ["by_group", "empirical_ntk"]

_log = logging.getLogger(__name__)

_INSTEAD = (
    'keep it unevaluated (`method="lazy"`, or "factored" for a Linen model with a '
    "linear head), or take fewer positions"
)


class _Options(TypedDict, total=False):
    memory_limit: memory.Bytes | None
    preconditioner: Any


class _KernelOptions(_Options, total=False):
    where: Any
    contraction: str


@overload
def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: Literal["factored"],
    **options: Unpack[_KernelOptions],
) -> "FactoredMap": ...


@overload
def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: Literal["structured"],
    **options: Unpack[_KernelOptions],
) -> "StructuredMap": ...


@overload
def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: Literal["jacobian", "ntk_vp"],
    **options: Unpack[_KernelOptions],
) -> DenseMap: ...


@overload
def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: str = "auto",
    **options: Unpack[_KernelOptions],
) -> LinearMap: ...


def empirical_ntk(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    *,
    method: str = "auto",
    memory_limit: memory.Bytes | None = None,
    where: Any = None,
    preconditioner: Any = None,
    contraction: str = "auto",
) -> LinearMap:
    r"""The empirical neural tangent kernel of the logits, the `K` of `A K G`.

    .. math:: K(\chi_o, \chi_u) = \nabla_\theta z(\chi_o)\, \nabla_\theta z(\chi_u)^\top

    It maps residuals at the update's logits to (minus, per unit of learning rate)
    first-order changes of the probe's logits. It is never averaged over outputs, and
    :math:`K(\chi_o, \chi_u)^\top = K(\chi_u, \chi_o)`.

    With `where` and `preconditioner` it is :math:`J_o\,\mathrm{diag}(w)\,J_u^\top`,
    exact for partial finetuning and for RMSprop and Adam.

    Every method gives the same numbers on the same contract (`ldjax.LinearMap`):

    * `"structured"`: for Linen models (`ldjax.linen.logits_fn`), through each layer's
      inputs and outputs; nothing has the size of the parameters.
    * `"factored"`: for Linen models with a linear head, low rank plus a multiple of
      the identity; the one for large vocabularies. Has `block_summary`, `entries`,
      `singular_values`, `predict` and `save` besides (`ldjax.ntk.layers.FactoredMap`).
    * `"lazy"`: the product of Jacobians, for any function; applies fast, and forms
      its entries column by column.
    * `"jacobian"`: neural-tangents' Jacobian contraction; fast for few parameters,
      stores two Jacobians.
    * `"ntk_vp"`: neural-tangents' NTK-vector products, one backward and one forward
      pass per output of the narrower side; for many parameters.
    * `"auto"`: what `ldjax.ntk.plan` expects to be fastest among those that fit; where
      no dense kernel fits, the factored, structured or lazy one. Logs which and why.

    The first two prove of every kernel, from the very program that is differentiated,
    that the layers act as they should: a leaf is in it only where its layer multiplies
    (or adds) it, linearly and with nothing but fixed numbers beside it. No parameter
    and no token is looked at, so what is proven holds for all of them, inside of
    `jax.jit` too. Leaves of which it is not proven are differentiated plainly and named
    in a warning; a head of which it is not is refused. That the examples of a batch do
    not see each other is found out by numbers: of these parameters and tokens, or,
    inside of `jax.jit`, where those are unknown, of drawn ones.

    Args:
      probe_fn: `params -> logits` of the watched examples, a pytree of
        `[..., vocab]` arrays.
      update_fn: `params -> logits` of the trained examples, a pytree of
        `[..., vocab]` arrays.
      params: Parameters, a pytree of floating-point arrays.
      method: The name of the way in which it is computed.
      memory_limit: The bytes that a dense kernel and the work beside it may take; by
        default a fraction of the free memory.
      where: The parameters that take part, as an optax mask: a pytree of bools (or a
        prefix of one), or a function of `params` that returns it; by default all.
      preconditioner: The diagonal `P` of :math:`K_P = J_o P J_u^\top`, a pytree like
        `params` (`ldjax.preconditioner` makes it); by default the identity.
      contraction: The contraction of the structured kernel: `"operator"`, `"gram"` or
        `"instantiated"` force one (see `ldjax.ntk.layers.StructuredMap`).

    Returns:
      A `LinearMap` from the update's logits to the probe's; a `FactoredMap`, a
      `StructuredMap` or a `DenseMap` where `method` names one.

    Raises:
      MemoryError: If the method asked for does not fit; nothing was allocated.
      TypeError: If `"structured"` or `"factored"` is asked for another function than
        one from `ldjax.linen.logits_fn`.
      ValueError: If the method cannot serve this model, by name; or if `where` or
        `preconditioner` does not fit `params`.
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
    if method not in ("auto", *METHODS):
        names = ["auto", *sorted(METHODS)]
        raise ValueError(f"Unknown `method` {method!r}; choose one of {names}.")
    weights = make_weights(params, where=where, preconditioner=preconditioner)
    _check_differentiable(probe_fn, update_fn, params, weights)
    limit = memory.default_limit() if memory_limit is None else memory_limit
    planned = functools.partial(
        plan,
        probe_fn,
        update_fn,
        params,
        where=where,
        preconditioner=preconditioner,
    )
    make = functools.partial(
        make_kernel,
        probe_fn=probe_fn,
        update_fn=update_fn,
        params=params,
        weights=weights,
        memory_limit=limit,
        contraction=contraction,
    )
    if method == "auto":
        plans = planned()
        try:
            return make(_choose(plans, limit))
        except ValueError as error:  # at these parameters and tokens
            _log.info("%s", error)
            plain = (one for one in plans if one.method not in _LINEN)
            return make(_choose(tuple(plain), limit))
    if method in _DENSE:
        (needed,) = planned(methods={method: METHODS[method]})
        memory.refuse_above(
            limit,
            needed.peak_bytes,
            what=f"the dense kernel ({memory.human_bytes(needed.result_bytes)}) with "
            f'the work of `method="{method}"`',
            instead=_INSTEAD,
        )
    return make(method)


@overload
def by_group(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    groups: Any = None,
    *,
    method: Literal["factored"],
    **options: Unpack[_Options],
) -> Mapping[str, "FactoredMap"]: ...


@overload
def by_group(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    groups: Any = None,
    *,
    method: str = "auto",
    **options: Unpack[_Options],
) -> Mapping[str, LinearMap]: ...


def by_group(
    probe_fn: LogitsFn,
    update_fn: LogitsFn,
    params: Any,
    groups: Any = None,
    *,
    method: str = "auto",
    memory_limit: memory.Bytes | None = None,
    preconditioner: Any = None,
) -> Mapping[str, LinearMap]:
    r"""The kernels of groups of parameters, whose sum is the kernel.

    .. math:: K = \sum_g K_g, \qquad K_g = J_o\,\mathrm{diag}(1_g)\,J_u^\top

    Args:
      probe_fn: `params -> logits` of the watched examples.
      update_fn: `params -> logits` of the trained examples.
      params: The parameters.
      groups: Labels as `optax.multi_transform` takes them: a pytree of strings (or a
        prefix of one), or a function of `params` that returns it. By default one group
        for each layer, named by its path.
      method: The name of the way in which each is computed, as in `empirical_ntk`.
      memory_limit: The bytes that one dense kernel and the work beside it may take.
      preconditioner: The diagonal `P` of all parameters; by default the identity.

    Returns:
      The kernel of each group, in the order of its first leaf. Each costs what the
      whole does.

    Raises:
      ValueError: If `groups` does not fit `params`; and as `empirical_ntk`.

    Examples:
      >>> import jax.numpy as jnp
      >>> fn = lambda p: p["a"] + 2.0 * p["b"]
      >>> params = {"a": jnp.ones(1), "b": jnp.ones(1)}
      >>> kernels = by_group(fn, fn, params, {"a": "first", "b": "second"})
      >>> {name: float(kernel.trace()) for name, kernel in kernels.items()}
      {'first': 1.0, 'second': 4.0}
    """
    labels = _labels(groups, params)
    treedef = jax.tree.structure(params)
    return {
        group: empirical_ntk(
            probe_fn,
            update_fn,
            params,
            method=method,
            memory_limit=memory_limit,
            where=treedef.unflatten([label == group for label in labels]),
            preconditioner=preconditioner,
        )
        for group in dict.fromkeys(labels)
    }


def _labels(groups: Any, params: Any) -> list[str]:
    if groups is None:
        return ["/".join(path[:-1] or path) for path in leaf_paths(params)]
    groups = groups(params) if callable(groups) else groups
    try:
        return jax.tree.leaves(jax.tree.broadcast(groups, params))
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`groups` must be a pytree of names shaped like `params` (or a prefix of "
            f"that), or a function that returns one: {error}"
        ) from error


_DENSE = ("jacobian", "ntk_vp")
_LINEN = ("structured", "factored")
# Where no dense kernel fits, in this order.
_UNEVALUATED = ("factored", "structured", "lazy")


def _check_differentiable(
    probe_fn: LogitsFn, update_fn: LogitsFn, params: Any, weights: Weights
) -> None:
    """Trace one application of the kernel: what cannot be differentiated says so."""

    def apply_once(params: Any) -> Any:
        kernel = lazy_ntk(probe_fn, update_fn, params, weights)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kernel.in_struct)
        return kernel @ zeros

    jax.eval_shape(apply_once, params)


def _choose(plans: tuple[Plan, ...], limit: memory.Bytes) -> str:
    """The method that is expected to be fastest and fits; logs which and why."""
    able = [plan for plan in plans if not plan.refusal]
    fitting = [plan for plan in able if plan.peak_bytes <= limit]
    if fitting:
        best = fitting[0]
        reason = (
            f"{best.seconds:.3g} s and {memory.human_bytes(best.peak_bytes)} of "
            f"{memory.human_bytes(limit)} expected for all entries"
        )
        method = best.method
    else:
        names = [plan.method for plan in able]
        method = next(name for name in _UNEVALUATED if name in names)
        least = min(plan.peak_bytes for plan in able)
        reason = (
            f"all entries need at least {memory.human_bytes(least)} of "
            f"{memory.human_bytes(limit)}"
        )
    _log.info('method="%s": %s', method, reason)
    return method
