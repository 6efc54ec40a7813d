"""Examples as people read them: every token's text, with those marked that are scored.

The cheapest way to see that a prompt, a chat template or an end of a text is not what
was meant is to look at one example as the model gets it.
"""

from typing import Any, NamedTuple

from ldjax.data.batches import Example
from ldjax.data.tokenizer import Tokenizer

__all__ = ["ShownExample"]

_MARKS = "⟦", "⟧"
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"
#: Characters of a piece that are shown, of its beginning and of its end.
_HEAD = _TAIL = 500


class ShownExample(NamedTuple):
    """An example in pieces that are scored, and pieces that are not.

    Attributes:
      type: The response type.
      source: The row that it is of.
      pieces: Texts in order, and whether the tokens of each are scored.
      num_tokens: Tokens of prompt and response.
      num_scored: Those of them that are scored.

    Examples:
      >>> from ldjax.data.tokenizers import train_word_level
      >>> tokenizer = train_word_level(["Why? So."])
      >>> example = Example(tokenizer.encode("Why?"), tokenizer.encode(" So."))
      >>> shown = ShownExample.of(tokenizer, example, type="chosen", source="a:1")
      >>> shown.pieces
      (('Why?', False), (' So.', True))
      >>> print(shown.text())
      chosen of a:1, 4 tokens, of which the 2 in ⟦⟧ are scored:
        Why?⟦ So.⟧
    """

    type: str
    source: str
    pieces: tuple[tuple[str, bool], ...]
    num_tokens: int
    num_scored: int

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, example: Example, *, type: str, source: str
    ) -> "ShownExample":
        """An example, decoded.

        Args:
          tokenizer: That made its tokens.
          example: The example.
          type: Its response type.
          source: The row that it is of.
        """
        prompt, response, scored = example
        ids = [*prompt, *response]
        marks = [False] * len(prompt)
        marks += [True] * len(response) if scored is None else map(bool, scored)
        starts = [i for i in range(len(ids)) if i == 0 or marks[i] != marks[i - 1]]
        # Pieces of one text: alone, some tokenizers drop the space before the first.
        heads = [tokenizer.decode(ids[:start]) for start in (*starts, len(ids))]
        pieces = tuple(
            (heads[n + 1][len(heads[n]) :], marks[start])
            for n, start in enumerate(starts)
        )
        return cls(type, source, pieces, len(ids), sum(marks))

    def text(self, is_coloured: bool = False) -> str:
        """For a terminal: what is scored in green, or else in brackets.

        Args:
          is_coloured: Whether what it is written to shows colours.
        """
        begin, end = (_GREEN, _PLAIN) if is_coloured else _MARKS
        how = f"{_GREEN}in green{_PLAIN}" if is_coloured else f"in {begin}{end}"
        texts = [
            f"{begin}{_excerpt(text)}{end}" if is_scored else _excerpt(text)
            for text, is_scored in self.pieces
        ]
        lines = "".join(texts).replace("\n", "\n  ")
        which = f"the {self.num_scored} {how} are scored"
        return (
            f"{self.type} of {self.source}, {self.num_tokens} tokens, of which {which}:"
            f"\n  {lines}"
        )

    def summary(self) -> dict[str, Any]:
        """For a run's `summary.json`."""
        return self._asdict() | {"pieces": [*map(list, self.pieces)]}


def _excerpt(text: str) -> str:
    """A text without its middle, where that is long."""
    left_out = len(text) - _HEAD - _TAIL
    if left_out <= _HEAD:
        return _visible(text)
    return _visible(f"{text[:_HEAD]} [... {left_out:,} characters ...] {text[-_TAIL:]}")


def _visible(text: str) -> str:
    """Without characters that would steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text
    )
