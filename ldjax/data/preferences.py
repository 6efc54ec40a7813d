r"""Prompts with their responses by type: preference pairs and probing sets, as files.

The paper watches twelve kinds of responses to a prompt (`RESPONSE_TYPES`): chosen and
rejected, on which is trained, and ten that show where the probability goes. Texts are
never changed here, in particular not at their edges: Anthropic-HH's own responses
begin with a space and most rewritten ones do not (see `to_examples` about that).
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldjax.data.conversation import Conversation
from ldjax.data.files.records import Records, json_lines
from ldjax.data.preference_formats import TURN_MARKERS, Parsed, in_order, parse
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.files.whole import unpacked, whole_file

__all__ = [
    "BadRow",
    "PreferenceRow",
    "Preferences",
    "gather",
    "read_preferences",
    "write_preferences",
]


class PreferenceRow(NamedTuple):
    """A prompt and responses to it, as texts or as messages.

    Attributes:
      prompt: With all that stands before the response ("... Assistant:"). A text may
        be empty where nothing does (language modelling).
      responses: By type, in the order of `RESPONSE_TYPES`. Chosen is there but where a
        row has the rejected side alone (unpaired), or nothing but a prompt. They are
        conversations if the prompt is one, but for texts that were drawn.
      source: Where it was read, "file:line" or "file, row N".

    Examples:
      >>> row = PreferenceRow("Why?", {"chosen": " So.", "rejected": " No."}, "a:1")
      >>> row.responses["chosen"]
      ' So.'
    """

    prompt: str | Conversation
    responses: dict[str, Any]
    source: str


class BadRow(NamedTuple):
    """A row that was left out.

    Attributes:
      source: Its place, "file:line" or "file, row N".
      problem: What is wrong with it, and the likely fix.

    Examples:
      >>> BadRow("a.jsonl:3", "'rejected' is blank.").source
      'a.jsonl:3'
    """

    source: str
    problem: str


class Preferences(NamedTuple):
    """The rows of a file, and an account of all that was not usual in it.

    Attributes:
      rows: Good ones, in order.
      skipped: Bad ones, in order.
      notes: How many of the good rows have each thing that was kept, or left out of
        them, and that a reader should know of: responses that are blank, have the words
        of chosen, begin with the prompt or go on with another turn of a dialogue;
        prompts that occur again; fields that are no response type. And the number of
        blank lines.

    Examples:
      >>> Preferences([], [BadRow("a.jsonl:1", "not JSON")], {}).summary()
      {'num_rows': 0, 'num_skipped': 1, 'skipped': ['a.jsonl:1: not JSON'], 'notes': {}}
    """

    rows: list[PreferenceRow]
    skipped: list[BadRow]
    notes: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Counts and reasons, for a run's `summary.json`."""
        return {
            "num_rows": len(self.rows),
            "num_skipped": len(self.skipped),
            "skipped": [f"{source}: {problem}" for source, problem in self.skipped],
            "notes": self.notes,
        }


def read_preferences(
    path: Path,
    *,
    required: Sequence[str] = ("chosen", "rejected"),
    blank: Literal["bad", "keep"] = "bad",
    on_bad_row: Literal["error", "skip"] = "error",
) -> Preferences:
    r"""The rows of a file with one JSON object on each line, gzipped (`.gz`) or not.

    Each row may have one of three forms, which its fields tell apart:

    * Texts: `prompt`, and responses under the names of `RESPONSE_TYPES`. So the paper's
      probing files, and plain prompt, chosen and rejected. Read unchanged.
    * Whole dialogues (Anthropic-HH): no `prompt`; each response is a text "\n\nHuman:
      ... \n\nAssistant: ..." and is split behind its last "\n\nAssistant:". The
      response keeps its leading space.
    * Messages (UltraFeedback): `prompt` is a text, each response a list of the user's
      message and the answer, `{"role": ..., "content": ...}`. The prompt becomes the
      paper's "Human: {prompt}\nAssistant:", and the response gets one leading space,
      since text goes on behind a colon with one, and as HH's own responses do.

    A row is bad if it is not such an object, if its prompt is blank, if the prompts of
    its responses differ, or if a required response is missing. A blank response (white
    space only) is bad where it is required, since training on it teaches to stop; with
    `blank="keep"` it is kept. Elsewhere it is a probe like any other, of which only the
    end token and the space are scored, and always kept. The paper's probing set has
    both kinds and needs `blank="keep"`.

    Fields of other names are ignored and counted in the notes: among them the probing
    files' `chosen_selfr` (a rephrasing that is mostly junk, and that the authors do not
    evaluate), and `rejected_gpt*`, as the authors' notebook spells `reject_gpt*`.

    Args:
      path: The file.
      required: Types that each row must have; `("chosen",)` for SFT data.
      blank: What a blank response of a required type is.
      on_bad_row: Stop at the first bad row, or leave it out and list it in `skipped`.

    Returns:
      The rows, and what is to be known about them. Blank lines are counted, not bad.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a row is bad, naming file and line; if the file is damaged or has
        no good row; if `required` is not made of types with chosen among them.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
      >>> line = '{"prompt": "Why?", "chosen": " So.", "rejected": " ", "id": 3}'
      >>> _ = path.write_text(line)
      >>> preferences = read_preferences(path, blank="keep")
      >>> preferences.rows[0].responses
      {'chosen': ' So.', 'rejected': ' '}
      >>> preferences.notes
      {"field 'id' ignored": 1, "'rejected' is blank": 1}
    """
    _check_required(required)
    return gather(
        Records(json_lines(path, unpacked(path))),
        lambda content: parse(content, required),
        path,
        required=required,
        blank=blank,
        on_bad_row=on_bad_row,
    )


def gather(
    records: Records,
    parse_row: Callable[[dict[str, Any]], Parsed],
    path: Path,
    *,
    required: Sequence[str],
    blank: Literal["bad", "keep"],
    on_bad_row: Literal["error", "skip"],
    most: int | None = None,
    check: Callable[[PreferenceRow], object] | None = None,
) -> Preferences:
    """The good rows of a file, and what is to be known of them and of the others.

    Args:
      records: The rows as they stand there.
      parse_row: From the fields of one to its prompt and responses.
      path: Where they are, for messages.
      required: Types of responses that are trained on.
      blank: What a blank response of these types is.
      on_bad_row: As in `read_preferences`.
      most: How many good rows are wanted; those behind them are not looked at.
      check: Raises a `ValueError` of a row that is bad by more than its texts.

    Raises:
      ValueError: If there is no good row, or a bad one that is not to be left out.

    Examples:
      >>> data = b'{"prompt": "Why?", "chosen": " So."}'
      >>> lines = Records(json_lines(Path("a.jsonl"), data))
      >>> asked = {"required": ["chosen"], "blank": "bad", "on_bad_row": "error"}
      >>> read = lambda content: parse(content, ["chosen"])
      >>> gather(lines, read, Path("a.jsonl"), **asked).rows[0].source
      'a.jsonl:1'
    """
    rows: list[PreferenceRow] = []
    skipped: list[BadRow] = []
    notes: Counter[str] = Counter({"line is blank": 0})
    prompts: set[str] = set()
    for source, content, problem in records:
        try:
            if problem:
                raise ValueError(problem)
            parsed = parse_row(content)
            if blank == "bad":
                _refuse_blanks(parsed.responses, required)
            row = PreferenceRow(parsed.prompt, parsed.responses, source)
            if check is not None:
                check(row)
        except ValueError as error:
            problem = str(error).removeprefix(f"{source}: ")
            if on_bad_row == "error":
                raise ValueError(f"{source}: {problem}") from error
            skipped.append(BadRow(source, problem))
            continue
        rows.append(row)
        notes.update(_notes(parsed))
        notes["prompt occurs before"] += str(parsed.prompt) in prompts
        if parsed.prompt:
            prompts.add(str(parsed.prompt))
        if len(rows) == most:
            break
    notes["line is blank"] = records.num_blank
    if not rows:
        first = f" The first problem: {': '.join(skipped[0])}" if skipped else ""
        if not skipped:
            first = " It is empty."
        raise ValueError(f"{path} has no good row.{first}")
    return Preferences(rows, skipped, dict(+notes))


def write_preferences(path: Path, rows: Sequence[PreferenceRow]) -> None:
    """Write rows as JSON lines, which `read_preferences` reads back unchanged.

    The schema is that of the paper's probing files: `prompt`, and each response under
    the name of its type. The file appears when it is complete.

    Args:
      path: The file; gzipped if it ends in `.gz`. The same rows give the same bytes.
      rows: At least one.

    Raises:
      ValueError: If there is no row, or one that could not be read back.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl.gz"
      >>> rows = [PreferenceRow("Why?", {"chosen": " So.", "rejected": ""}, "me:1")]
      >>> write_preferences(path, rows)
      >>> read_preferences(path, blank="keep").rows[0].responses == rows[0].responses
      True
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row.")
    lines = []
    for row in rows:
        try:
            content = {"prompt": row.prompt, **in_order(row.responses)}
            parse(content, required=("chosen",))
        except ValueError as error:
            raise ValueError(f"`rows`, the one from {row.source}: {error}") from error
        lines.append(json.dumps(content) + "\n")
    data = "".join(lines).encode()
    with whole_file(path) as partial:
        partial.write_bytes(
            gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
        )


def _check_required(required: Sequence[str]) -> None:
    if "chosen" not in required or not set(required) <= set(RESPONSE_TYPES):
        raise ValueError(
            "`required` must be names of response types, chosen among them, got "
            f"{required!r}. The types are {', '.join(RESPONSE_TYPES)}."
        )


def _refuse_blanks(responses: dict[str, Any], required: Sequence[str]) -> None:
    for name in required:
        if name in responses and _is_blank(responses[name]):
            raise ValueError(
                f"{name!r} is blank: there is nothing to learn but to stop. Keep such "
                'rows with `blank="keep"`, or leave them out with `on_bad_row="skip"`.'
            )


def _is_blank(response: str | Conversation) -> bool:
    if isinstance(response, str):
        return not response.strip()
    said = [each for each in response.messages if each["role"] == "assistant"]
    return not any(
        each.get("tool_calls") or each.get("content", "").strip() for each in said
    )


def _notes(parsed: Parsed) -> Iterator[str]:
    for name in parsed.ignored:
        yield f"field {name!r} ignored"
    chosen = str(parsed.responses.get("chosen", ""))
    if parsed.prompt and chosen.startswith(str(parsed.prompt)):
        yield "'chosen' begins with the prompt"
    for name, response in parsed.responses.items():
        text = str(response)
        if _is_blank(response):
            yield f"{name!r} is blank"
        if (
            name != "chosen"
            and "chosen" in parsed.responses
            and text.split() == chosen.split()
        ):
            yield f"{name!r} has the words of chosen"
        if any(marker in text for marker in TURN_MARKERS):
            yield f"{name!r} goes on with another turn"
