"""Tokenizers that lose nothing: loaded from `tokenizer.json`, or trained on texts.

The `tokenizers` library does the work. What `Tokenizer` adds is what a study of
log-probabilities has to rely on: the ids of the special tokens, text in equals text
out, and that data never becomes a special token, whatever characters it holds.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ldjax.files import read_json_object, whole_file

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "SpecialTokens",
    "Tokenizer",
    "load_tokenizer",
    "train_bpe",
    "train_word_level",
]

# A word or a run of punctuation takes the space before it along, as in GPT-2; any
# other white space is a token of its own. Every character belongs to some piece.
_PIECES = r" ?\w+| ?[^\w\s]+|\s"


class SpecialTokens(NamedTuple):
    """The text of the tokens that no data contains; None where there is none.

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
    special tokens, cuts nothing and pads nothing: append `end_id` yourself.

    Attributes:
      special_tokens: Their text.
      end_id: Id of the end token.
      padding_id: Id of the padding token; that of the end token where there is none.
      unknown_id: Id of the unknown token, or None.
      start_id: Id of the token that documents begin with; that of the end token where
        there is no other.
      vocab_size: Number of token ids, special ones included: the model's `vocab_size`,
        which may be larger than the tokenizer's own.

    Examples:
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
    ) -> None:
        # Text that spells a special token is ordinary text, in training data above all.
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
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
        least = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        self.vocab_size: int = least if vocab_size is None else vocab_size
        if self.vocab_size < least:
            raise ValueError(
                f"The tokenizer has {least} token ids, but the model's vocabulary only "
                f"{vocab_size}. Is it another model's tokenizer?"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, none of them special but for unknown words.

        Args:
          text: Any text.

        Returns:
          One id per token.

        Raises:
          ValueError: If `text` has a lone surrogate, which is half a character.

        Examples:
          >>> train_word_level(["the cat"]).encode("the cat")
          [4, 3]
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on all cores.

        Args:
          texts: Any texts.

        Returns:
          The ids of each text, in order.

        Raises:
          ValueError: As `encode`.

        Examples:
          >>> train_word_level(["the cat"]).encode_batch(["the", " cat", ""])
          [[4], [3], []]
        """
        for text in texts:
            _check_text(text)
        try:
            encodings = self._inner.encode_batch_fast(
                list(texts), add_special_tokens=False
            )
        except Exception as error:  # the library raises plain `Exception`
            raise ValueError(self._why_unread(texts, error)) from error
        return [encoding.ids for encoding in encodings]

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

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids; special tokens appear as their text.

        Args:
          ids: From `encode` or from a model. Ids that end inside a character, as a
            sampled response may, give U+FFFD there. Ids that stand for no token, as
            where a model's vocabulary is padded, give nothing.

        Returns:
          The text.

        Raises:
          ValueError: If an id is not in the vocabulary.

        Examples:
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
          >>> train_word_level(["a"]).to_json() == train_word_level(["a"]).to_json()
          True
        """
        return self._inner.to_str(pretty=True)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` with the special tokens.

        Args:
          folder: A folder that exists.

        Examples:
          >>> import tempfile
          >>> folder = Path(tempfile.mkdtemp())
          >>> train_word_level(["the cat"]).save(folder)
          >>> load_tokenizer(folder).vocab_size
          5
        """
        tokens = {
            field: token
            for field, token in zip(_FIELDS, self.special_tokens, strict=True)
            if token is not None
        }
        content = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        for name, text in (
            ("tokenizer.json", self.to_json()),
            ("tokenizer_config.json", json.dumps(content, indent=2) + "\n"),
        ):
            with whole_file(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")


def load_tokenizer(
    path: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    vocab_size: int | None = None,
) -> Tokenizer:
    """Read a `tokenizer.json`.

    Args:
      path: The file, or the folder that holds it.
      special_tokens: Its special tokens. By default those that the
        `tokenizer_config.json` or `special_tokens_map.json` beside it names, or else
        those that ldjax writes, as far as the file has them.
      vocab_size: Of the model, where that has more rows than the tokenizer has tokens.

    Returns:
      The tokenizer. How it splits and normalises text is the file's affair, so texts
      may come back changed (Qwen's, for one, composes accents).

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged, lacks a special token or has more tokens than
        `vocab_size`.

    Examples:
      >>> load_tokenizer(Path("/nowhere"))
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no tokenizer at /nowhere.
    """
    from tokenizers import Tokenizer as Inner

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no tokenizer at {file}.")
    try:
        inner = Inner.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain `Exception`
        raise ValueError(f"{file} is not a whole tokenizer.json: {error}") from error
    if special_tokens is None:
        named = _named_beside(file)
        end = named.get("end", SpecialTokens().end)

        def usual(field: str, token: str) -> str | None:
            token = named.get(field, token)
            # Byte-level tokenizers know every text, whatever stands there.
            return None if token == end or inner.token_to_id(token) is None else token

        special_tokens = SpecialTokens(
            end=end,
            padding=usual("padding", "<|padding|>"),
            unknown=usual("unknown", "<|unknown|>"),
            start=usual("start", ""),
        )
    try:
        return Tokenizer(inner, special_tokens, vocab_size)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


#: What the hub calls the fields of `SpecialTokens`.
_FIELDS = ("eos_token", "pad_token", "unk_token", "bos_token")


def _named_beside(file: Path) -> dict[str, str]:
    """The special tokens that the files beside a `tokenizer.json` name."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = file.with_name(name)
        if not beside.is_file():
            continue
        content = read_json_object(beside)
        for ours, theirs in zip(SpecialTokens._fields, _FIELDS, strict=True):
            token: Any = content.get(theirs)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[ours] = token
    return named


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: SpecialTokens = SpecialTokens(),  # noqa: B008 (immutable)
) -> Tokenizer:
    """Byte-level BPE, GPT-2's kind: it encodes any text and loses nothing.

    Ids are the special tokens, the 256 bytes, then the merges from the most frequent
    on. The same texts give the same vocabulary.

    Args:
      texts: What to learn merges from, document by document.
      vocab_size: Number of tokens, at least 256 and the special tokens. Texts too
        short for so many merges give fewer.
      special_tokens: Text of the special tokens.

    Returns:
      The tokenizer.

    Raises:
      ValueError: If `vocab_size` is too small, or a special token could occur as an
        ordinary one.

    Examples:
      >>> tokenizer = train_bpe(["the cat, the hat"] * 2, vocab_size=262)
      >>> [tokenizer.decode([i]) for i in tokenizer.encode("the hat")]
      ['the', ' ', 'h', 'at']
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    names = [token for token in special_tokens if token is not None]
    least = 256 + len(names)
    if vocab_size < least:
        raise ValueError(
            f"`vocab_size` must be at least {least}, 256 bytes and {len(names)} "
            f"special tokens; got {vocab_size}."
        )
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    _check_special(names, pieces)
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pieces
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(map(_check_text, texts), trainer)
    return Tokenizer(inner, special_tokens)


def train_word_level(
    texts: Iterable[str],
    *,
    special_tokens: SpecialTokens = SpecialTokens(unknown="<|unknown|>"),  # noqa: B008
) -> Tokenizer:
    """One token for each word of a closed world.

    A word, or a run of punctuation, takes one space before it along; other white
    space is a token by itself. So text made of known words loses nothing; "cat" and
    " cat" are two words.

    Args:
      texts: All words there are.
      special_tokens: Text of the special tokens; `unknown` is needed.

    Returns:
      The tokenizer: special tokens, then words from the most frequent on, ties in
      alphabetical order.

    Raises:
      ValueError: If `special_tokens` has no `unknown`, or if one of them could occur
        as a word.

    Examples:
      >>> tokenizer = train_word_level(["Is it a cat?", " Yes, it is."])
      >>> [tokenizer.decode([i]) for i in tokenizer.encode("Is it a dog?")]
      ['Is', ' it', ' a', '<|unknown|>', '?']
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    if special_tokens.unknown is None:
        raise ValueError(
            "`special_tokens` of a word-level tokenizer must have an `unknown` token."
        )
    names = [token for token in special_tokens if token is not None]
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    _check_special(names, pieces)
    inner = Inner(models.WordLevel({}, unk_token=special_tokens.unknown))
    inner.pre_tokenizer = pieces
    inner.decoder = decoders.Fuse()  # the default would put spaces between tokens
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31, special_tokens=names, show_progress=False
    )
    inner.train_from_iterator(map(_check_text, texts), trainer)
    return Tokenizer(inner, special_tokens)


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


def _check_special(names: Sequence[str], pieces: "tokenizers.PreTokenizer") -> None:
    """Refuses a special token that training could also make out of text."""
    for name in names:
        # What the splitting takes apart can never become one ordinary token.
        if len(pieces.pre_tokenize_str(name)) < 2:
            raise ValueError(
                f"`special_tokens`: {name!r} could occur in a text as one word. "
                "Enclose it in signs, as in '<|endoftext|>'."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"`special_tokens` must differ, got {', '.join(names)}.")


def _check_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text has half a character, {text[error.start]!r}, at place "
            f"{error.start}; it is no valid Unicode."
        ) from error
    return text
