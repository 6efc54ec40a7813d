"""The account of one step: train, explain, watch.

`Account` is what both forms of `ldjax.dynamics` are made of: it takes the optimizer
step and keeps the directions in parameter space it consists of (`train`), follows each
direction to the watched log-probs (`explain`), and evaluates them (`watch`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ldjax.log_probs import (
    Sequences,
    is_sequences,
    log_softmax,
    token_log_probs,
)
from ldjax.partition import merge, split
from ldjax.update_parts import frozen_update

Params = Any
# A `Sequences`, or a pytree of them such as {"chosen": ..., "rejected": ...}.
Batch = Any
# `optax.MultiSteps` has the two methods but is not of the type.
Optimizer = optax.GradientTransformation | optax.MultiSteps
ApplyFn = Callable[[Params, Sequences], Array]
LossFn = Callable[[Any, Batch], Float[Array, ""]]


class StepState(NamedTuple):
    """What continues from one step to the next.

    Attributes:
      params: Parameters after the last step.
      opt_state: State of the optimizer.
      step: Number of steps taken.
      loss: Loss of the last step at its own start, in nats; NaN before the first.

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


class Reasons(NamedTuple):
    """Why the parameters moved: directions in parameter space.

    `total` is the update that was applied, `parts` what it is the sum of; a part with
    one direction for each of `count` examples is in `by_example`, as `(direction_of,
    count)`.
    """

    total: Params
    parts: dict[str, Params]
    by_example: dict[str, tuple[Callable[[Array], Params], int]]


class Account(NamedTuple):
    """The three things both forms of the step do: train, explain, watch."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    optimizer: Optimizer
    parts: str | None
    full_vocab: bool | None
    probe_batch_size: int | None
    watch_fn: ApplyFn | None
    where: Any

    @classmethod
    def checked(cls, *settings: Any) -> "Account":
        """With settings that make sense."""
        account = cls(*settings)
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
        loss = jnp.full((), jnp.nan, jnp.result_type(*jax.tree.leaves(params)))
        trained, _ = self._split(params)
        return StepState(
            params, self.optimizer.init(trained), jnp.zeros((), jnp.int32), loss
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

        sides = _sides(update)
        logits, pullbacks = {}, {}
        for name, side in sides.items():
            logits[name], pullbacks[name] = jax.vjp(
                lambda p, side=side: _logits(apply_fn, p, side), params
            )
        loss, residual = jax.value_and_grad(self.loss_fn)(
            _like(update, logits.values()), update
        )
        residuals = dict(zip(sides, jax.tree.leaves(residual), strict=True))
        gradients = {name: pullbacks[name](residuals[name])[0] for name in sides}
        gradient = jax.tree.map(lambda *leaves: sum(leaves), *gradients.values())

        updates, new_opt_state = optimizer.update(
            gradient, opt_state, params, value=loss
        )
        new_state = StepState(
            whole(optax.apply_updates(params, updates)),
            new_opt_state,
            state.step + 1,
            loss.astype(state.loss.dtype),
        )
        total = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
        if self.parts is None:
            return new_state, Reasons(total, {}, {})

        own, rest = frozen_update(optimizer, gradient, opt_state, params, value=loss)
        if self.parts == "example":
            by_example = {
                name: _by_example(apply_fn, params, side, residuals[name], own)
                for name, side in sides.items()
            }
            return new_state, Reasons(total, rest, by_example)
        if len(sides) == 1 and not rest:  # one part: the whole update
            return new_state, Reasons(total, dict.fromkeys(sides, total), {})
        by_side = {name: own(gradients[name]) for name in sides}
        return new_state, Reasons(total, by_side | rest, {})

    def explain(
        self, params: Params, reasons: Reasons, probe: Batch
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Watched log-probs, and their derivative along every direction."""
        params, whole = self._split(params)

        def of_chunk(chunk: Sequences) -> tuple[Array, Array, dict[str, Array]]:
            def log_probs_fn(p: Params) -> Array:
                return self._watch_chunk(whole(p), chunk)

            directions = {"": reasons.total} | reasons.parts
            log_probs, changes = _derivatives(log_probs_fn, params, directions)
            if reasons.by_example:
                changes |= _derivatives_by_example(
                    log_probs_fn, params, reasons.by_example
                )
            return log_probs, changes.pop(""), changes

        old, predicted, by_part = self._over_probes(of_chunk, probe)
        for name in reasons.by_example:  # the probe's axis came first, for the chunks
            by_part[name] = jax.tree.map(
                lambda leaf: jnp.moveaxis(leaf, 1, 0), by_part[name]
            )
        return old, predicted, by_part

    def watch(self, params: Params, probe: Batch) -> Any:
        """Watched log-probs."""
        return self._over_probes(lambda chunk: self._watch_chunk(params, chunk), probe)

    def _watch_chunk(self, params: Params, chunk: Sequences) -> Array:
        with jax.default_matmul_precision("highest"):
            logits = _logits(self.watch_fn or self.apply_fn, params, chunk)
        full_vocab = self.full_vocab
        if full_vocab is None:
            full_vocab = jnp.issubdtype(chunk.tokens.dtype, jnp.floating)
        if full_vocab:
            return jnp.where(chunk.mask[..., None], log_softmax(logits), 0)
        return token_log_probs(logits, chunk.targets, chunk.mask)

    def _over_probes(self, fn: Callable[[Sequences], Any], probe: Batch) -> Any:
        """`fn` on every side of the probe, `probe_batch_size` examples at a time."""
        results = [
            _in_chunks(fn, side, self.probe_batch_size)
            for side in _sides(probe).values()
        ]
        return jax.tree.map(lambda *leaves: _like(probe, leaves), *results)


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


def _derivatives(
    fn: Callable[[Params], Array], at: Params, directions: dict[str, Params]
) -> tuple[Array, dict[str, Array]]:
    """`fn(at)` and its derivative along each direction, computed together."""
    distinct = list({id(d): d for d in directions.values()}.values())
    if len(distinct) == 1:
        value, tangent = jax.jvp(fn, (at,), (distinct[0],))
        return value, {name: tangent for name in directions}  # noqa: C420
    # One pass for all directions takes half the time of one pass for each.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions.values())
    value, tangents = jax.vmap(
        lambda direction: jax.jvp(fn, (at,), (direction,)), out_axes=(None, 0)
    )(stacked)
    return value, dict(zip(directions, tangents, strict=True))


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


def _sides(batch: Batch) -> dict[str, Sequences]:
    """The `Sequences` of a batch by name; a plain batch has one side, `"update"`."""
    leaves = jax.tree_util.tree_leaves_with_path(batch, is_leaf=is_sequences)
    for _, leaf in leaves:
        if not is_sequences(leaf):
            raise TypeError(
                "A batch is a `Sequences(tokens, targets, mask)` or a pytree of them, "
                "such as a dict with the keys 'chosen' and 'rejected'; got "
                f"{type(leaf).__name__}."
            )
    sides = {
        jax.tree_util.keystr(path, simple=True, separator="/") or "update": Sequences(
            leaf.tokens, leaf.targets, leaf.mask
        )
        for path, leaf in leaves
    }
    if taken := sides.keys() & {"history", "weight_decay"}:
        raise ValueError(
            f"A side cannot be called {sorted(taken)}: the parts of an update that are "
            "not its gradient have these names. Rename the key."
        )
    return sides


def _like(batch: Batch, leaves: Any) -> Any:
    """One leaf for each side, in the structure of the batch."""
    return jax.tree.structure(batch, is_leaf=is_sequences).unflatten(leaves)


def _logits(apply_fn: ApplyFn, params: Params, sequences: Sequences) -> Array:
    logits = apply_fn(params, sequences)
    expected = sequences.targets.shape
    if logits.shape[:-1] != expected or sequences.mask.shape != expected:
        raise ValueError(
            f"`apply_fn` returned logits of shape {logits.shape} for targets of shape "
            f"{expected} and a mask of shape {sequences.mask.shape}; expected "
            "[batch, pos, vocab] for [batch, pos]. A classifier has one position: "
            "`logits[:, None, :]` and `labels[:, None]`."
        )
    if jnp.finfo(logits.dtype).bits < 32:
        raise TypeError(
            f"`apply_fn` returned {logits.dtype} logits, too coarse for differences of "
            "log-probs: return `logits.astype(jnp.float32)`; the compute inside may "
            "stay narrower."
        )
    return logits
