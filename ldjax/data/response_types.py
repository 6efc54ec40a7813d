"""The kinds of responses to a prompt that the paper watches: the one table of them.

On the two `SIDES` is trained; the others show where the probability goes.
"""

from typing import NamedTuple

__all__ = ["GROUPS", "MEANINGS", "RESPONSE_TYPES", "REWRITTEN", "SIDES", "ResponseType"]


class ResponseType(NamedTuple):
    """A kind of response.

    Attributes:
      name: The word for it in files of data and in the table of a run.
      group: The kind that it is a variant of, and shares a colour with.
      meaning: What it is, in words of a page.
      is_rewritten: Whether a language model made it out of one of the two sides.
    """

    name: str
    group: str
    meaning: str
    is_rewritten: bool = False


#: In the order of the paper's files, which is that of every table and figure.
_TABLE = (
    ResponseType("chosen", "chosen", "the preferred answer"),
    ResponseType("chosen_initial", "chosen", "the base model's own sample"),
    ResponseType(
        "chosen_gptsemantic", "chosen", "the preferred answer in other words", True
    ),
    ResponseType("chosen_gptformat", "chosen", "its format with other facts", True),
    ResponseType("rejected", "rejected", "the rejected answer"),
    ResponseType(
        "reject_gptsemantic", "rejected", "the rejected answer in other words", True
    ),
    ResponseType("reject_gptformat", "rejected", "its format with other facts", True),
    ResponseType("irr_train", "irrelevant", "another prompt's trained answer"),
    ResponseType("irr_test", "irrelevant", "an answer that is never trained on"),
    ResponseType("irr_hum", "irrelevant", "unrelated text"),
    ResponseType("random_permute", "random", "the preferred answer shuffled"),
    ResponseType("random_nonhum", "random", "shuffled unrelated words"),
)

RESPONSE_TYPES: tuple[str, ...] = tuple(of.name for of in _TABLE)
SIDES = ("chosen", "rejected")
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(of.name for of in _TABLE if of.group == group)
    for group in dict.fromkeys(of.group for of in _TABLE)
}
MEANINGS: dict[str, str] = {of.name: of.meaning for of in _TABLE}
REWRITTEN: tuple[str, ...] = tuple(of.name for of in _TABLE if of.is_rewritten)
