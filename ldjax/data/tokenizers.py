"""Tokenizers that lose nothing: loaded from `tokenizer.json`, or trained on texts.

The `tokenizers` library does the work. What `Tokenizer` adds is what a study of
log-probabilities has to rely on: the ids of the special tokens, text in equals text
out, and that a text becomes a special token only where it is said to mean it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldjax.data.templates.beside import templates_beside
from ldjax.data.tokenizer import FIELDS, SpecialTokens, Tokenizer, check_text
from ldjax.files.whole import read_json_object

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


def load_tokenizer(
    path: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    vocab_size: int | None = None,
) -> Tokenizer:
    """Read a `tokenizer.json`.

    The end tokens at which the model stops besides END are those of the
    `generation_config.json` beside it, or else of the `config.json`.

    Args:
      path: The file, or the folder that holds it.
      special_tokens: Its special tokens. By default those that the
        `tokenizer_config.json` or `special_tokens_map.json` beside it names, or else
        those that ldjax writes, as far as the file has them.
      vocab_size: The model's, where that has more rows than the tokenizer has tokens.

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
    except (
        BaseException
    ) as error:  # plain `Exception`, or Rust's panics, which are none
        if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
            raise
        raise ValueError(f"{file} is not a whole tokenizer.json: {error}") from error
    if not inner.get_vocab_size(with_added_tokens=True):
        raise ValueError(f"{file} has no vocabulary. Fetch or copy it again.")
    tokens, templates = _tokens_beside(file), templates_beside(file.parent)
    known = {n: t for n, t in tokens.items() if inner.token_to_id(t) is not None}
    if special_tokens is None:
        fields = zip(SpecialTokens._fields, FIELDS, strict=True)
        named = {ours: tokens[theirs] for ours, theirs in fields if theirs in tokens}
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
        return Tokenizer(
            inner,
            special_tokens,
            vocab_size,
            end_ids=_end_ids_beside(file, inner),
            named_tokens=known,
            chat_templates=templates,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


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
    inner.train_from_iterator(map(check_text, texts), trainer)
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
    inner.train_from_iterator(map(check_text, texts), trainer)
    return Tokenizer(inner, special_tokens)


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


def _tokens_beside(file: Path) -> dict[str, str]:
    """The special tokens that the files beside a `tokenizer.json` name, by name."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = file.with_name(name)
        if not beside.is_file():
            continue
        content = read_json_object(beside)
        further: Any = content.get("extra_special_tokens")
        content |= further if isinstance(further, dict) else {}
        for field, token in content.items():
            token = token.get("content") if isinstance(token, dict) else token
            if field.endswith("_token") and isinstance(token, str):
                tokens[field] = token
    return tokens


def _end_ids_beside(file: Path, inner: "tokenizers.Tokenizer") -> list[int]:
    """The end tokens that the model's settings beside a `tokenizer.json` name.

    Where there is no `generation_config.json`, what `config.json` says counts if it is
    a special token: every class of models has a default that need not be this one's.
    """
    for name in ("generation_config.json", "config.json"):
        beside = file.with_name(name)
        if not beside.is_file():
            continue
        named = read_json_object(beside).get("eos_token_id")
        ids = [
            i
            for i in (named if isinstance(named, list) else [named])
            if isinstance(i, int) and not isinstance(i, bool)
        ]
        if name == "config.json":
            added = inner.get_added_tokens_decoder()
            ids = [i for i in ids if i in added and added[i].special]
        return ids
    return []
