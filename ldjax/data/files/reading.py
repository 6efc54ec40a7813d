"""Files and folders of rows of any type, as prompts with responses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ldjax.data.files.folders import TRAINED, find_files
from ldjax.data.files.records import Records, read_records
from ldjax.data.files.rows import parse_row
from ldjax.data.files.types import PAIRED, DataType, type_of
from ldjax.data.preference_formats import parse
from ldjax.data.preferences import PreferenceRow, Preferences, gather

__all__ = ["DataFile", "open_data"]


class DataFile(NamedTuple):
    r"""Rows of one type, as they stand in a file or in a folder of files.

    Attributes:
      path: Where they are.
      which: Which files of a folder they are from; empty for one file.
      records: Their fields.
      data_type: What they are made of.
      most: How many are used, the first good ones; all by default.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.csv"
      >>> _ = path.write_text("prompt,completion,label\nWhy?, So.,true\n")
      >>> data = open_data(path)
      >>> data.rows(required=["chosen"]).rows[0].responses
      {'chosen': ' So.'}
      >>> print(data)
      /.../a.csv: 1 rows, unpaired preference, as text
    """

    path: Path
    which: str
    records: Records
    data_type: DataType
    most: int | None = None

    def __str__(self) -> str:
        """What was found, in a line."""
        which = f" ({self.which})" if self.which else ""
        names = (*self._sides, "prompt", "messages", "conversations", "conversation")
        first = self.records.first(self.most)
        is_dialogue = any(
            not isinstance(content[name], str)
            for _, content, problem in first
            for name in names
            if not problem and name in content
        )
        form = "as messages" if is_dialogue else "as text"
        is_cut = self.most is not None and len(first) >= self.most
        count = f"the first {self.most:,} rows" if is_cut else f"{len(first):,} rows"
        return f"{self.path}{which}: {count}, {self.data_type.name}, {form}"

    @property
    def has_plain_form(self) -> bool:
        """Whether a prompt as text stands before answers as messages (UltraFeedback).

        Such rows can be read without a chat template, too.
        """
        return self.data_type is PAIRED and any(
            isinstance(content.get("prompt"), str)
            and any(isinstance(content.get(side), list) for side in self._sides)
            for _, content, _ in self.records.first(self.most)
        )

    @property
    def _sides(self) -> tuple[str, ...]:
        return ("chosen", "rejected", "completion")

    def rows(
        self,
        *,
        required: Sequence[str],
        blank: Literal["bad", "keep"] = "bad",
        on_bad_row: Literal["error", "skip"] = "error",
        is_plain: bool = False,
        check: Callable[[PreferenceRow], object] | None = None,
    ) -> Preferences:
        """The rows as prompts and responses, and an account of how they were read.

        Args:
          required: Types of responses that are trained on.
          blank: What a blank response of these types is.
          on_bad_row: Stop at the first bad row, or leave it out and count it.
          is_plain: Read messages as `read_preferences` does, as texts without a chat
            template.
          check: Raises a `ValueError` of a row that is bad by more than its texts.

        Raises:
          ValueError: If a row is bad, naming its place; if no row is good.
        """
        return gather(
            self.records,
            lambda content: (
                parse(content, required)
                if is_plain
                else parse_row(content, self.data_type, required)
            ),
            self.path,
            required=required,
            blank=blank,
            on_bad_row=on_bad_row,
            most=self.most,
            check=check,
        )


def open_data(
    path: Path,
    *,
    split: str | None = None,
    prefer: Sequence[str] = TRAINED,
    most: int | None = None,
) -> DataFile:
    """The rows of a file or of a folder, and of which type they are.

    Where so many are used, the type is that of the columns of the first ones, and rows
    behind the last good one that is used are not parsed: they may be anything.

    Args:
      path: A file of a format of `read_records`, or a folder of them (`find_files`).
      split: Of a folder that has several.
      prefer: The splits that are taken without it, the first one that is there.
      most: How many rows are used, the first good ones; all by default.

    Raises:
      FileNotFoundError: If there is no such file, or no file of rows in a folder.
      ValueError: If a file is damaged, has no row or rows of no type that is read; as
        `find_files`.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
      >>> _ = path.write_text('{"text": "The sky is blue."}')
      >>> open_data(path).data_type.name
      'language modelling'
    """
    files, which = find_files(path, split=split, prefer=prefer)
    records = read_records(files, most=most)
    first = records.first(most)
    columns = list(dict.fromkeys(name for row in first for name in row.content))
    if not columns:
        problems = [(row.source, row.problem) for row in first]
        first = f"The first problem: {': '.join(problems[0])}" if problems else ""
        raise ValueError(f"{path} has no good row. {first or 'It is empty.'}")
    try:
        data_type = type_of(columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return DataFile(path, which, records, data_type, most)
