"""Dense and convolution layers that start as PyTorch's defaults do.

The paper's notebook trains PyTorch networks with their default initialisers, and
shows the regime in which they are still under-trained: soft predictions, reached
after a fixed number of steps from that start. Flax's own defaults (LeCun normal
kernels, zero biases) have three times the variance, so the same schedule would end
somewhere else. This is the one place where the start is decided.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["check_images", "torch_conv", "torch_dense", "torch_uniform"]


def torch_uniform(fan_in: int) -> jax.nn.initializers.Initializer:
    r"""Initialiser of PyTorch's linear and convolution layers, kernel and bias alike.

    .. math:: w, b \sim \mathcal{U}(-1/\sqrt{n}, 1/\sqrt{n}), \quad n = \text{fan-in}

    The fan-in is an argument because a Flax bias initialiser sees the shape of the
    bias only.

    Args:
      fan_in: Inputs that one output reads: features of a dense layer; kernel height
        times width times input channels of a convolution.

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


def torch_dense(features: int, *, fan_in: int) -> nn.Dense:
    r"""Dense layer with PyTorch's start, :math:`y = x W + b`.

    Args:
      features: Number of outputs.
      fan_in: Number of inputs.

    Returns:
      A plain `nn.Dense`. Call it inside an `nn.compact` method. It computes in the
      dtype of its params.

    Examples:
      >>> layer = torch_dense(3, fan_in=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((5, 2)))[0].shape
      (5, 3)
    """
    init = torch_uniform(fan_in)
    return nn.Dense(
        features, kernel_init=init, bias_init=init, promote_dtype=_params_dtype
    )


def torch_conv(
    features: int, *, kernel_size: tuple[int, int], channels: int, padding: int = 0
) -> nn.Conv:
    r"""Convolution over `[batch, height, width, channels]` with PyTorch's start.

    Args:
      features: Number of output channels.
      kernel_size: Height and width, in pixels.
      channels: Number of input channels.
      padding: Zero pixels added on each side.

    Returns:
      A plain `nn.Conv` (a cross-correlation, as in PyTorch). Call it inside an
      `nn.compact` method. It computes in the dtype of its params.

    Examples:
      >>> layer = torch_conv(6, kernel_size=(5, 5), channels=1)
      >>> images = jnp.ones((2, 28, 28, 1))
      >>> layer.init_with_output(jax.random.key(0), images)[0].shape
      (2, 24, 24, 6)
    """
    init = torch_uniform(math.prod(kernel_size) * channels)
    return nn.Conv(
        features,
        kernel_size,
        padding=padding,
        kernel_init=init,
        bias_init=init,
        promote_dtype=_params_dtype,
    )


def check_images(images: Float[Array | np.ndarray, "*shape"]) -> None:
    """Refuses anything but `[batch, 28, 28]`, from its shape alone.

    Without this an 8x8 image would silently give an MLP with 64 inputs.

    Args:
      images: What a network is asked to read.

    Raises:
      ValueError: If the shape is another one.

    Examples:
      >>> check_images(jnp.zeros((28, 28)))
      Traceback (most recent call last):
      ...
      ValueError: `images` must be [batch, 28, 28], got (28, 28). ...
    """
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"`images` must be [batch, 28, 28], got {images.shape}. Add the batch axis "
            "with `images[None]`, drop a channel axis with `images[..., 0]`; the "
            "loaders of `ldjax.data` return this shape."
        )


def _params_dtype(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    # The params decide: float64 images with float32 params would otherwise run the
    # whole network in float64, and strict dtype promotion refuses the mixture.
    del dtype, inexact  # Flax's call passes them
    inputs, kernel, bias = args
    return [jnp.asarray(inputs, kernel.dtype), kernel, bias]
