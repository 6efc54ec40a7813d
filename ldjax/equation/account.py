"""The account of one step: train, explain, watch.

`Account` is what both forms of `ldjax.equation.step` are made of: it takes the
optimizer step and keeps the directions in parameter space it consists of (`train`),
follows each direction to the watched log-probs (`explain`), evaluates them (`watch`),
and says what their differences cannot resolve (`resolve`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ldjax.equation import resolution
from ldjax.equation.doors import Door
from ldjax.equation.resolution import Observed
from ldjax.equation.sequences import (
    ApplyFn,
    Batch,
    LossFn,
    Params,
    Sequences,
    like,
    sides_of,
)
from ldjax.equation.subset import merge, split
from ldjax.equation.update_parts import PARTS, frozen_update
from ldjax.precision import watched

#: Parts of a step that are no side of its update.
REST = frozenset({*PARTS, "rounding"})

# `optax.MultiSteps` has the two methods but is not of the type.
Optimizer = optax.GradientTransformation | optax.MultiSteps


class StepState(NamedTuple):
    """What continues from one step to the next.

    Attributes:
      params: Parameters after the last step.
      opt_state: State of the optimizer.
      step: Number of steps taken.
      loss: Loss of the last step at its own start, in nats; NaN before the first.
      noise: Rounding noise of the watched log-probs, in the units of
        `StepComparison.floor`; measured anew every 64 steps, and where it is unknown.

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


class Reasons(NamedTuple):
    """Why the parameters moved: directions in parameter space.

    `total` is new minus old parameters, as they are stored; `parts` is what the update
    is the sum of, before it was added and rounded; a part with one direction for each
    of `count` examples is in `by_example`, as `(direction_of, count)`.
    """

    total: Params
    parts: dict[str, Params]
    by_example: dict[str, tuple[Callable[[Array], Params], int]]


class Account(NamedTuple):
    """The three things both forms of the step do: train, explain, watch."""

    apply_fn: Door
    loss_fn: LossFn
    optimizer: Optimizer
    watch_fn: Door
    parts: str | None = "side"
    full_vocab: bool | None = None
    probe_batch_size: int | None = None
    where: Any = None

    @classmethod
    def checked(
        cls,
        apply_fn: ApplyFn,
        loss_fn: LossFn,
        optimizer: Optimizer,
        *,
        watch_fn: ApplyFn | None = None,
        **settings: Any,
    ) -> "Account":
        """With settings that make sense: those of `ldjax.make_step`."""
        account = cls(
            Door(apply_fn),
            loss_fn,
            optimizer,
            Door(watched(watch_fn or apply_fn)),
            **settings,
        )
        if account.parts not in ("side", "example", None):
            raise ValueError(
                f'`parts` must be "side", "example" or None, got {account.parts!r}.'
            )
        size = account.probe_batch_size
        if size is not None and size < 1:
            raise ValueError(
                f"`probe_batch_size` must be at least 1, or None for all probes at "
                f"once; got {size}."
            )
        return account

    def init(self, params: Params) -> StepState:
        """The state before the first step."""
        # A weakly typed parameter would change its type, and compile anew, in step 2.
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(p)), params)
        trained, _ = self._split(params)
        _require_floating(trained)
        unknown = jnp.full((), jnp.nan, jnp.result_type(*jax.tree.leaves(trained)))
        return StepState(
            params=params,
            opt_state=self.optimizer.init(trained),
            step=jnp.zeros((), jnp.int32),
            loss=unknown,
            noise=unknown.astype(jnp.float32),
        )

    def _split(self, params: Params) -> tuple[Params, Callable[[Params], Params]]:
        """What is trained, and from that to all parameters."""
        if self.where is None:
            return params, lambda trained: trained
        trained, rest = split(params, self.where)
        return trained, lambda trained: merge(trained, rest)

    def train(self, state: StepState, update: Batch) -> tuple[StepState, Reasons]:
        """The optimizer step itself, and the directions it is made of."""
        optimizer = self.optimizer
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        optimizer = optax.with_extra_args_support(optimizer)
        params, whole = self._split(state.params)
        opt_state = state.opt_state

        def apply_fn(params: Params, sequences: Sequences) -> Array:
            return self.apply_fn(whole(params), sequences)

        def loss_of(params: Params) -> Array:
            logits = [apply_fn(params, side) for side in sides.values()]
            return self.loss_fn(like(update, logits), update)

        sides = _named_sides(update)
        logits, pullbacks = {}, {}
        for name, side in sides.items():
            logits[name], pullbacks[name] = jax.vjp(
                lambda p, side=side: apply_fn(p, side), params
            )
        loss, residual = jax.value_and_grad(self.loss_fn)(
            like(update, logits.values()), update
        )
        residuals = dict(zip(sides, jax.tree.leaves(residual), strict=True))
        gradients = {name: pullbacks[name](residuals[name])[0] for name in sides}
        gradient = jax.tree.map(lambda *leaves: sum(leaves), *gradients.values())

        offered = {"value": loss, "grad": gradient, "value_fn": loss_of}
        offered |= {"obj_fn": loss_of, "grad_fn": lambda p, _: jax.grad(loss_of)(p)}
        (updates, new_opt_state), extra_args = _updated(
            optimizer, gradient, opt_state, params, offered
        )
        # What is stored is what is read below: without the barrier XLA may keep the
        # sum as it was before it was rounded to the parameters' dtype.
        stored = jax.lax.optimization_barrier(optax.apply_updates(params, updates))
        new_state = state._replace(
            params=whole(stored),
            opt_state=new_opt_state,
            step=state.step + 1,
            loss=loss.astype(state.loss.dtype),
        )
        total = jax.tree.map(jnp.subtract, stored, params)
        if self.parts is None:
            return new_state, Reasons(total, {}, {})

        own, rest = frozen_update(optimizer, gradient, opt_state, params, **extra_args)
        rest = {name: _directions(part, params) for name, part in rest.items()}
        if self.parts == "example":
            by_example = {
                name: _by_example(apply_fn, params, side, residuals[name], own)
                for name, side in sides.items()
            }
            return new_state, Reasons(total, rest, by_example)
        by_side = {name: _directions(own(gradients[name]), params) for name in sides}
        return new_state, Reasons(total, by_side | rest, {})

    def explain(
        self, params: Params, reasons: Reasons, probe: Batch
    ) -> tuple[Observed, Any, dict[str, Any]]:
        """What is watched, and its derivative along every direction.

        The part `"rounding"` is what the others leave of the derivative along the
        parameters' own change.
        """
        params, whole = self._split(params)

        def of_chunk(chunk: Sequences) -> tuple[Any, Array, dict[str, Array]]:
            def watch_fn(p: Params) -> tuple[Array, Array]:
                observed = self._watch_chunk(whole(p), chunk)
                return observed.log_probs, observed.unit

            directions = {"": reasons.total} | reasons.parts
            *observed, changes = _derivatives(watch_fn, params, directions)
            by_example = {}
            if reasons.by_example:
                by_example = _derivatives_by_example(
                    lambda p: watch_fn(p)[0], params, reasons.by_example
                )
            predicted = changes.pop("")
            if self.parts is not None:
                explained = [*changes.values()]
                explained += [part.sum(1) for part in by_example.values()]
                changes["rounding"] = predicted - sum(explained)
            return tuple(observed), predicted, changes | by_example

        observed, predicted, by_part = self._over_probes(of_chunk, probe)
        for name in reasons.by_example:  # the probe's axis came first, for the chunks
            by_part[name] = jax.tree.map(
                lambda leaf: jnp.moveaxis(leaf, 1, 0), by_part[name]
            )
        return Observed(*observed), predicted, by_part

    def watch(self, params: Params, probe: Batch) -> Any:
        """Watched log-probs."""
        return self._over_probes(
            lambda chunk: self._watch_chunk(params, chunk).log_probs, probe
        )

    def resolve(self, state: StepState, probe: Batch, observed: Observed) -> Array:
        """The rounding noise: what the state knows, or measured anew.

        Args:
          state: Before the step.
          probe: What is watched.
          observed: From `explain` at the state's parameters.
        """

        def measured() -> Array:
            rows = resolution.spread_rows([*sides_of(probe).values()])
            found = zip(*map(jax.tree.leaves, observed), strict=True)
            noises = [
                resolution.noise(log_probs, other, unit)
                for (log_probs, unit), other in zip(
                    resolution.spread_rows([*found]),
                    self._watch_perturbed(state.params, rows),
                    strict=True,
                )
            ]
            return jnp.max(jnp.stack(noises)).astype(jnp.float32)

        if state.noise is None:
            return measured()
        known = state.noise.astype(jnp.float32)
        is_due = jnp.isnan(known) | (state.step % resolution.NOISE_EVERY == 0)
        return jax.lax.cond(is_due, measured, lambda: known)

    def _watch_perturbed(self, params: Params, sides: list[Sequences]) -> list[Array]:
        """What is watched, at parameters that are rounded another way."""
        one_row = jax.tree.map(lambda leaf: leaf[:1], sides[0])
        eps = resolution.compute_eps(
            lambda p: self._watch_chunk(p, one_row).log_probs, params
        )
        return self.watch(resolution.perturbed(params, eps), sides)

    def _watch_chunk(self, params: Params, chunk: Sequences) -> Observed:
        logits = self.watch_fn(params, chunk)
        full_vocab = self.full_vocab
        if full_vocab is None:
            full_vocab = bool(jnp.issubdtype(chunk.tokens.dtype, jnp.floating))
        return resolution.observe(logits, chunk, full_vocab=full_vocab)

    def _over_probes(self, fn: Callable[[Sequences], Any], probe: Batch) -> Any:
        """`fn` on every side of the probe, `probe_batch_size` examples at a time."""
        results = [
            _in_chunks(fn, side, self.probe_batch_size)
            for side in sides_of(probe).values()
        ]
        return jax.tree.map(lambda *leaves: like(probe, leaves), *results)


def _named_sides(update: Batch) -> dict[str, Sequences]:
    """The sides of an update, none of which is called as another part of the step."""
    sides = sides_of(update)
    if taken := sides.keys() & REST:
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


def _updated(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: Params,
    opt_state: Any,
    params: Params,
    offered: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """What the optimizer returns, and the extra arguments that it takes.

    optax has no way to ask a chain which ones its members take, so it is tried.
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


def _directions(updates: Params, params: Params) -> Params:
    return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)


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
        return _directions(own(pullback(cotangent)[0]), params)

    return direction_of, side.targets.shape[0]


def _derivatives(
    fn: Callable[[Params], tuple[Array, Array]],
    at: Params,
    directions: dict[str, Params],
) -> tuple[Array, Array, dict[str, Array]]:
    """`fn(at)`, and the derivative of its first value along each direction, at once."""

    def along(direction: Params) -> tuple[Array, Array, Array]:
        value, tangent, constant = jax.jvp(fn, (at,), (direction,), has_aux=True)
        return value, constant, tangent

    if len(directions) == 1:
        ((name, direction),) = directions.items()
        value, constant, tangent = along(direction)
        return value, constant, {name: tangent}
    # One pass for all directions takes half the time of one pass for each.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions.values())
    value, constant, tangents = jax.vmap(along, out_axes=(None, None, 0))(stacked)
    return value, constant, dict(zip(directions, tangents, strict=True))


def _derivatives_by_example(
    fn: Callable[[Params], Array],
    at: Params,
    by_example: dict[str, tuple[Callable[[Array], Params], int]],
) -> dict[str, Array]:
    """The derivative of `fn` along each example's direction, second axis `example`."""
    _, derivative = jax.linearize(fn, at)

    def of_side(direction_of: Callable[[Array], Params], count: int) -> Array:
        changes = jax.lax.map(lambda i: derivative(direction_of(i)), jnp.arange(count))
        return jnp.moveaxis(changes, 0, 1)

    return {name: of_side(*examples) for name, examples in by_example.items()}


def _in_chunks(
    fn: Callable[[Sequences], Any], sequences: Sequences, size: int | None
) -> Any:
    """`fn` over slices of the batch, one at a time; the whole batch if it is small."""
    total = sequences.targets.shape[0]
    if size is None or total <= size:
        return fn(sequences)
    # The last chunk overlaps the one before, so that all have one shape and the
    # examples are neither padded nor copied.
    starts = jnp.minimum(jnp.arange(0, total, size), total - size)

    def of_slice(start: Array) -> Any:
        return fn(
            jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), sequences
            )
        )

    fresh = total - (len(starts) - 1) * size  # rows of the last chunk not seen yet

    def join(chunks: Array) -> Array:
        before = chunks[:-1].reshape(-1, *chunks.shape[2:])
        return jnp.concatenate([before, chunks[-1, size - fresh :]])

    return jax.tree.map(join, jax.lax.map(of_slice, starts))
