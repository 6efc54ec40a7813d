"""Networks of images, LeNet and the MLP, that start as PyTorch's defaults do.

The paper's notebook trains PyTorch networks with their default initialisers, and
shows the regime in which they are still under-trained: soft predictions, reached
after a fixed number of steps from that start. Flax's own defaults (LeCun normal
kernels, zero biases) have three times the variance, so the same schedule would end
somewhere else.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["MLP", "LeNet", "torch_uniform"]


class LeNet(nn.Module):
    r"""Two convolutions and three dense layers with tanh: 29,624 parameters.

    ::

        [batch, 28, 28]  conv 1->6, 5x5, pad 2; tanh; average pool 2
        [batch, 14, 14, 6]  conv 6->16, 5x5; tanh; average pool 2
        [batch, 5, 5, 16]  flatten; dense 400-60; tanh; dense 60-42; tanh
        [batch, 42]  dense 42-10

    Smooth in its params everywhere, so the remainder of a step is `O(lr^2)` without
    exception. Starts as PyTorch's defaults do (see `torch_uniform`).

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, Section 3.1 and Figure 1, with the
      widths of the notebook `squeeze_effect.ipynb`.

    Examples:
      >>> images = jnp.zeros((3, 28, 28))
      >>> logits, params = LeNet().init_with_output(jax.random.key(0), images)
      >>> logits.shape, logits.dtype
      ((3, 10), dtype('float32'))
    """

    @nn.compact
    def __call__(
        self, images: Float[Array | np.ndarray, "batch 28 28"]
    ) -> Float[Array, "batch 10"]:
        """Logits of the ten classes.

        Args:
          images: Pixels in [0, 1].

        Returns:
          Unnormalised log-probabilities, in nats, in the dtype of the params.

        Raises:
          ValueError: If `images` are not `[batch, 28, 28]`.
        """
        _check(images)
        x = images[..., None]
        x = nn.tanh(_conv(6, kernel_size=(5, 5), channels=1, padding=2)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # [batch, 14, 14, 6]
        x = nn.tanh(_conv(16, kernel_size=(5, 5), channels=6)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # [batch, 5, 5, 16]
        # Channels run fastest here and slowest in PyTorch: the same network with the
        # rows of the next kernel permuted, and their start is exchangeable.
        x = x.reshape(x.shape[0], 400)
        x = nn.tanh(_dense(60, fan_in=400)(x))
        x = nn.tanh(_dense(42, fan_in=60)(x))
        return _dense(10, fan_in=42)(x)


class MLP(nn.Module):
    r"""Dense layers, 784 -> `widths` -> 10: the notebook's `MLP_B1` by default.

    .. math:: h_0 = x, \quad h_i = \phi(h_{i-1} W_i + b_i), \quad z = h_n W_z + b_z

    The default ReLU has kinks: where a step moves a unit across zero, the remainder
    is not `O(lr^2)`. Pass `nn.tanh` where that order matters. Starts as PyTorch's
    defaults do (see `torch_uniform`).

    Attributes:
      widths: The number of units of each hidden layer; empty for a linear classifier.
      activation: The function applied after each hidden layer.

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, the notebook `squeeze_effect.ipynb`.

    Examples:
      >>> model = MLP(widths=(16,), activation=nn.tanh)
      >>> images = jnp.zeros((3, 28, 28))
      >>> logits, params = model.init_with_output(jax.random.key(0), images)
      >>> logits.shape, logits.dtype
      ((3, 10), dtype('float32'))
    """

    widths: tuple[int, ...] = (128, 128, 128, 128)
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(
        self, images: Float[Array | np.ndarray, "batch 28 28"]
    ) -> Float[Array, "batch 10"]:
        """Logits of the ten classes.

        Args:
          images: Pixels in [0, 1].

        Returns:
          Unnormalised log-probabilities, in nats, in the dtype of the params.

        Raises:
          ValueError: If `images` are not `[batch, 28, 28]`.
        """
        _check(images)
        x = images.reshape(images.shape[0], 784)
        for width in self.widths:
            x = self.activation(_dense(width, fan_in=x.shape[-1])(x))
        return _dense(10, fan_in=x.shape[-1])(x)


def torch_uniform(fan_in: int) -> jax.nn.initializers.Initializer:
    r"""Initialiser of PyTorch's linear and convolution layers, kernel and bias alike.

    .. math:: w, b \sim \mathcal{U}(-1/\sqrt{n}, 1/\sqrt{n}), \quad n = \text{fan-in}

    The fan-in is an argument because a Flax bias initialiser sees the shape of the
    bias only.

    Args:
      fan_in: The number of inputs that one output reads: features of a dense layer;
        kernel height times width times input channels of a convolution.

    Returns:
      A function `(key, shape, dtype) -> array`.

    References:
      PyTorch's `nn.Linear` and `nn.Conv2d`, section Variables: the kernel's
      `kaiming_uniform_(a=sqrt(5))` is this bound.

    Examples:
      >>> start = torch_uniform(25)(jax.random.key(0), (1000,))
      >>> bool(0.19 < abs(start).max() <= 0.2)
      True
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # part of the type; these networks are not sharded
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _dense(features: int, *, fan_in: int) -> nn.Dense:
    return nn.Dense(features, **_as_torch(fan_in))


def _conv(
    features: int, *, kernel_size: tuple[int, int], channels: int, padding: int = 0
) -> nn.Conv:
    """A cross-correlation, as in PyTorch, over `[batch, height, width, channels]`."""
    fan_in = math.prod(kernel_size) * channels
    return nn.Conv(features, kernel_size, padding=padding, **_as_torch(fan_in))


def _as_torch(fan_in: int) -> dict[str, Any]:
    """The settings of a layer that starts as PyTorch's does."""
    init = torch_uniform(fan_in)
    return {"kernel_init": init, "bias_init": init, "promote_dtype": _params_dtype}


def _params_dtype(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    # The params decide: float64 images with float32 params would otherwise run the
    # whole network in float64, and strict dtype promotion refuses the mixture.
    del dtype, inexact  # Flax's call passes them
    inputs, kernel, bias = args
    return [jnp.asarray(inputs, kernel.dtype), kernel, bias]


def _check(images: Float[Array | np.ndarray, "*shape"]) -> None:
    # Without this an 8x8 image would silently give an MLP with 64 inputs.
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"`images` must be [batch, 28, 28], got {images.shape}. Add the batch axis "
            "with `images[None]`, drop a channel axis with `images[..., 0]`; the "
            "loaders of `ldjax.data` return this shape."
        )
