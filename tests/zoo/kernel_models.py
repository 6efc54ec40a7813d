"""A zoo for the exact kernels, and its dense Jacobians.

Every module is tiny, in float64, and each of its parameters is drawn, so that no bias
is zero and no scale is one. The witness (`Model.jacobian`) asks JAX for the Jacobian
of one example at a time and knows nothing of `ldjax.linen` or `ldjax.ntk`.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from zoo.decoders import CONFIGS
from zoo.kernel_modules import (
    VOCAB,
    Convolutions,
    DenseTwice,
    Experts,
    General,
    HeadElsewhere,
    Impostors,
    Lines,
    Normalised,
    Norms,
    Positions,
    Rematerialised,
    Reshapes,
    Scaled,
    Scanned,
    Tied,
)

from ldjax import Sequences
from ldjax.models import MLP, LeNet, Transformer

# XLA's time is what a test costs here: unoptimised code halves it.
_QUICK = {"xla_backend_optimization_level": 0}


def compiled(function):
    """`jax.jit`, for code that runs once."""
    return jax.jit(function, compiler_options=_QUICK)


@dataclasses.dataclass(frozen=True)
class Side:
    """What one side of a kernel reads, as `ldjax.linen.logits_fn` takes it."""

    sequences: Any
    positions: Any = None
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self):
        """The batches in JAX's order of leaves."""
        if isinstance(self.sequences, dict):
            return [self.sequences[name] for name in sorted(self.sequences)]
        return [self.sequences]

    def positions_of(self, example, length):
        if self.positions is None:
            return np.arange(length)
        positions = np.asarray(self.positions)
        return positions if positions.ndim == 1 else positions[example]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A module, its drawn parameters and the examples of both sides.

    `warned` are the leaves that lose the structured path and are named in a warning;
    `silent` those whose kernel vanishes. `head` is the layer that the logits come out
    of, None where that is the embedding.
    """

    module: nn.Module
    probe: Side
    update: Side
    params: Any
    warned: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    head: str | None = "head"

    def logits(self, params, side):
        """`params -> logits` in the structure of the batch, by Flax alone."""

        def of_part(part):
            logits = self._apply(params, part.tokens, side.inputs)
            rows = [
                logits[b, side.positions_of(b, logits.shape[1])]
                for b in range(len(logits))
            ]
            return jnp.stack(rows)

        if isinstance(side.sequences, dict):
            return {name: of_part(part) for name, part in side.sequences.items()}
        return of_part(side.sequences)

    def _apply(self, params, tokens, inputs) -> Any:
        logits: Any = self.module.apply({"params": params}, tokens, **inputs)
        return logits[:, None] if logits.ndim == 2 else logits

    def space(self, side):
        """The space of a side's logits."""
        return jax.eval_shape(lambda p: self.logits(p, side), self.params)

    @functools.cached_property
    def paths(self):
        """Names of the leaves, in JAX's order."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return ["/".join(key.key for key in path) for path, _ in leaves]

    @functools.cached_property
    def _one_example(self):
        def logits(params, tokens, inputs):
            return self._apply(params, tokens[None], inputs)[0]

        return compiled(jax.jacrev(logits))

    def _jacobian(self, side):
        blocks = [[] for _ in self.paths]
        for part in side.parts:
            for b in range(len(part.tokens)):
                one = jax.tree.map(lambda x, b=b: jnp.asarray(x)[b, None], side.inputs)
                tokens = jnp.asarray(part.tokens)[b]
                by_leaf = self._one_example(self.params, tokens, one)
                for rows, leaf in zip(blocks, jax.tree.leaves(by_leaf), strict=True):
                    picked = np.asarray(leaf)[side.positions_of(b, len(leaf))]
                    rows.append(picked.reshape(picked.shape[0] * picked.shape[1], -1))
        return dict(
            zip(self.paths, [np.concatenate(rows) for rows in blocks], strict=True)
        )

    @functools.cached_property
    def jacobians(self):
        """`J[row, p]` of each leaf: of the probe, of the update."""
        return self._jacobian(self.probe), self._jacobian(self.update)

    def kernel(self, leaves=None, weights=None) -> np.ndarray:
        """`K = J_o P J_u^T` over some leaves, over the ravelled logits.

        `weights` is the diagonal P, a pytree like the parameters.
        """
        probe, update = self.jacobians
        diagonal = dict(zip(self.paths, jax.tree.leaves(weights), strict=False))
        total = np.zeros(self.shape)
        for path in self.paths if leaves is None else leaves:
            scale = np.asarray(diagonal.get(path, 1.0)).ravel()
            total += (probe[path] * scale) @ update[path].T
        return total

    @functools.cached_property
    def head_coefficients(self):
        """`c[row, column]` by position: what the head adds to each diagonal entry."""
        if self.head is None:
            scale = getattr(self.module, "scale", 1.0)
            probe, update = (self._hidden(side) for side in (self.probe, self.update))
            return scale**2 * probe @ update.T
        own = [path for path in self.paths if path.startswith(f"{self.head}/")]
        probe, update = (
            jax.tree.leaves(self.space(side))[0].shape[-1]
            for side in (self.probe, self.update)
        )
        rows, columns = self.shape
        blocks = self.kernel(own).reshape(rows // probe, probe, columns // update, -1)
        return blocks[:, 0, :, 0]

    def _hidden(self, side):
        """What the embedding reads the logits off, `[position, width]`."""
        rows = []
        for part in side.parts:
            hidden = self.module.apply(
                {"params": self.params}, part.tokens, **side.inputs, method="hidden"
            )
            for b, of_example in enumerate(np.asarray(hidden)):
                rows.append(of_example[side.positions_of(b, len(of_example))])
        return np.concatenate(rows)

    @property
    def shape(self):
        """Numbers of logits on the two sides."""
        return tuple(len(next(iter(side.values()))) for side in self.jacobians)


def nested(matrix, out_space, in_space):
    """A matrix over ravelled spaces in the nesting of `jax.jacobian`."""
    outs, out_def = jax.tree.flatten(out_space)
    ins, in_def = jax.tree.flatten(in_space)
    rows = np.split(matrix, np.cumsum([leaf.size for leaf in outs])[:-1])
    return out_def.unflatten(
        in_def.unflatten(
            block.reshape(out.shape + leaf.shape)
            for block, leaf in zip(
                np.split(row, np.cumsum([leaf.size for leaf in ins])[:-1], axis=1),
                ins,
                strict=True,
            )
        )
        for row, out in zip(rows, outs, strict=True)
    )


def drawn(space, seed):
    """A vector of a space."""
    rng = np.random.default_rng((seed, 7))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), space)


def positive(params, seed):
    """A drawn diagonal, like the parameters: the `P` of `K_P`."""
    rng = np.random.default_rng((seed, 8))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 3, size=leaf.shape)), params
    )


def random_params(module, tokens, seed=0, **inputs):
    """Draws for every leaf; nothing is initialised, only shaped."""
    init = functools.partial(module.init, jax.random.key(0))
    shapes = jax.eval_shape(init, tokens, **inputs)["params"]
    rng = np.random.default_rng((seed, 9))

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1])
        size = min(0.6, 1.5 / fan_in**0.5) if leaf.ndim > 1 else 0.3
        is_scale = path[-1].key.endswith("scale")
        return jnp.asarray(rng.normal(size=leaf.shape) * size + is_scale)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# Examples.


def sentences(seed, num, length, vocab=VOCAB):
    """Drawn tokens, different ones but that the third or later last repeats the first.

    Attention over equal tokens has no gradient by queries and keys.
    """
    rng = np.random.default_rng((seed, 1))
    rows = [rng.permutation(np.arange(1, vocab)) for _ in range(num)]
    tokens = np.stack([np.resize(row, length + 1) for row in rows])
    if length > 2:
        tokens[:, length - 1] = tokens[:, 0]
    mask = np.arange(length)[None] >= 1 + np.arange(num)[:, None] % 2
    return Sequences(*map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], mask)))


def left_padded(seed, num, length, vocab=VOCAB, pad=0):
    """A side whose examples but the first start with padding that embeds as itself."""
    batch = sentences(seed, num, length, vocab)
    real = np.arange(length)[None] >= np.minimum(np.arange(num)[:, None], length - 2)
    tokens = np.where(real, batch.tokens, pad)
    padded = batch._replace(tokens=jnp.asarray(tokens), mask=jnp.asarray(real))
    return Side(padded, inputs={"mask": jnp.asarray(real)})


def vectors(seed, num, *shape):
    """Drawn images or features, one position each."""
    rng = np.random.default_rng((seed, 2))
    return Sequences(
        jnp.asarray(rng.normal(size=(num, *shape))),
        jnp.asarray(rng.integers(VOCAB, size=(num, 1))),
        jnp.ones((num, 1), bool),
    )


# The zoo.


def _of(module, probe, update, **facts):
    probe, update = (
        side if isinstance(side, Side) else Side(side) for side in (probe, update)
    )
    params = random_params(module, probe.parts[0].tokens)
    return Model(module, probe, update, params, **facts)


def _language(module, **facts):
    return _of(module, sentences(1, 2, 3), sentences(2, 3, 3), **facts)


def _decoder(style, probe, update, **changes):
    size = {"width": 6, "mlp_width": 5, "head_dim": 4, "num_heads": 2, "num_layers": 1}
    size |= {"num_kv_heads": 2, "max_positions": 6, "param_dtype": "float64"}
    config = dataclasses.replace(CONFIGS[style], **(size | changes))
    # Without rotary positions, softmax does not see a bias of the keys.
    keyed = config.qkv_bias and not config.rotary_dim
    silent = [
        f"blocks_{i}/attention/key/bias" for i in range(config.num_layers * keyed)
    ]
    head = None if config.tied_head else "unembedding"
    return _of(Transformer(config), probe, update, silent=tuple(silent), head=head)


def _pair(seed, lengths, num=2, vocab=VOCAB):
    return {
        name: sentences(seed + i, num, length, vocab)
        for i, (name, length) in enumerate(
            zip(("chosen", "rejected"), lengths, strict=True)
        )
    }


_DECODERS = {
    # n = width + tokens of both sides = 6 + 3 + 4 < 19
    "gpt2 tied": lambda: _decoder(
        "gpt2", sentences(1, 2, 3, 19), sentences(2, 3, 4, 19), vocab_size=19
    ),
    # V < width, so n > V without a tie
    "gpt2 untied": lambda: _decoder(
        "gpt2", sentences(1, 2, 3), sentences(2, 3, 3), vocab_size=5, tied_head=False
    ),
    # a bias of the head; padding holds ids out of range
    "neox padded": lambda: _decoder(
        "neox",
        left_padded(1, 2, 3, 9, pad=1000),
        left_padded(2, 3, 3, 9, pad=1000),
        vocab_size=9,
        head_bias=True,
        rotary_fraction=0.5,
    ),
    # tied and padded, grouped queries, n = 6 + 3 + 3 > 9
    "qwen2 padded": lambda: _decoder(
        "qwen2",
        left_padded(1, 2, 3, 9, pad=7),
        left_padded(2, 3, 3, 9, pad=1000),
        vocab_size=9,
        num_kv_heads=1,
        tied_head=True,
    ),
    # two rematerialised layers; positions for all examples and one for each
    "llama remat": lambda: _decoder(
        "llama",
        Side(sentences(1, 2, 3, 9), positions=np.array([2, 0])),
        Side(sentences(2, 2, 3, 9), positions=np.array([[1], [2]])),
        vocab_size=9,
        num_layers=2,
        num_kv_heads=1,
        remat=True,
        tied_head=False,
    ),
    # pairs of different lengths; positions of each example
    "llama pair": lambda: _decoder(
        "llama",
        Side(sentences(1, 2, 3, 16), positions=np.array([[0, 2], [1, 2]])),
        _pair(3, (3, 2), vocab=16),
        vocab_size=16,
        tied_head=True,
    ),
}

_LAYERS = {
    "dense twice": lambda: _language(DenseTwice()),
    "reshapes": lambda: _language(Reshapes(), silent=("unused/bias", "unused/kernel")),
    "positions": lambda: _language(Positions()),
    "remat": lambda: _language(Rematerialised()),
    "impostors": lambda: _language(
        Impostors(),
        warned=(
            "cubed/kernel",
            "gated/bias",
            "gated/kernel",
            "custom/kernel",
            "read/kernel",
        ),
    ),
    "weight norm": lambda: _language(Normalised()),
    "scan": lambda: _language(Scanned()),
    "experts": lambda: _language(Experts()),
    "general": lambda: _language(General(), silent=("attention/key/bias",)),
    "lines": lambda: _language(Lines()),
    "norms": lambda: _language(Norms()),
    "convolutions": lambda: _of(
        Convolutions(), vectors(1, 2, 6, 5, 4), vectors(2, 3, 6, 5, 4)
    ),
}

_HEADS = {
    "mlp": lambda: _of(
        MLP(widths=(6, 5), activation=nn.tanh),
        vectors(1, 2, 28, 28),
        vectors(2, 3, 28, 28),
        head="Dense_2",
    ),
    "lenet": lambda: _of(
        LeNet(), vectors(1, 2, 28, 28), vectors(2, 3, 28, 28), head="Dense_2"
    ),
    "tied": lambda: _language(Tied(), head=None),
    "tied scaled": lambda: _language(Tied(vocab=19, scale=0.5), head=None),
    "tied pair": lambda: _of(
        Tied(), _pair(1, (3, 2)), _pair(4, (2, 3), num=3), head=None
    ),
    "scaled": lambda: _language(Scaled(scale=0.5)),
}

# Exact or refused by name, never wrong.
_HEADLESS = {
    "capped": lambda: _language(Scaled(cap=0.7)),
    "tied capped": lambda: _language(Tied(cap=0.7)),
    "temperature": lambda: _language(Scaled(has_temperature=True)),
    "tied twice": lambda: _language(Tied(twice=True)),
    "head called twice": lambda: _language(HeadElsewhere("called twice")),
    "head summed": lambda: _language(HeadElsewhere("summed")),
    "head penalised": lambda: _language(
        HeadElsewhere("penalised"), warned=("head/kernel",)
    ),
    "head skipped": lambda: _language(HeadElsewhere("skipped")),
    "head masked": lambda: _language(HeadElsewhere("masked")),
}

_MAKERS = _DECODERS | _LAYERS | _HEADS | _HEADLESS

NAMES, DECODERS, LAYERS, HEADS, HEADLESS = map(
    tuple, (_MAKERS, _DECODERS, _LAYERS, _HEADS, _HEADLESS)
)


@functools.cache
def make_model(name):
    """The model of this name, made once."""
    return _MAKERS[name]()
