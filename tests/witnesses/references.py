"""Brute-force witnesses: the formulas of the paper in NumPy, in the dumbest way.

Nothing here is imported from ldjax. Networks enter as functions, and JAX is asked for
one thing only, the dense Jacobian of the logits; for the tanh MLP it is not asked at
all (`mlp_jacobian`). A batch is anything with `tokens`, `targets` and `mask`, or a
dict of such; its sides are called as the library calls them.
"""

import functools

import jax
import numpy as np


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def adaptation(logits):
    """`A[..., v, w] = delta_vw - pi_w`, entry by entry."""
    probs = softmax(logits)
    vocab = logits.shape[-1]
    result = np.zeros((*logits.shape, vocab))
    for v in range(vocab):
        for w in range(vocab):
            result[..., v, w] = (v == w) - probs[..., w]
    return result


def sft_residual(logits, targets, mask):
    """`G = mask (pi - e_y) / B`, position by position."""
    result = np.zeros(logits.shape)
    for b, l in np.ndindex(*mask.shape):
        if mask[b, l]:
            result[b, l] = softmax(logits[b, l])
            result[b, l, targets[b, l]] -= 1
    return result / len(mask)


def log_prob_sums(logits, targets, mask):
    """Log-probability of each response."""
    log_probs = log_softmax(logits)
    sums = np.zeros(len(mask))
    for b, l in np.ndindex(*mask.shape):
        if mask[b, l]:
            sums[b] += log_probs[b, l, targets[b, l]]
    return sums


def dpo_residual(logits, batch, *, beta, margin):
    """`G+- = +-beta (1 - a) (pi - e) / B` with `a = sigmoid(beta (s+ - s- - margin))`.

    Args:
      logits: `{"chosen": ..., "rejected": ...}`.
      batch: Likewise.
      beta: The temperature.
      margin: The reference's own `s+ - s-`, one for each pair.
    """
    sums = {name: log_prob_sums(logits[name], *batch[name][1:3]) for name in logits}
    h = sums["chosen"] - sums["rejected"] - margin
    strength = beta * (1 - 1 / (1 + np.exp(-beta * h)))
    chosen, rejected = (
        sft_residual(logits[name], *batch[name][1:3]) * strength[:, None, None]
        for name in ("chosen", "rejected")
    )
    return {"chosen": chosen, "rejected": -rejected}


def sides(batch):
    """The parts of a batch by name."""
    return batch if isinstance(batch, dict) else {"update": batch}


def flat(tree):
    """A pytree as one vector, in JAX's order of leaves."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def unflat(vector, tree):
    """The inverse of `flat`."""
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = np.split(np.asarray(vector), ends[:-1])
    return treedef.unflatten(
        piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)
    )


@functools.cache
def _compiled_jacobian(apply_fn):
    return jax.jit(jax.jacobian(apply_fn))


def jacobian(apply_fn, params, sequences):
    """`J[b, l, v, p]`, dense, leaf by leaf."""
    by_leaf = _compiled_jacobian(apply_fn)(params, sequences)
    blocks = [
        np.asarray(block).reshape(*block.shape[: block.ndim - leaf.ndim], leaf.size)
        for block, leaf in zip(
            jax.tree.leaves(by_leaf), jax.tree.leaves(params), strict=True
        )
    ]
    return np.concatenate(blocks, axis=-1)


def mlp_jacobian(params, images):
    """`J[b, 0, v, p]` of a tanh MLP by hand: forward, then backward, output by output.

    Within a layer the bias comes before the kernel, as in JAX's order of leaves.
    """
    layers = [params["params"][name] for name in sorted(params["params"])]
    kernels = [np.asarray(layer["kernel"]) for layer in layers]
    biases = [np.asarray(layer["bias"]) for layer in layers]
    rows = []
    for image in np.asarray(images):
        inputs = [image.ravel()]
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            inputs.append(np.tanh(inputs[-1] @ kernel + bias))
        for output in range(kernels[-1].shape[1]):
            signal = np.eye(kernels[-1].shape[1])[output]
            pieces = []
            for depth in reversed(range(len(kernels))):
                pieces += [np.outer(inputs[depth], signal).ravel(), signal]
                signal = (kernels[depth] @ signal) * (1 - inputs[depth] ** 2)
            rows.append(np.concatenate(pieces[::-1]))
    return np.array(rows).reshape(len(images), 1, kernels[-1].shape[1], -1)


def logits(case, params, batch):
    """Logits of each side."""
    return {
        name: np.asarray(jax.jit(case.apply_fn)(params, side))
        for name, side in sides(batch).items()
    }


def residual(case, params):
    """`G` of each side, in closed form."""
    return case.residual(logits(case, params, case.update))


def kernel(case, params, probe_side, update_side):
    """`K[m..., v, l..., w] = sum_p J_o[m..., v, p] J_u[l..., w, p]`."""
    probe = jacobian(case.apply_fn, params, sides(case.probe)[probe_side])
    update = jacobian(case.apply_fn, params, sides(case.update)[update_side])
    return np.einsum("blvp,ckwp->blvckw", probe, update)


def gradients(case, params):
    """`J_u^T G` of each side."""
    by_side = residual(case, params)
    return {
        name: np.einsum(
            "blvp,blv->p", jacobian(case.apply_fn, params, side), by_side[name]
        )
        for name, side in sides(case.update).items()
    }


def example_gradients(case, params):
    """Of each side `[example, p]`: the gradient less that without the example.

    The denominator of the mean stays, so leaving one out zeroes its residual.
    """
    result = {}
    for name, side in sides(case.update).items():
        dense = jacobian(case.apply_fn, params, side)
        full = residual(case, params)[name]
        whole = np.einsum("blvp,blv->p", dense, full)
        shares = []
        for example in range(len(full)):
            without = full.copy()
            without[example] = 0
            shares.append(whole - np.einsum("blvp,blv->p", dense, without))
        result[name] = np.array(shares)
    return result


def exact_parts(comparison):
    """The parts but what float64 rounds, which is next to nothing."""
    parts = dict(comparison.parts)
    rounding = parts.pop("rounding", None)
    if rounding is not None:
        for leaf in jax.tree.leaves(rounding):
            # Of parameters of order one: it does not shrink with the update.
            assert np.abs(leaf).max() <= 1e-13, "not only rounding"
    return parts


def exact(comparison):
    """What two ways of computing a step share to rounding."""
    return comparison._replace(parts=exact_parts(comparison))


def log_prob_changes(case, params, direction, *, full_vocab):
    """`A J_o d` of each side of the probe, along a direction in parameter space."""
    result = {}
    for name, side in sides(case.probe).items():
        dense = jacobian(case.apply_fn, params, side)
        moved = dense @ direction  # [probe, pos, vocab]
        adapt = adaptation(logits(case, params, {name: side})[name])
        change = np.einsum("blvw,blw->blv", adapt, moved)
        result[name] = _watched(change, side, full_vocab)
    return result


def measured_changes(case, params, moved_params, *, full_vocab):
    """New minus old log-probs, from two forward passes."""
    old, new = (logits(case, p, case.probe) for p in (params, moved_params))
    return {
        name: _watched(
            log_softmax(new[name]) - log_softmax(old[name]), side, full_vocab
        )
        for name, side in sides(case.probe).items()
    }


def _watched(change, side, full_vocab):
    mask = np.asarray(side.mask)
    if full_vocab:
        return change * mask[..., None]
    picked = np.zeros(mask.shape)
    for b, l in np.ndindex(*mask.shape):
        if mask[b, l]:
            picked[b, l] = change[b, l, side.targets[b, l]]
    return picked
