r"""Optimizer steps that account for themselves.

`make_step` makes a training step, in optax's shape, that also says by how much every
watched log-probability moved (`measured`), by how much first-order theory says it
should have moved (`predicted`), and why (`parts`). The prediction is the derivative
of the log-probs along the update that the optimizer really applied, so it is right for
any optax chain; for plain SGD it equals :math:`-\eta A K G`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ldjax.log_probs import Sequences, log_softmax, token_log_probs
from ldjax.update_parts import frozen_update

__all__ = [
    "PendingState",
    "StepComparison",
    "StepState",
    "make_pending_step",
    "make_step",
]

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
      >>> from ldjax.losses import sft
      >>> init, _ = make_step(lambda w, s: w * s.tokens, sft, optax.sgd(0.1))
      >>> init(jnp.ones(3)).step
      Array(0, dtype=int32)
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    loss: Float[Array, ""]


class StepComparison(NamedTuple):
    r"""What one step did to the watched log-probabilities, in nats.

    Each field is shaped like the probe: `[probe, pos]` at the targets, or
    `[probe, pos, vocab]` with the full vocabulary; a dict of probes gives dicts. Masked
    positions are zero. Sum over `pos` for a sequence. Positive means "went up".

    Attributes:
      predicted: First order: the derivative along the update that was applied.
      measured: New minus old log-prob, from two forward passes.
      remainder: `measured - predicted`, :math:`O(\eta^2)`.
      parts: A dict of contributions that sum to `predicted`: one for each side of the
        update (`"update"`, or its keys such as `"chosen"` and `"rejected"`), and
        `"history"` and `"weight_decay"` where the optimizer has them. With
        `parts="example"` the sides have a leading axis over the update's examples.
        Empty with `parts=None`.
      floor: The rounding floor: changes below it are not resolved by this precision.

    Examples:
      The share of the measured change that first order leaves unexplained:

      >>> one = jnp.ones((1, 1))
      >>> parts = {"update": 0.9 * one}
      >>> comparison = StepComparison(0.9 * one, one, 0.1 * one, parts, 1e-6 * one)
      >>> jnp.linalg.norm(comparison.remainder) / jnp.linalg.norm(comparison.measured)
      Array(0.1, dtype=...)
    """

    predicted: Any
    measured: Any
    remainder: Any
    parts: dict[str, Any]
    floor: Any


class PendingState(NamedTuple):
    """A `StepState` with what awaits its measurement.

    Attributes:
      now: The training state.
      probe: The fixed probe set.
      log_probs: Watched log-probs at the start of the last step.
      predicted: What that step was predicted to change.
      parts: Its parts.

    Examples:
      >>> state = PendingState(StepState(None, None, 0, 0), None, None, None, {})
      >>> state.now.step  # the training state is inside
      0
    """

    now: StepState
    probe: Batch
    log_probs: Any
    predicted: Any
    parts: dict[str, Any]


def make_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    parts: str | None = "side",
    full_vocab: bool | None = None,
    probe_batch_size: int | None = None,
) -> tuple[
    Callable[[Params], StepState],
    Callable[[StepState, Batch, Batch], tuple[StepState, StepComparison]],
]:
    r"""Make a training step that predicts and measures what it does to the probes.

    .. math:: \text{predicted} = \partial_\theta \log\pi(y \mid \chi_o) \cdot
              \Delta\theta, \qquad
              \text{measured} = \log\pi_{\theta + \Delta\theta} - \log\pi_\theta

    with :math:`\Delta\theta` the update that optax applied (preconditioned, clipped,
    scheduled, masked, accumulated: whatever it was; zero on the inner steps of an
    accumulation). For plain SGD, `predicted` is :math:`-\eta A K G`.

    A probe costs a forward pass before the step, a forward-mode pass per part, and a
    forward pass after; see `make_pending_step` to save the last one.

    Args:
      apply_fn: `(params, sequences) -> logits`, `[batch, pos, vocab]`, float32 or
        wider. Treats the examples of a batch independently of one another.
      loss_fn: `(logits, update) -> scalar` such as `ldjax.losses.sft`; for an update
        with sides, `logits` has the same keys.
      optimizer: Any optax transformation.
      parts: `"side"` splits the prediction by side of the update, history and weight
        decay; `"example"` also by example (a backward and a forward-mode pass for
        each); None skips the split and its cost.
      full_vocab: Watch every label of the vocabulary instead of the targets. By
        default yes for images (floating-point `tokens`), no for language.
      probe_batch_size: Probes observed at a time. Bounds memory: the peak does not
        grow with the number of probes. By default all at once.

    Returns:
      `(init, step)`: `state = init(params)`, and `state, comparison = step(state,
      update, probe)`, compiled once per shape. `update` and `probe` are `Sequences` or
      pytrees of them.

    Raises:
      TypeError: On the first call, if logits or parameters have an unusable dtype.
      ValueError: On the first call, if shapes do not fit, or if `parts` is asked of an
        optimizer whose update cannot be split.

    References:
      Ren & Sutherland 2025, Proposition 1; equation 7 for the sides of a pair.

    Examples:
      >>> import ldjax
      >>> apply_fn = lambda w, images: (images.tokens @ w)[:, None, :]
      >>> init, step = make_step(apply_fn, ldjax.losses.sft, optax.sgd(0.1))
      >>> images = Sequences(jnp.eye(2), jnp.array([[0], [1]]), jnp.ones((2, 1), bool))
      >>> state, comparison = step(init(jnp.zeros((2, 3))), images, images)
      >>> comparison.predicted[0, 0].round(4)
      Array([ 0.0333, -0.0167, -0.0167], dtype=...)
      >>> comparison.measured[0, 0].round(4)
      Array([ 0.033..., -0.016..., -0.016...], dtype=...)
    """
    account = _Account.checked(
        apply_fn, loss_fn, optimizer, parts, full_vocab, probe_batch_size
    )

    @jax.jit
    def step(
        state: StepState, update: Batch, probe: Batch
    ) -> tuple[StepState, StepComparison]:
        new_state, reasons = account.train(state, update)
        old, predicted, by_part = account.explain(state.params, reasons, probe)
        new = account.watch(new_state.params, probe)
        return new_state, _compare(probe, old, new, predicted, by_part)

    return account.init, step


def make_pending_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    parts: str | None = "side",
    full_vocab: bool | None = None,
    probe_batch_size: int | None = None,
) -> tuple[
    Callable[[Params, Batch, Batch], PendingState],
    Callable[[PendingState, Batch], tuple[PendingState, StepComparison]],
    Callable[[PendingState], StepComparison],
]:
    r"""`make_step` for a fixed probe set, each measurement one call later.

    The log-probs that the next step computes anyway, on its way to its prediction,
    are the ones this step's measurement needs; so a probe costs no forward pass after
    the step.

    Args:
      apply_fn: As in `make_step`.
      loss_fn: As in `make_step`.
      optimizer: As in `make_step`.
      parts: As in `make_step`.
      full_vocab: As in `make_step`.
      probe_batch_size: As in `make_step`.

    Returns:
      `(init, step, finish)`: `state = init(params, update, probe)`, of whose `update`
      only the shapes are read; `state, comparison = step(state, update)`, where
      `comparison` is that of the step *before* (NaN the first time); `comparison =
      finish(state)` is that of the last step taken.

    Examples:
      >>> import ldjax
      >>> apply_fn = lambda w, images: (images.tokens @ w)[:, None, :]
      >>> images = Sequences(jnp.eye(2), jnp.array([[0], [1]]), jnp.ones((2, 1), bool))
      >>> init, step, finish = make_pending_step(
      ...     apply_fn, ldjax.losses.sft, optax.sgd(0.1)
      ... )
      >>> state, nothing_yet = step(
      ...     init(jnp.zeros((2, 3)), images, images), images
      ... )
      >>> finish(state).predicted[0, 0].round(4)
      Array([ 0.0333, -0.0167, -0.0167], dtype=...)
    """
    account = _Account.checked(
        apply_fn, loss_fn, optimizer, parts, full_vocab, probe_batch_size
    )

    def init(params: Params, update: Batch, probe: Batch) -> PendingState:
        now = account.init(params)

        def observed(update: Batch) -> tuple[Any, Any, dict[str, Any]]:
            return account.explain(params, account.train(now, update)[1], probe)

        unmeasured = jax.tree.map(
            lambda s: jnp.full(s.shape, jnp.nan, s.dtype),
            jax.eval_shape(observed, update),
        )
        return PendingState(now, probe, *unmeasured)

    @jax.jit
    def step(state: PendingState, update: Batch) -> tuple[PendingState, StepComparison]:
        now, reasons = account.train(state.now, update)
        old, predicted, by_part = account.explain(
            state.now.params, reasons, state.probe
        )
        before = _compare(
            state.probe, state.log_probs, old, state.predicted, state.parts
        )
        return PendingState(now, state.probe, old, predicted, by_part), before

    @jax.jit
    def finish(state: PendingState) -> StepComparison:
        new = account.watch(state.now.params, state.probe)
        return _compare(state.probe, state.log_probs, new, state.predicted, state.parts)

    return init, step, finish


class _Reasons(NamedTuple):
    """Why the parameters moved: directions in parameter space.

    `total` is the update that was applied, `parts` what it is the sum of; a part with
    one direction for each of `count` examples is in `by_example`, as `(direction_of,
    count)`.
    """

    total: Params
    parts: dict[str, Params]
    by_example: dict[str, tuple[Callable[[Array], Params], int]]


class _Account(NamedTuple):
    """The three things both forms of the step do: train, explain, watch."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    optimizer: Optimizer
    parts: str | None
    full_vocab: bool | None
    probe_batch_size: int | None

    @classmethod
    def checked(cls, *settings: Any) -> "_Account":
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
        return StepState(
            params, self.optimizer.init(params), jnp.zeros((), jnp.int32), loss
        )

    def train(self, state: StepState, update: Batch) -> tuple[StepState, _Reasons]:
        """The optimizer step itself, and the directions it is made of."""
        optimizer = self.optimizer
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        optimizer = optax.with_extra_args_support(optimizer)
        params, opt_state = state.params, state.opt_state
        sides = _sides(update)
        logits, pullbacks = {}, {}
        for name, side in sides.items():
            logits[name], pullbacks[name] = jax.vjp(
                lambda p, side=side: _logits(self.apply_fn, p, side), params
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
            optax.apply_updates(params, updates),
            new_opt_state,
            state.step + 1,
            loss.astype(state.loss.dtype),
        )
        total = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
        if self.parts is None:
            return new_state, _Reasons(total, {}, {})

        own, rest = frozen_update(optimizer, gradient, opt_state, params, value=loss)
        if self.parts == "example":
            by_example = {
                name: self._by_example(params, side, residuals[name], own)
                for name, side in sides.items()
            }
            return new_state, _Reasons(total, rest, by_example)
        if len(sides) == 1 and not rest:  # one part: the whole update
            return new_state, _Reasons(total, dict.fromkeys(sides, total), {})
        by_side = {name: own(gradients[name]) for name in sides}
        return new_state, _Reasons(total, by_side | rest, {})

    def _by_example(
        self,
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
            _, pullback = jax.vjp(lambda p: self.apply_fn(p, example), params)
            return own(pullback(cotangent)[0])

        return direction_of, side.targets.shape[0]

    def explain(
        self, params: Params, reasons: _Reasons, probe: Batch
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Watched log-probs, and their derivative along every direction."""

        def of_chunk(chunk: Sequences) -> tuple[Array, Array, dict[str, Array]]:
            def log_probs_fn(p: Params) -> Array:
                return self._watch_chunk(p, chunk)

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
            logits = _logits(self.apply_fn, params, chunk)
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


def _is_sequences(node: Any) -> bool:
    return isinstance(node, Sequences)


def _sides(batch: Batch) -> dict[str, Sequences]:
    """The `Sequences` of a batch by name; a plain batch has one side, `"update"`."""
    leaves = jax.tree_util.tree_leaves_with_path(batch, is_leaf=_is_sequences)
    for _, leaf in leaves:
        if not _is_sequences(leaf):
            raise TypeError(
                "A batch is a `Sequences(tokens, targets, mask)` or a pytree of them, "
                "such as a dict with the keys 'chosen' and 'rejected'; got "
                f"{type(leaf).__name__}."
            )
    sides = {
        jax.tree_util.keystr(path, simple=True, separator="/") or "update": leaf
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
    return jax.tree.structure(batch, is_leaf=_is_sequences).unflatten(leaves)


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


def _compare(
    probe: Batch, old: Any, new: Any, predicted: Any, parts: dict[str, Any]
) -> StepComparison:
    measured = jax.tree.map(jnp.subtract, new, old)
    return StepComparison(
        predicted=predicted,
        measured=measured,
        remainder=jax.tree.map(jnp.subtract, measured, predicted),
        parts=parts,
        floor=jax.tree.map(_rounding_floor, probe, old, is_leaf=_is_sequences),
    )


def _rounding_floor(probe: Sequences, log_probs: Array) -> Array:
    """What a difference of two evaluations of a log-prob cannot resolve."""
    # A log-prob is a difference of numbers of order max(1, |log p|), each rounded by
    # the matmuls before it: a few units in the last place.
    eps = jnp.finfo(log_probs.dtype).eps
    floor = 8 * eps * jnp.maximum(1, jnp.abs(log_probs))
    mask = probe.mask if probe.mask.ndim == floor.ndim else probe.mask[..., None]
    return jnp.where(mask, floor, 0)
