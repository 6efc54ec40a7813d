"""Special tokens in texts: where they are spelled, and when a text means them.

A dialogue that a chat template wrote spells the special tokens of its model, and means
them. Other texts that spell one speak of it. What tells them apart is that in a
dialogue a marker names the role whose turn begins: `<|im_start|>user`,
`<|start_header_id|>assistant`, `<start_of_turn>model`, `<|user|>`, `[INST]`.
"""

import re
from collections.abc import Sequence

__all__ = ["chat_pattern", "special_pattern"]

_ROLES = (
    "assistant|bot|developer|environment|function|gpt|human|ipython|model|observation|"
    "system|tool|user"
)
# Markers that many tokenizers have as ordinary text, next to special tokens.
_MARKERS = rf"<[|｜](?:{_ROLES})[|｜]>|\[INST\]"


def special_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds the tokens in a text, the longest of those that begin at a place.

    Args:
      tokens: Their texts.

    Examples:
      >>> special_pattern(["<a>", "<a><b>"]).findall("<a><b> <b> <a>")
      ['<a><b>', '<a>']
    """
    return re.compile(_any_of(tokens))


def chat_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds the beginning of a turn of a dialogue.

    Args:
      tokens: Special tokens that may begin one.

    Examples:
      >>> pattern = chat_pattern(["<|im_start|>"])
      >>> texts = ["<|im_start|>user", "what is <|im_start|>?", "<|user|>"]
      >>> [bool(pattern.search(text)) for text in texts]
      [True, False, True]
    """
    turns = rf"(?:{_any_of(tokens)})\s*(?:{_ROLES})\b"
    return re.compile(rf"{turns}|{_MARKERS}", re.IGNORECASE)


def _any_of(tokens: Sequence[str]) -> str:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or r"(?!)"  # which is nowhere
