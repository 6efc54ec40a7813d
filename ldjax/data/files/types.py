"""The types of rows, which the names of their columns tell apart."""

from collections.abc import Collection
from typing import NamedTuple

__all__ = [
    "DIALOGUE_COLUMNS",
    "IMPLICIT",
    "LANGUAGE",
    "PAIRED",
    "PROMPTS",
    "PROMPT_COMPLETION",
    "TYPES",
    "UNPAIRED",
    "DataType",
    "type_of",
]


class DataType(NamedTuple):
    """What rows are made of; the words are those of TRL's documentation.

    Attributes:
      name: What it is called.
      columns: Those that its rows have, in words.
      gives: The sides that a row of it has or may have, to train on.

    Examples:
      >>> type_of(["prompt", "completion", "id"]).name
      'prompt-completion'
    """

    name: str
    columns: str
    gives: tuple[str, ...]


PAIRED = DataType(
    "preference", "`prompt`, `chosen`, `rejected`", ("chosen", "rejected")
)
IMPLICIT = DataType(
    "preference with implicit prompt", "`chosen`, `rejected`", ("chosen", "rejected")
)
UNPAIRED = DataType(
    "unpaired preference", "`prompt`, `completion`, `label`", ("chosen", "rejected")
)
PROMPT_COMPLETION = DataType("prompt-completion", "`prompt`, `completion`", ("chosen",))
LANGUAGE = DataType("language modelling", "`text` or `messages`", ("chosen",))
PROMPTS = DataType("prompt-only", "`prompt`", ())

TYPES = (PAIRED, IMPLICIT, UNPAIRED, PROMPT_COMPLETION, LANGUAGE, PROMPTS)

#: Columns of whole dialogues; the latter two in ShareGPT's words, or in the usual ones.
DIALOGUE_COLUMNS = ("messages", "conversations", "conversation")
#: Names that other files have, and what is read.
_OTHER_NAMES = {
    "instruction": "prompt",
    "question": "prompt",
    "query": "prompt",
    "input": "prompt",
    "output": "completion",
    "response": "completion",
    "answer": "completion",
    "preferred": "chosen",
    "accepted": "chosen",
    "dispreferred": "rejected",
    "dialog": "messages",
    "dialogue": "messages",
    "content": "text",
    "document": "text",
}


def type_of(columns: Collection[str]) -> DataType:
    """The type of rows with these columns; others may stand beside them.

    Args:
      columns: Their names.

    Raises:
      ValueError: If they are of no type that is read.

    Examples:
      >>> type_of(["text"]).name
      'language modelling'
      >>> type_of(["instruction", "output"])
      Traceback (most recent call last):
        ...
      ValueError: no rows to train on have the columns instruction, output. Rename
      'instruction' to 'prompt', 'output' to 'completion'; ...
    """
    has = set(columns)
    if {"completions", "labels"} <= has:
        raise ValueError(
            "these are steps with a label each ('completions', 'labels': stepwise "
            "supervision), which no loss here takes. Write rows of 'prompt', "
            "'completion' and 'label' for each step."
        )
    if has & {"chosen", "rejected"}:
        return PAIRED if "prompt" in has else IMPLICIT
    if {"prompt", "completion"} <= has:
        return UNPAIRED if "label" in has else PROMPT_COMPLETION
    if has & {"text", *DIALOGUE_COLUMNS}:
        return LANGUAGE
    if "prompt" in has:
        return PROMPTS
    renamed = [
        f"{name!r} to {_OTHER_NAMES[name]!r}"
        for name in columns
        if name in _OTHER_NAMES
    ]
    fix = f"Rename {', '.join(renamed)}; read" if renamed else "Read"
    known = "; ".join(f"{each.columns} ({each.name})" for each in TYPES)
    raise ValueError(
        f"no rows to train on have the columns {', '.join(columns) or '(none)'}. {fix} "
        f"are {known}."
    )
