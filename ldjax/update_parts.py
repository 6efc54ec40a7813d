r"""What an optimizer's update is made of: gradient, history, weight decay.

An optax update is rarely linear in the gradient, but it is once its *scale factors*
(Adam's and RMSprop's preconditioner, the clip factor, a schedule, a trust ratio) are
held at the values this step used. Then

    update = scale * (own gradient) + scale' * history + scale'' * parameters

which sums exactly. Which factors are scales is read off the computation itself: the
gradient, the moments of the optimizer's state and the parameters are *linear* inputs;
sums, scalings and selections of linear values stay linear; anything else (a square, a
norm, a root) is a number that this step used, and is frozen. So the split holds for
any chain of transforms, including ones this module has never heard of, and an
optimizer whose update is not of this form (a sign, say) is refused by the name of the
operation in the way.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldjax._primitives import CALLS

__all__ = ["frozen_update"]

# Linear in all operands together.
_LINEAR = frozenset(
    (
        *("add", "add_any", "sub", "neg", "reduce_sum", "convert_element_type"),
        *("broadcast_in_dim", "concatenate", "copy", "copy_p", "expand_dims"),
        *("reduce_precision", "reshape", "rev", "slice", "squeeze", "transpose"),
    )
)
# Linear in one operand with the others frozen.
_BILINEAR = frozenset({"mul", "dot_general"})

_CONSTANT = "a constant term"


class _Number(NamedTuple):
    """A value of the optimizer's computation.

    Attributes:
      value: What it was in this step.
      sources: The labels of the inputs it is linear in (none for a known zero), or
        None if it is frozen.
      part: If linear, the share of `value` that comes from the parts asked for.
      obstacle: If frozen, the operation that is not linear.
    """

    value: Any
    sources: frozenset[str] | None
    part: Any = None
    obstacle: str = _CONSTANT


def frozen_update(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: Any,
    state: Any,
    params: Any,
    **extra_args: Any,
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    r"""Split an optimizer's update, its scale factors frozen at this step's values.

    .. math:: \Delta\theta = P\,c\,g + \text{history} + \text{weight decay}

    Args:
      optimizer: An optax transformation (`optax.with_extra_args_support`).
      gradient: The gradient of this step, shaped like `params`.
      state: The optimizer's state before the step.
      params: The parameters before the step.
      **extra_args: Passed to `optimizer.update`, as in the step itself.

    Returns:
      `(own, rest)`: `own(part_of_gradient)` is the linear map that took the gradient
      to its share of the update (apply it to the gradient of one side or one
      example); `rest` holds the updates due to `"history"` (moments, traces,
      accumulated gradients) and `"weight_decay"` (the parameters themselves), each
      only where the optimizer has such a term. `own(gradient)` and the values of
      `rest` sum to the update.

    Raises:
      ValueError: If the update is not linear even with frozen scales.

    Examples:
      >>> optimizer = optax.with_extra_args_support(optax.sgd(0.5, momentum=0.5))
      >>> theta = jnp.array([1.0, 2.0])
      >>> state = optimizer.init(theta)
      >>> own, rest = frozen_update(optimizer, jnp.array([4.0, 2.0]), state, theta)
      >>> own(jnp.array([4.0, 1.0]))
      Array([-2. , -0.5], dtype=...)
      >>> list(rest)
      ['history']
    """
    inputs = (gradient, state, params)
    labels = _labels(gradient, state, params)
    program, out_shape = jax.make_jaxpr(
        lambda *args: optimizer.update(*args, **extra_args)[0], return_shape=True
    )(*inputs)

    def outputs(parts: Any) -> list[_Number]:
        leaves = zip(*map(jax.tree.leaves, (inputs, labels, parts)), strict=True)
        numbers = [_number(*leaf) for leaf in leaves]
        return _evaluate(program.jaxpr, program.consts, numbers)

    def only(label: str, parts: Any = inputs) -> Any:
        """`parts` where the inputs carry this label, zero elsewhere."""
        return jax.tree.map(
            lambda part, own: part if own == label else jnp.zeros_like(part),
            parts,
            labels,
        )

    numbers = outputs(inputs)
    _refuse_frozen(numbers)

    def respond(parts: Any) -> Any:
        leaves = [number.part for number in outputs(parts)]
        return jax.tree.unflatten(jax.tree.structure(out_shape), leaves)

    def own(part: Any) -> Any:
        return respond(only("gradient", (part, state, params)))

    sources = _union(numbers)
    rest = {
        label: respond(only(label))
        for label in ("history", "weight_decay")
        if label in sources
    }
    return own, rest


def _labels(gradient: Any, state: Any, params: Any) -> Any:
    """Which inputs are linear: `"gradient"`, `"history"`, `"weight_decay"` or `""`.

    A leaf of the state is a moment if it is named and shaped like a parameter; counts,
    schedules and injected hyperparameters (which may share a name) are scales.
    """
    names = {
        path: jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    injected = jax.tree_util.GetAttrKey("hyperparams")

    def label_state(path: tuple[Any, ...], leaf: Any) -> str:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        is_moment = (floating and injected not in path) and any(
            path[len(path) - len(name) :] == name and jnp.shape(leaf) == shape
            for name, shape in names.items()
        )
        return "history" if is_moment else ""

    return (
        jax.tree.map(lambda _: "gradient", gradient),
        jax.tree_util.tree_map_with_path(label_state, state),
        jax.tree.map(lambda _: "weight_decay", params),
    )


def _number(value: Any, label: str, part: Any) -> _Number:
    return _Number(value, frozenset([label]) if label else None, part)


def _union(numbers: Sequence[_Number]) -> frozenset[str]:
    return frozenset().union(*(number.sources or () for number in numbers))


def _refuse_frozen(numbers: list[_Number]) -> None:
    obstacles = sorted({n.obstacle for n in numbers if n.sources is None})
    if obstacles:
        raise ValueError(
            "This optimizer's update cannot be split into parts: even with its scale "
            "factors frozen it is not linear in the gradient, its moments and the "
            f"parameters, because of {', '.join(obstacles)}. The total prediction "
            "still works: pass `parts=None`."
        )


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[_Number]) -> list:
    """Run a jaxpr on numbers that know what they are linear in."""
    numbers = dict(zip(jaxpr.invars, args, strict=True))
    numbers |= {
        var: _constant(value)
        for var, value in zip(jaxpr.constvars, consts, strict=True)
    }

    def read(atom: Any) -> _Number:
        # A literal carries its value; a variable has none.
        return _constant(atom.val) if hasattr(atom, "val") else numbers[atom]

    for eqn in jaxpr.eqns:
        results = _apply(eqn, [read(atom) for atom in eqn.invars])
        numbers |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _constant(value: Any) -> _Number:
    is_zero = isinstance(value, int | float | np.generic | np.ndarray) and not np.any(
        value
    )
    part = jnp.zeros_like(value) if is_zero else None
    return _Number(value, frozenset() if is_zero else None, part)


def _apply(eqn: Any, args: list[_Number]) -> list[_Number]:
    """One operation: linear where it is linear in its linear arguments."""
    name = eqn.primitive.name
    if name in CALLS:
        body = eqn.params[CALLS[name]]
        return _evaluate(body.jaxpr, body.consts, args)
    if name == "cond":
        return _apply_cond(eqn, *args)

    def bind(operands: Sequence[Any]) -> Any:
        return eqn.primitive.bind(*operands, **eqn.params)

    values = [arg.value for arg in args]
    value = bind(values)
    if eqn.primitive.multiple_results:
        return [_frozen(v, name, args) for v in value]
    varying = _varying(eqn, args)
    if varying is None:
        return [_frozen(value, name, args)]
    part = bind([arg.part if i in varying else arg.value for i, arg in enumerate(args)])
    return [_Number(value, _union([args[i] for i in varying]), part)]


def _varying(eqn: Any, args: list[_Number]) -> Sequence[int] | None:
    """The operands an operation is jointly linear in, if they are linear numbers.

    None where the operation freezes its result.
    """
    name = eqn.primitive.name
    linear = [i for i, arg in enumerate(args) if arg.sources is not None]
    is_linear = name in _LINEAR or (name == "integer_pow" and eqn.params["y"] == 1)
    if is_linear and len(linear) == len(args):
        return linear
    if name == "select_n" and linear[-len(args[1:]) :] == list(range(1, len(args))):
        return range(1, len(args))
    if name == "div" and linear == [0]:
        return linear
    if name in _BILINEAR:
        zeros = [i for i in linear if not args[i].sources]
        if zeros:  # zero times anything
            return zeros[:1]
        return linear if len(linear) == 1 else None
    return None


def _frozen(value: Any, name: str, args: Sequence[_Number]) -> _Number:
    """A number that this step used; remembers what first stood in the way."""
    inherited = [arg.obstacle for arg in args if arg.sources is None]
    if any(arg.sources for arg in args) and (name not in _LINEAR or not inherited):
        return _Number(value, None, None, f"`{name}`")
    named = (obstacle for obstacle in inherited if obstacle != _CONSTANT)
    return _Number(value, None, None, next(named, _CONSTANT))


def _apply_cond(eqn: Any, index: _Number, *args: _Number) -> list[_Number]:
    """Both branches, then the one that was taken."""
    branches = [
        _evaluate(branch.jaxpr, branch.consts, args)
        for branch in eqn.params["branches"]
    ]

    def choose(leaves: Sequence[Any]) -> Any:
        return jax.lax.select_n(index.value, *leaves)

    results = []
    for cases in zip(*branches, strict=True):
        value = choose([case.value for case in cases])
        if any(case.sources is None for case in cases):
            results.append(_frozen(value, "cond", cases))
            continue
        part = choose([case.part for case in cases])
        results.append(_Number(value, _union(cases), part))
    return results
