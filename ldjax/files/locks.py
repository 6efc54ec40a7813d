"""One writer of a folder at a time: a lock that ends with the process that holds it.

The operating system holds the lock (`flock`), so one of a process that was killed, or
of a machine that was switched off, is none: nobody has to judge a file left over.
"""

import contextlib
import json
import os
import platform
import time
import weakref
from collections.abc import Callable
from pathlib import Path

__all__ = ["LOCK", "FolderLock", "held_locks", "lock_folder"]

#: The file in a folder that is locked. It says who holds the lock.
LOCK = ".lock"


class FolderLock:
    """The right to write in a folder, until `release` or the end of the process.

    Attributes:
      folder: The folder, without links in its path.
      release: Gives the right back; what `at_end` of `lock_folder` returns, and None
        when it was given back before.

    Examples:
      >>> import tempfile
      >>> lock = lock_folder(Path(tempfile.mkdtemp()))
      >>> lock.release()
      >>> list(lock.folder.iterdir())
      []
    """

    def __init__(
        self, folder: Path, file: int, at_end: Callable[[Path], object] | None
    ):
        """Of a file that is locked."""
        self.folder = folder
        # Called when nobody holds the lock any more, and when the interpreter ends.
        self.release: Callable[[], object] = weakref.finalize(
            self, _end, folder, file, os.getpid(), at_end
        )


# Two locks of one process would exclude each other.
_held: "weakref.WeakValueDictionary[tuple[int, int], FolderLock]" = (
    weakref.WeakValueDictionary()
)


def lock_folder(
    folder: Path, *, at_end: Callable[[Path], object] | None = None
) -> FolderLock:
    """Lock a folder, which is made with its parents.

    A process can lock a folder as often as it likes. Where the file system knows no
    locks nothing is locked; on NFS they hold between machines whose clients and server
    run the lock service.

    Args:
      folder: The folder.
      at_end: Called with the folder before the lock is given back.

    Returns:
      The lock; keep it for as long as the folder is written to.

    Raises:
      BlockingIOError: If another process holds it, with its number and machine.
      OSError: If the folder cannot be made or written to.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "new"
      >>> lock = lock_folder(folder)
      >>> lock_folder(folder) is lock
      True
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        place = _place(os.fstat(file))
        if (mine := _held.get(place)) is not None:
            os.close(file)
            return mine
        try:
            _lock(file)
        except BlockingIOError:
            holder = _holder(file)
            os.close(file)
            raise BlockingIOError(
                f"{folder} is being written by {_told(holder)}. Wait until it has "
                "ended, or choose another folder."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if _place(os.stat(path)) == place:
                break
        os.close(file)  # of a lock that was given back in between
    me = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
    with contextlib.suppress(OSError):  # no room for what is only told
        os.ftruncate(file, 0)
        os.write(file, json.dumps(me).encode())
    _held[place] = lock = FolderLock(path.parent, file, at_end)
    return lock


def held_locks() -> list[FolderLock]:
    """The locks that this process holds.

    Examples:
      >>> import tempfile
      >>> lock = lock_folder(Path(tempfile.mkdtemp()))
      >>> lock in held_locks()
      True
    """
    return list(_held.values())


def _lock(file: int) -> None:
    """Lock a file, where that exists."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks


def _end(
    folder: Path, file: int, pid: int, at_end: Callable[[Path], object] | None
) -> object:
    if os.getpid() != pid:  # a fork of the process that holds it
        return None
    _held.pop(_place(os.fstat(file)), None)
    try:
        return at_end(folder) if at_end else None
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        os.close(file)


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _holder(file: int) -> bytes:
    """What a lock file says, which its holder writes just after locking it."""
    for _ in range(20):
        if found := os.pread(file, 1000, 0):
            return found
        time.sleep(0.05)
    return b""


def _told(holder: bytes) -> str:
    try:
        of = json.loads(holder)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(of["since"]))
        return f"process {of['pid']} on {of['host']} (since {since})"
    except (ValueError, KeyError, TypeError):  # it has not said so yet
        return "another process"
