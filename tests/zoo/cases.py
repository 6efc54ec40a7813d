"""The shared cases: a network, parameters, an update, a probe, a loss and its residual.

Images on LeNet, a smooth and a ReLU MLP; a toy language model with one side (SFT) and
with two (DPO), in which positions see their past, prompts are masked and masked
targets are -100. Arrays are drawn by NumPy: `jax.random` compiles for half a second per
shape.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from witnesses import references

from ldjax import Sequences, losses, sequence_log_probs
from ldjax.models import MLP, LeNet

NUM_CLASSES, VOCAB, BETA = 10, 7, 0.5


class Case(NamedTuple):
    """What a step needs, and the closed form of its residual (NumPy, by side)."""

    apply_fn: Callable[..., Any]
    params: Any
    update: Any
    probe: Any
    loss_fn: Callable[..., Any]
    residual: Callable[[Any], Any]

    @property
    def full_vocab(self):
        """Images watch every class, language its targets."""
        return not isinstance(self.probe, dict) and self.probe.tokens.ndim == 3

    def logits_fn(self, batch):
        """`params -> logits` in the structure of the batch."""
        if isinstance(batch, dict):
            return lambda params: {
                name: self.apply_fn(params, side) for name, side in batch.items()
            }
        return lambda params: self.apply_fn(params, batch)


def images(seed, num):
    """Drawn pixels and labels, one position each."""
    rng = np.random.default_rng(seed)
    return Sequences(
        jnp.asarray(rng.random((num, 28, 28))),
        jnp.asarray(rng.integers(NUM_CLASSES, size=(num, 1))),
        jnp.asarray(np.ones((num, 1), bool)),
    )


def sentences(seed, num, length):
    """Drawn tokens; the first positions (prompts) and some last (padding) masked."""
    tokens = np.random.default_rng(seed).integers(VOCAB, size=(num, length + 1))
    position = np.arange(length)
    first = 1 + np.arange(num)[:, None] % 2
    mask = (position >= first) & (position < length - (first - 1))
    targets = np.where(mask, tokens[:, 1:], -100)
    return Sequences(*map(jnp.asarray, (tokens[:, :-1], targets, mask)))


def apply_toy(params, sequences):
    """Embedding, mean over the past, tanh, readout: `[batch, pos, vocab]`."""
    embedded = params["embed"][sequences.tokens]
    count = jnp.arange(1, embedded.shape[1] + 1, dtype=embedded.dtype)[None, :, None]
    past = jnp.cumsum(embedded, axis=1) / count
    hidden = jnp.tanh(past @ params["kernel"] + params["bias"][None, None])
    return hidden @ params["readout"]


def toy_params(width=5):
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return {
        "embed": draw(VOCAB, width),
        "kernel": draw(width, width),
        "bias": draw(width),
        "readout": draw(width, VOCAB),
    }


def make_dpo(beta, margin):
    """`-mean log sigmoid(beta (s+ - s- - margin))`, a loss on a dict of logits."""

    def loss_fn(logits, batch):
        sums = {
            name: sequence_log_probs(logits[name], side.targets, side.mask)
            for name, side in batch.items()
        }
        h = sums["chosen"] - sums["rejected"] - jnp.asarray(margin)
        return -jax.nn.log_sigmoid(beta * h).mean()

    return loss_fn


def _sft(apply_fn, params, update, probe):
    def residual(logits):
        _, targets, mask, *_ = update
        return {"update": references.sft_residual(logits["update"], targets, mask)}

    return Case(apply_fn, params, update, probe, losses.sft, residual)


def _image_case(model):
    apply_fn = lambda params, s: model.apply(params, s.tokens)[:, None, :]
    probe = images(2, 3)
    params = jax.jit(model.init)(jax.random.key(0), probe.tokens)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    return _sft(apply_fn, params, images(1, 2), probe)


def _toy_case():
    return _sft(apply_toy, toy_params(), sentences(4, 3, 4), sentences(5, 2, 5))


def _pair_case():
    update = {"chosen": sentences(6, 3, 4), "rejected": sentences(7, 3, 5)}
    probe = {"chosen": sentences(8, 2, 4), "rejected": sentences(9, 2, 3)}
    margin = np.array([0.3, -0.2, 0.1])
    return Case(
        apply_toy,
        toy_params(),
        update,
        probe,
        make_dpo(BETA, margin),
        lambda logits: references.dpo_residual(
            logits, update, beta=BETA, margin=margin
        ),
    )


_MAKERS = {
    "lenet": lambda: _image_case(LeNet()),
    "tanh_mlp": lambda: _image_case(MLP(widths=(16, 12), activation=nn.tanh)),
    "relu_mlp": lambda: _image_case(MLP(widths=(16, 12))),
    "toy": _toy_case,
    "pair": _pair_case,
}

NAMES = tuple(_MAKERS)


@functools.cache
def make_case(name):
    """The case of this name, made once."""
    return _MAKERS[name]()
