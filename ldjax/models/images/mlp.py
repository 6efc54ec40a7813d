"""Multilayer perceptron, the second network of the paper's MNIST example."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from ldjax.models.images.torch_layers import check_images, torch_dense

__all__ = ["MLP"]


class MLP(nn.Module):
    r"""Dense layers, 784 -> `widths` -> 10: the notebook's `MLP_B1` by default.

    .. math:: h_0 = x, \quad h_i = \phi(h_{i-1} W_i + b_i), \quad z = h_n W_z + b_z

    The default ReLU has kinks: where a step moves a unit across zero, the remainder
    is not `O(lr^2)`. Pass `nn.tanh` where that order matters. Starts as PyTorch's
    defaults do (see `ldjax.models.images.torch_layers`).

    Attributes:
      widths: Units of each hidden layer; empty gives a linear classifier.
      activation: Applied after each hidden layer.

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, the notebook `squeeze_effect.ipynb`.

    Examples:
      >>> import jax.numpy as jnp
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
        check_images(images)
        x = images.reshape(images.shape[0], 784)
        for width in self.widths:
            x = self.activation(torch_dense(width, fan_in=x.shape[-1])(x))
        return torch_dense(10, fan_in=x.shape[-1])(x)
