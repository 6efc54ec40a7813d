"""Images with labels: MNIST from its files, and scikit-learn's digits."""

from ldjax.data.images.digits import load_digits
from ldjax.data.images.images import Images, as_sequences, split_indices
from ldjax.data.images.mnist import load_mnist, read_idx

__all__ = [
    "Images",
    "as_sequences",
    "load_digits",
    "load_mnist",
    "read_idx",
    "split_indices",
]
