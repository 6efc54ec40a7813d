"""MNIST, from the four IDX files or downloaded, every file checked."""

import gzip
import math
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ldjax.data.images.images import Images, split_indices

__all__ = ["load_mnist", "read_idx"]

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MD5_OF_GZ = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
_GZIP_START = b"\x1f\x8b"
_AGAIN = "Get the file again from its source."


def load_mnist(
    mnist_dir: str | PathLike[str] | None = None,
    *,
    seed: int = 0,
    num_train: int | None = None,
) -> Images:
    """MNIST as LeCun, Cortes and Burges published it: 60,000 and 10,000 digits.

    Args:
      mnist_dir: Folder with the four IDX files, plain or gzipped, named
        `train-images-idx3-ubyte`, `train-images.idx3-ubyte` or either with `.gz`, and
        so on; the plain file wins where both exist. `None` downloads 11 MB once into
        the user's cache folder and checks the md5 sums.
      seed: Chooses the training images where `num_train` is given.
      num_train: How many training images to take at random; `None` takes all in the
        order of the file. The paper's example trains on 2000.

    Returns:
      Pixels divided by 255, not standardised further. All of them take 220 MB.

    Raises:
      FileNotFoundError: If the folder or one of the files is missing.
      OSError: If the download fails.
      ValueError: If a file is damaged or not what its name says, or if `num_train`
        is out of range.

    Examples:
      >>> from tempfile import TemporaryDirectory
      >>> image = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784)
      >>> label = bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])
      >>> with TemporaryDirectory() as folder:
      ...     for part in ("train", "t10k"):
      ...         _ = Path(folder, f"{part}-images-idx3-ubyte").write_bytes(image)
      ...         _ = Path(folder, f"{part}-labels-idx1-ubyte").write_bytes(label)
      ...     load_mnist(folder).test_labels
      array([7], dtype=int32)
    """
    paths = [
        _download(name) if mnist_dir is None else _find(Path(mnist_dir), name)
        for name in _MD5_OF_GZ
    ]
    train_pixels, train_labels = _read_pair(*paths[:2])
    test_pixels, test_labels = _read_pair(*paths[2:])
    if num_train is not None:  # before pixels become floats, four times as large
        chosen, _ = split_indices(len(train_labels), num_train=num_train, seed=seed)
        train_pixels, train_labels = train_pixels[chosen], train_labels[chosen]
    return Images(
        np.divide(train_pixels, 255, dtype=np.float32),
        train_labels,
        np.divide(test_pixels, 255, dtype=np.float32),
        test_labels,
    )


def read_idx(path: str | PathLike[str]) -> UInt8[np.ndarray, "..."]:
    """One array of unsigned bytes from an IDX file, gzipped if its name ends so.

    An IDX file is the bytes `0 0 8 n`, then `n` sizes as big-endian 32-bit integers,
    then the data, last axis fastest. Read as one integer, `0 0 8 3` is the "magic
    number" 2051 of images and `0 0 8 1` is 2049, of labels.

    Args:
      path: The file; `.gz` at the end of its name means gzip, and only that does.

    Returns:
      The array, writable. Memory is twice the size of the data while it is read.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged, cut short or too long, not gzip as its name says,
        or not an IDX file of unsigned bytes.

    References:
      The section "File formats" of http://yann.lecun.com/exdb/mnist/.

    Examples:
      >>> from tempfile import TemporaryDirectory
      >>> with TemporaryDirectory() as folder:
      ...     path = Path(folder, "labels-idx1-ubyte")
      ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
      ...     read_idx(path)
      array([5, 0, 4], dtype=uint8)
    """
    path = Path(path)
    content = _unpack(path)
    shape = _idx_shape(path, content)
    start, size = 4 + 4 * len(shape), math.prod(shape)
    found = len(content) - start
    if found != size:
        raise ValueError(
            f"{path} is {'cut short' if found < size else 'too long'}: its header says "
            f"{_times(shape)} = {size} bytes of data, {found} follow. {_AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _unpack(path: Path) -> bytes:
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path} is empty: 0 bytes. {_AGAIN}")
    is_gzip, is_named_gzip = raw.startswith(_GZIP_START), path.suffix == ".gz"
    if is_gzip and not is_named_gzip:
        raise ValueError(f"{path} is gzipped. Add .gz to its name, or unpack it.")
    if not is_gzip and is_named_gzip:
        raise ValueError(
            f"{path} is named .gz and is not gzip: it starts with {raw[:2]!r}, "
            f"expected {_GZIP_START!r}. If it is unpacked already, take .gz off its "
            f"name. If not: {_AGAIN}"
        )
    if not is_gzip:
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged: its {len(raw)} bytes do not unpack ({error}). {_AGAIN}"
        ) from error


def _idx_shape(path: Path, content: bytes) -> tuple[int, ...]:
    if len(content) < 4 or content[:2] != b"\0\0" or not 1 <= content[3] <= 32:
        raise ValueError(
            f"{path} is not an IDX file: it starts with {content[:4]!r}, expected two "
            f"zero bytes, the type 8 and 1 to 32 axes. {_AGAIN}"
        )
    if content[2] != 8:
        raise ValueError(
            f"{path} holds IDX type {content[2]}, expected 8, unsigned bytes. Convert "
            "it, or point to the original file."
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"{path} is cut short: {len(content)} bytes, expected a header of {start}. "
            f"{_AGAIN}"
        )
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if 0 in shape:
        raise ValueError(
            f"{path} holds no data: its header says {_times(shape)}, expected sizes of "
            f"at least 1. {_AGAIN}"
        )
    return shape


def _read_pair(
    images_path: Path, labels_path: Path
) -> tuple[UInt8[np.ndarray, "n 28 28"], Int32[np.ndarray, " n"]]:
    images = _read_kind(images_path, num_axes=3, kind="images")
    labels = _read_kind(labels_path, num_axes=1, kind="labels")
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path} holds images of {_times(images.shape[1:])} pixels, "
            "expected 28 x 28. Point to the original MNIST files."
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} holds "
            f"{len(labels)} labels, expected as many. Take both from one source."
        )
    if labels.max() > 9:
        where = int(np.argmax(labels > 9))
        raise ValueError(
            f"{labels_path} holds label {labels[where]} at index {where}, "
            f"expected 0 to 9. {_AGAIN}"
        )
    return images, labels.astype(np.int32)


def _read_kind(path: Path, *, num_axes: int, kind: str) -> UInt8[np.ndarray, "..."]:
    array = read_idx(path)
    if array.ndim != num_axes:
        raise ValueError(
            f"{path} should hold {kind}: its magic number is {2048 + array.ndim}, "
            f"expected {2048 + num_axes} (2051 images, 2049 labels). Exchange the two "
            "files if their names are swapped."
        )
    return array


def _find(directory: Path, name: str) -> Path:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory} is not a folder. Pass the folder that holds the four MNIST "
            "files: `mnist_dir`."
        )
    dotted = name.replace("-idx", ".idx")
    names = [name, dotted, f"{name}.gz", f"{dotted}.gz"]
    # `is_file`, for some archives unpack to a folder of the same name.
    for candidate in names:
        if (directory / candidate).is_file():
            return directory / candidate
    raise FileNotFoundError(
        f"{directory} has none of {', '.join(names)}. Pass the folder that holds the "
        "four MNIST files: `mnist_dir`."
    )


def _download(name: str) -> Path:
    # Imported here: only the download needs it.
    import pooch

    cache = Path(pooch.os_cache("ldjax")) / "mnist"
    url = f"{_URL}{name}.gz"
    try:
        file = pooch.retrieve(
            url, f"md5:{_MD5_OF_GZ[name]}", fname=f"{name}.gz", path=cache
        )
    # A wrong md5 sum is a ValueError; every failure of the network an OSError.
    except (OSError, ValueError) as error:
        raise OSError(
            f"Cannot download {url} into {cache} ({type(error).__name__}: {error}). "
            "Pass a folder that holds the four MNIST files: `mnist_dir`."
        ) from error
    return Path(file)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
