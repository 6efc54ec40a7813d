"""The rows of a file as they stand there: JSON lines, a JSON array, tables."""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldjax.files.kinds import kind_of
from ldjax.files.whole import (
    decode_line,
    json_object,
    split_lines,
    unique_fields,
    unpacked,
)

__all__ = ["SUFFIXES", "Record", "Records", "json_lines", "read_records"]

#: What names of files of rows end in, before a `.gz`.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_MARK = codecs.BOM_UTF8
_WHITE = re.compile(r"\s*")


class Record(NamedTuple):
    """A row of a file.

    Attributes:
      source: Its place, "file:line" or "file, row N"; the first is 1.
      content: Its fields; those that are null are left out. Empty where there is a
        problem.
      problem: Why it cannot be read, if so, and the likely fix.

    Examples:
      >>> Record("a.jsonl:1", {"prompt": "Why?"}).problem
      ''
    """

    source: str
    content: dict[str, Any]
    problem: str = ""


class Records:
    """The rows of some files, parsed as far as they are asked for, and once.

    Args:
      rows: In order, good ones and bad ones; None stands for a blank line.

    Attributes:
      num_blank: Blank lines between the rows that have been parsed.

    Examples:
      >>> rows = Records([Record("a.jsonl:1", {"prompt": "Why?"}), None])
      >>> [row.content for row in rows], rows.num_blank
      ([{'prompt': 'Why?'}], 1)
    """

    def __init__(self, rows: Iterable[Record | None]):
        self._rest = iter(rows)
        self._parsed: list[Record] = []
        self.num_blank = 0

    def __iter__(self) -> Iterator[Record]:
        """From the first one."""
        place = 0
        while place < len(self._parsed) or self._parses_one():
            yield self._parsed[place]
            place += 1

    def first(self, most: int | None) -> list[Record]:
        """The rows through the one with which so many can be read; with None all."""
        found = []
        for record in self:
            found.append(record)
            most = most if most is None or record.problem else most - 1
            if most == 0:
                break
        return found

    def _parses_one(self) -> bool:
        """Whether there is one more row, which is then parsed."""
        for record in self._rest:
            if record is not None:
                self._parsed.append(record)
                return True
            self.num_blank += 1
        return False


def read_records(files: Sequence[Path], *, most: int | None = None) -> Records:
    r"""The rows of files, one after the other.

    Formats are told apart by what is in a file, and CSV and TSV by its name:

    * JSON lines (`.jsonl`, `.ndjson`, `.json`): an object on each line.
    * A JSON array of objects (`.json`).
    * CSV and TSV with the names of the columns in the first line. Cells are text; an
      empty one is missing. A cell with a JSON list of messages is read as that.
    * Parquet, and Arrow (`.arrow`, file or stream, as `datasets` keeps its own).

    Any of them may be gzipped (`.gz`). Text is UTF-8, with or without a mark.

    Nothing is read before it is asked for: no file behind the one with the last row
    that is, and in a file no row behind it. What concerns a whole file is found with
    its first row: that it cannot be unpacked, and in CSV, TSV and JSON arrays that it
    is no UTF-8.

    Args:
      files: At least one.
      most: So many rows will do as a rule: of a table no more are read at first.

    Raises:
      FileNotFoundError: If there is no such file; when its rows are asked for.
      ValueError: If a file is damaged, or of another kind; likewise.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.csv"
      >>> _ = path.write_text('prompt,completion\n"Why?\n", So.\n')
      >>> next(iter(read_records([path]))).content
      {'prompt': 'Why?\n', 'completion': ' So.'}
    """
    return Records(row for path in files for row in _file(path, most))


def json_lines(path: Path, data: bytes) -> Iterator[Record | None]:
    """The rows of JSON lines.

    Args:
      path: The file.
      data: What it holds.

    Raises:
      ValueError: If it is no text.

    Examples:
      >>> next(json_lines(Path("a.jsonl"), b"[]")).problem
      'not a JSON object but list. Write one JSON object on each line (JSON lines).'
    """
    for source, line in split_lines(path, data):
        if not line.strip():
            yield None
            continue
        try:
            yield Record(source, json_object(line))
        except ValueError as error:
            yield Record(source, {}, str(error))


def _file(path: Path, most: int | None) -> Iterable[Record | None]:
    data = unpacked(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if data.startswith((b"PAR1", *_ARROW)):
        return _table(path, data, most)
    if suffix in (".parquet", ".arrow"):
        kind = kind_of(data[:2048]) or "something else, or nothing. Fetch it again."
        raise ValueError(f"{path} is no {suffix[1:].capitalize()} file but {kind}")
    if suffix in (".csv", ".tsv"):
        return _cells(path, data, "," if suffix == ".csv" else "\t")
    if data.removeprefix(_MARK).lstrip()[:1] == b"[":
        return _array(path, data)
    return (row and _without_nulls(row) for row in json_lines(path, data))


# Tables

#: How files of Arrow begin, and streams of it.
_ARROW = b"ARROW1", b"\xff\xff\xff\xff"


def _table(path: Path, data: bytes, most: int | None) -> Iterator[Record]:
    """The rows of Parquet or Arrow: the first ones, and all if more are asked for."""
    import polars as pl

    reads = {b"PAR1": pl.read_parquet, _ARROW[0]: pl.read_ipc}
    read = next((r for m, r in reads.items() if data.startswith(m)), pl.read_ipc_stream)
    number = 0
    for count in dict.fromkeys((most, None)):
        try:
            frame = read(io.BytesIO(data), n_rows=count)
        except (pl.exceptions.PolarsError, OSError, EOFError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{path} is damaged, or no whole file: {reason}. Fetch or write it "
                "again."
            ) from error
        for row in frame.slice(number).iter_rows(named=True):
            number += 1
            yield Record(_place(path, number), _without_nulls_below(row))
        if count is not None and frame.height < count:
            return


def _cells(path: Path, data: bytes, sign: str) -> Iterator[Record]:
    """The rows of CSV or TSV."""
    if (kind := kind_of(data[:2048])) is not None:
        raise ValueError(f"{path} is {kind}")
    lines = io.StringIO(_text(path, data), newline="")
    reader = csv.reader(lines, delimiter=sign, strict=True)
    rows = _unlimited(reader)
    try:
        names = next(rows, [])
        _check_names(path, names, sign)
        for number, row in enumerate(filter(None, rows), 1):
            yield _cells_of(_place(path, number), names, row)
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num}: not CSV: {error}. Put cells that hold quotes "
            "or ends of lines in quotes, and write quotes in them twice."
        ) from error


def _unlimited(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows of `csv`, whose limit, one for the process, is below the length of texts."""
    while True:
        limit = csv.field_size_limit(sys.maxsize)
        try:
            row = next(rows, None)
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield row


def _check_names(path: Path, names: Sequence[str], sign: str) -> None:
    """Refuses a first line that does not name the columns."""
    if len(names) == 1 and (other := re.search(r"[;\t|,]", names[0])):
        raise ValueError(
            f"{path}:1: one column, {names[0]!r}: its cells seem to be separated by "
            f"{other[0]!r}. A .csv file needs commas, a .tsv file tabs."
        )
    twice = {name for name in names if names.count(name) > 1}
    if twice or not all(names):
        which = f"{min(twice)!r} is there twice" if twice else "one has no name"
        raise ValueError(
            f"{path}:1: the first line must name the columns, and {which}. Name each."
        )


def _cells_of(source: str, names: Sequence[str], row: Sequence[str]) -> Record:
    if len(row) != len(names):
        return Record(
            source,
            {},
            f"{len(row)} cells, and {len(names)} columns ({', '.join(names)}). Put "
            "cells that hold the separator in quotes.",
        )
    cells = zip(names, row, strict=True)
    return Record(source, {name: _cell(text) for name, text in cells if text})


def _cell(text: str) -> Any:
    """A cell: text, or the messages that it spells in JSON."""
    if not text.lstrip().startswith("["):
        return text
    try:
        found = json.loads(text, object_pairs_hook=unique_fields)
    except ValueError:
        return text
    is_dialogue = bool(found) and all(
        isinstance(each, dict) and ("role" in each or "from" in each) for each in found
    )
    return found if is_dialogue else text


# JSON


def _array(path: Path, data: bytes) -> Iterator[Record]:
    """The objects of a JSON array."""
    text = _text(path, data)
    decode = json.JSONDecoder(object_pairs_hook=unique_fields).raw_decode
    place, number = _skip(text, text.index("[") + 1), 1
    is_empty = text[place : place + 1] == "]"
    while not is_empty:
        source = _place(path, number)
        try:
            content, place = decode(text, place)
        except ValueError as error:
            raise ValueError(f"{source}: not JSON: {error}. {_MEND}") from error
        except RecursionError as error:
            raise ValueError(f"{source} is nested too deeply. {_MEND}") from error
        if isinstance(content, dict):
            yield _without_nulls(Record(source, content))
        else:
            kind = type(content).__name__
            yield Record(source, {}, f"not a JSON object but {kind}. {_MEND}")
        place, number = _skip(text, place), number + 1
        if text[place : place + 1] != ",":
            break
        place = _skip(text, place + 1)
    if text[place : place + 1] != "]" or text[place + 1 :].strip():
        raise ValueError(
            f"{path} is no whole JSON array: behind row {number - 1} there is "
            f"{text[place : place + 30]!r}. {_MEND}"
        )


_MEND = "Write one array of objects, or one object on each line (JSON lines)."


def _skip(text: str, place: int) -> int:
    """The place behind white space."""
    found = _WHITE.match(text, place)
    return found.end() if found else place


def _text(path: Path, data: bytes) -> str:
    """The text of a file, without a byte order mark."""
    data = data.removeprefix(_MARK)
    try:
        return decode_line(data)
    except ValueError as error:
        place = getattr(error.__cause__, "start", 0)
        line = data.count(b"\n", 0, place) + 1
        raise ValueError(f"{path}:{line}: {error}") from error


# What rows have in common


def _place(path: Path, number: int) -> str:
    return f"{path}, row {number}"


def _without_nulls(record: Record) -> Record:
    content = {k: v for k, v in record.content.items() if v is not None}
    return record._replace(content=content)


def _without_nulls_below(value: Any) -> Any:
    """A value of a table, whose rows have every field that any row has."""
    if isinstance(value, dict):
        return {k: _without_nulls_below(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls_below(each) for each in value]
    return value
