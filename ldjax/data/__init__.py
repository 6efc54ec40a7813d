"""What models are trained and watched on: texts and images, from files or made here.

Texts come as `preferences` and plain `text`, get more `responses`, become token ids by
`tokenizers` and rows by `batches`; `world` makes a toy language, `images` has digits.
Every loader imports what it needs when it is called.
"""

from ldjax.data.images.digits import load_digits
from ldjax.data.images.images import Images, as_sequences, split_indices
from ldjax.data.images.mnist import load_mnist, read_idx
from ldjax.data.preferences import read_preferences, write_preferences

__all__ = [
    "Images",
    "as_sequences",
    "load_digits",
    "load_mnist",
    "read_idx",
    "read_preferences",
    "split_indices",
    "write_preferences",
]
