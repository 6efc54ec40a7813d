r"""The diagonal `P` of an optimizer's step, which makes its kernel `J P J^T`.

With its scale factors frozen at the values a step used, an optimizer's update is linear
in the gradient (`ldjax.equation.update_parts`); for element-wise optimizers that map is
a diagonal, shaped like the parameters. It turns the equation of plain gradient descent
into that of the optimizer:

    Delta theta = -P g + history + weight decay (+ accumulated + noise)
    delta = -A @ K_P @ G,    K_P = J_probe @ P @ J_update.T

Derived in docs/theory/optimizers.md#preconditioner.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldjax.equation.subset import merge, split
from ldjax.equation.update_parts import frozen_update

__all__ = ["preconditioner"]

# An entry of the result depends on the same entry of the operands alone.
_ELEMENT_WISE = frozenset(
    (
        *("add", "add_any", "sub", "neg", "mul", "div", "integer_pow", "select_n"),
        *("convert_element_type", "copy", "copy_p", "reduce_precision"),
        # the entries in the same order, if no axis is repeated
        *("reshape", "squeeze", "expand_dims", "broadcast_in_dim"),
    )
)


def preconditioner(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    gradient: Any,
    opt_state: Any,
    params: Any,
    *,
    where: Any = None,
    **extra_args: Any,
) -> Any:
    r"""What each coordinate of the gradient is multiplied with in this step.

    .. math:: \Delta\theta = -P\,g + \text{history} + \text{weight decay}

    Learning rate, schedule and clip factor are in `P`, at the values that the step
    uses: for Adam :math:`P = \eta\, c\, (1 - \beta_1) / (1 - \beta_1^t) /
    (\sqrt{\hat v} + \epsilon)` with :math:`\hat v` *after* this gradient and :math:`c`
    the clip factor; for plain SGD :math:`\eta`; for a sign
    :math:`\eta\, c / |x|`, with :math:`x` what it is the sign of and :math:`c` the
    gradient's factor there, and 0 where :math:`x = 0`. So the own-gradient part of the
    prediction is :math:`-A K_P G`, with no further learning rate.

    The whole batch made `P`: what it says of one example, side or token is its share of
    this very step. Trained on alone, the example would have another `P`.

    Args:
      optimizer: Any optax transformation that acts element by element: its scales may
        depend on everything, but entry `i` of its update on entry `i` of the gradient
        only.
      gradient: The gradient of this step, shaped like `params`.
      opt_state: The optimizer's state before the step.
      params: The parameters before the step.
      where: Which of them are trained, as in `ldjax.make_step`; `opt_state` is that of
        these alone. By default all.
      **extra_args: Passed to `optimizer.update`, as in the step itself
        (`ldjax.make_step` passes `value`, the loss).

    Returns:
      The diagonal, a pytree like `params`; what `ldjax.empirical_ntk` takes as
      `preconditioner`. Zero where the step ignores its gradient (frozen parameters,
      the inner steps of an accumulation).

    Raises:
      ValueError: If the update is not linear with frozen scales, or mixes the entries
        of the gradient; names the operation.

    References:
      Ren & Sutherland 2025 state the equation for plain SGD only.

    Examples:
      >>> theta, gradient = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.04])
      >>> optimizer = optax.chain(optax.clip_by_global_norm(1.5), optax.sgd(0.1))
      >>> P = preconditioner(optimizer, gradient, optimizer.init(theta), theta)
      >>> P.round(4)  # the clip halves the rate
      Array([0.05, 0.05], dtype=...)
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if where is not None:
        trained, frozen = split(params, where)
        own_gradient, _ = split(gradient, where)
        P = preconditioner(optimizer, own_gradient, opt_state, trained, **extra_args)
        return merge(P, jax.tree.map(jnp.zeros_like, frozen))
    own, _ = frozen_update(
        optax.with_extra_args_support(optimizer),
        gradient,
        opt_state,
        params,
        **extra_args,
    )
    _refuse_mixing(jax.make_jaxpr(own)(gradient).jaxpr)
    return jax.tree.map(jnp.negative, own(jax.tree.map(jnp.ones_like, gradient)))


def _refuse_mixing(jaxpr: Any) -> None:
    """Follow each leaf of the input through the operations, entry by entry.

    A value of the program is either independent of the input, or has one entry for each
    of one leaf, in the same order. What would make anything else is refused.
    """
    leaf_of = {var: place for place, var in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        # A literal has no hash; it depends on nothing.
        operands = [atom for atom in eqn.invars if not hasattr(atom, "val")]
        followed = [var for var in operands if var in leaf_of]
        if not followed:
            continue
        sizes = {var.aval.size for var in (*followed, *eqn.outvars)}
        leaves = {leaf_of[var] for var in followed}
        name = eqn.primitive.name
        keeps_order = name != "reshape" or eqn.params["dimensions"] is None
        is_element_wise = name in _ELEMENT_WISE and len(sizes) == 1 and keeps_order
        if not is_element_wise or len(leaves) > 1:
            raise _mixing_error(f"`{name}` mixes its entries")
        leaf_of |= dict.fromkeys(eqn.outvars, leaves.pop())
    for place, atom in enumerate(jaxpr.outvars):
        if not hasattr(atom, "val") and leaf_of.get(atom, place) != place:
            raise _mixing_error("one parameter's gradient moves another parameter")


def _mixing_error(how: str) -> ValueError:
    return ValueError(
        f"This optimizer's update is not diagonal in the gradient ({how}), so it has "
        "no preconditioner shaped like the parameters. `ldjax.make_step` still "
        "predicts its steps and splits them into parts."
    )
