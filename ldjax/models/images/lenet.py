"""LeNet, the network of the paper's MNIST example."""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from ldjax.models.images.torch_layers import check_images, torch_conv, torch_dense

__all__ = ["LeNet"]


class LeNet(nn.Module):
    r"""Two convolutions and three dense layers with tanh: 29,624 parameters.

    ::

        [batch, 28, 28]  conv 1->6, 5x5, pad 2; tanh; average pool 2
        [batch, 14, 14, 6]  conv 6->16, 5x5; tanh; average pool 2
        [batch, 5, 5, 16]  flatten; dense 400-60; tanh; dense 60-42; tanh
        [batch, 42]  dense 42-10

    Smooth in its params everywhere, so the remainder of a step is `O(lr^2)` without
    exception. Starts as PyTorch's defaults do (see `ldjax.models.images.torch_layers`).

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, Section 3.1 and Figure 1, with the
      widths of the notebook `squeeze_effect.ipynb`.

    Examples:
      >>> import jax, jax.numpy as jnp
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
        check_images(images)
        x = images[..., None]
        x = nn.tanh(torch_conv(6, kernel_size=(5, 5), channels=1, padding=2)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # [batch, 14, 14, 6]
        x = nn.tanh(torch_conv(16, kernel_size=(5, 5), channels=6)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # [batch, 5, 5, 16]
        # Channels run fastest here and slowest in PyTorch: the same network with the
        # rows of the next kernel permuted, and their start is exchangeable.
        x = x.reshape(x.shape[0], 400)
        x = nn.tanh(torch_dense(60, fan_in=400)(x))
        x = nn.tanh(torch_dense(42, fan_in=60)(x))
        return torch_dense(10, fan_in=42)(x)
