"""Scikit-learn's bundled handwritten digits, in the shape of MNIST."""

import numpy as np

from ldjax.data.images.images import Images, split_indices

__all__ = ["load_digits"]


def load_digits(*, seed: int = 0, num_train: int = 1000) -> Images:
    """The 1797 digits that scikit-learn carries, enlarged from 8x8 to 28x28.

    Each value 0 .. 16 is divided by 16, each pixel repeated 3x3 (24x24), and two
    zero pixels are put around. Needs no network and no files, and a network for
    MNIST reads it unchanged. It is not MNIST: other writers, coarser, brighter
    (mean 0.22 where MNIST has 0.13).

    Args:
      seed: Chooses which images are for training.
      num_train: Number of training images, 1 to 1796; the rest is for testing.

    Returns:
      The images, shuffled.

    Raises:
      ValueError: If `num_train` is out of range.

    References:
      E. Alpaydin, C. Kaynak, `Optical Recognition of Handwritten Digits
      <https://doi.org/10.24432/C50P49>`_, UCI, 1998 (its test part).

    Examples:
      >>> digits = load_digits()
      >>> digits.train_images.shape, digits.test_images.shape
      ((1000, 28, 28), (797, 28, 28))
    """
    # Imported here: scikit-learn takes longer to import than JAX.
    from sklearn.datasets import load_digits as sklearn_digits

    values, classes = sklearn_digits(return_X_y=True)
    small = np.asarray(values, np.float32).reshape(-1, 8, 8) / 16
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(large, [(0, 0), (2, 2), (2, 2)])
    labels = np.asarray(classes, np.int32)
    train, test = split_indices(len(images), num_train=num_train, seed=seed, min_rest=1)
    return Images(images[train], labels[train], images[test], labels[test])
