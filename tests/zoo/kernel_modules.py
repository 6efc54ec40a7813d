"""Tiny Linen modules that an exact kernel must be right about: `tokens` in, logits out.

Some are what people write, some are traps: layers that only look linear in their
parameters, logits that are more than a head, examples that see each other.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

VOCAB, WIDTH = 5, 4


def _embed(tokens, vocab=VOCAB):
    return nn.Embed(vocab, WIDTH, name="embed")(tokens)


class DenseTwice(nn.Module):
    """One layer at two places and two ranks; a bias each time."""

    @nn.compact
    def __call__(self, tokens):
        shared = nn.Dense(WIDTH, name="shared")
        x = nn.tanh(shared(_embed(tokens)))
        pooled = nn.tanh(shared(x.mean(axis=1)))
        return nn.Dense(VOCAB, name="head")(nn.tanh(shared(x)) * pooled[:, None])


class Reshapes(nn.Module):
    """Layers that see examples and positions merged, time first, and a bare row.

    It sows, which nothing collects, and has a layer that is never called.
    """

    @nn.compact
    def __call__(self, tokens):
        x = _embed(tokens)
        batch, length, width = x.shape
        x = nn.Dense(6, name="merged")(x.reshape(-1, width)).reshape(batch, length, -1)
        self.sow("intermediates", "merged", x)
        x = nn.Dense(WIDTH, name="time_first")(nn.tanh(x).swapaxes(0, 1))
        x = jnp.cumsum(nn.tanh(x), axis=0).swapaxes(0, 1)
        unused = nn.Dense(2, name="unused")
        if self.is_initializing():
            unused(x)
        return nn.Dense(VOCAB, name="head")(x)


class Positions(nn.Module):
    """A table of positions, a sliced raw parameter, and one embedding used twice."""

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        embed = nn.Embed(VOCAB, WIDTH, name="embed")
        table = nn.Embed(8, WIDTH, name="table")(jnp.arange(length)[None])
        raw = self.param("raw", nn.initializers.normal(), (8, WIDTH))
        before = embed(jnp.roll(tokens, 1, axis=1))
        x = embed(tokens) + nn.tanh(before) * table + raw[None, :length]
        return nn.Dense(VOCAB, name="head")(nn.tanh(jnp.cumsum(x, axis=1)))


class Tied(nn.Module):
    """An embedding that also reads the logits off; `scale` and `cap` of the logits.

    Ids are shifted by one, as in OPT, and embeddings scaled, as in Gemma.
    """

    vocab: int = VOCAB
    scale: float = 1.0
    cap: float | None = None
    twice: bool = False

    def setup(self):
        self.embed = nn.Embed(self.vocab + 1, WIDTH)
        self.mix = nn.Dense(WIDTH)

    def hidden(self, tokens):
        x = self.embed(tokens + 1) * WIDTH**0.5
        if self.twice:
            x = x * self.embed(jnp.roll(tokens, 1, axis=1))
        return nn.tanh(self.mix(jnp.cumsum(x, axis=1)))

    def __call__(self, tokens):
        logits = self.scale * self.embed.attend(self.hidden(tokens))
        return logits if self.cap is None else self.cap * nn.tanh(logits / self.cap)


class Scaled(nn.Module):
    """A head, and what may be done to its logits."""

    scale: float = 1.0
    cap: float | None = None
    has_temperature: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.tanh(jnp.cumsum(_embed(tokens), axis=1))
        logits = self.scale * nn.Dense(VOCAB, name="head")(x)
        if self.has_temperature:
            logits = logits * jnp.exp(self.param("temperature", nn.zeros, ()))
        return logits if self.cap is None else self.cap * nn.tanh(logits / self.cap)


class HeadElsewhere(nn.Module):
    """Logits that are not one call of the head and nothing else."""

    how: str

    @nn.compact
    def __call__(self, tokens):
        x = nn.tanh(jnp.cumsum(_embed(tokens), axis=1))
        head = nn.Dense(WIDTH, name="head")
        logits = head(x)
        if self.how == "called twice":
            return head(nn.tanh(logits))
        if self.how == "summed":
            return logits + head(x**2)
        if self.how == "penalised":
            kernel = head.variables["params"]["kernel"]
            return logits * (1 + 0.1 * jnp.sum(kernel**2))
        if self.how == "masked":
            return logits.at[..., 0].set(-1e3)
        return logits + x


class Rematerialised(nn.Module):
    """`nn.remat` of a block, used twice, and `nn.jit` of a layer."""

    @nn.compact
    def __call__(self, tokens):
        block = nn.remat(_Block)(name="block")
        x = block(block(_embed(tokens)))
        x = nn.jit(nn.Dense)(WIDTH, name="jitted")(x)
        return nn.Dense(VOCAB, name="head")(jnp.cumsum(nn.tanh(x), axis=1))


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, name="out")(nn.tanh(nn.Dense(3, name="in")(x)))


class CubedDense(nn.Dense):
    """Its kernel is not what multiplies the inputs."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], WIDTH))
        return inputs @ kernel**3


class GatedDense(nn.Dense):
    """More than a Dense after calling one."""

    @nn.compact
    def __call__(self, inputs):
        gate = self.param("gate", nn.initializers.ones, (self.features,))
        y = super().__call__(inputs)
        return y * nn.sigmoid(gate + self.variables["params"]["bias"])[None, None]


def _sine_dot(x, kernel, dimension_numbers, precision=None, **_):
    return jax.lax.dot_general(x, jnp.sin(kernel), dimension_numbers, precision)


class Impostors(nn.Module):
    """Layers that look linear in their parameters and are not."""

    @nn.compact
    def __call__(self, tokens):
        x = _embed(tokens)
        x = nn.tanh(CubedDense(WIDTH, name="cubed")(x))
        x = nn.tanh(GatedDense(WIDTH, name="gated")(x))
        x = nn.Dense(WIDTH, dot_general=_sine_dot, name="custom")(x)
        honest = nn.Dense(WIDTH, name="honest")
        read = nn.Dense(WIDTH, name="read", use_bias=False)
        x = read(honest(nn.tanh(x)))
        kernel = read.variables["params"]["kernel"]
        x = jnp.cumsum(nn.tanh(x), axis=1) * (1 + 0.1 * jnp.sum(kernel**2))
        return nn.Dense(VOCAB, name="head")(x)


class Normalised(nn.Module):
    """`nn.WeightNorm` around a Dense."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.WeightNorm(nn.Dense(WIDTH, name="inner"), name="norm")(_embed(tokens))
        return nn.Dense(VOCAB, name="head")(jnp.cumsum(nn.tanh(x), axis=1))


class _Carried(nn.Module):
    """The body of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(WIDTH, name="dense")(x)), None


class Scanned(nn.Module):
    """`nn.scan` with a layer for each step, and with one layer for all."""

    @nn.compact
    def __call__(self, tokens):
        x = _embed(tokens)
        stacked: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        shared: Any = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        x, _ = nn.scan(_Carried, length=2, **stacked)(name="stacked")(x, None)
        x, _ = nn.scan(_Carried, length=2, **shared)(name="shared")(x, None)
        return nn.Dense(VOCAB, name="head")(jnp.cumsum(x, axis=1))


class Experts(nn.Module):
    """`nn.vmap` with a layer for each expert, and with one layer for all."""

    @nn.compact
    def __call__(self, tokens):
        x = _embed(tokens)
        gates = nn.softmax(nn.Dense(3, name="router")(x))
        axes: Any = {"in_axes": None, "out_axes": -1, "axis_size": 3}
        experts = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            **axes,
        )
        x = (nn.tanh(experts(WIDTH, name="experts")(x)) * gates[..., None, :]).sum(-1)
        shared = nn.vmap(
            nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}
        )
        x = shared(WIDTH, name="shared")(x)
        return nn.Dense(VOCAB, name="head")(jnp.cumsum(nn.tanh(x), axis=1))


class General(nn.Module):
    """Kernels with several axes, a matrix for each head, and attention."""

    @nn.compact
    def __call__(self, tokens):
        x = _embed(tokens)
        x = nn.DenseGeneral((2, 3), name="split")(x)  # [batch, pos, 2, 3]
        heads = nn.DenseGeneral(2, batch_dims=(0,), name="heads")
        x = heads(jnp.moveaxis(x, 2, 0))  # one matrix for each of the two
        x = nn.DenseGeneral(WIDTH, axis=(-2, -1), name="join")(jnp.moveaxis(x, 0, 2))
        mask = nn.make_causal_mask(tokens)
        x += nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=mask)
        return nn.Dense(VOCAB, name="head")(x)


class Convolutions(nn.Module):
    """Strides, dilations, paddings, groups, depthwise, and an extra batch axis."""

    @nn.compact
    def __call__(self, tokens):
        batch = len(tokens)  # [batch, 6, 5, 4]
        x = nn.tanh(
            nn.Conv(
                4,
                (3, 2),
                strides=(2, 1),
                kernel_dilation=(1, 2),
                feature_group_count=2,
                name="grouped",
            )(tokens)
        )  # [batch, 3, 5, 4]
        depthwise = nn.Conv(
            8, (2, 2), feature_group_count=4, padding="VALID", name="depthwise"
        )
        x = nn.tanh(depthwise(x))  # [batch, 2, 4, 8]
        spread = nn.Conv(
            2,
            (2, 3),
            input_dilation=(2, 1),
            padding=((1, 0), (0, 2)),
            use_bias=False,
            name="spread",
        )
        x = nn.tanh(spread(x)).reshape(batch, 2, -1, 2)  # two stacks of a line
        x = nn.tanh(nn.Conv(3, (2,), padding="CIRCULAR", name="stacks")(x))
        return nn.Dense(VOCAB, name="head")(x.reshape(batch, -1))


class Lines(nn.Module):
    """Convolutions over positions, and kinds of layers that are no convolution."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Conv(4, (3,), padding="CAUSAL", name="causal")(_embed(tokens))
        x = nn.Conv(4, 2, padding="SAME", feature_group_count=2, name="same")(x)
        x = nn.tanh(x)
        x = nn.ConvTranspose(4, (2,), padding="SAME", name="transposed")(x)
        x = nn.ConvLocal(4, (2,), padding="SAME", name="local")(nn.tanh(x))
        return nn.Dense(VOCAB, name="head")(nn.tanh(x))


class Norms(nn.Module):
    """Scales and biases of normalisations."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.LayerNorm(name="layer")(jnp.cumsum(_embed(tokens), axis=1))
        x = nn.RMSNorm(name="rms")(nn.tanh(nn.Dense(WIDTH, name="dense")(x)))
        x = nn.tanh(nn.GroupNorm(num_groups=2, name="group")(x) + x)
        x = nn.PReLU(name="prelu")(x)
        return nn.Dense(VOCAB, name="head")(x)


class Wrapped(nn.Module):
    """Logits of a whole input, with whatever layer is under test before them."""

    layer: nn.Module

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(VOCAB, name="head")(self.layer(tokens))


class Neighbours(nn.Module):
    """Examples of a batch see each other."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.tanh(nn.Dense(WIDTH, name="dense")(tokens))
        return nn.Dense(VOCAB, name="head")(x - x.mean(axis=0, keepdims=True))


class Counted(nn.Module):
    """Logits that depend on the size of the batch, not on what is in it."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.tanh(nn.Dense(WIDTH, name="dense")(tokens) / len(tokens))
        return nn.Dense(VOCAB, name="head")(x)
