"""What the image loaders return, and its way into the library."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from ldjax.equation.sequences import Sequences

__all__ = ["Images", "as_sequences", "split_indices"]


class Images(NamedTuple):
    """A labelled image set of ten classes, in host memory.

    Attributes:
      train_images: Pixels in [0, 1].
      train_labels: Classes, 0 to 9.
      test_images: Pixels in [0, 1].
      test_labels: Classes, 0 to 9.

    Examples:
      >>> blank, label = np.zeros((1, 28, 28), np.float32), np.zeros(1, np.int32)
      >>> Images(blank, label, blank, label).train_images.shape
      (1, 28, 28)
    """

    train_images: Float32[np.ndarray, "train 28 28"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: Float32[np.ndarray, "test 28 28"]
    test_labels: Int32[np.ndarray, " test"]


def as_sequences(
    images: Float[Array | np.ndarray, "batch height width"],
    labels: Int[Array | np.ndarray, " batch"],
) -> Sequences:
    """Images as sequences of one scored position each.

    Args:
      images: Pixels; they become `tokens` with their shape and dtype.
      labels: The class of each image; they become `targets[batch, 1]`.

    Returns:
      Sequences whose mask is true everywhere. The position axis is there for losses
      and log-probs; an image network returns `[batch, classes]` without it.

    Raises:
      ValueError: If the numbers of images and labels differ.

    Examples:
      >>> as_sequences(np.zeros((3, 28, 28)), np.array([4, 9, 0])).targets.shape
      (3, 1)
    """
    if len(images) != len(labels):
        raise ValueError(
            f"`images` and `labels` must have one length, got {len(images)} images and "
            f"{len(labels)} labels. Index both alike."
        )
    return Sequences(
        tokens=jnp.asarray(images),
        targets=jnp.asarray(labels)[:, None],
        mask=jnp.ones((len(labels), 1), bool),
    )


def split_indices(
    num_images: int, *, num_train: int, seed: int, min_rest: int = 0
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " rest"]]:
    """A random split of `0 .. num_images - 1`, the same for the same seed.

    Growing `num_train` keeps the images that were already in it.

    Args:
      num_images: How many there are.
      num_train: How many go into the first part.
      seed: Chooses the permutation.
      min_rest: How many the second part needs at least.

    Returns:
      Indices of the first part and of the rest, both in random order.

    Raises:
      ValueError: If `num_train` is not between 1 and `num_images - min_rest`.

    Examples:
      >>> train, rest = split_indices(5, num_train=3, seed=0)
      >>> len(train), sorted({*train.tolist(), *rest.tolist()})
      (3, [0, 1, 2, 3, 4])
    """
    most = num_images - min_rest
    if not 1 <= num_train <= most:
        raise ValueError(
            f"`num_train` must be between 1 and {most}, got {num_train}: there are "
            f"{num_images} images, and {min_rest} must remain. Choose one in between."
        )
    order = np.random.default_rng(seed).permutation(num_images)
    return order[:num_train], order[num_train:]
