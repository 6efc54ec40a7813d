"""A GGUF file: its metadata, and its tensors, which are read one by one."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldjax.models.hub.smollm2 import SMOLLM2, fetch_smollm2

__all__ = ["GgufFile", "StoredTensor", "find_gguf"]

_MAGIC = b"GGUF"


class StoredTensor(NamedTuple):
    """Where a tensor lies in the file, and how.

    Attributes:
      kind: The number of its type, a `gguf.GGMLQuantizationType`.
      shape: The shape that it has when it is dequantised.
      offset: The place of its first byte in the file.
      num_bytes: The number of its bytes.

    Examples:
      >>> StoredTensor(kind=0, shape=(2, 3), offset=4096, num_bytes=24).shape
      (2, 3)
    """

    kind: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class GgufFile(NamedTuple):
    """A GGUF file; it is open only while something is read.

    Attributes:
      path: The place of the file.
      metadata: The settings of the model and its tokenizer, by their names in the file.
      tensors: The tensors, by their names in the file.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "model.gguf"
      >>> _ = path.write_bytes(b"text")
      >>> GgufFile.of(path)
      Traceback (most recent call last):
        ...
      ValueError: .../model.gguf is no GGUF file: it begins with b'text' instead of
      b'GGUF'. Fetch or copy it again.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, path: Path) -> "GgufFile":
        """Reads what is before the tensors.

        Args:
          path: The file.

        Raises:
          FileNotFoundError: If there is no such file.
          ValueError: If it is damaged, something else, in the byte order of another
            machine, or one part of a model.
        """
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        _refuse_other_kinds(path)
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)

    def refuse_kinds(self, names: Iterable[str]) -> None:
        """Refuses tensors of types that the `gguf` package does not dequantise.

        Args:
          names: The names of tensors.

        Raises:
          ValueError: If one is, with the first one's name and type.
        """
        from gguf import GGMLQuantizationType

        kinds = {self.tensors[name].kind: name for name in reversed([*names])}
        for kind, name in kinds.items():
            if not _is_dequantised(kind):
                raise ValueError(
                    f"{self.path}: {name} is of the type "
                    f"{GGMLQuantizationType(kind).name}, which the `gguf` package does "
                    "not dequantise. Take a file of another type, such as F16 or Q8_0."
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32.

        Args:
          name: The name of the tensor.
        """
        from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

        stored = self.tensors[name]
        kind = GGMLQuantizationType(stored.kind)
        # Not through a mapping, whose pages would stay in memory beside the parameters.
        data = np.fromfile(
            self.path, np.uint8, stored.num_bytes, offset=stored.offset
        ).reshape(quant_shape_to_byte_shape(stored.shape, kind))
        return dequantize(data, kind)


def find_gguf(source: str | Path) -> Path | None:
    """The GGUF file that is meant, if one is.

    Args:
      source: A path that ends in `.gguf`; a folder with one such file and no
        `config.json`; or `"smollm2-135m"`, which is fetched.

    Returns:
      The file, which need not exist; None where something else is meant.

    Raises:
      FileNotFoundError: If SmolLM2 cannot be fetched.
      ValueError: If the folder has several.

    Examples:
      >>> find_gguf("models/llama.gguf").name
      'llama.gguf'
      >>> find_gguf("EleutherAI/pythia-410m")
    """
    path = Path(source).expanduser()
    if str(source) == SMOLLM2 and not path.exists():
        return fetch_smollm2()
    if path.suffix == ".gguf" and not path.is_dir():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ValueError(
            f"{path} has {len(found)} GGUF files: "
            f"{', '.join(file.name for file in found[:10])}. Give the path of one."
        )
    return found[0] if found else None


# A run opens its model several times, and a vocabulary takes seconds to read.
@functools.lru_cache(maxsize=2)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    """A file of a given size, last changed at a given time."""
    from gguf import GGUFReader

    del size, changed
    try:
        reader = GGUFReader(path)
        # Not kept: every string of its tables is an object that maps the file.
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            tensor.name: StoredTensor(
                kind=int(tensor.tensor_type),
                shape=tuple(reversed(tensor.shape.tolist())),
                offset=int(tensor.data_offset),
                num_bytes=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except OSError:
        raise
    except Exception as error:  # whatever meets bytes that are not what they should be
        raise ValueError(
            f"{path} is not a whole GGUF file, or one of a kind that the `gguf` "
            f"package does not know ({error}). Fetch or copy it again, or install "
            "a newer `gguf`."
        ) from error
    _refuse_parts(path, metadata)
    return GgufFile(path, metadata, tensors)


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(_MAGIC):
        is_pointer = head.startswith(b"version https://git-lfs")
        fix = "Fetch or copy it again."
        if is_pointer:
            fix = "It is a pointer of Git LFS; fetch the file itself: `git lfs pull`."
        raise ValueError(
            f"{path} is no GGUF file: it begins with {head[:4]!r} instead of "
            f"{_MAGIC!r}. {fix}"
        )
    # The version is a small number, at the end of four bytes where they are swapped.
    if head[4:8] and not int.from_bytes(head[4:6], "little"):
        raise ValueError(
            f"{path} is big-endian, which ldjax does not read. Convert it: "
            "`gguf-convert-endian FILE little`, which comes with the `gguf` package."
        )


def _refuse_parts(path: Path, metadata: Mapping[str, Any]) -> None:
    count = metadata.get("split.count") or 1
    if count == 1:
        return
    number = metadata.get("split.no", 0) + 1
    raise ValueError(
        f"{path} is part {number} of {count} of a model that was split. Join them with "
        "llama.cpp's `llama-gguf-split --merge FIRST-PART JOINED.gguf`."
    )


def _is_dequantised(kind: int) -> bool:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    which = GGMLQuantizationType(kind)
    _, num_bytes = GGML_QUANT_SIZES[which]
    try:
        dequantize(np.zeros((1, num_bytes), np.uint8), which)
    except NotImplementedError:
        return False
    return True
