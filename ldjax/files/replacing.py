"""Replace what is in a folder by something new, once that has come to something.

What was there waits inside the folder until then. Every step is the renaming of one
thing, so that it can be undone, or completed, after the process was killed at any
moment; no other folder is written to, and links to this one stay as they are.
"""

import shutil
from pathlib import Path

from ldjax.files.locks import LOCK

__all__ = ["forget_replaced", "has_results", "is_replacing", "set_aside", "settle"]

_REPLACED, _MOVING = ".replaced", ".replaced.moving"
_OWN = {LOCK, _REPLACED, _MOVING}


def set_aside(folder: Path) -> None:
    """Let what is in a folder wait in it, out of the way.

    Args:
      folder: The folder, in which nothing waits yet.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "metrics.parquet").write_text("the old table")
      >>> set_aside(folder)
      >>> has_results(folder), settle(folder), has_results(folder)
      (False, True, True)
    """
    moving = folder / _MOVING
    moving.mkdir()
    for item in _others(folder):
        item.rename(moving / item.name)
    moving.rename(folder / _REPLACED)


def settle(folder: Path) -> bool:
    """End a replacement: what is new stays if it came to something, else the old.

    Args:
      folder: The folder.

    Returns:
      Whether the old is there again. Where nothing waits, nothing happens.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "config.json").write_text("the old settings")
      >>> set_aside(folder)
      >>> _ = (folder / "metrics.parquet").write_text("the new table")
      >>> settle(folder), [path.name for path in folder.iterdir()]
      (False, ['metrics.parquet'])
    """
    replaced, moving = folder / _REPLACED, folder / _MOVING
    if replaced.is_dir():
        if has_results(folder):
            forget_replaced(folder)
            return False
        for item in _others(folder):
            _delete(item)
        replaced.rename(moving)
    if not moving.is_dir():
        return False
    for item in moving.iterdir():
        item.rename(folder / item.name)
    moving.rmdir()
    return True


def forget_replaced(folder: Path) -> None:
    """Delete what waits in a folder, if something does.

    Examples:
      >>> forget_replaced(Path("/nowhere"))
    """
    shutil.rmtree(folder / _REPLACED, ignore_errors=True)


def is_replacing(folder: Path) -> bool:
    """Whether something waits in a folder.

    Examples:
      >>> is_replacing(Path("/nowhere"))
      False
    """
    return (folder / _REPLACED).is_dir() or (folder / _MOVING).is_dir()


def has_results(folder: Path) -> bool:
    """Whether a run, or a stage in its folder, has numbers or a checkpoint.

    Examples:
      >>> has_results(Path("/nowhere"))
      False
    """
    if not folder.is_dir():
        return False
    stages = [path for path in _others(folder) if path.is_dir()]
    return any(
        (place / "metrics.parquet").is_file()
        or (place / "summary.json").is_file()
        or any(path.name.isdigit() for path in (place / "checkpoints").glob("*"))
        for place in (folder, *stages)
    )


def _others(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name not in _OWN)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
