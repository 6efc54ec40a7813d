"""What `benchmarks.ntk` measures: the models and the examples.

Cases A to I, and LeNet. Parameters are fresh, tokens and images random: the cost does
not depend on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax import Sequences
from ldjax.linen import LinenLogits, logits_fn
from ldjax.models import MLP, LeNet, Transformer, gpt2_config

__all__ = ["CASES", "Case", "make_case"]


class FullyConnected(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of each row."""
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class ConvNet(nn.Module):
    """Three convolutions and a dense layer of ten classes."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of each image."""
        for _ in range(3):
            x = nn.relu(nn.Conv(self.channels, (3, 3), padding="VALID")(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@dataclass(frozen=True)
class Case:
    """A kernel: a model, the examples on both sides, and the positions asked for.

    Attributes:
      name: As the command line has it.
      title: The model in words.
      module: Linen, `tokens -> [batch, classes]` or `[batch, pos, vocab]`.
      params: Of the module.
      inputs: What is passed to a compiled method after the parameters: what the
        module reads on the probe side and on the update side, and in case I the
        vector that the kernel is applied to.
      positions: Positions of a decoder whose logits count, on both sides.
    """

    name: str
    title: str
    module: nn.Module
    params: Any
    inputs: tuple[Array, ...]
    positions: tuple[int, ...] | None = None

    def apply(self, params: Any, tokens: Array) -> Array:
        """Logits, `[batch, classes]` or `[batch, pos, vocab]`."""
        logits = self.module.apply({"params": params}, tokens)
        assert isinstance(logits, jax.Array)
        return logits if self.positions is None else logits[:, list(self.positions)]

    def logits_fn(
        self, tokens: Array, positions: tuple[int, ...] | None = None
    ) -> LinenLogits:
        """The same as `ldjax` takes it; `positions` may be fewer."""
        is_image = self.positions is None
        shape = (tokens.shape[0], 1 if is_image else tokens.shape[1])
        sequences = Sequences(tokens, jnp.zeros(shape, int), jnp.ones(shape, bool))
        chosen = self.positions if positions is None else positions
        return logits_fn(self.module, sequences, positions=chosen)

    @property
    def num_outputs(self) -> tuple[int, int]:
        """Logits on the probe side and on the update side."""
        probe, update = (
            jax.eval_shape(self.apply, self.params, tokens).size
            for tokens in self.inputs[:2]
        )
        return probe, update


class Shape(NamedTuple):
    """The sizes of a decoder case; all positions count unless `last_only`."""

    width: int
    num_layers: int
    num_heads: int
    vocab_size: int
    length: int
    batch_size: int = 1
    last_only: bool = False

    @property
    def small(self) -> "Shape":
        """The same kind of case, at a size for a check."""
        return self._replace(
            width=8, num_layers=1, num_heads=2, vocab_size=23, length=4
        )


DECODERS = {
    "D": Shape(64, 2, 4, 512, 16, batch_size=2, last_only=True),
    "E": Shape(32, 2, 4, 256, 16),
    "F": Shape(64, 4, 4, 2048, 16),
    "G": Shape(128, 4, 4, 50_257, 16),
    "H": Shape(768, 12, 12, 50_257, 8),
    "I": Shape(64, 2, 4, 50_257, 16, batch_size=2, last_only=True),
}


def fully_connected(small: bool, key: Array) -> Case:
    """Case A."""
    num_inputs, widths = (24, (16, 16, 4)) if small else (3072, (2048,) * 3 + (8,))
    num = (3, 2) if small else (16, 16)
    sides = _noise(key, num, (num_inputs,))
    title = "FCN " + "-".join(map(str, (num_inputs, *widths)))
    return _image_case("A", title, FullyConnected(widths), sides)


def conv_net(small: bool, key: Array) -> Case:
    """Case B."""
    channels, size, num = (3, 8, (3, 2)) if small else (32, 32, (20, 5))
    sides = _noise(key, num, (size, size, 3))
    title = f"CNN, three 3 x 3 convolutions of {channels}, {size} x {size} images"
    return _image_case("B", title, ConvNet(channels), sides)


def mlp(small: bool, key: Array) -> Case:
    """Case C."""
    width, num = (8, (3, 2)) if small else (1024, (64, 64))
    sides = _noise(key, num, (28, 28))
    return _image_case("C", f"MLP 784-{width}-10", MLP((width,)), sides)


def lenet(small: bool, key: Array) -> Case:
    """LeNet of the paper's MNIST example."""
    sides = _noise(key, (3, 2) if small else (64, 64), (28, 28))
    return _image_case("LeNet", "LeNet, 28 x 28 images", LeNet(), sides)


def decoder(name: str, small: bool, key: Array) -> Case:
    """Cases D to I: GPT-2 with tied embeddings."""
    shape = DECODERS[name].small if small else DECODERS[name]
    config = gpt2_config(
        vocab_size=shape.vocab_size,
        num_layers=shape.num_layers,
        width=shape.width,
        num_heads=shape.num_heads,
        max_positions=1024 if name == "H" and not small else shape.length,
    )
    positions = tuple(range(shape.length))[-1 if shape.last_only else 0 :]
    sides = tuple(
        jax.random.randint(
            jax.random.fold_in(key, side),
            (shape.batch_size, shape.length),
            0,
            shape.vocab_size,
        )
        for side in range(2)
    )
    module = Transformer(config)
    params = jax.jit(module.init)(jax.random.fold_in(key, 2), sides[0])["params"]
    title = (
        f"GPT-2 d={shape.width}, {shape.num_layers} layers, V={shape.vocab_size}, "
        f"T={shape.length}, {'last position' if shape.last_only else 'all positions'}"
    )
    case = Case(name, title, module, params, sides, positions)
    if name != "I":
        return _sized(case)
    logits = jax.eval_shape(case.apply, params, sides[1])
    vector = jax.random.normal(jax.random.fold_in(key, 3), logits.shape)
    return Case(name, f"K @ v, {title}", module, params, (*sides, vector), positions)


CASES: dict[str, Callable[[bool, Array], Case]] = {
    "A": fully_connected,
    "B": conv_net,
    "C": mlp,
    **{
        name: lambda small, key, name=name: decoder(name, small, key)
        for name in DECODERS
    },
    "LeNet": lenet,
}


def make_case(name: str, *, small: bool, seed: int) -> Case:
    """A case of `CASES`, at its size or at one for a check."""
    return CASES[name](small, jax.random.key(seed))


def _noise(
    key: Array, num: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Random images for the probe side and for the update side."""
    probe, update = jax.random.split(key)
    return (
        jax.random.normal(probe, (num[0], *shape)),
        jax.random.normal(update, (num[1], *shape)),
    )


def _image_case(
    name: str, title: str, module: nn.Module, sides: tuple[Array, Array]
) -> Case:
    params = jax.jit(module.init)(jax.random.key(0), sides[0])["params"]
    return _sized(Case(name, title, module, params, sides))


def _sized(case: Case) -> Case:
    """The case with its numbers of examples in the title."""
    probe, update = (tokens.shape[0] for tokens in case.inputs[:2])
    title = f"{case.title}, {probe} x {update}"
    return Case(case.name, title, case.module, case.params, case.inputs, case.positions)
