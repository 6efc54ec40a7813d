"""The update itself, and what it is made of.

`Trainer` takes the optimizer step and keeps the directions in parameter space that it
is the sum of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ldjax.equation.account.gradients import (
    Optimizer,
    gradients_of,
    transformation,
    updated,
)
from ldjax.equation.doors import Door
from ldjax.equation.path import difference
from ldjax.equation.sequences import (
    ApplyFn,
    Batch,
    LossFn,
    Params,
    Sequences,
    sides_of,
)
from ldjax.equation.subset import trained_of
from ldjax.equation.update_parts import frozen_update, linear_step
from ldjax.equation.update_parts.dated import dated_parts, is_side


class StepState(NamedTuple):
    """What continues from one step to the next.

    Attributes:
      params: Parameters after the last step.
      opt_state: State of the optimizer.
      step: Number of steps taken.
      loss: Loss of the last step at its own start, in nats; NaN before the first.
      noise: Rounding noise of the watched log-probs, in the units of
        `StepComparison.floor`; measured anew every 64 steps, and where it is unknown.
      origins: With `dated=True`, the share of each side in the optimizer's moments, by
        the names of side and moment; None before anything is known of it.

    Examples:
      >>> from ldjax import make_step
      >>> from ldjax.losses import sft
      >>> init, _ = make_step(lambda w, s: w * s.tokens, sft, optax.sgd(0.1))
      >>> init(jnp.ones(3)).step
      Array(0, dtype=int32)
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    loss: Float[Array, ""]
    noise: Any = None
    origins: Any = None


class Reasons(NamedTuple):
    """Why the parameters moved: directions in parameter space.

    `total` is new minus old parameters, as they are stored; `parts` is what the update
    is the sum of, before it was added and rounded; a part with one direction for each
    of `count` examples is in `by_example`, as `(direction_of, count)`.
    """

    total: Params
    parts: dict[str, Params]
    by_example: dict[str, tuple[Callable[[Array], Params], int]]

    @property
    def directions(self) -> dict[str, Params]:
        """The whole, by no name, and its parts but the examples."""
        return {"": self.total} | self.parts


class Trainer(NamedTuple):
    """A training step, with the settings of `ldjax.make_step` that it depends on."""

    apply_fn: Door
    loss_fn: LossFn
    optimizer: Optimizer
    parts: str | None
    where: Any
    dated: bool

    def init(self, params: Params, update: Batch | None = None) -> StepState:
        """The state before the first step.

        Args:
          params: Parameters.
          update: With `dated=True`, one like those to come, of which only the shapes
            are read: then the state has the form that steps return, so that they
            compile once and `jax.lax.scan` takes them.
        """
        # A weakly typed parameter would change its type, and compile anew, in step 2.
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(p)), params)
        trained, _ = self.split(params)
        _require_floating(trained)
        unknown = jnp.full((), jnp.nan, jnp.result_type(*jax.tree.leaves(trained)))
        state = StepState(
            params=params,
            opt_state=self.optimizer.init(trained),
            step=jnp.zeros((), jnp.int32),
            loss=unknown,
            noise=unknown.astype(jnp.float32),
        )
        if not self.dated or update is None:
            return state
        origins = jax.eval_shape(lambda: self.train(state, update)[0].origins)
        zero = lambda shape: jnp.zeros(shape.shape, shape.dtype)
        return state._replace(origins=jax.tree.map(zero, origins))

    def split(self, params: Params) -> tuple[Params, Callable[[Params], Params]]:
        """What is trained, and from that to all parameters."""
        return trained_of(params, self.where)

    def train(self, state: StepState, update: Batch) -> tuple[StepState, Reasons]:
        """The optimizer step itself, and the directions it is made of."""
        optimizer = transformation(self.optimizer)
        params, whole = self.split(state.params)
        opt_state, sides = state.opt_state, _named_sides(update)

        def apply_fn(params: Params, sequences: Sequences) -> Array:
            return self.apply_fn(whole(params), sequences)

        found = gradients_of(apply_fn, self.loss_fn, params, update)
        gradient, gradients = found.total, found.by_side
        (updates, new_opt_state), extra_args = updated(
            optimizer, gradient, opt_state, params, found.offered
        )
        # What is stored is what is read below: without the barrier XLA may keep the
        # sum as it was before it was rounded to the parameters' dtype.
        stored = jax.lax.optimization_barrier(optax.apply_updates(params, updates))
        new_state = state._replace(
            params=whole(stored),
            opt_state=new_opt_state,
            step=state.step + 1,
            loss=found.loss.astype(state.loss.dtype),
        )
        total = difference(stored, params)
        if self.parts is None:
            return new_state, Reasons(total, {}, {})

        if self.dated:
            linear = linear_step(optimizer, gradient, opt_state, params, **extra_args)
            parts, origins = dated_parts(linear, gradients, params, state.origins)
            return new_state._replace(origins=origins), Reasons(total, parts, {})
        own, rest = frozen_update(optimizer, gradient, opt_state, params, **extra_args)
        if self.parts == "example":
            by_example = {
                name: _by_example(apply_fn, params, side, found.residuals[name], own)
                for name, side in sides.items()
            }
            return new_state, Reasons(total, rest, by_example)
        by_side = {name: own(gradients[name]) for name in sides}
        return new_state, Reasons(total, by_side | rest, {})


def _named_sides(update: Batch) -> dict[str, Sequences]:
    """The sides of an update, none of which is called as another part of the step."""
    sides = sides_of(update)
    if taken := [name for name in sides if not is_side(name)]:
        raise ValueError(
            f"A side cannot be called {sorted(taken)}: the parts of an update that are "
            "not its gradient have these names. Rename the key."
        )
    return sides


def _require_floating(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"The parameter {jax.tree_util.keystr(path)} is {leaf.dtype}, which no "
                "gradient moves. Close it over in `apply_fn`, or leave it out of what "
                "is trained with `where=`."
            )


def _by_example(
    apply_fn: ApplyFn,
    params: Params,
    side: Sequences,
    residual: Array,
    own: Callable[[Params], Params],
) -> tuple[Callable[[Array], Params], int]:
    """The share of the update that each example of one side is responsible for."""

    def direction_of(index: Array) -> Params:
        example, cotangent = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1),
            (side, residual),
        )
        _, pullback = jax.vjp(lambda p: apply_fn(p, example), params)
        return own(pullback(cotangent)[0])

    return direction_of, side.targets.shape[0]
