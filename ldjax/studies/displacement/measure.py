"""What `displacement.py` measures at an update: changes, and labels that rise."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ldjax import precision
from ldjax.equation import preconditioner
from ldjax.equation.log_probs import log_softmax
from ldjax.equation.sequences import ApplyFn, LossFn, Sequences
from ldjax.equation.step import StepState, make_step
from ldjax.theory.displacement import pair_products
from ldjax.theory.squeezing import greedy_label, mass_share, rising_labels
from ldjax.watch.record import FLOOR, MEASURED, PREDICTED

__all__ = [
    "SIDES",
    "Pairs",
    "label_quantities",
    "make_alone_fn",
    "make_labels_fn",
    "make_watched_step",
]

SIDES = ("chosen", "rejected")
#: Both sides of some pairs, `{"chosen": ..., "rejected": ...}`, `[pair, pos]`.
Pairs = Mapping[str, Any]


def make_watched_step(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    watched: Pairs,
) -> tuple[
    Callable[[Any], StepState],
    Callable[[StepState, Pairs], tuple[StepState, dict[str, Array]]],
]:
    """An update that says how each watched chosen response changes.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      loss_fn: A loss of pairs.
      optimizer: Whose update can be split, element by element.
      watched: Pairs of the training set.

    Returns:
      `init(params) -> state` and `step(state, batch) -> (state, metrics)`. Metrics are
      `loss`, and of each watched pair, in nats: `predicted`, `measured`, `floor`, and
      `product:chosen` and `product:cross`, the inner products of its own gradients
      under the update's preconditioner.
    """
    init, account = make_step(apply_fn, loss_fn, optimizer, parts=None)
    probe = watched["chosen"].plain

    def products(state: StepState, batch: Pairs) -> dict[str, Array]:
        def loss_of(params: Any) -> Array:
            logits = {k: apply_fn(params, side) for k, side in batch.items()}
            return loss_fn(logits, batch)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        P = preconditioner(
            optimizer, gradient, state.opt_state, state.params, value=loss
        )
        found = pair_products(apply_fn, state.params, watched, preconditioner=P)
        return {"product:chosen": found.chosen, "product:cross": found.cross}

    @jax.jit
    def step(state: StepState, batch: Pairs) -> tuple[StepState, dict[str, Array]]:
        new_state, comparison = account(state, dict(batch), probe)
        metrics = {
            PREDICTED: comparison.predicted.sum(-1),
            MEASURED: comparison.measured.sum(-1),
            FLOOR: comparison.floor.sum(-1),
        }
        metrics |= products(state, batch)
        return new_state, {"loss": new_state.loss, **metrics}

    return init, step


def make_alone_fn(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    watched: Pairs,
) -> Callable[[StepState], dict[str, Array]]:
    """A function to what a step on each watched pair alone does to its chosen response.

    Returns:
      `state -> numbers`: of each pair, by a step of the optimizer that is really taken
      from this state (and then forgotten), in nats: `measured`, `floor`, and `own`,
      what its two sides did to first order, with the scales of this step.
    """
    _, step = make_step(apply_fn, loss_fn, optimizer)

    @jax.jit
    def alone(state: StepState) -> dict[str, Array]:
        def of_pair(pair: Mapping[str, Any]) -> dict[str, Array]:
            update = jax.tree.map(lambda leaf: leaf[None], dict(pair))
            _, found = step(state, update, update["chosen"].plain)
            changes = {
                "measured": found.measured,
                "floor": found.floor,
                "own": sum(found.parts[side] for side in SIDES),
            }
            return {name: change.sum() for name, change in changes.items()}

        return jax.lax.map(of_pair, dict(watched))

    return alone


def make_labels_fn(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    watched: Pairs,
) -> Callable[[StepState, Pairs], dict[str, Array]]:
    """A function to what the next update does to every label of both contexts.

    Returns:
      `(state, batch) -> numbers`: for each of `SIDES` the means over tokens of
      `label_quantities`, `[pair]`, under `SIDE:NAME`, and which labels rise,
      `[pair, pos, vocab]`, under `SIDE:rises`.
    """
    _, step = make_step(apply_fn, loss_fn, optimizer, parts=None, full_vocab=True)
    probe = {side: watched[side].plain for side in SIDES}

    @jax.jit
    def labels(state: StepState, batch: Pairs) -> dict[str, Array]:
        _, comparison = step(state, dict(batch), probe)
        found = {}
        for side in SIDES:
            numbers = label_quantities(
                log_softmax(precision.watched(apply_fn)(state.params, probe[side])),
                comparison.predicted[side],
                comparison.measured[side],
                comparison.floor[side],
                probe[side],
                is_pushed_down=side == "rejected",
            )
            found |= {f"{side}:{name}": values for name, values in numbers.items()}
        return found

    return labels


def label_quantities(
    log_probs: Array,
    predicted: Array,
    measured: Array,
    floor: Array,
    sequences: Sequences,
    *,
    is_pushed_down: bool,
) -> dict[str, Array]:
    """Which labels rise, where the mass goes, and whose theory has the signs right.

    Labels whose change is below the rounding floor are left out; so are masked
    positions and, of the share, those where less mass moved than can be told.

    Args:
      log_probs: Before the update, `[probe, pos, vocab]`.
      predicted: Change of each label, to first order in the update that was made.
      measured: Likewise, measured.
      floor: What the measurement resolves.
      sequences: The responses.
      is_pushed_down: Whether the response is the rejected one.

    Returns:
      `rises` (which labels do), and means over the scored tokens, `[probe]`:
      `rising` (their share), `to_greedy` (the share of the moved mass that the
      likeliest label but the response's own received), `exact` (the share of labels
      whose sign first order has right) and `multiple` (the share right if the kernel
      were a positive multiple of the identity and the response's own push the only
      one).
    """
    labels = jnp.where(sequences.mask, sequences.targets, 0)
    is_resolved = (abs(measured) > floor) & sequences.mask[..., None]
    rises = (measured > 0) & is_resolved
    # Above the threshold a push down lifts, and a push up lowers; the label itself goes
    # where it is pushed.
    by_multiple = rising_labels(log_probs, labels)
    if not is_pushed_down:
        by_multiple = ~by_multiple
    greedy = greedy_label(log_probs, labels)
    share = mass_share(log_probs, log_probs + measured, greedy)

    def mean_share(is_so: Array) -> Array:
        counts = is_resolved.sum(-1)
        shares = (is_so & is_resolved).sum(-1) / jnp.maximum(counts, 1)
        return shares.sum(-1) / jnp.maximum((counts > 0).sum(-1), 1)

    # A sum of probabilities resolves what its log-probs do; tenfold, to be seen.
    probs = jnp.exp(log_probs)
    moved = abs(probs * jnp.expm1(measured)).sum(-1)
    has_moved = sequences.mask & (moved > 10 * (probs * floor).sum(-1))
    counts = jnp.maximum(has_moved.sum(-1), 1)
    return {
        "rises": rises,
        "rising": mean_share(rises),
        "to_greedy": jnp.where(has_moved, share, 0).sum(-1) / counts,
        "exact": mean_share((predicted > 0) == (measured > 0)),
        "multiple": mean_share(by_multiple == (measured > 0)),
    }
