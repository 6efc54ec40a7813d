"""Local text to training rows."""

import functools
import gzip
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldjax.data.text import pack_documents, read_documents, split_documents

# Without the time of day, which would get into the names of tests.
_packed = functools.partial(gzip.compress, mtime=0)

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4)
documents_strategy = st.lists(words.map(" ".join), min_size=3, max_size=30)


def test_blank_lines_separate_the_documents_of_a_txt_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\n two \r\n\r\n \t\n\nthree\u2028x\n".encode())
    assert read_documents([file]) == ["one\n two ", "three\u2028x"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_field_is_read_unchanged(tmp_path, suffix):
    texts = ["\n\nHuman: “Why?”\x85\u2028", "  ", " leading"]
    data = "\n".join(json.dumps({"id": 1, "prompt": text}) for text in texts).encode()
    file = tmp_path / f"a{suffix}"
    file.write_bytes(_packed(data) if suffix.endswith("gz") else data)
    assert read_documents([file, file], field="prompt") == 2 * [texts[0], texts[2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": 3}', "'prompt' must be text, got int"),
        (b'{"prompt": "\\ud83d"}', "'prompt': .*surrogates not allowed"),
        (b'{"chosen": "a", "x": 1}', "no field 'prompt'; it has chosen, x"),
        (b"[1]", "not a JSON object"),
        (b'{"prompt": "a"', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: {message}"):
        read_documents([file], field="prompt")


@pytest.mark.parametrize(
    ("name", "data", "field", "message"),
    [
        ("a.md", b"x", "text", r"expected \.txt, \.jsonl"),
        ("a.jsonl", b"{}", None, "say which field"),
        ("a.txt.gz", b"no gzip", None, "not whole gzip"),
        ("a.txt.gz", _packed(b"text" * 99)[:-9], None, "not whole gzip"),
        ("a.txt", b" \n\n", None, "No text in"),
        ("a.txt", b"one\n\xe9\n", None, r"a\.txt:2: not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, data, field, message):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_documents([file], field=field)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_documents([tmp_path / "nowhere.txt"])


@given(documents_strategy, st.integers(0, 5))
def test_no_document_is_in_both_halves(documents, seed):
    documents = [*documents, "x", "y z"]
    halves = split_documents(documents, held_out_share=0.3, seed=seed)
    assert sorted(halves[0] + halves[1]) == sorted(documents)
    assert halves[0]
    assert halves[1]
    for train_text in halves[0]:
        for held_out_text in halves[1]:
            assert not train_text.startswith(held_out_text)
            assert not held_out_text.startswith(train_text)


def test_the_split_depends_on_the_seed_alone():
    documents = [f"document {i}." for i in range(100)]
    first = split_documents(documents, held_out_share=0.1, seed=0)
    assert first == split_documents(documents, held_out_share=0.1, seed=0)
    assert first != split_documents(documents, held_out_share=0.1, seed=1)
    assert len(first[1]) == 10


@pytest.mark.parametrize("documents", [["a"], ["a", " a", "a  b"]])
def test_one_document_cannot_be_split(documents):
    with pytest.raises(ValueError, match="leaves none to train on"):
        split_documents(documents, held_out_share=0.5, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_documents(["a", "b"], held_out_share=share, seed=0)


@given(
    st.lists(st.lists(st.integers(2, 9), max_size=7), min_size=1, max_size=6),
    st.integers(1, 8),
)
def test_every_token_is_scored_once_and_read_before(documents, length):
    rows = pack_documents(documents, length=length, end_id=0, padding_id=1)
    tokens, targets, mask, *_ = jax.tree.map(np.asarray, rows)
    assert tokens.shape == targets.shape == mask.shape
    assert tokens.shape[1] == length
    stream = [0] + [token for document in documents for token in [*document, 0]]
    assert targets[mask].tolist() == stream[1:]
    assert tokens[mask].tolist() == stream[:-1]
    assert mask.sum(1).min() > 0
    assert (targets[~mask] == 1).all()


def test_nothing_to_pack_is_refused():
    with pytest.raises(ValueError, match="at least one document"):
        pack_documents([], length=4, end_id=0, padding_id=1)
    with pytest.raises(ValueError, match="`length` must be positive"):
        pack_documents([[1]], length=0, end_id=0, padding_id=1)
