r"""Optimizer steps that account for themselves.

`make_step` makes a training step, in optax's shape, that also says by how much every
watched log-probability moved (`measured`), by how much first-order theory says it
should have moved (`predicted`), and why (`parts`; with nodes on the way of the update
they add up to what was measured). The prediction is the derivative
of the log-probs along the update that the optimizer really applied, so it is right for
any optax chain; for plain SGD it equals :math:`-\eta A K G`.

Derived in docs/theory/equation.md#any-optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation import resolution
from ldjax.equation.account import Account, Change, Optimizer, StepState
from ldjax.equation.path import Nodes
from ldjax.equation.resolution import Observed
from ldjax.equation.sequences import ApplyFn, Batch, LossFn, Params, is_sequences
from ldjax.memory import lean

__all__ = [
    "PendingState",
    "StepComparison",
    "StepState",
    "make_pending_step",
    "make_step",
]


class StepComparison(NamedTuple):
    r"""What one step did to the watched log-probabilities, in nats.

    Each field is shaped like the probe: `[probe, pos]` at the targets, or
    `[probe, pos, vocab]` with the full vocabulary; a dict of probes gives dicts. Masked
    positions are zero. Sum over `pos` for a sequence. Positive means "went up".

    Attributes:
      predicted: First order: the derivative along the change of the parameters, new
        minus old, as they are stored.
      measured: New minus old log-prob, from two forward passes.
      remainder: `measured - predicted`, :math:`O(\eta^2)`.
      parts: A dict of contributions that sum to `integrated`: one for each side of the
        update (`"update"`, or its keys such as `"chosen"` and `"rejected"`),
        `"history"`, `"weight_decay"` and what else the optimizer has, and
        `"rounding"`: what is left of the change of the parameters, which is what
        storing them in their precision did to the update (in bfloat16 a small one is
        swallowed, and this part is minus the others). With `parts="example"` the sides
        have a leading axis over the update's examples. With `dated=True`, for
        `"history"`: `"history of SIDE"`, for earlier updates of this side, and
        `"before"`, for what the optimizer held when the run began. Empty with
        `parts=None`.
      floor: The rounding floor: changes below it are not resolved by this precision.
        :math:`4\,\epsilon\,(1 + |\log\pi| + \max_v|z_v|)(1 + n)`, with the noise `n`
        measured: how far the log-probs move, in these units, when the parameters are
        rounded anew in the last place of the precision that the model computes in
        (the largest of some 8 probes or an eighth of them, every 64 steps). It is a
        bound as far as these speak for the others.
      integrated: The derivative along the change of the parameters, averaged over the
        nodes on its way: `measured` up to their error. It is `predicted` without nodes.

    Examples:
      The shares of the measured change that first order and a midpoint leave
      unexplained:

      >>> one = jnp.ones((1, 1))
      >>> found = StepComparison(
      ...     predicted=0.75 * one,
      ...     measured=one,
      ...     remainder=0.25 * one,
      ...     parts={"update": 0.875 * one, "history": 0.125 * one},
      ...     floor=1e-6 * one,
      ...     integrated=one,
      ... )
      >>> share = lambda rest: jnp.linalg.norm(rest) / jnp.linalg.norm(found.measured)
      >>> share(found.remainder), share(found.quadrature)
      (Array(0.25, dtype=...), Array(0., dtype=...))
    """

    predicted: Any
    measured: Any
    remainder: Any
    parts: dict[str, Any]
    floor: Any
    integrated: Any

    @property
    def quadrature(self) -> Any:
        """What the nodes leave of the change: `measured - integrated`, in nats."""
        return jax.tree.map(jnp.subtract, self.measured, self.integrated)


class PendingState(NamedTuple):
    """A `StepState` with what awaits its measurement.

    Attributes:
      now: The training state.
      probe: The fixed probe set.
      observed: Watched log-probs at the start of the last step, and their rounding.
      change: What that step was predicted to change, at the start and integrated over
        the nodes before its end.
      awaited: The directions that it is the sum of, if a node is at its end: as many
        copies of the trained parameters. Else none.

    Examples:
      >>> state = PendingState(StepState(None, None, 0, 0), None, None, None, {})
      >>> state.now.step  # the training state is inside
      0
    """

    now: StepState
    probe: Batch
    observed: Observed
    change: Change
    awaited: dict[str, Params]


def make_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    parts: str | None = "side",
    nodes: Nodes = None,
    full_vocab: bool | None = None,
    probe_batch_size: int | None = None,
    watch_fn: ApplyFn | None = None,
    where: Any = None,
    dated: bool = False,
) -> tuple[
    Callable[..., StepState],
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

    First order is the derivative at the start. Averaged over `nodes` on the way it is
    `integrated`, which is `measured` up to a high order of the update, and the parts
    sum to that (docs/theory/equation.md#path). A node on the way costs a forward pass
    and the forward-mode passes of the parts, which the start then does without; at the
    end, whose log-probs are measured anyway, it costs the latter alone.

    Args:
      apply_fn: `(params, sequences) -> logits`, `[batch, pos, vocab]`, float32 or
        wider. Treats the examples of a batch independently of one another.
      loss_fn: `(logits, update) -> scalar` such as `ldjax.losses.sft`; for an update
        with sides, `logits` has the same keys.
      optimizer: Any optax transformation.
      parts: `"side"` splits the prediction by side of the update, history and weight
        decay; `"example"` also by example (a backward and a forward-mode pass for
        each); None skips the split and its cost.
      nodes: Where on its way the update is differentiated, for `integrated` and the
        parts: `"midpoint"` (third order), `"trapezoid"` (third), `"simpson"` (fifth),
        or a number `n` of Gauss-Legendre nodes (order `2 n + 1`). None: at its start,
        where `integrated` is `predicted`. Parameters that are stored in less than what
        is watched is computed in lie there between those that can be stored.
      full_vocab: Watch every label of the vocabulary instead of the targets. By
        default yes for images (floating-point `tokens`), no for language.
      probe_batch_size: Probes observed at a time. Bounds memory: the peak does not
        grow with the number of probes. By default all at once.
      watch_fn: What the probes' logits are computed by, if not by `apply_fn`: the same
        model in float32 where it is trained in bfloat16, whose rounding is far larger
        than what a step changes. The update is `apply_fn`'s all the same.
      where: Which parameters are trained, as in `empirical_ntk`: bools in their
        structure, or a function from params to that (`ldjax.models.is_adapter`); nested
        dicts only. The optimizer sees no others. By default all.
      dated: Divide the history by the side that it comes from, from the first step on:
        one copy of the optimizer's moments for each side of the update, in float32 or
        wider, in `StepState.origins` (Adam's moments: as large as the parameters that
        are trained), and one where weight decay enters the moments.

    Returns:
      `(init, step)`: `state = init(params)`, and `state, comparison = step(state,
      update, probe)`, compiled once per shape. `update` and `probe` are `Sequences` or
      pytrees of them. With `dated=True` the first step returns a state with `origins`,
      for which the second compiles anew; `init(params, update)` makes them at once.

    Raises:
      TypeError: If parameters are no floats (by `init`); if logits or a batch are of a
        type that nothing can be computed from.
      ValueError: If shapes do not fit; if a token id is in no table that the model
        looks it up in, or a target under the mask is no label; if `parts` is asked of
        an optimizer whose update cannot be split; if `nodes` are of no known rule.

    References:
      Ren & Sutherland 2025, Proposition 1; equation 7 for the sides of a pair.

    Examples:
      >>> import ldjax, optax
      >>> apply_fn = lambda w, images: (images.tokens @ w)[:, None, :]
      >>> init, step = make_step(apply_fn, ldjax.losses.sft, optax.sgd(0.1))
      >>> labels, mask = jnp.array([[0], [1]]), jnp.ones((2, 1), bool)
      >>> images = ldjax.Sequences(jnp.eye(2), labels, mask)
      >>> state, comparison = step(init(jnp.zeros((2, 3))), images, images)
      >>> comparison.predicted[0, 0].round(4)
      Array([ 0.0333, -0.0167, -0.0167], dtype=...)
      >>> comparison.measured[0, 0].round(4)
      Array([ 0.033..., -0.016..., -0.016...], dtype=...)

      A step too large for first order, integrated:

      >>> init, step = make_step(
      ...     apply_fn, ldjax.losses.sft, optax.sgd(5.0), nodes="simpson"
      ... )
      >>> _, comparison = step(init(jnp.zeros((2, 3))), images, images)
      >>> [of[0, 0, 0].round(2) for of in comparison[:2]]
      [Array(1.67, dtype=...), Array(0.95, dtype=...)]
      >>> comparison.integrated[0, 0, 0].round(2)
      Array(0.94, dtype=...)
    """
    account = Account.checked(
        apply_fn,
        loss_fn,
        optimizer,
        parts=parts,
        nodes=nodes,
        full_vocab=full_vocab,
        probe_batch_size=probe_batch_size,
        watch_fn=watch_fn,
        where=where,
        dated=dated,
    )

    @lean
    def taken(
        state: StepState, update: Batch, probe: Batch
    ) -> tuple[StepState, StepComparison]:
        new_state, reasons = account.trainer.train(state, update)
        old, change, _ = account.explain(state.params, reasons, probe)
        awaited = account.awaited(reasons)
        new, at_end = account.arrive(new_state.params, awaited, probe)
        noise = account.watcher.noise(state, probe, old)
        change = account.complete(change, at_end)
        return new_state._replace(noise=noise), _compare(probe, old, new, change, noise)

    def step(
        state: StepState, update: Batch, probe: Batch
    ) -> tuple[StepState, StepComparison]:
        program, door = taken(state, update, probe), account.trainer.apply_fn
        door.check(program, state=state, update=update, probe=probe)
        return program(state, update, probe)

    return account.trainer.init, step


def make_pending_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: Optimizer,
    **options: Any,
) -> tuple[
    Callable[[Params, Batch, Batch], PendingState],
    Callable[[PendingState, Batch], tuple[PendingState, StepComparison]],
    Callable[[PendingState], StepComparison],
]:
    r"""`make_step` for a fixed probe set, each measurement one call later.

    The log-probs that the next step computes anyway, on its way to its prediction,
    are the ones this step's measurement needs; so a probe costs no forward pass after
    the step. Likewise a node at the end of a step is the start of the next: the
    directions of the update wait for it in the state, and the `"trapezoid"` needs no
    more passes through the model than first order.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: `(logits, update) -> scalar`.
      optimizer: Any optax transformation.
      **options: The keywords of `make_step`.

    Returns:
      `(init, step, finish)`: `state = init(params, update, probe)`, of whose `update`
      only the shapes are read; `state, comparison = step(state, update)`, where
      `comparison` is that of the step *before* (NaN the first time); `comparison =
      finish(state)` is that of the last step taken.

    Examples:
      >>> import ldjax, optax
      >>> apply_fn = lambda w, images: (images.tokens @ w)[:, None, :]
      >>> labels, mask = jnp.array([[0], [1]]), jnp.ones((2, 1), bool)
      >>> images = ldjax.Sequences(jnp.eye(2), labels, mask)
      >>> init, step, finish = make_pending_step(
      ...     apply_fn, ldjax.losses.sft, optax.sgd(0.1)
      ... )
      >>> state, nothing_yet = step(
      ...     init(jnp.zeros((2, 3)), images, images), images
      ... )
      >>> finish(state).predicted[0, 0].round(4)
      Array([ 0.0333, -0.0167, -0.0167], dtype=...)
    """
    account = Account.checked(apply_fn, loss_fn, optimizer, **options)

    def init(params: Params, update: Batch, probe: Batch) -> PendingState:
        now = account.trainer.init(params, update)

        def awaiting(update: Batch) -> tuple[Observed, Change, dict[str, Params]]:
            _, reasons = account.trainer.train(now, update)
            observed, change, _ = account.explain(now.params, reasons, probe)
            return observed, change, account.awaited(reasons)

        unmeasured = jax.tree.map(
            lambda s: jnp.full(s.shape, jnp.nan, s.dtype),
            jax.eval_shape(awaiting, update),
        )
        return PendingState(now, probe, *unmeasured)

    @lean
    def taken(
        state: PendingState, update: Batch
    ) -> tuple[PendingState, StepComparison]:
        now, reasons = account.trainer.train(state.now, update)
        old, change, at_end = account.explain(
            state.now.params, reasons, state.probe, state.awaited
        )
        before = measured(state, old.log_probs, at_end)
        now = now._replace(noise=account.watcher.noise(state.now, state.probe, old))
        awaited = account.awaited(reasons)
        return PendingState(now, state.probe, old, change, awaited), before

    def measured(
        state: PendingState, new: Any, at_end: dict[str, Any]
    ) -> StepComparison:
        """What awaited its measurement, now that what is watched after it is known."""
        change = account.complete(state.change, at_end)
        return _compare(state.probe, state.observed, new, change, state.now.noise)

    def step(state: PendingState, update: Batch) -> tuple[PendingState, StepComparison]:
        program, door = taken(state, update), account.trainer.apply_fn
        door.check(program, state=state, update=update)
        return program(state, update)

    @lean
    def finished(state: PendingState) -> StepComparison:
        arrived = account.arrive(state.now.params, state.awaited, state.probe)
        return measured(state, *arrived)

    return init, step, lambda state: finished(state)(state)


def _compare(
    probe: Batch, old: Observed, new: Any, change: Change, noise: Array
) -> StepComparison:
    measured = jax.tree.map(jnp.subtract, new, old.log_probs)

    def floor(side: Any, unit: Array) -> Array:
        mask = side.mask if side.mask.ndim == unit.ndim else side.mask[..., None]
        return jnp.where(mask, resolution.floor(unit, noise.astype(unit.dtype)), 0)

    return StepComparison(
        predicted=change.predicted,
        measured=measured,
        remainder=jax.tree.map(jnp.subtract, measured, change.predicted),
        parts=change.parts,
        floor=jax.tree.map(floor, probe, old.unit, is_leaf=is_sequences),
        integrated=change.integrated,
    )
