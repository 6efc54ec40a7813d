"""Where a model's files are, and its tensors: read one by one, written in shards."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ldjax.files.whole import whole_file
from ldjax.models.hub.other_folders import without_weights

__all__ = [
    "TensorFiles",
    "download",
    "find_folder",
    "has_weights",
    "refuse_misfits",
    "write_tensors",
]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# All that ldjax reads of a repository.
_SETTINGS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "generation_config.json", "adapter_config.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
)
_WEIGHTS = ("model*.safetensors", _INDEX, "adapter_model.safetensors")
_FLOATS = ("F16", "BF16", "F32", "F64")
# What the content of an index that is none may raise.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def find_folder(
    source: str | Path, *, revision: str | None = None, weights: bool = True
) -> Path:
    """The local folder of a model, downloaded from the hub where it is not a path.

    Downloads are kept in the cache of `huggingface_hub` and found there without a
    network.

    Args:
      source: A folder, or the id of a repository on the hub such as
        `"EleutherAI/pythia-410m"`.
      revision: Branch, tag or commit of the repository; by default its main branch.
      weights: Whether the tensors are needed: they are what takes long to download.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: If there is no such folder, and no such repository or no way to
        reach it.
      ValueError: If `source` is neither, or `revision` is given for a folder.

    Examples:
      >>> find_folder("/nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no folder /nowhere.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"`revision` is of a repository on the hub, but {folder} is a folder."
            )
        return folder
    name = str(source)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the folder that it is in.")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"There is no folder {folder}.")
    patterns = _SETTINGS + _WEIGHTS * weights
    return download(name, patterns=patterns, revision=revision)


def download(
    name: str,
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """The local copy of a repository on the Hugging Face hub.

    Args:
      name: The id of the repository.
      patterns: Patterns of the files that are wanted.
      revision: The branch, tag or commit.
      kind: The kind of the repository.

    Returns:
      The folder in the cache of `huggingface_hub`.

    Raises:
      FileNotFoundError: If there is no such repository, or no way to reach it.
      ValueError: If `name` cannot be an id.

    Examples:
      >>> download("not an id", patterns=["*"])
      Traceback (most recent call last):
        ...
      ValueError: 'not an id' is no folder here, and cannot be the name of a model on
      the Hugging Face hub, which looks like EleutherAI/pythia-410m. Check the path.
    """
    import huggingface_hub
    import huggingface_hub.errors as errors

    what = f"{kind} {name!r}" + (f" at revision {revision!r}" if revision else "")
    neither = f"{name!r} is no folder here, and " if kind == "model" else ""
    fetch = f"hf download {name}" + " --repo-type dataset" * (kind == "dataset")
    fetch += f" --revision {revision}" if revision else ""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=list(patterns)
            )
        )
    except errors.HFValidationError as error:
        raise ValueError(
            f"{neither}cannot be the name of a {kind} on the Hugging Face hub, which "
            "looks like EleutherAI/pythia-410m. Check the path."
        ) from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{neither}the {what} on the Hugging Face hub is gated: accept its terms "
            "on its page, then log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{neither}the hub has no {what}. Check the revision."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{neither}the Hugging Face hub has no {what} that may be read without "
            "logging in. Check the name; for a private one run `hf auth login`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{neither}the {what} is not in this machine's cache of the Hugging Face "
            f"hub, which cannot be reached{_why_offline()}. On a machine with a "
            f"network run\n    {fetch} --local-dir {name.rsplit('/', 1)[-1]}\n"
            f"then copy that folder here and give {_GIVE[kind]}."
        ) from error
    except errors.HfHubHTTPError as error:
        raise FileNotFoundError(
            f"The Hugging Face hub refused the {what}: {error}. Try again later."
        ) from error
    except OSError:  # a full disk, say: the hub is not at fault
        raise
    except Exception as error:  # of whichever network library is below
        raise FileNotFoundError(
            f"The {what} could not be downloaded from the Hugging Face hub: {error}. "
            "Try again: what is there already is kept."
        ) from error


_GIVE = {
    "model": "its path instead of the name",
    "dataset": "the paths of its files",
}


def _why_offline() -> str:
    """A reason that the user can take away."""
    is_set = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return " (HF_HUB_OFFLINE is set)" if is_set else ""


class TensorFiles(NamedTuple):
    """The tensors of a folder; a file is open only while one of them is read.

    Attributes:
      files: The file that each tensor is in.
      shapes: The shape of each tensor, from the headers.
      dtypes: The type of each tensor, as `"BF16"`, from the headers.
      place: The folder that the files are in.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_tensors(folder, [("a", np.ones((2, 3)))])
      >>> TensorFiles.of(folder).shapes
      {'a': (2, 3)}
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    place: Path

    @classmethod
    def of(cls, folder: Path, *, name: str = _SINGLE) -> "TensorFiles":
        """Reads the headers.

        Args:
          folder: A folder with one file of this name, or an index and shards.
          name: The name of the one file.

        Raises:
          FileNotFoundError: If there are no weights, or a shard is missing.
          ValueError: If a file is damaged, or the index does not fit the shards.
        """
        index = folder / _INDEX
        listed = _read_index(index) if index.is_file() else None
        shards = {name} if listed is None else set(listed.values())
        # Another folder's files are none of this model's, whatever an index says.
        elsewhere = sorted(shard for shard in shards if not _is_name(shard))
        if elsewhere:
            raise ValueError(
                f"{index} names files outside its folder: {_some(elsewhere)}. Fetch "
                "the folder again."
            )
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            if listed is not None:
                raise FileNotFoundError(
                    f"{folder} lacks files that its index names: {_some(missing)}."
                )
            raise FileNotFoundError(without_weights(folder, name=name, index=_INDEX))
        files, shapes, dtypes = {}, {}, {}
        for shard in sorted(shards):
            with _opened(folder / shard) as tensors:
                for tensor in tensors.keys():  # noqa: SIM118 (no dict)
                    if tensor in files:
                        raise ValueError(
                            f"{folder} has {tensor} twice, in {files[tensor].name} and "
                            f"in {shard}. Fetch the folder again."
                        )
                    files[tensor] = folder / shard
                    header = tensors.get_slice(tensor)
                    shapes[tensor] = tuple(header.get_shape())
                    dtypes[tensor] = header.get_dtype()
        if listed is not None and (lost := sorted(set(listed) - set(files))):
            raise ValueError(
                f"{index} lists tensors that its files do not have: {_some(lost)}. "
                "Fetch the folder again."
            )
        return cls(files, shapes, dtypes, folder)

    @property
    def settings(self) -> str:
        """Where the settings are that the tensors must fit, for messages."""
        return str(self.place / "config.json")

    def refuse_codes(self, names: Iterable[str]) -> None:
        """Refuses tensors whose numbers stand for others, as quantized weights do.

        Args:
          names: The names of tensors.

        Raises:
          ValueError: If one is, with the first one's name and type.
        """
        for name in names:
            if self.dtypes[name] not in _FLOATS:
                raise ValueError(
                    f"{self.files[name]}: {name} is of the type {self.dtypes[name]}; "
                    f"ldjax reads {', '.join(_FLOATS)}. Convert quantized weights "
                    "first."
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Args:
          name: The name of the tensor.
        """
        # Opened anew each time: what a file's mapping has read stays in memory until
        # it is closed, and would double that of the parameters.
        with _opened(self.files[name]) as tensors:
            return tensors.get_tensor(name)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds tensors of a model, or an index of them.

    Args:
      folder: Any path.

    Examples:
      >>> has_weights(Path("/nowhere"))
      False
    """
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def refuse_misfits(
    what: str,
    *,
    found: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    why: Sequence[str] = (),
) -> None:
    """One error for all tensors that are missing, extra or of another shape.

    Args:
      what: The beginning of the message, what does not fit what.
      found: The shape of each tensor in the file.
      expected: The shape of each tensor that is wanted.
      why: An explanation of the differences, as far as it is known.

    Raises:
      ValueError: If they are not the same.

    Examples:
      >>> refuse_misfits("A does not fit B", found={"a": (2,)}, expected={"a": (3,)})
      Traceback (most recent call last):
        ...
      ValueError: A does not fit B: of another shape: a is [2] instead of [3]. Is one of
      the two from another model?
    """
    kinds = {
        "missing": [name for name in expected if name not in found],
        "not of this model": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} is {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    problems = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(
            f"{what}: {'; '.join([*why, *problems])}. Is one of the two from another "
            "model?"
        )


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    name: str = _SINGLE,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write tensors as the hub lays them out: one file, or shards and their index.

    Args:
      folder: A folder that exists.
      tensors: Name and content; read as they are written, one shard at a time.
      name: The name of the file, if it is one.
      max_shard_bytes: The largest size of a file, unless one tensor is larger.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_tensors(
      ...     folder, [("a", np.ones(2)), ("b", np.ones(2))], max_shard_bytes=20
      ... )
      >>> sorted(path.name for path in folder.glob("*.safetensors"))
      ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    for shard in _shards(tensors, max_shard_bytes):
        path = folder / f"shard-{len(shards)}.safetensors"
        _write_shard(path, shard)
        shards.append((path, list(shard)))
        total += sum(array.nbytes for array in shard.values())
    if len(shards) == 1:
        shards[0][0].rename(folder / name)
        return
    where = {}
    for number, (path, names) in enumerate(shards, 1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / shard)
        where |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard


def _write_shard(path: Path, shard: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    # It writes an array's memory as it lies, in whatever order that is.
    contiguous = {name: np.ascontiguousarray(array) for name, array in shard.items()}
    with whole_file(path) as partial:
        # Without the format `transformers` refuses the file.
        save_file(contiguous, partial, metadata={"format": "pt"})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        if _is_pointer(path):
            raise ValueError(
                f"{path} is not a whole safetensors file but a pointer of Git LFS, "
                "which stands for it. Run `git lfs pull` in its folder, or fetch it "
                "again by `hf download`."
            ) from error
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). Fetch or copy it again."
        ) from error


def _is_pointer(path: Path) -> bool:
    """Whether a file is what Git keeps instead of a large one."""
    with path.open("rb") as file:
        return file.read(24).startswith(b"version https://git-lfs")


def _is_name(file: str) -> bool:
    """Whether it names a file of the folder itself, on any system."""
    return bool(file) and not set(file) & set("/\\:\0") and file not in (".", "..")


def _read_index(path: Path) -> dict[str, str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in listed.items()}
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is not a whole index of shards: it must be a JSON object with a "
            "`weight_map`. Fetch it again."
        ) from error


def _some(names: Sequence[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
