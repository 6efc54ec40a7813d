"""Local text as training windows: read documents, split them, pack their tokens."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldjax.data.files.records import SUFFIXES, read_records
from ldjax.equation.sequences import Sequences
from ldjax.files.whole import Line, decode_line, read_lines

__all__ = ["pack_documents", "read_documents", "split_documents", "text_field"]


def read_documents(paths: Sequence[Path], *, field: str | None = None) -> list[str]:
    r"""The documents of local files, in order; blank ones are left out.

    A `.txt` file holds documents separated by blank lines. Files of rows, such as
    `.jsonl`, `.csv` or `.parquet` (`ldjax.data.files.records`), hold one in each row:
    the text of its `field`, unchanged. Either may be gzipped (`.txt.gz`, `.jsonl.gz`).
    All text is UTF-8.

    Args:
      paths: The files.
      field: The field of the JSON objects to read.

    Returns:
      One string per document.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is of another kind, damaged or holds no document, naming
        the file and the line.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
      >>> _ = path.write_text('{"prompt": " Why?\\n"}\n{"prompt": ""}\n')
      >>> read_documents([path], field="prompt")
      [' Why?\n']
    """
    documents = [text for path in paths for text in _read_file(path, field)]
    if not documents:
        raise ValueError(f"No text in {', '.join(map(str, paths)) or 'no file'}.")
    return documents


def split_documents(
    documents: Sequence[str], *, held_out_share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Training and held-out documents, with nothing in both.

    Documents that are equal up to white space, or of which one is the beginning of the
    other (an earlier state of a dialogue), go into the same half.

    Args:
      documents: At least two that are not of one group.
      held_out_share: Share of the groups that is held out, between 0 and 1; at least
        one group is.
      seed: The seed of the choice.

    Returns:
      The two halves, each in the order of `documents`.

    Raises:
      ValueError: If a half would be empty.

    Examples:
      >>> split_documents(["a b", "c", "a  b", "d"], held_out_share=0.4, seed=0)
      (['a b', 'c', 'a  b'], ['d'])
    """
    if not 0 < held_out_share < 1:
        raise ValueError(
            f"`held_out_share` must be between 0 and 1, got {held_out_share}."
        )
    keys = [" ".join(document.split()) for document in documents]
    heads = _group_heads(keys)
    groups = sorted(set(heads.values()))
    num_held_out = max(1, round(held_out_share * len(groups)))
    if num_held_out >= len(groups):
        raise ValueError(
            f"Holding out {held_out_share:g} of {len(groups)} different documents "
            "leaves none to train on: bring more text, or hold out less. Documents of "
            "a .txt file are separated by blank lines."
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    held_out = {groups[i] for i in order[:num_held_out]}
    halves: tuple[list[str], list[str]] = ([], [])
    for document, key in zip(documents, keys, strict=True):
        halves[heads[key] in held_out].append(document)
    return halves


def pack_documents(
    documents: Iterable[Sequence[int]], *, length: int, end_id: int, padding_id: int
) -> Sequences:
    """Documents as rows of one length, with nothing left out and nothing scored twice.

    The documents are joined to one stream that begins with the end token and has it
    behind each document, and the stream is cut into windows that overlap by one
    token: the last target of a row is the first token of the next.

    Args:
      documents: Token ids of each.
      length: Positions of a row, in tokens.
      end_id: The end token.
      padding_id: Fills the last row; masked.

    Returns:
      `[row, length]` arrays. The mask has one true position for every token of every
      document and for its end.

    Raises:
      ValueError: If `length` is not positive, or if there is no document.

    Examples:
      >>> rows = pack_documents([[5, 6], [7]], length=3, end_id=0, padding_id=1)
      >>> rows.tokens.tolist(), rows.targets.tolist()
      ([[0, 5, 6], [0, 7, 0]], [[5, 6, 0], [7, 0, 1]])
      >>> rows.mask.sum(1).tolist()
      [3, 2]
    """
    if length < 1:
        raise ValueError(f"`length` must be positive, got {length} tokens.")
    stream = [end_id]
    for document in documents:
        stream.extend(document)
        stream.append(end_id)
    num_scored = len(stream) - 1
    if not num_scored:
        raise ValueError("`documents` must hold at least one document.")
    num_rows = -(-num_scored // length)
    padded = np.full(num_rows * length + 1, padding_id, np.int32)
    padded[: len(stream)] = stream
    shape = (num_rows, length)
    scored = np.arange(num_rows * length) < num_scored
    return Sequences(
        tokens=jnp.asarray(padded[:-1].reshape(shape)),
        targets=jnp.asarray(padded[1:].reshape(shape)),
        mask=jnp.asarray(scored.reshape(shape)),
    )


def text_field(content: Mapping[str, Any], field: str) -> str:
    """The text in a field of a JSON object, unchanged.

    Args:
      content: The fields.
      field: The name of one.

    Returns:
      Its text.

    Raises:
      ValueError: If it is missing, or is no text.

    Examples:
      >>> text_field({"prompt": 3}, "prompt")
      Traceback (most recent call last):
        ...
      ValueError: 'prompt' must be text, got int.
    """
    if field not in content:
        raise ValueError(f"no field {field!r}; it has {', '.join(content) or 'none'}.")
    text = content[field]
    if not isinstance(text, str):
        raise ValueError(f"{field!r} must be text, got {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's escapes can write half a character
        raise ValueError(
            f"{field!r}: {error}. It holds half a character: remove or mend it."
        ) from error
    return text


def _read_file(path: Path, field: str | None) -> list[str]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".txt":
        return _paragraphs([_decoded(line) for line in read_lines(path)])
    if suffix not in SUFFIXES:
        known = ", ".join((".txt", *SUFFIXES))
        raise ValueError(f"{path}: expected {known}, or one of them with .gz.")
    if field is None:
        raise ValueError(f"{path}: say which field of its objects to read (`field`).")
    texts = []
    for source, content, problem in read_records([path]):
        try:
            if problem:
                raise ValueError(problem)
            texts.append(text_field(content, field))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    return [text for text in texts if text.strip()]


def _decoded(line: Line) -> str:
    try:
        return decode_line(line.data)
    except ValueError as error:
        raise ValueError(f"{line.source}: {error}") from error


def _paragraphs(lines: Sequence[str]) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(paragraph) for paragraph in paragraphs if paragraph]


def _group_heads(keys: Sequence[str]) -> dict[str, str]:
    """For each key, the shortest key that it begins with."""
    heads: dict[str, str] = {}
    head = None
    # Sorted, a text comes right before those that begin with it.
    for key in sorted(set(keys)):
        if head is None or not key.startswith(head):
            head = key
        heads[key] = head
    return heads
