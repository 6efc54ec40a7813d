r"""The tokenizer in a GGUF file: vocabulary and merges, and how texts are split.

A file has the vocabulary, the merges and the kinds of its tokens. How a text is split
into words before anything is merged it has as a name only, which stands for the rule of
a published tokenizer (`PRE_TOKENIZERS`).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ldjax.data.tokenizer import FIELDS, SpecialTokens, Tokenizer
from ldjax.models.hub.gguf.file import GgufFile

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "read_gguf_tokenizer"]

#: The kinds of tokens that are found in a text before it is split.
_CONTROL, _USER_DEFINED = 3, 4
#: What the hub calls the special tokens that the file names.
_NAMED = {
    "eos": "eos_token",
    "bos": "bos_token",
    "padding": "pad_token",
    "unknown": "unk_token",
}
#: The tokens at which the model stops.
_ENDS = ("eos_token_id", "eot_token_id")
#: A space, as SentencePiece writes it.
_SPACE = "\u2581"


class _Settings(dict[str, Any]):
    """What the file says of its tokenizer; complains by name of what is missing."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "_Settings":
        prefix = "tokenizer.ggml."
        return cls(
            (name.removeprefix(prefix), value)
            for name, value in metadata.items()
            if name.startswith(prefix)
        )

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"`tokenizer.ggml.{name}` is missing.")


class PreTokenizer(NamedTuple):
    """What a published byte-level tokenizer does to a text before it merges bytes.

    Attributes:
      words: The pattern of a word; None for GPT-2's.
      splits_digits: Whether each digit is a word by itself, before anything else.
      keeps_words: Whether a word that is a token is that token, whatever merges make.
      composes: Whether accents are composed first (NFC).

    Examples:
      >>> PRE_TOKENIZERS["smollm"].splits_digits
      True
    """

    words: str | None = None
    splits_digits: bool = False
    keeps_words: bool = False
    composes: bool = False


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = PreTokenizer(
    rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}", keeps_words=True
)
_QWEN2 = PreTokenizer(rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}", composes=True)

#: By their names in files.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(),
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(splits_digits=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}


def read_gguf_tokenizer(file: GgufFile, *, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a GGUF file.

    Args:
      file: The file.
      vocab_size: The number of rows of the embedding.

    Returns:
      The tokenizer; None where the file has none.

    Raises:
      ValueError: If it is of a kind that ldjax does not read, with its name; or if
        what it is made of is damaged.

    Examples:
      >>> from pathlib import Path
      >>> read_gguf_tokenizer(GgufFile(Path("a.gguf"), {}, {}), vocab_size=9)
    """
    settings = _Settings.of(file.metadata)
    kind = settings.get("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in _MAKERS:
        raise ValueError(
            f"{file.path}: the tokenizer is of the kind {kind!r}; of GGUF files ldjax "
            f"reads {', '.join(_MAKERS)}."
        )
    try:
        inner = _MAKERS[kind](settings, file.metadata["general.architecture"])
        _add_tokens(inner, settings)
        named = _named_tokens(settings)
        special, templates = _special_tokens(named), _chat_templates(file.metadata)
        return Tokenizer(
            inner,
            special,
            vocab_size,
            end_ids=[settings[name] for name in _ENDS if name in settings],
            named_tokens=named,
            chat_templates=templates,
        )
    except Exception as error:  # the library raises plain `Exception`
        raise ValueError(f"{file.path}: the tokenizer in it: {error}") from error


def _byte_level(settings: Mapping[str, Any], _: str) -> "tokenizers.Tokenizer":
    """GPT-2's kind: merges of bytes, which are written as characters."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    name = settings.get("pre", "default")
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"texts are split as {name!r} does it; ldjax knows "
            f"{', '.join(PRE_TOKENIZERS)}."
        )
    rule = PRE_TOKENIZERS[name]
    spelled = _characters_of_bytes()
    alphabet = set(spelled.values())
    # Added tokens are written as they are: no text gives them but their own.
    vocab = {
        token
        if set(token) <= alphabet
        else "".join(spelled[byte] for byte in token.encode()): i
        for i, token in enumerate(settings["tokens"])
    }
    inner = Tokenizer(
        BPE(vocab, _written_merges(settings), ignore_merges=rule.keeps_words)
    )
    splits: list[Any] = []
    if rule.splits_digits:
        splits.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.words is not None:
        splits.append(pre_tokenizers.Split(Regex(rule.words), behavior="isolated"))
    bytes_ = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=rule.words is None
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    if rule.composes:
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentence_piece(
    settings: Mapping[str, Any], architecture: str
) -> "tokenizers.Tokenizer":
    """Llama's and Gemma's kind: merges of characters, in the order of scores."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    is_gemma = architecture.startswith("gemma")
    tokens = settings["tokens"]
    if is_gemma:
        # Runs of spaces are stored as such.
        tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
    if "merges" in settings:
        merges = _written_merges(settings)
    elif is_gemma:  # whose scores are in another order than its merges
        merges = _implied_merges(tokens, [-float(i) for i in range(len(tokens))])
    else:
        merges = _implied_merges(tokens, settings["scores"])
    vocab = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(
        BPE(
            vocab,
            merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=_named_tokens(settings).get("unk_token") if is_gemma else None,
        )
    )
    decoding: list[Any] = [
        *(decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse())
    ]
    if settings.get("add_space_prefix", not is_gemma):
        inner.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first", split=False
        )
        decoding.append(decoders.Strip(content=" ", left=1))
    else:
        inner.normalizer = normalizers.Replace(" ", _SPACE)
    inner.decoder = decoders.Sequence(decoding)
    return inner


_MAKERS: dict[str, Callable[[Mapping[str, Any], str], "tokenizers.Tokenizer"]] = {
    "gpt2": _byte_level,
    "llama": _sentence_piece,
}


def _written_merges(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for merge in settings["merges"]:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(
                f"`tokenizer.ggml.merges` has {merge!r}, which is no pair of tokens."
            )
        pairs.append((left, right))
    return pairs


def _implied_merges(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, those of the best scores first."""
    known, found = set(tokens), []
    for token, score in zip(tokens, scores, strict=True):
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        found += [(score, pair) for pair in halves if known.issuperset(pair)]
    found.sort(key=lambda of: (of[0], len(of[1][0]), len(of[1][1])), reverse=True)
    return [pair for _, pair in found]


def _add_tokens(inner: "tokenizers.Tokenizer", settings: Mapping[str, Any]) -> None:
    """Make tokens that stand for themselves of those that the file says to be such."""
    from tokenizers import AddedToken

    tokens = settings["tokens"]
    named = {settings.get(f"{name}_token_id") for name in _NAMED}
    kinds = settings.get("token_type") or [0] * len(tokens)
    vocab = inner.get_vocab()
    special, others = [], []
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        # A byte-level vocabulary spells it otherwise where it is no token of its own.
        if vocab.get(token) != i:
            continue
        if kind == _CONTROL or i in named:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            others.append(AddedToken(token, normalized=False, special=False))
    inner.add_special_tokens(special)
    inner.add_tokens(others)


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens under the hub's names."""
    tokens, named = settings["tokens"], {}
    for ours, theirs in _NAMED.items():
        if (i := settings.get(f"{ours}_token_id")) is None:
            continue
        if not 0 <= i < len(tokens):
            raise ValueError(
                f"`tokenizer.ggml.{ours}_token_id` is {i}, but there are {len(tokens)} "
                "tokens."
            )
        named[theirs] = tokens[i]
    return named


def _special_tokens(named: Mapping[str, str]) -> SpecialTokens:
    end, *others = (named.get(field) for field in FIELDS)
    if end is None:
        raise ValueError("it has no `tokenizer.ggml.eos_token_id`.")
    return SpecialTokens(end, *(None if token == end else token for token in others))


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    field = "tokenizer.chat_template"
    named = {
        name.removeprefix(f"{field}."): text
        for name, text in metadata.items()
        if name.startswith(f"{field}.")
    }
    return named | ({"default": metadata[field]} if field in metadata else {})


def _characters_of_bytes() -> dict[int, str]:
    """The character that a byte-level vocabulary has for each byte, GPT-2's table."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }
