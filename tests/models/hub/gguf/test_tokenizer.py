"""The tokenizer in a GGUF file: ids as transformers reads them, or as was published."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from witnesses.ggufs import write_gguf
from witnesses.hub_tokenizers import HOSTILE, as_published, compare, texts, theirs

from ldjax.models.hub.gguf.file import GgufFile
from ldjax.models.hub.gguf.tokenizer import PRE_TOKENIZERS, read_gguf_tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(pre, size=700):
    """The metadata of a trained byte-level tokenizer."""
    inner = Tokenizer(models.BPE())
    bytes_: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = bytes_
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    inner.train_from_iterator(
        [*texts(400), "a\n\n1. b\n\n2. c  3  4" * 5],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    content = json.loads(inner.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    # A word that no merges make; three that stand for themselves, of which bytes spell
    # all but the last.
    tokens += ["zzqq", "<|tool|>", "<think>", "a b"]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 6) + [3, 4, 4],
        "merges": [" ".join(pair) for pair in content["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "unknown_token_id": 0,
    }, inner


def sentence_piece(architecture):
    """The metadata of a made-up SentencePiece vocabulary."""
    named = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if architecture == "llama":
        named = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = {
        piece
        for text in texts(300)
        for word in ("\u2581" + text.replace(" ", " \u2581")).split(" ")
        for end in range(2, min(len(word), 6) + 1)
        for piece in (word[:end], word[1:end])
        if piece
    }
    characters = sorted({c for text in texts(300) for c in text} - {" ", "\0"})
    pieces = sorted(words - set(characters), key=lambda piece: (len(piece), piece))
    spaces = ["  ", "   "] if architecture != "llama" else []
    tokens = [*named, *bytes_, *spaces, "\u2581", *pieces, *characters]
    tokens = list(dict.fromkeys(tokens))
    kinds = [3] * len(named) + [6] * 256 + [4] * len(spaces)
    scores = [0.0] * (len(named) + 256) + [
        -float(i) for i in range(len(tokens) - len(named) - 256)
    ]
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds + [1] * (len(tokens) - len(kinds)),
        "bos_token_id": named.index("<s>" if architecture == "llama" else "<bos>"),
        "eos_token_id": named.index("</s>" if architecture == "llama" else "<eos>"),
        "unknown_token_id": named.index("<unk>"),
        "add_space_prefix": architecture == "llama",
    }


def stored(path, metadata, architecture="llama", **others):
    """A file with a tokenizer, and with what transformers needs of a model."""
    settings = {
        "block_count": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 8,
        "rms_norm_eps": 1e-5,
    }
    metadata = {f"tokenizer.ggml.{name}": of for name, of in metadata.items()}
    return write_gguf(path, architecture, settings, {}, metadata=metadata | others)


def read(path) -> Any:
    return read_gguf_tokenizer(GgufFile.of(path), vocab_size=100_000)


def test_a_byte_level_tokenizer_is_the_one_that_was_written(tmp_path):
    metadata, inner = byte_level("gpt-2")
    file = stored(
        tmp_path / "a.gguf",
        metadata | {"eot_token_id": 0},
        **{
            "tokenizer.chat_template": "{{ messages }}",
            "tokenizer.chat_template.tool_use": "{{ tools }}",
        },
    )
    tokenizer = read(file)
    plain = [text for text in HOSTILE if "<|" not in text]
    for text in plain:
        assert tokenizer.encode(text) == inner.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    (start,) = tokenizer.encode("<|im_start|>", read_special=True)
    assert start == tokenizer.start_id == 1
    assert len(tokenizer.encode("<|im_start|>")) > 3
    assert len(tokenizer.encode("<think>")) == 1
    assert (tokenizer.end_id, tokenizer.end_ids) == (2, (2, 0))
    assert tokenizer.padding_id == 2
    assert tokenizer.vocab_size == 100_000
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.chat_templates["tool_use"] == "{{ tools }}"
    assert tokenizer.named_tokens["pad_token"] == "<|im_end|>"


def test_digits_of_smollm_stand_alone_and_the_space_before_them_does_not_join():
    """What follows is the whole difference to GPT-2's words."""
    for name, pieces in {
        "gpt-2": ["a", "\n", "\n", "12", " 3"],
        "smollm": ["a", "\n\n", "1", "2", " ", "3"],
    }.items():
        rule = PRE_TOKENIZERS[name]
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if rule.splits_digits:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        found = pre_tokenizers.Sequence(steps).pre_tokenize_str("a\n\n12 3")
        assert [piece for piece, _ in found] == [
            piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "of the kind 't5'; of GGUF files ldjax reads gpt2, llama"),
        ({"pre": "dbrx"}, "texts are split as 'dbrx' does it; ldjax knows default, "),
        ({"merges": None}, r"`tokenizer\.ggml\.merges` is missing"),
        ({"eos_token_id": None}, "no `tokenizer.ggml.eos_token_id`"),
        ({"eos_token_id": 99999}, "eos_token_id` is 99999, but there are 266 tokens"),
        ({"merges": ["q qq qqq"]}, "has .q qq qqq., which is no pair of tokens"),
    ],
)
def test_a_tokenizer_that_is_not_read_is_refused_by_name(tmp_path, changes, message):
    metadata, _ = byte_level("gpt-2", size=262)
    file = stored(tmp_path / "a.gguf", metadata | changes)
    with pytest.raises(ValueError, match=message) as caught:
        read(file)
    assert "a.gguf: " in str(caught.value)


def test_a_file_without_a_tokenizer_has_none(tmp_path):
    assert read(stored(tmp_path / "a.gguf", {})) is None
    assert read(stored(tmp_path / "b.gguf", {"model": "no_vocab"})) is None


# Against transformers


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("gpt-2", "smollm", "llama-bpe", "qwen2"),
        # Other names of the same rules.
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("default", "llama3", "llama-v3")
        ),
    ],
)
def test_byte_level_ids_equal_those_of_transformers(tmp_path, name):
    metadata, _ = byte_level(name)
    file = stored(tmp_path / "a.gguf", metadata)
    ours, reading = read(file), theirs(file)
    as_published(reading.backend_tokenizer, name)
    assert compare(ours, reading, texts(120)) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_sentence_piece_ids_equal_those_of_transformers(tmp_path, architecture):
    file = stored(tmp_path / "a.gguf", sentence_piece(architecture), architecture)
    ours, reading = read(file), theirs(file)
    assert compare(ours, reading, texts(120)) == []
    for text in HOSTILE[2:6]:
        assert ours.decode(ours.encode(text)) == reading.decode(
            reading.encode(text, add_special_tokens=False)
        )
