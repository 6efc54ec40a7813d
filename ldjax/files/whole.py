r"""Files read and written whole: text in lines, JSON lines, gzip, no half-written file.

Functions that look at one line raise a `ValueError` that says what is wrong with it and
leave it to the caller to say where: `read_lines` gives the place with every line.
"""

import codecs
import contextlib
import errno
import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ldjax.files.kinds import kind_of, text_kind_of
from ldjax.memory import human_bytes

__all__ = [
    "Line",
    "WriteError",
    "decode_line",
    "json_object",
    "read_json_object",
    "read_lines",
    "split_lines",
    "unique_fields",
    "unpacked",
    "whole_file",
    "whole_folder",
    "writing",
]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As Rust's and TensorStore's messages end.
_OS_ERROR = re.compile(r"os[ _]error(?:_code)?[ =]'?(\d+)")


class WriteError(OSError):
    """Something could not be written: what, how far it came, and why.

    Attributes:
      errno: The operating system's number of the reason.

    Examples:
      >>> str(WriteError(errno.ENOSPC, "a.txt cannot be written"))
      'a.txt cannot be written'
    """

    def __str__(self) -> str:
        """The words alone."""
        return str(self.args[1])


class Line(NamedTuple):
    """A line of a file.

    Attributes:
      source: Its place, "file:line"; the first line is 1.
      data: Its bytes, without the end of the line.

    Examples:
      >>> Line("a.txt:1", b"text").source
      'a.txt:1'
    """

    source: str
    data: bytes


def read_lines(path: Path) -> list[Line]:
    r"""The lines of a file, which is unpacked where its name ends in `.gz`.

    Only "\n" ends a line (a "\r" before it goes too): JSON strings may hold the other
    line separators of Unicode.

    Args:
      path: The file.

    Returns:
      The lines in order, without a byte order mark. A file that ends with "\n" has no
      further line behind it.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged gzip, or gzip under another name; if it is no text.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.txt"
      >>> _ = path.write_bytes("one\r\n\ntwo\u2028\n".encode())
      >>> [line.data.decode() for line in read_lines(path)]
      ['one', '', 'two\u2028']
    """
    return split_lines(path, unpacked(path))


def split_lines(path: Path, data: bytes) -> list[Line]:
    r"""The lines of a file that has been read.

    Args:
      path: The file, for their places.
      data: What it holds.

    Raises:
      ValueError: If it is no text.

    Examples:
      >>> [line.source for line in split_lines(Path("a.txt"), b"one\ntwo")]
      ['a.txt:1', 'a.txt:2']
    """
    if (kind := kind_of(data[:2048])) is not None:
        raise ValueError(f"{path} is {kind}")
    data = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n")
    return [
        Line(f"{path}:{number}", line.removesuffix(b"\r"))
        for number, line in enumerate(data.split(b"\n"), 1)
    ]


def unpacked(path: Path) -> bytes:
    r"""The bytes of a file, which is unpacked where its name ends in `.gz`.

    Args:
      path: The file.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged gzip, or gzip under another name.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.gz"
      >>> _ = path.write_bytes(gzip.compress(b"text"))
      >>> unpacked(path)
      b'text'
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is not whole gzip: {error}. Fetch or copy it again, or take "
                "the .gz off its name."
            ) from error
    if data.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path} is gzipped. Add .gz to its name, or unpack it.")
    return data


def decode_line(data: bytes) -> str:
    r"""The text of a line.

    Args:
      data: UTF-8.

    Returns:
      The text.

    Raises:
      ValueError: If it is not UTF-8.

    Examples:
      >>> decode_line(b"\xff")
      Traceback (most recent call last):
        ...
      ValueError: not UTF-8: ... invalid start byte. Save the file as UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}. Save the file as UTF-8.") from error


def json_object(data: bytes) -> dict[str, Any]:
    r"""The JSON object on a line.

    Args:
      data: UTF-8.

    Returns:
      Its fields.

    Raises:
      ValueError: If the line is not one JSON object, or has a field twice.

    Examples:
      >>> json_object(b'{"prompt": "Why?"}')
      {'prompt': 'Why?'}
    """
    text = decode_line(data)
    try:
        content = json.loads(text, object_pairs_hook=unique_fields)
    except json.JSONDecodeError as error:
        kind = text_kind_of(text)
        fix = "Write one JSON object on each line (JSON lines)"
        fix = fix if kind is None else f"{fix}; {kind}"
        raise ValueError(f"not JSON: {error}. {fix}.") from error
    except RecursionError as error:
        raise ValueError("not a JSON object of texts: nested too deeply.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"not a JSON object but {type(content).__name__}. Write one JSON object "
            "on each line (JSON lines)."
        )
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file is.

    Args:
      path: The file.

    Returns:
      Its fields.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged, or something else.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.json"
      >>> _ = path.write_text('{"rank": 2}')
      >>> read_json_object(path)
      {'rank': 2}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return content


@contextmanager
def writing(path: Path, *, partial: Path | None = None) -> Iterator[None]:
    """Say what could not be written where the machine refuses: disk full, read-only.

    Args:
      path: The file or folder that is wanted, for the message.
      partial: Where it is written to at first.

    Raises:
      WriteError: In place of the machine's error, whichever library met it.

    Examples:
      >>> with writing(Path("a.txt")):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
        ...
      ldjax.files.whole.WriteError: a.txt cannot be written: No space left on device (0
      B of it were written, ... are free). What was there before is as it was.
    """
    partial = partial or path
    try:
        yield
    except Exception as error:
        code = _reason(error, partial)
        if code is None:
            raise
        room = ""
        if code in _NO_ROOM:
            room = f" ({human_bytes(_size(partial))} of it were written"
            if code == errno.EFBIG:
                room += ", the limit is that of `ulimit -f`"
            else:
                with contextlib.suppress(OSError):
                    free = shutil.disk_usage(path.absolute().parent).free
                    room += f", {human_bytes(free)} are free"
            room += ")"
        raise WriteError(
            code,
            f"{path} cannot be written: {os.strerror(code)}{room}. What was there "
            "before is as it was.",
        ) from error


@contextmanager
def whole_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """A place to write to that becomes `path` when it is complete.

    Args:
      path: The file that is wanted. What was there is replaced at the end, or stays if
        the writing fails.
      is_shared: Other processes may write the same file now, as in a cache.

    Yields:
      A path beside it.

    Raises:
      WriteError: If the machine refuses: disk full, read-only.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.txt"
      >>> with whole_file(path) as partial:
      ...     _ = partial.write_text("all of it")
      ...     path.exists()
      False
      >>> [file.name for file in path.parent.iterdir()]
      ['a.txt']
    """
    of = f".{os.getpid()}" if is_shared else ""
    partial = path.with_name(f".{path.name}{of}.partial")
    if partial.is_dir():
        raise FileExistsError(
            f"{partial} is a folder, where {path} is written before it is whole. Move "
            "it away."
        )
    try:
        with writing(path, partial=partial):
            yield partial
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # the first one says more
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A folder to write to that becomes `path` when it is complete.

    Args:
      path: The folder that is wanted; it does not exist yet, or is empty.
      replaces: Whether a folder that is there gives way, once the new one is complete.

    Yields:
      An empty folder beside it.

    Raises:
      FileExistsError: If there is something at `path`; it is left as it is.
      WriteError: If the machine refuses: disk full, read-only.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "new"
      >>> with whole_folder(path) as partial:
      ...     _ = (partial / "a.txt").write_text("all of it")
      ...     path.exists()
      False
      >>> [file.name for file in path.iterdir()]
      ['a.txt']
    """
    is_free = path.is_dir() and (replaces or not any(path.iterdir()))
    if path.exists() and not is_free:
        raise FileExistsError(f"{path} is not empty. Choose another folder.")
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_file() or partial.is_symlink():
        raise FileExistsError(
            f"{partial} is a file, where {path} is written before it is whole. Move it "
            "away."
        )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(path, partial=partial):
            partial.mkdir(parents=True)
            yield partial
            if path.exists():
                shutil.rmtree(path) if replaces else path.rmdir()
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: BaseException, partial: Path) -> int | None:
    """The number of the machine's error, if it is about writing there."""
    if isinstance(error, WriteError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        named = [error.filename, error.filename2]
        there = [Path(os.fsdecode(n)) for n in named if isinstance(n, str | bytes)]
        is_there = not there or any(
            partial in (p, *p.parents) or p in partial.parents for p in there
        )
        return error.errno if is_there else None
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object, each of which may be given once.

    Args:
      pairs: Names and values, as `json` gives them to its `object_pairs_hook`.

    Raises:
      ValueError: If one is given twice.

    Examples:
      >>> unique_fields([("prompt", "Why?")])
      {'prompt': 'Why?'}
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice. Keep one of them.")
    return content
