"""The gradient of a loss, side by side, and what an optimizer makes of it."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from ldjax.equation.sequences import ApplyFn, Batch, LossFn, Params, like, sides_of

__all__ = ["Gradients", "Optimizer", "gradients_of", "transformation", "updated"]

# `optax.MultiSteps` has the two methods but is not of the type.
Optimizer = optax.GradientTransformation | optax.MultiSteps


class Gradients(NamedTuple):
    """The gradient of a loss, divided among the sides of the update.

    Attributes:
      loss: In nats.
      residuals: Its derivative by the logits of each side, `G`.
      by_side: What each side's logits give of the gradient, `J^T G`.
      offered: What ldjax passes to an optimizer that takes extra arguments.
    """

    loss: Float[Array, ""]
    residuals: dict[str, Array]
    by_side: dict[str, Params]
    offered: dict[str, Any]

    @property
    def total(self) -> Params:
        """The gradient."""
        return self.offered["grad"]


def gradients_of(
    apply_fn: ApplyFn, loss_fn: LossFn, params: Params, update: Batch
) -> Gradients:
    """One forward and one backward pass of every side.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: `(logits, update) -> scalar`.
      params: What the gradient is taken by.
      update: `Sequences`, or a pytree of them.

    Returns:
      The gradient by side.
    """

    def loss_of(params: Params) -> Array:
        logits = [apply_fn(params, side) for side in sides.values()]
        return loss_fn(like(update, logits), update)

    sides = sides_of(update)
    logits, pullbacks = {}, {}
    for name, side in sides.items():
        logits[name], pullbacks[name] = jax.vjp(
            lambda p, side=side: apply_fn(p, side), params
        )
    loss, residual = jax.value_and_grad(loss_fn)(like(update, logits.values()), update)
    residuals = dict(zip(sides, jax.tree.leaves(residual), strict=True))
    by_side = {name: pullbacks[name](residuals[name])[0] for name in sides}
    gradient = jax.tree.map(lambda *leaves: sum(leaves), *by_side.values())
    offered = {"value": loss, "grad": gradient, "value_fn": loss_of}
    offered |= {"obj_fn": loss_of, "grad_fn": lambda p, _: jax.grad(loss_of)(p)}
    return Gradients(loss, residuals, by_side, offered)


def transformation(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """An optimizer as a transformation that takes extra arguments.

    Args:
      optimizer: Any optax transformation, or `optax.MultiSteps`.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    return optax.with_extra_args_support(optimizer)


def updated(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: Params,
    opt_state: Any,
    params: Params,
    offered: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """What the optimizer returns, and the extra arguments that it takes.

    optax has no way to ask a chain which ones its members take, so it is tried.

    Args:
      optimizer: An optax transformation.
      gradient: Shaped like the parameters.
      opt_state: Its state before the step.
      params: The parameters before the step.
      offered: The extra arguments that there are.

    Returns:
      `((updates, new_opt_state), extra_args)`.

    Raises:
      TypeError: If it needs an argument that is not offered.
    """
    offered = dict(offered)
    while True:
        try:
            return optimizer.update(gradient, opt_state, params, **offered), offered
        except TypeError as error:
            unwanted = set(re.findall(r"'(\w+)'", str(error))) & offered.keys()
            if "nexpected keyword argument" in str(error) and unwanted:
                offered = {k: v for k, v in offered.items() if k not in unwanted}
                continue
            if missing := re.search(r"missing \d+ required.*argument", str(error)):
                raise TypeError(
                    f"This optimizer's update is {error.args[0][missing.start() :]}; "
                    "of those, ldjax passes `value`, `grad`, `value_fn`, `grad_fn` and "
                    "`obj_fn`. Bind it, as in "
                    "`optax.GradientTransformation(tx.init, "
                    "functools.partial(tx.update, NAME=...))`."
                ) from error
            raise
