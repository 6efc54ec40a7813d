"""The tokenizer class: text to token ids and back, without loss."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ldjax.data.chat import chat_pattern, special_pattern
from ldjax.data.templates.beside import as_field
from ldjax.files.digests import digest
from ldjax.files.whole import whole_file

if TYPE_CHECKING:
    import re

    import tokenizers

__all__ = ["FIELDS", "SpecialTokens", "Tokenizer", "check_text"]

#: What the hub calls the fields of `SpecialTokens`.
FIELDS = ("eos_token", "pad_token", "unk_token", "bos_token")


class SpecialTokens(NamedTuple):
    """The text of the tokens that mark what a text is; None where there is none.

    Attributes:
      end: Ends a response or a document, and stands before the first one.
      padding: Fills a batch; never scored.
      unknown: What a word-level tokenizer makes of a word it has not seen. Byte-level
        ones have seen every byte.
      start: Begins a document, where that is not END (Llama).

    Examples:
      >>> SpecialTokens()._replace(unknown="<|unknown|>").end
      '<|endoftext|>'
    """

    end: str = "<|endoftext|>"
    padding: str | None = "<|padding|>"
    unknown: str | None = None
    start: str | None = None


class Tokenizer:
    """Text to token ids and back.

    Make one with `load_tokenizer`, `train_bpe` or `train_word_level`. Encoding adds no
    special tokens, cuts nothing and pads nothing: append `end_id` yourself. A text that
    spells a special token is ordinary text, unless it is said to mean them.

    Attributes:
      special_tokens: Their text.
      end_id: Id of the end token.
      end_ids: Ids of all tokens at which the model stops, that one first: some models
        have one for the end of a turn and one for the end of all.
      padding_id: Id of the padding token; that of the end token where there is none.
      unknown_id: Id of the unknown token, or None.
      start_id: Id of the token that documents begin with; that of the end token where
        there is no other.
      vocab_size: Number of token ids, special ones included: the model's `vocab_size`,
        which may be larger than the tokenizer's own.
      named_tokens: The special tokens under the hub's names, such as `bos_token`, which
        chat templates know them by. Two names may stand for one token.
      chat_templates: The model's chat templates by name, "default" the usual one.

    Examples:
      >>> from ldjax.data.tokenizers import train_bpe
      >>> tokenizer = train_bpe(["a cat"], vocab_size=260)
      >>> tokenizer.decode(tokenizer.encode("Ein Kätzchen <|endoftext|>"))
      'Ein Kätzchen <|endoftext|>'
      >>> tokenizer.end_id in tokenizer.encode("<|endoftext|>")
      False
    """

    def __init__(
        self,
        inner: "tokenizers.Tokenizer",
        special_tokens: SpecialTokens,
        vocab_size: int | None = None,
        *,
        end_ids: Sequence[int] = (),
        named_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        if getattr(inner.model, "dropout", None):  # BPE's, which draws anew each time
            inner.model.dropout = None
        self._inner = inner
        self.special_tokens = special_tokens
        end, padding, unknown, start = (
            None if token is None else _special_id(inner, token)
            for token in special_tokens
        )
        assert end is not None  # for the type checker: `end` is a string
        self.end_id: int = end
        self.padding_id: int = end if padding is None else padding
        self.unknown_id: int | None = unknown
        self.start_id: int = end if start is None else start
        # Not the number of tokens: a loaded vocabulary may have gaps.
        vocab = inner.get_vocab(with_added_tokens=True)
        least = 1 + max(vocab.values())
        self.vocab_size: int = least if vocab_size is None else vocab_size
        if self.vocab_size < least:
            raise ValueError(
                f"The tokenizer has {least} token ids, but the model's vocabulary only "
                f"{vocab_size}. Is it another model's tokenizer?"
            )
        # Ids beyond the vocabulary are defaults of other models, and never drawn.
        others = (i for i in end_ids if 0 <= i < self.vocab_size)
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys((end, *others)))
        ours = dict(zip(FIELDS, special_tokens, strict=True))
        self.named_tokens: dict[str, str] = dict(named_tokens or {}) | {
            name: token for name, token in ours.items() if token is not None
        }
        self.chat_templates: dict[str, str] = dict(chat_templates or {})

    @property
    def chat_template(self) -> str | None:
        """The text of the model's own chat template, as `transformers` reads it.

        Examples:
          >>> from ldjax.data.tokenizers import train_bpe
          >>> train_bpe(["a"], vocab_size=260).chat_template is None
          True
        """
        return self.chat_templates.get("default")

    def with_chat_template(self, text: str) -> "Tokenizer":
        """The tokenizer with another chat template, and no further ones.

        Args:
          text: The template's.

        Returns:
          A tokenizer that reads and writes texts as this one.

        Examples:
          >>> from ldjax.data.tokenizers import train_bpe
          >>> tokenizer = train_bpe(["a"], vocab_size=260)
          >>> tokenizer.with_chat_template("{{ messages }}").chat_template
          '{{ messages }}'
        """
        other = copy.copy(self)
        other.chat_templates = {"default": text}
        return other

    def encode(self, text: str, *, read_special: bool = False) -> list[int]:
        """Token ids of a text, none of them special but for unknown words.

        Args:
          text: Any text.
          read_special: Whether the special tokens that it spells are meant; otherwise
            they are split into characters as any text is.

        Returns:
          One id per token.

        Raises:
          ValueError: If `text` has a lone surrogate, which is half a character.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> train_word_level(["the cat"]).encode("the cat")
          [4, 3]
        """
        return self.encode_batch([text], read_special=read_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, read_special: bool = False
    ) -> list[list[int]]:
        """Token ids of many texts, on all cores.

        Args:
          texts: Any texts.
          read_special: Whether the special tokens that they spell are meant.

        Returns:
          The ids of each text, in order.

        Raises:
          ValueError: If a text has a lone surrogate, which is half a character.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> train_word_level(["the cat"]).encode_batch(["the", " cat", ""])
          [[4], [3], []]
        """
        for text in texts:
            check_text(text)
        self._inner.encode_special_tokens = not read_special
        try:
            encodings = self._inner.encode_batch_fast(
                list(texts), add_special_tokens=False
            )
        except Exception as error:  # the library raises plain `Exception`
            raise ValueError(self._why_unread(texts, error)) from error
        if self._known is not None:
            self._refuse_losses(texts, self._known)
        return [encoding.ids for encoding in encodings]

    def encode_spans(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a text whose special tokens are meant, and which are in spans.

        Args:
          text: Any text.
          spans: First character of each, and the one behind its last.

        Returns:
          The ids, and for each whether it is of a span: from the token that has its
          first character to the first one that has its last, as `transformers` marks
          what the assistant says.

        Raises:
          ValueError: If `text` has a lone surrogate, which is half a character.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> train_word_level(["the cat"]).encode_spans("the cat", [(3, 7)])
          ([4, 3], [False, True])
        """
        (ids,) = self.encode_batch([text], read_special=True)
        places = self._inner.encode(text, add_special_tokens=False)
        mask = [False] * len(ids)
        for start, end in spans:
            first = places.char_to_token(start) if start < end else None
            if first is None:
                continue
            last = places.char_to_token(end - 1)
            until = len(ids) if last is None else last + 1
            mask[first:until] = [True] * (until - first)
        return ids, mask

    @cached_property
    def _known(self) -> set[str] | None:
        """The characters it knows, where it leaves others out silently; else None.

        BPE does so where it has neither an unknown token nor all bytes.
        """
        model = self._inner.model
        has_bytes = "ByteLevel" in self._inner.to_str()
        is_bpe = type(model).__name__ == "BPE"
        if not is_bpe or model.unk_token or model.byte_fallback or has_bytes:
            return None
        return set("".join(self._inner.get_vocab(with_added_tokens=True)))

    def _refuse_losses(self, texts: Sequence[str], known: set[str]) -> None:
        normalizer = self._inner.normalizer
        for text in texts:
            read = normalizer.normalize_str(text) if normalizer else text
            lost = [c for c in read if c not in known and not c.isspace()]
            if lost:
                raise ValueError(
                    f"The tokenizer would leave {lost[0]!r} out of the text "
                    f"{text[:40]!r}, since it has neither bytes nor an unknown token. "
                    "Take another tokenizer, or remove what it does not know."
                )

    def _why_unread(self, texts: Sequence[str], error: Exception) -> str:
        for text in texts:
            try:
                self._inner.encode(text, add_special_tokens=False)
            except Exception as of_text:
                error, unread = of_text, repr(text[:40])
                break
        else:
            unread = "that it was given"
        return (
            f"The tokenizer cannot read the text {unread}: {error}. Has it no unknown "
            "token for what it does not know?"
        )

    def special_in(self, text: str) -> list[str]:
        """The special tokens that a text spells, in order, each once.

        Args:
          text: Any text.

        Examples:
          >>> from ldjax.data.tokenizers import train_bpe
          >>> train_bpe(["a"], vocab_size=260).special_in("a<|endoftext|> b")
          ['<|endoftext|>']
        """
        return list(dict.fromkeys(self.special_pattern.findall(text)))

    def is_chat(self, text: str) -> bool:
        """Whether a text is a dialogue as chat templates write it.

        That is, whether a turn begins in it: with a special token that a role's name
        follows (`<|im_start|>user`), or with a marker that names one (`<|user|>`,
        `[INST]`). END, padding and unknown begin none.

        Args:
          text: Any text.

        Examples:
          >>> from ldjax.data.tokenizers import train_bpe
          >>> tokenizer = train_bpe(["a"], vocab_size=260)
          >>> tokenizer.is_chat("<|user|>Why?"), tokenizer.is_chat("Human: Why?")
          (True, False)
        """
        return self._chat.search(text) is not None

    def agrees(self, other: "Tokenizer") -> bool:
        """Whether the ids of another tokenizer mean the same texts.

        By the vocabulary alone: libraries that save a tokenizer anew write other things
        about it, which no id depends on.

        Args:
          other: A tokenizer, perhaps of the same model.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> train_word_level(["a"]).agrees(train_word_level(["b"]))
          False
        """
        return self is other or self._digest == other._digest

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids; special tokens appear as their text.

        Args:
          ids: Token ids of `encode` or a model. Ids that end inside a character, as a
            sampled response may, give U+FFFD there. Ids that stand for no token, as
            where a model's vocabulary is padded, give nothing.

        Returns:
          The text.

        Raises:
          ValueError: If an id is not in the vocabulary.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> tokenizer = train_word_level(["the cat"])
          >>> tokenizer.decode([4, 3, tokenizer.end_id])
          'the cat<|endoftext|>'
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(
                    f"`ids` must lie in [0, {self.vocab_size}), the vocabulary; got "
                    f"{i}."
                )
        return self._inner.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        """The content of `tokenizer.json`.

        Returns:
          A text that `load_tokenizer` and the `tokenizers` library read.

        Examples:
          >>> from ldjax.data.tokenizers import train_word_level
          >>> train_word_level(["a"]).to_json() == train_word_level(["a"]).to_json()
          True
        """
        return self._inner.to_str(pretty=True)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` with all the rest.

        That is, the special tokens by name and the chat templates. Where the model
        stops at more tokens than END, `generation_config.json` too.

        Args:
          folder: A folder that exists.

        Examples:
          >>> import tempfile
          >>> from ldjax.data.tokenizers import load_tokenizer, train_word_level
          >>> folder = Path(tempfile.mkdtemp())
          >>> train_word_level(["the cat"]).save(folder)
          >>> load_tokenizer(folder).vocab_size
          5
        """
        content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        content |= self.named_tokens
        if self.chat_templates:
            content["chat_template"] = as_field(self.chat_templates)
        files = {
            "tokenizer.json": self.to_json(),
            "tokenizer_config.json": json.dumps(content, indent=2) + "\n",
        }
        if len(self.end_ids) > 1:
            ends = json.dumps({"eos_token_id": self.end_ids}, indent=2)
            files["generation_config.json"] = f"{ends}\n"
        for name, text in files.items():
            with whole_file(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")

    @cached_property
    def special_pattern(self) -> "re.Pattern[str]":
        """Finds the special tokens that a text spells."""
        return special_pattern(self._special_texts())

    @cached_property
    def _chat(self) -> "re.Pattern[str]":
        end, padding, unknown, _ = self.special_tokens
        begin_none = (end, padding, unknown)
        return chat_pattern([t for t in self._special_texts() if t not in begin_none])

    @cached_property
    def _digest(self) -> str:
        vocabulary = self._inner.get_vocab(with_added_tokens=True).items()
        return digest(f"{number} {len(of)} {of}\n" for of, number in sorted(vocabulary))

    def _special_texts(self) -> list[str]:
        added = self._inner.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]


def _special_id(inner: "tokenizers.Tokenizer", token: str) -> int:
    found = inner.token_to_id(token)
    if found is None:
        known = [added.content for added in inner.get_added_tokens_decoder().values()]
        raise ValueError(
            f"The tokenizer has no token {token!r}. Name its own in a "
            '`tokenizer_config.json` beside it, {"eos_token": ...}, or with '
            f"`special_tokens=SpecialTokens(end=...)`: {', '.join(known) or 'none'}."
        )
    return found


def check_text(text: str) -> str:
    """The text, if it can be written as bytes.

    Args:
      text: Any text.

    Examples:
      >>> check_text("a")
      'a'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text has half a character, {text[error.start]!r}, at place "
            f"{error.start}; it is no valid Unicode."
        ) from error
    return text
