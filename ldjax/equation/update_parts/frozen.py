"""The split of one update: what the gradient did, what was there before, the rest."""

from collections.abc import Callable
from typing import Any

import optax

from ldjax.equation.update_parts.linear_step import PARTS, FrozenStep
from ldjax.programs.rules import NOISE

__all__ = ["frozen_update"]


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
      example); `rest` holds the other parts that the optimizer has, by their names in
      `PARTS`: `"history"` (moments and traces of earlier updates, and how far the
      parameters are from copies of them in the state; zero at `optimizer.init`),
      `"accumulated"` (gradients of earlier micro-batches of this very update),
      `"weight_decay"` (the parameters themselves) and `"noise"` (drawn at random).
      `own(gradient)` and the values of `rest` sum to the update.

    Raises:
      ValueError: If the update is not linear even with frozen scales, `state` is not
        one of `optimizer.init`, or `gradient` has another structure than `params`.

    References:
      Aumann & Shapley 1974, "Values of Non-Atomic Games", for monotone functions.

    Examples:
      >>> import jax.numpy as jnp
      >>> optimizer = optax.with_extra_args_support(optax.sgd(0.5, momentum=0.5))
      >>> theta = jnp.array([1.0, 2.0])
      >>> state = optimizer.init(theta)
      >>> own, rest = frozen_update(optimizer, jnp.array([4.0, 2.0]), state, theta)
      >>> own(jnp.array([4.0, 1.0]))
      Array([-2. , -0.5], dtype=...)
      >>> list(rest)
      ['history']

      A sign is a rate that the whole gradient sets:

      >>> optimizer = optax.with_extra_args_support(optax.sign_sgd(0.5))
      >>> state = optimizer.init(theta)
      >>> own, _ = frozen_update(optimizer, jnp.array([4.0, 2.0]), state, theta)
      >>> own(jnp.array([1.0, 4.0]))  # a quarter of the first, twice the second
      Array([-0.125, -1.   ], dtype=...)
    """
    inputs = (optimizer, gradient, state, params, extra_args)
    step = FrozenStep.of(*inputs, carries_on=False)
    held = step.moments
    accumulated = set(map(step.reading.name, step.reading.accumulated))
    shares = (
        step.parts(moments={k: v for k, v in held.items() if k not in accumulated}),
        step.parts(moments={k: v for k, v in held.items() if k in accumulated}),
        step.parts(params=params),
        {NOISE: None},
    )
    present = step.labels(step.reading.in_updates)
    rest = {
        label: step.update(parts)
        for label, parts in zip(PARTS, shares, strict=True)
        if label in present
    }
    return lambda part: step.update(step.parts(part)), rest
