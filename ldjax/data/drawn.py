"""The text of a response that a model drew, which keeps the ids that were drawn."""

from collections.abc import Sequence

from ldjax.data.tokenizer import Tokenizer

__all__ = ["DrawnText"]


class DrawnText(str):
    """A text for people, and the ids that it came as.

    A text may have many tokenizations, and a model seldom draws the one that its
    tokenizer makes of the text; nor do ids come back that end inside a character, or
    that stand for special tokens. So what is watched of such a response are its ids
    (`ldjax.data.responses.to_examples`). Anything made out of the text is plain text.

    Attributes:
      ids: As they were drawn, the end token included where one was.
      tokenizer: Whose ids they are.

    Args:
      ids: Token ids of a response, from `Generated.responses`.
      tokenizer: The tokenizer of the model that drew them.

    Examples:
      >>> from ldjax.data.tokenizers import train_bpe
      >>> tokenizer = train_bpe(["ab ab ab"], vocab_size=259)
      >>> a, b, ab = (tokenizer.encode(text) for text in ("a", "b", "ab"))
      >>> text = DrawnText([*a, *b, tokenizer.end_id], tokenizer)
      >>> text, len(text.ids), len(ab)
      ('ab', 3, 1)
    """

    ids: tuple[int, ...]
    tokenizer: Tokenizer

    def __new__(cls, ids: Sequence[int], tokenizer: Tokenizer) -> "DrawnText":
        """Without the end token, which ends the text and is none of it."""
        ids = tuple(map(int, ids))
        shown = ids[:-1] if ids and ids[-1] in tokenizer.end_ids else ids
        text = super().__new__(cls, tokenizer.decode(shown))
        text.ids, text.tokenizer = ids, tokenizer
        return text

    def __reduce__(self) -> tuple[type["DrawnText"], tuple[Sequence[int], Tokenizer]]:
        """What copies are made of."""
        return DrawnText, (self.ids, self.tokenizer)
