"""Exact kernel norms and the paper's proxies of them, at one moment of a run."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ldjax.equation.jacobian import jacobian
from ldjax.equation.log_probs import sequence_log_probs, token_log_probs
from ldjax.equation.preconditioner import preconditioner
from ldjax.equation.sequences import Sequences
from ldjax.equation.step import StepState
from ldjax.precision import exact_products, watched
from ldjax.studies.scored import Scored, UpdateExample, factored_kernel, pushes
from ldjax.theory.proxies import (
    adaptation_norm,
    lower_bound_kernel,
    published_adaptation_norm,
    published_residual_norm,
    sign_delta,
)
from ldjax.watch.probes import ApplyFn, ProbeSet

__all__ = ["make_evaluate", "make_measure"]

# `(logits, batch) -> scalar`, both dicts by side.
SidesLoss = Callable[[Any, Any], Array]


def make_measure(
    model: nn.Module,
    loss_fn: SidesLoss,
    examples: Sequence[UpdateExample],
    *,
    optimizer: optax.GradientTransformation | None,
    reference: Any,
    step_norm: float,
) -> Callable[[StepState, int], dict[str, np.ndarray]]:
    """A function that measures kernels and proxies of all update examples.

    Args:
      model: The decoder.
      loss_fn: Of the sides.
      examples: From `make_update_examples`.
      optimizer: That of the run, for its kernel K_P; None to leave it out.
      reference: Parameters of the reference policy; None if the loss needs none.
      step_norm: Length of the gradient steps that are measured.

    Returns:
      `measure(state, turn)`, where `turn` says which probe and which token are checked
      column by column. The result has `KERNEL:QUANTITY`, one number per probe, for the
      kernels `K` and `K_P` (with the preconditioner of a step of the optimizer on this
      update example alone, which has the learning rate in it):

      * `norm`, for a pair also `norm:SIDE`: the exact norm over all token pairs;
      * `distance`: the same of what is left of each block without its mean diagonal;
      * `lbk:predicted`, `lbk:measured`: equation 26, over the squared rate;
      * `sign_delta:...`: the mean change of all log-probs, over the rate;
      * `influence:...`: the change of the response's own log-prob, over the rate;
      * `lbk:published`: the formula of the authors' code, for one step and one
        response, over the rate;

      and three gaps that should be rounding: `push_gap` (what the kernel's factors make
      of the residual of a learned token, against the derivative of the probes' logits
      along that token's own step), `columns_gap` (block norms against the lazy kernel
      applied to every label of a token) and `symmetry_gap` (of the blocks between what
      is learned, taken from both sides).
    """
    batches = [_loss_batch(model, example, reference) for example in examples]

    def of_example(
        params: Any, P: Any, example: UpdateExample, batch: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The numbers by quantity, and the norms of all blocks by side."""
        summaries = {
            side: _all_block_norms(model, params, P, example.probes, learned)
            for side, learned in example.sides.items()
        }
        by_side = {
            side: [_total(values, example, side) for values in summary]
            for side, summary in summaries.items()
        }
        norm, distance = np.sqrt(np.square(list(by_side.values())).sum(0))
        found = {"norm": norm, "distance": distance}
        if len(by_side) > 1:
            found |= {f"norm:{side}": both[0] for side, both in by_side.items()}
        changes = _changes(
            *(model, loss_fn, params, P, example, batch), step_norm=step_norm
        )
        blocks = {side: norms for side, (norms, _) in summaries.items()}
        return found | jax.device_get(changes), blocks

    def measure(state: StepState, turn: int) -> dict[str, np.ndarray]:
        numbers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        gaps: dict[str, list[float]] = {
            name: [] for name in ("push_gap", "columns_gap", "symmetry_gap")
        }
        for i, (example, batch) in enumerate(zip(examples, batches, strict=True)):
            # Plain gradient descent too has a preconditioner, so that both kernels
            # are computed by the same compiled functions.
            kernels = {"K": jax.tree.map(jnp.ones_like, state.params)}
            if optimizer is not None:
                kernels["K_P"] = _diagonal(
                    *(model, loss_fn, optimizer, state, example, batch)
                )
            for kernel, P in kernels.items():
                found, blocks = of_example(state.params, P, example, batch)
                for name, values in found.items():
                    pair = (example.places, values)
                    numbers.setdefault(f"{kernel}:{name}", []).append(pair)
                gaps["symmetry_gap"].append(_symmetry_gap(blocks, example))
                if i == turn % len(examples):
                    gap = _columns_gap(model, state.params, P, example, blocks, turn)
                    gaps["columns_gap"].append(gap)
                    gap = _push_gap(
                        *(model, loss_fn, state.params, P, example, batch), turn=turn
                    )
                    gaps["push_gap"].append(gap)
        return {name: _in_order(pairs) for name, pairs in numbers.items()} | {
            name: np.max(values) for name, values in gaps.items()
        }

    return measure


def make_evaluate(
    apply_fn: ApplyFn, probes: ProbeSet
) -> Callable[[Any], dict[str, np.ndarray]]:
    """What the authors' code keeps of an evaluation, from which it makes its proxies.

    Returns:
      From parameters to `log_prob`, `adaptation_norm_published` and
      `residual_norm_published`, one number per probe.
    """
    apply_fn = watched(apply_fn)

    @jax.jit
    def of_batch(params: Any, batch: Sequences) -> dict[str, Array]:
        return _evaluated(apply_fn(params, batch), batch)

    def evaluate(params: Any) -> dict[str, np.ndarray]:
        return probes.gather([of_batch(params, batch) for _, batch in probes.batches])

    return evaluate


@functools.partial(jax.jit, static_argnums=0)
def _loss_batch(
    model: nn.Module, example: UpdateExample, reference: Any
) -> dict[str, Any]:
    """What the loss reads, by side; with the reference policy's log-probs if any."""
    batch = {side: learned.batch for side, learned in example.sides.items()}
    if reference is None:
        return batch
    logits = example.learned_logits(model, reference)
    return {
        side: one._replace(
            reference=sequence_log_probs(logits[side], one.targets, one.mask)
        )
        for side, one in batch.items()
    }


def _in_order(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Numbers of all probes, from those of each update example and their places."""
    places, values = map(np.concatenate, zip(*pairs, strict=True))
    return values[np.argsort(places)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _diagonal(
    model: nn.Module,
    loss_fn: SidesLoss,
    optimizer: optax.GradientTransformation,
    state: StepState,
    example: UpdateExample,
    batch: dict[str, Any],
) -> Any:
    """What a step of the optimizer on this example multiplies its gradient with."""

    def loss_of(params: Any) -> Array:
        return loss_fn(example.learned_logits(model, params), batch)

    gradient = jax.grad(loss_of)(state.params)
    return preconditioner(optimizer, gradient, state.opt_state, state.params)


def _all_block_norms(
    model: nn.Module, params: Any, P: Any, probes: Scored, update: Scored
) -> tuple[np.ndarray, np.ndarray]:
    """`_block_norms` of all tokens that are learned, `[probe, probe token, token]`."""
    # A Python loop: inside `lax.map` XLA's CPU code takes twice as long.
    by_token = [
        jax.device_get(_block_norms(model, params, P, probes, update.token(place)))
        for place in range(update.positions.shape[1])
    ]
    norms, distances = zip(*by_token, strict=True)
    return np.stack(norms, axis=-1), np.stack(distances, axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _block_norms(
    model: nn.Module, params: Any, P: Any, probes: Scored, update: Scored
) -> tuple[Array, Array]:
    """Norms of one token's blocks, and of what is no multiple of the identity in them.

    Returns:
      `[probe, probe token]`.
    """
    summary = factored_kernel(model, params, P, probes, update).block_summary()
    return summary.norm[:, :, 0, 0], summary.distance[:, :, 0, 0]


def _total(norms: np.ndarray, example: UpdateExample, side: str) -> np.ndarray:
    """One norm per probe, of the blocks of all its tokens with all that are learned."""
    is_probe = np.asarray(example.probes.mask)[:, :, None]
    is_update = np.asarray(example.sides[side].mask)[:, None]
    squares = np.where(is_probe & is_update, norms.astype(float) ** 2, 0)
    return np.sqrt(squares.sum((1, 2)))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="step_norm")
def _changes(
    model: nn.Module,
    loss_fn: SidesLoss,
    params: Any,
    P: Any,
    example: UpdateExample,
    batch: dict[str, Any],
    *,
    step_norm: float,
) -> dict[str, Array]:
    """Proxies of a gradient step of a given length on one update example."""
    probes = example.probes

    def log_probs_fn(params: Any) -> Array:
        return jax.nn.log_softmax(probes.logits_fn(model)(params))

    with exact_products():
        logits, pullback = jax.vjp(
            functools.partial(example.learned_logits, model), params
        )
        residual = jax.grad(loss_fn)(logits, batch)
        (direction,) = pullback(residual)
        direction = jax.tree.map(jnp.multiply, P, direction)
        rate = step_norm / optax.tree.norm(direction)
        step = optax.tree.scale(-rate, direction)
        old, predicted = jax.jvp(log_probs_fn, (params,), (step,))
        new = log_probs_fn(optax.apply_updates(params, step))
    found = {}
    targets, mask = probes.batch.targets, probes.mask
    for name, change in (("predicted", predicted), ("measured", new - old)):
        bound = lower_bound_kernel(change, old, mask, residual=residual)
        # Log-probs are as good as logits here; of a change, only the targets count.
        own = jnp.take_along_axis(change, targets[..., None], axis=-1)[..., 0]
        found |= {
            f"lbk:{name}": bound / rate**2,
            f"sign_delta:{name}": sign_delta(change, mask) / rate,
            f"influence:{name}": jnp.where(mask, own, 0).sum(-1) / rate,
        }
    after = _evaluated(new, probes.batch)
    scale = (
        jnp.sqrt(after["adaptation_norm_published"])
        * after["residual_norm_published"][example.rows["chosen"]]
    )
    return found | {
        "lbk:published": jnp.abs(found["influence:measured"]) / scale,
        "adaptation_norm": adaptation_norm(old, mask),
    }


def _evaluated(logits: Array, batch: Sequences) -> dict[str, Array]:
    log_probs = token_log_probs(logits, batch.targets, batch.mask)
    return {
        "log_prob": log_probs.sum(-1),
        "adaptation_norm_published": published_adaptation_norm(logits, batch.mask),
        "residual_norm_published": published_residual_norm(
            logits, batch.targets, batch.mask
        ),
    }


def _symmetry_gap(blocks: Mapping[str, np.ndarray], example: UpdateExample) -> float:
    """By how much `K(o, u)` and `K(u, o)` transposed differ, over the largest block."""

    def learned_by(side: str, other: str) -> np.ndarray:
        """Norms of the blocks of the learned tokens of `other` by those of `side`."""
        row = example.rows[other]
        all_positions = np.asarray(example.probes.positions[row])
        mask = np.asarray(example.sides[other].mask[0])
        learned = np.asarray(example.sides[other].positions[0])[mask]
        rows = [int(np.flatnonzero(all_positions == at)[0]) for at in learned]
        columns = np.flatnonzero(example.sides[side].mask[0])
        return blocks[side][row][rows][:, columns]

    pairs = [(one, other) for one in blocks for other in blocks]
    gaps = [abs(learned_by(*pair) - learned_by(*pair[::-1]).T).max() for pair in pairs]
    return float(max(gaps) / max(learned_by(*pair).max() for pair in pairs))


def _token_at(example: UpdateExample, turn: int) -> tuple[str, int]:
    """A learned token, by its side and its place; another one every time."""
    side = list(example.sides)[turn % len(example.sides)]
    return side, turn % int(example.sides[side].mask.sum())


def _push_gap(
    model: nn.Module,
    loss_fn: SidesLoss,
    params: Any,
    P: Any,
    example: UpdateExample,
    batch: dict[str, Any],
    *,
    turn: int,
) -> float:
    """`K G` of one learned token, from the factors and along the parameters.

    A kernel that is wrong by any factor misses it by as much.
    """
    side, place = _token_at(example, turn)
    learned = example.sides[side].token(place)
    residual = _residual(model, loss_fn, params, example, batch)[side]
    residual = residual[:, place : place + 1]
    labels = jnp.concatenate([each.batch.targets[0] for each in example.sides.values()])
    by_factors, by_params = pushes(
        *(model, params, P, example.probes, learned, residual, labels)
    )
    scored = np.asarray(example.probes.mask)
    by_params = np.asarray(by_params)[scored]
    return float(abs(np.asarray(by_factors)[scored] - by_params).max()) / float(
        abs(by_params).max()
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residual(
    model: nn.Module,
    loss_fn: SidesLoss,
    params: Any,
    example: UpdateExample,
    batch: dict[str, Any],
) -> dict[str, Array]:
    return jax.grad(loss_fn)(example.learned_logits(model, params), batch)


def _columns_gap(
    model: nn.Module,
    params: Any,
    P: Any,
    example: UpdateExample,
    blocks: Mapping[str, np.ndarray],
    turn: int,
) -> float:
    """Block norms of one probe and one token against the kernel's own columns."""
    side, token = _token_at(example, turn)
    row = turn % len(example.places)
    probe = jax.tree.map(lambda leaf: leaf[row : row + 1], example.probes)
    learned = example.sides[side].token(token)
    by_column = np.asarray(_column_norms(model, params, P, probe, learned))
    scored = np.asarray(probe.mask[0])
    gap = abs(by_column - blocks[side][row, :, token])[scored]
    return float(gap.max() / by_column[scored].max())


@functools.partial(jax.jit, static_argnums=0)
def _column_norms(
    model: nn.Module, params: Any, P: Any, probe: Scored, update: Scored
) -> Array:
    """Norms of the blocks of one probe and one token, the slow and plain way."""
    probe_jacobian = jacobian(probe.logits_fn(model), params)
    update_jacobian = jacobian(update.logits_fn(model), params)

    def squares_of(label: Array) -> Array:
        gradient = update_jacobian.rmv(label[None, None])
        gradient = jax.tree.map(jnp.multiply, P, gradient)
        return (probe_jacobian.mv(gradient)[0] ** 2).sum(-1)

    labels = jnp.eye(update_jacobian.out_struct.shape[-1])
    return jnp.sqrt(jax.lax.map(squares_of, labels, batch_size=32).sum(0))
