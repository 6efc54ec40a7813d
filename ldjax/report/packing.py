"""Data inside a page: arrays and whole files as base64."""

import base64
import gzip
from typing import Any

import numpy as np

__all__ = ["compressed", "encoded", "packed", "small", "unpacked"]


def encoded(data: bytes) -> str:
    """Bytes as base64.

    Examples:
      >>> encoded(b"ab")
      'YWI='
    """
    return base64.b64encode(data).decode()


def packed(array: Any) -> dict[str, str]:
    """An array in the form that `numbers` of the page's script reads.

    Args:
      array: Numbers; whole ones become int32 unless they have 16 bits, others
        float32.

    Returns:
      `dtype`, `shape` and `bdata` (base64, little-endian).

    Examples:
      >>> packed([1, 2])
      {'dtype': 'i4', 'shape': '2', 'bdata': 'AQAAAAIAAAA='}
    """
    array = np.asarray(array)
    kind = "i4" if np.issubdtype(array.dtype, np.integer) else "f4"
    dtype = {np.dtype("i2"): "i2", np.dtype("u2"): "u2"}.get(array.dtype, kind)
    data = np.ascontiguousarray(array, f"<{dtype}").tobytes()
    return {
        "dtype": dtype,
        "shape": ", ".join(map(str, array.shape)),
        "bdata": encoded(data),
    }


def small(places: np.ndarray) -> np.ndarray:
    """Places in 16 bits, if they have room there.

    Examples:
      >>> small(np.array([0, 70])).dtype, small(np.array([70_000])).dtype
      (dtype('uint16'), dtype('int32'))
    """
    has_room = places.max(initial=0) <= np.iinfo(np.uint16).max
    return places.astype(np.uint16 if has_room else np.int32)


def unpacked(content: dict[str, str]) -> np.ndarray:
    """The array that was packed.

    Examples:
      >>> unpacked(packed([[0.5], [1.0]])).tolist()
      [[0.5], [1.0]]
    """
    shape = tuple(int(size) for size in content["shape"].split(","))
    data = base64.b64decode(content["bdata"])
    return np.frombuffer(data, f"<{content['dtype']}").reshape(shape)


def compressed(text: str) -> str:
    """A text that may stand in a script element, whatever it holds.

    Args:
      text: Any text.

    Returns:
      Base64 of its gzipped UTF-8, the same for the same text.

    Examples:
      >>> gzip.decompress(base64.b64decode(compressed("</script>"))).decode()
      '</script>'
    """
    return encoded(gzip.compress(text.encode(), 6, mtime=0))
