"""Which files of a folder hold the rows: splits and their parts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldjax.data.files.records import SUFFIXES
from ldjax.files.whole import read_json_object

__all__ = ["HELD_OUT", "TRAINED", "Found", "find_files"]

#: Names of splits in the order in which one is taken, to train on and to watch only.
TRAINED = ("train",)
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")

#: Files that describe the others.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
#: One part of several, as the hub and `datasets` name them; some have a digest too.
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?")


class Found(NamedTuple):
    """Files of rows, in order.

    Attributes:
      files: At least one.
      said: Which of a folder they are; empty for one file.

    Examples:
      >>> Found((Path("a.csv"),), "").files[0].name
      'a.csv'
    """

    files: tuple[Path, ...]
    said: str = ""


def find_files(
    path: Path, *, split: str | None = None, prefer: Sequence[str] = TRAINED
) -> Found:
    """The files of rows that a path stands for.

    A folder may hold the files of one split, or of several: as the hub has them
    (`train-00000-of-00002.parquet`, also in a folder `data`; `train.jsonl`), in a
    folder for each, or as `datasets` saves a `Dataset` or `DatasetDict`.

    Args:
      path: A file, or a folder.
      split: The one to take.
      prefer: Without `split`, the first of these that is there is taken.

    Raises:
      FileNotFoundError: If there is no such path, no file of rows in it or one of its
        parts is missing.
      ValueError: If it has no such split, several and none that is preferred, or
        several datasets.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
      ...     _ = (folder / name).write_bytes(b"PAR1")
      >>> found = find_files(folder)
      >>> [file.name for file in found.files], found.said
      (['train-00000-of-00001.parquet'], 'split train of train, test')
    """
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}.")
        if split is not None:
            raise ValueError(f"{path} is one file, which has no split {split!r}.")
        return Found((path,))
    splits = _splits(path)
    if not splits:
        raise FileNotFoundError(
            f"{path} holds no file of rows: none whose name ends in "
            f"{', '.join(SUFFIXES)}, or one of them with .gz."
        )
    # Alphabetical order would put the one that is trained on behind others.
    names = sorted(splits, key=lambda name: (name not in TRAINED, name))
    wanted = [split] if split is not None else prefer
    taken = next((name for name in wanted if name in splits), None)
    if taken is None and split is None and len(names) == 1:
        taken = names[0]
    if taken is None:
        lacking = (
            f"no split {split!r}" if split else f"none called {' or '.join(prefer)}"
        )
        raise ValueError(
            f"{path} has the splits {', '.join(names)}, and {lacking}. Say which one "
            "with `split`, or give its files in a folder of their own."
        )
    files = tuple(splits[taken])
    parts = f"{len(files)} files" if len(files) > 1 else ""
    which = f"split {taken} of {', '.join(names)}" if len(names) > 1 else ""
    return Found(files, ", ".join(filter(None, [which, parts])))


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder."""
    if (about := folder / "dataset_dict.json").is_file():
        names = read_json_object(about).get("splits", [])
        return {name: _saved(folder / name) for name in names}
    if (folder / "state.json").is_file():
        return {folder.name: _saved(folder)}
    files = sorted(path for path in folder.iterdir() if _has_rows(path))
    if files:
        return _by_split(folder, files)
    inner = {
        path.name: splits
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and (splits := _splits(path))
    }
    if len(inner) == 1:
        return next(iter(inner.values()))
    if any(len(splits) > 1 for splits in inner.values()):
        raise ValueError(
            f"{folder} holds several datasets: {', '.join(inner)}. Give the folder of "
            "one."
        )
    return {name: next(iter(splits.values())) for name, splits in inner.items()}


def _has_rows(path: Path) -> bool:
    is_about = path.name in _ABOUT or path.name.startswith(".")
    return path.is_file() and not is_about and _stem(path) != path.name


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _stem(path: Path) -> str:
    """A name without its format; the same name where that is none."""
    whole = Path(path.name.removesuffix(".gz"))
    return whole.stem if _kind(path) in SUFFIXES else path.name


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names say; numbers behind it are those of parts."""
    splits: dict[str, list[Path]] = {}
    numbers: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        stem = _stem(file)
        if (part := _PART.fullmatch(stem)) is not None:
            name = part[1]
            numbers.setdefault(name, []).append((int(part[2]), int(part[3])))
        else:
            name = re.sub(r"[-_.]?\d+$", "", stem)
        splits.setdefault(name, []).append(file)
    for name, alike in splits.items():
        if len(kinds := {_kind(file) for file in alike}) > 1:
            raise ValueError(
                f"{folder} holds {name or 'its rows'} in several formats: "
                f"{', '.join(sorted(kinds))}. Give the file of one."
            )
    for name, found in numbers.items():
        there, count = {number for number, _ in found}, max(of for _, of in found)
        if lacking := sorted(set(range(count)) - there):
            raise FileNotFoundError(
                f"{folder} lacks part {lacking[0]} of the {count} of {name} (counted "
                "from 0). Fetch it, too."
            )
    return splits


def _saved(folder: Path) -> list[Path]:
    """The files of a `Dataset` that was saved."""
    about = folder / "state.json"
    if not about.is_file():
        raise FileNotFoundError(f"{folder} is no whole dataset: it lacks state.json.")
    names = [file["filename"] for file in read_json_object(about)["_data_files"]]
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} is no whole dataset: it lacks {file.name}."
            )
    return files
