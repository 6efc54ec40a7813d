"""Tokenizers: what goes in comes out, on real text and on any."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldjax.data.tokenizers import (
    SpecialTokens,
    load_tokenizer,
    train_bpe,
    train_word_level,
)

HH = Path(__file__).parents[3] / "shared" / "data" / "hh"
TEXTS = ["The cat sat on the mat.", " A dog’s life, isn’t it?", "Ça va? 好的。"]
TRICKY = [
    "“curly quotes” and it’s",
    "  two spaces  before\n\nand\tafter ",
    "Здравствуй, мир! 你好，世界 שלום عالم",
    "👩‍👩‍👧 🇩🇪 e\u0301 \u200b \ufeff",
    "<|endoftext|> and <|padding|>, <|unknown|>",
    "\r\n\x85\u2028\x00",
    "",
]


BPE = train_bpe(TEXTS, vocab_size=300)


def hh_texts():
    if not HH.is_dir():
        assert not os.environ.get("CI"), f"{HH} must be there in CI"
        pytest.skip(f"needs the HH probing set in {HH}")
    with gzip.open(HH / "formal_prob_train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [text for row in rows for text in row.values()]


def test_real_text_survives_bpe():
    texts = hh_texts()
    tokenizer = train_bpe(texts[::10], vocab_size=2048)
    ids = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(text_ids) for text_ids in ids] == texts
    assert tokenizer.vocab_size == 2048
    used = {token for text_ids in ids for token in text_ids}
    assert used <= set(range(2, 2048))


def test_real_text_survives_words_that_are_known():
    texts = hh_texts()[::10]
    tokenizer = train_word_level(texts)
    assert [tokenizer.decode(i) for i in tokenizer.encode_batch(texts)] == texts


@given(st.text())
@example("<|endoftext|>")
@example("'s 't ’s")
@example(" ")
def test_any_text_survives_bpe(text):
    tokenizer = BPE
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.end_id, tokenizer.padding_id} & set(ids)


@given(st.text())
@example("<|endoftext|><|unknown|>")
@example("a\u0301\n  b_c\u200d")
def test_any_text_survives_words_that_are_known(text):
    tokenizer = train_word_level([text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("text", TRICKY)
def test_a_saved_tokenizer_is_the_same(tmp_path, text):
    BPE.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == BPE.special_tokens
    assert (loaded.end_id, loaded.padding_id) == (BPE.end_id, BPE.padding_id)
    assert loaded.encode(text) == BPE.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.to_json() == BPE.to_json()


def test_special_tokens_have_the_first_ids_by_name():
    words = train_word_level(TEXTS)
    assert (BPE.end_id, BPE.padding_id, BPE.unknown_id) == (0, 1, None)
    assert (words.end_id, words.padding_id, words.unknown_id) == (0, 1, 2)
    names = SpecialTokens(end="<end>", padding=None)
    alone = train_bpe(TEXTS, vocab_size=300, special_tokens=names)
    assert alone.end_id == alone.padding_id == 0
    assert alone.decode([alone.end_id]) == "<end>"


def test_data_cannot_smuggle_in_a_special_token():
    texts = ["<|endoftext|>"] * 50 + TEXTS  # frequent enough to be merged
    tokenizer = train_bpe(texts, vocab_size=400)
    ids = tokenizer.encode("<|endoftext|>")
    assert tokenizer.end_id not in ids
    assert tokenizer.decode(ids) == "<|endoftext|>"
    with pytest.raises(ValueError, match="'END' could occur in a text"):
        train_bpe(texts, vocab_size=400, special_tokens=SpecialTokens(end="END"))


def test_an_unknown_word_is_the_unknown_token():
    words = train_word_level(TEXTS)
    assert words.encode("cow") == [words.unknown_id]
    with pytest.raises(ValueError, match="must have an `unknown` token"):
        train_word_level(TEXTS, special_tokens=SpecialTokens())


@pytest.mark.slow
def test_training_is_the_same_in_every_process():
    code = (
        "import sys; from ldjax.data.tokenizers import train_bpe, train_word_level; "
        f"texts = {[*TEXTS, *TRICKY]!r}; "
        "sys.stdout.write(train_bpe(texts, vocab_size=400).to_json() "
        "+ train_word_level(texts).to_json())"
    )
    outputs = {
        hashlib.sha256(
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                check=True,
                env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            ).stdout
        ).hexdigest()
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(outputs) == 1


def test_a_vocabulary_too_small_for_bytes_is_refused():
    assert train_bpe(TEXTS, vocab_size=258).vocab_size == 258
    with pytest.raises(ValueError, match=r"at least 258, .* got 257"):
        train_bpe(TEXTS, vocab_size=257)


def test_short_text_gives_fewer_tokens():
    assert train_bpe(["ab ab"], vocab_size=1000).vocab_size == 258 + 2  # "ab", " ab"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 3}', "\ufeff{}"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a whole"):
        load_tokenizer(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_file_of_another_origin_needs_its_special_tokens(tmp_path):
    train_bpe(TEXTS, vocab_size=300, special_tokens=SpecialTokens("</s>", None)).save(
        tmp_path
    )
    assert load_tokenizer(tmp_path).special_tokens.end == "</s>"  # as the folder says
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"no token '<\|endoftext\|>'.*</s>"):
        load_tokenizer(tmp_path)
    loaded = load_tokenizer(tmp_path, special_tokens=SpecialTokens("</s>", None))
    assert loaded.padding_id == loaded.end_id == 0


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, \d+\).* got 300"):
        BPE.decode([5, 300])


def test_half_a_character_is_refused():
    with pytest.raises(ValueError, match="half a character"):
        BPE.encode("a\ud83d")
    with pytest.raises(ValueError, match="half a character"):
        train_bpe(["\ud83d"], vocab_size=300)
