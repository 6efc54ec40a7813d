"""Modules whose layers act as their matrices somewhere, and not everywhere.

At most draws of parameters and tokens each is what it seems. `make_impostor` gives
those at which it is not, in the middle of a batch if it is about tokens.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from zoo.kernel_models import Model, Side, random_params, sentences
from zoo.kernel_modules import VOCAB, WIDTH

from ldjax import Sequences

MASK = VOCAB - 1


def _dense(change):
    """A `Dense` whose outputs are `change(inputs, kernel)`."""

    class Layer(nn.Dense):
        @nn.compact
        def __call__(self, inputs):
            shape = inputs.shape[-1], self.features
            kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
            return change(inputs, kernel)

    return Layer


def _halved_if_large(inputs, kernel):
    is_large = jnp.abs(kernel).max() > 2
    return inputs @ jax.lax.cond(is_large, lambda k: 0.5 * k, lambda k: k, kernel)


def _stopped_if_loud(inputs, kernel):
    is_loud = jnp.abs(inputs).max() > 2
    return inputs @ (kernel + is_loud * (jax.lax.stop_gradient(kernel) - kernel))


@jax.custom_jvp
def _steep_if_large(kernel):
    """Itself, with a derivative of its own."""
    return kernel


@_steep_if_large.defjvp
def _(primals, tangents):
    (kernel,), (tangent,) = primals, tangents
    return kernel, jnp.where(jnp.abs(kernel) > 2, 2.0, 1.0) * tangent


CHANGES = {
    "max norm": lambda x, k: x @ (k * jnp.minimum(1, 6 / jnp.sqrt((k**2).sum()))),
    "clipped kernel": lambda x, k: x @ jnp.clip(k, -2, 2),
    "branch": _halved_if_large,
    "loud inputs": lambda x, k: x @ k * jnp.where(jnp.abs(x).max() > 2, 0.5, 1.0),
    "stopped": _stopped_if_loud,
    "stopped entries": lambda x, k: (
        x @ jnp.where(jnp.abs(k) > 2, jax.lax.stop_gradient(k), k)
    ),
    "own derivative": lambda x, k: x @ _steep_if_large(k),
    "kernel in the inputs": lambda x, k: (x + jnp.maximum(0, k - 2).sum()) @ k,
}


class Trunk(nn.Module):
    """An embedding, a layer under test, a head."""

    layer: type
    dtype: str = "float64"
    bound: float | None = None

    @nn.compact
    def __call__(self, tokens):
        wide = jnp.promote_types(self.dtype, "float32")
        x = nn.Embed(VOCAB, WIDTH, name="embed", param_dtype=wide)(tokens)
        x = self.layer(WIDTH, name="layer", param_dtype=self.dtype)(x).astype(wide)
        x = jnp.cumsum(nn.tanh(x), axis=1)
        logits = nn.Dense(VOCAB, name="head", param_dtype=wide)(x)
        return logits if self.bound is None else logits.clip(-self.bound, self.bound)


class ByToken(nn.Module):
    """One token goes another way; the table of tokens may read the logits off too."""

    how: str = ""
    is_tied: bool = False

    @nn.compact
    def __call__(self, tokens):
        table = {"clipped ids": _ClippedIds, "silent id": _SilentId}
        table["masked table"] = _MaskedTable
        embed = table.get(self.how, nn.Embed)(VOCAB, WIDTH, name="embed")
        x = embed(tokens)
        is_mask = (tokens == MASK)[..., None]
        if self.how == "mean":
            x = jnp.where(is_mask, embed.embedding.mean(0)[None, None], x)
        if self.how == "gated":
            gate = self.param("gate", nn.initializers.ones, (WIDTH,))
            x = _gated(gate)(WIDTH, name="mix")(x)
        elif self.how == "silent row":
            x = _dense(_without_the_mask)(WIDTH, name="mix")(nn.one_hot(tokens, VOCAB))
        else:
            mix = nn.Dense(WIDTH, name="mix")
            y = mix(x)
            if self.how == "transposed":
                other_way = x @ mix.variables["params"]["kernel"].T
                y = jnp.where(is_mask, other_way, y)
            if self.how == "stopped token":
                y = jnp.where(is_mask, jax.lax.stop_gradient(y), y)
            x = y
        hidden = nn.tanh(jnp.cumsum(x, axis=1))
        if self.is_tied:
            return embed.attend(hidden)
        return nn.Dense(VOCAB, name="head")(hidden)


class Crowded(nn.Module):
    """Examples see each other where a number is large."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(WIDTH, name="dense")(tokens)
        x = jnp.where(x > 50, x.mean(axis=0, keepdims=True), x)
        return nn.Dense(VOCAB, name="head")(nn.tanh(x / 100))


class Switched(nn.Module):
    """The same module by its attributes, another one by what it reads elsewhere."""

    switch = {"factor": 1.0}  # noqa: RUF012

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH, name="embed")(tokens)
        layer = _dense(lambda x, k: x @ (self.switch["factor"] * k))
        x = jnp.cumsum(nn.tanh(layer(WIDTH, name="layer")(x)), axis=1)
        return nn.Dense(VOCAB, name="head")(x)


class _ClippedIds(nn.Embed):
    def __call__(self, inputs):
        return jnp.take(self.embedding, inputs, axis=0, mode="clip")


class _MaskedTable(nn.Embed):
    def setup(self):
        shape = self.num_embeddings, self.features
        table = self.param("embedding", self.embedding_init, shape, self.param_dtype)
        self.embedding = table * (np.arange(VOCAB) != MASK)[:, None]


class _SilentId(nn.Embed):
    def __call__(self, inputs):
        return self.embedding[inputs] * (inputs != MASK)[..., None]


def _gated(gate):
    """A `Dense` whose outputs pass where another parameter is positive."""
    is_open = jnp.where(gate > 0, 1.0, 0.0)[None]
    return _dense(lambda x, k: x @ (k * is_open))


def _without_the_mask(inputs, kernel):
    """A fixed mask takes out a row that few inputs reach."""
    return inputs @ (kernel * (np.arange(VOCAB) != MASK)[:, None])


def _ids(*rows):
    tokens = jnp.asarray(rows)
    return Sequences(tokens, jnp.zeros_like(tokens), jnp.ones(tokens.shape, bool))


_PLAIN = sentences(1, 2, 3), sentences(2, 3, 3)
_MASKED = (
    _ids([0, 1, 2], [1, MASK, 0], [2, 3, 1]),
    _ids([1, 0, 3], [MASK, 2, MASK], [3, 2, 0]),
)
_NEGATIVE = _ids([0, -1, 2], [1, 3, -2]), _ids([MASK, 2, 3], [3, 0, -1])
_FAR = _ids([0, MASK + 2, 2], [1, 3, 4]), _ids([4, 2, 3], [3, 0, MASK + 1])


def _model(module, sides, scales=None, **facts):
    params = random_params(module, _PLAIN[0].tokens)
    for layer, scale in (scales or {}).items():
        params[layer] = jax.tree.map(lambda leaf, s=scale: s * leaf, params[layer])
    probe, update = map(Side, sides)
    return Model(module, probe, update, params, **facts)


# Times the drawn ones: a large kernel of small inputs, and the other way around.
_LARGE, _LOUD = {"layer": 5.0, "embed": 0.3}, {"layer": 0.3, "embed": 3.0}


def changed(change, scales=None, dtype="float64"):
    """A layer of which `change` is taken."""
    module = Trunk(_dense(change), dtype)
    return _model(module, _PLAIN, scales, warned=("layer/kernel",))


def _by_token(how, sides, is_tied=False, **facts):
    head = None if is_tied else "head"
    return _model(ByToken(how, is_tied), sides, head=head, **facts)


_TABLE, _MIX = ("embed/embedding",), ("mix/kernel",)
_MAKERS: dict[str, Any] = {
    **{
        name: functools.partial(
            changed, how, _LOUD if name in ("loud inputs", "stopped") else _LARGE
        )
        for name, how in CHANGES.items()
    },
    "mean": lambda: _by_token("mean", _MASKED, warned=_TABLE),
    "mean, tied": lambda: _by_token("mean", _MASKED, True, warned=_TABLE),
    "transposed": lambda: _by_token("transposed", _MASKED, warned=_MIX),
    "stopped token": lambda: _by_token("stopped token", _MASKED),
    "silent id": lambda: _by_token("silent id", _MASKED, warned=_TABLE),
    "masked table": lambda: _by_token("masked table", _MASKED, warned=_TABLE),
    "clipped ids": lambda: _by_token("clipped ids", _FAR, warned=_TABLE),
    "negative ids": lambda: _by_token("", _NEGATIVE),
    "negative ids, tied": lambda: _by_token("", _NEGATIVE, True),
    "gated": lambda: _by_token("gated", _PLAIN, warned=_MIX),
    "silent row": lambda: _by_token("silent row", _MASKED, warned=_MIX),
    "clipped logits": lambda: _model(
        Trunk(nn.Dense, bound=30.0), _PLAIN, {"head": 60.0}
    ),
}
NAMES = tuple(_MAKERS)


def make_switched():
    """`Switched` as a model of its own."""
    return _model(Switched(), _PLAIN)


# No fixed multiple of a head's outputs: refused by the factored kernel.
HEADLESS = ("clipped logits", "mean, tied")


@functools.cache
def make_impostor(name):
    """The module of this name where it is not what it seems."""
    return _MAKERS[name]()
