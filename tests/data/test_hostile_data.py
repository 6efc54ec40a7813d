"""Files that are no JSON lines of texts: one line that names what they are."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import time
import zipfile

import numpy as np
import pytest

from ldjax.data.preferences import read_preferences
from ldjax.data.text import read_documents

ROW = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
LINES = (json.dumps(ROW) + "\n").encode() * 3
DEEP = "[" * 100_000 + "]" * 100_000


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("a.jsonl", LINES)
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            member = tarfile.TarInfo("a.jsonl")
            member.size = len(LINES)
            tar.addfile(member, io.BytesIO(LINES))
    return file.getvalue()


def table(write):
    """A file as polars writes it."""
    import polars as pl

    file = io.BytesIO()
    getattr(pl.DataFrame([ROW]), write)(file)
    return file.getvalue()


def sqlite():
    connection = sqlite3.connect(":memory:")
    connection.execute("create table a (b text)")
    return connection.serialize()


def array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES = {
    "parquet": (lambda: table("write_parquet"), "a Parquet file.*write_ndjson"),
    "arrow": (lambda: table("write_ipc"), "an Arrow file.*write_ndjson"),
    "arrow stream": (lambda: table("write_ipc_stream"), "a stream of Arrow"),
    "avro": (lambda: table("write_avro"), "an Avro file"),
    "parquet in gzip": (lambda: gzip.compress(table("write_parquet"), mtime=0), "Add"),
    "zip": (lambda: archive("zip"), "a zip archive.*Unpack it"),
    "tar": (lambda: archive("tar"), "a tar archive.*Unpack it"),
    "bzip2": (lambda: bz2.compress(LINES), "compressed with bzip2.*bunzip2"),
    "xz": (lambda: lzma.compress(LINES), "compressed with xz.*unxz"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(9), "compressed with zstd.*unzstd"),
    "pickle": (lambda: pickle.dumps([ROW]), "a Python pickle"),
    "pickle 2": (lambda: pickle.dumps([ROW], protocol=2), "a Python pickle"),
    "numpy": (array, "a NumPy array"),
    "sqlite": (sqlite, "an SQLite database"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file"),
    "pdf": (lambda: b"%PDF-1.7\n", "a PDF document"),
    "utf-16": (lambda: LINES.decode().encode("utf-16"), "UTF-16.*UTF-8"),
    "utf-16 big": (lambda: b"\xfe\xff" + LINES.decode().encode("utf-16-be"), "UTF-16"),
    "utf-16 bare": (lambda: LINES.decode().encode("utf-16-le"), "UTF-16.*UTF-8"),
    "utf-32": (lambda: LINES.decode().encode("utf-32"), "UTF-32.*UTF-8"),
    "zeros": (lambda: LINES + bytes(40), "binary: it holds zero bytes"),
    "only zeros": (lambda: bytes(4000), "is text in UTF-16|binary"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "pointer of Git LFS.*git lfs pull",
    ),
    "a web page": (lambda: b"<!DOCTYPE html>\n<html>", ":1: not JSON.*page of the web"),
    "csv": (
        lambda: b'prompt,chosen,rejected\n"Why?","So.","No."\n',
        ":1: not JSON: .*CSV.*JSON lines, .*read_csv",
    ),
    "quoted csv": (lambda: b'"id","prompt","chosen"\n', ":1: not JSON: .*CSV"),
    "tsv": (lambda: b"prompt\tchosen\trejected\n", ":1: not JSON: .*TSV"),
    "an array of rows": (
        lambda: json.dumps([ROW]).encode(),
        ":1: not a JSON object but list",
    ),
    "an array over lines": (
        lambda: json.dumps([ROW], indent=2).encode(),
        ":1: not JSON: .*one JSON array, over many lines.*jq -c '.\\[\\]'",
    ),
    "an object over lines": (
        lambda: json.dumps(ROW, indent=2).encode(),
        ":1: not JSON: .*JSON over many lines.*jq -c",
    ),
    "python": (lambda: repr(ROW).encode(), ":1: not JSON: .*property name"),
    "nested": (lambda: f'{{"prompt": {DEEP}}}'.encode(), ":1: .*nested too deeply"),
    "a number of digits": (
        lambda: b'{"prompt": ' + b"1" * 5000 + b"}",
        ":1: .*4300 digits",
    ),
    "infinite": (lambda: b'{"prompt": Infinity, "chosen": "a"}', ":1: no field 'rej"),
    "latin-1": (lambda: b'{"prompt": "\xe9"}', ":1: not UTF-8.*Save the file as UTF-8"),
    "empty": (lambda: b"", r"has no good row\. It is empty"),
    "blank": (lambda: b"\n \n\t\n", r"has no good row\. It is empty"),
    "a mark alone": (lambda: b"\xef\xbb\xbf", r"has no good row\. It is"),
}

#: No JSON lines, but files of rows nevertheless.
READ = ("parquet", "arrow", "arrow stream", "an array of rows", "an array over lines")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, kind, on_bad_row):
    make, message = FILES[kind]
    file = tmp_path / "a.jsonl"
    file.write_bytes(make())
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"a\.jsonl.*({message})") as caught:
        read_preferences(file, on_bad_row=on_bad_row)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    if kind in READ:
        assert read_documents([file], field="prompt") == ["Why?"]
    elif kind not in ("empty", "blank", "a mark alone", "infinite"):
        with pytest.raises(ValueError, match=r"a\.jsonl"):
            read_documents([file], field="prompt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINES, "not whole gzip.*take the .gz off"),
        (gzip.compress(LINES * 99, mtime=0)[:-9], "not whole gzip"),
        (gzip.compress(LINES * 99, mtime=0)[:40], "not whole gzip"),
        (gzip.compress(LINES, mtime=0) + b"more", "not whole gzip"),
        (b"", "has no good row. It is empty|not whole gzip"),
        (gzip.compress(b"PAR1" + bytes(9), mtime=0), "a Parquet file"),
        (gzip.compress(b"", mtime=0), "has no good row. It is empty"),
    ],
)
def test_what_is_or_is_not_in_gzip_is_named(tmp_path, data, message):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.jsonl\.gz.*({message})"):
        read_preferences(file)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give a file in it"):
        read_preferences(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + LINES)
    assert read_preferences(file).rows[0].prompt == "Why?"


USER, ANSWER = (
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
)
PARTS = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
AS_TEXT = "Write the dialogue up to the answer as one text in 'prompt'.*chat_template"
DIALOGUES = {
    "a prompt of messages": (
        {**ROW, "prompt": [USER]},
        f"'prompt' must be text, got list. {AS_TEXT}",
    ),
    "all of messages": (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
        f"'prompt' must be text, got list. {AS_TEXT}",
    ),
    "rows of messages": (
        {"messages": [USER, ANSWER]},
        f"a dialogue in 'messages', and no field 'chosen'.* {AS_TEXT}",
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Why?"}]},
        f"a dialogue in 'conversations', and no field 'chosen'.* {AS_TEXT}",
    ),
    "messages and a prompt": (
        {"prompt": "Why?", "messages": [USER, ANSWER]},
        f"a dialogue in 'messages', and no field 'chosen'.* {AS_TEXT}",
    ),
    "implicit prompts": (
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        f"no field 'prompt', which 'chosen' holds implicitly, as a list.* {AS_TEXT}",
    ),
    "implicit prompts of one side": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": [USER, ANSWER]},
        f"no field 'prompt', which 'rejected' holds implicitly.* {AS_TEXT}",
    ),
    "parts": (
        {"prompt": "Why?", "chosen": [PARTS, ANSWER], "rejected": [USER, ANSWER]},
        "a message of 'chosen': 'content' must be text, got list. Join the texts of",
    ),
    "parts of an answer": (
        {
            "prompt": "Why?",
            "chosen": [USER, ANSWER],
            "rejected": [USER, {"role": "assistant", "content": PARTS["content"]}],
        },
        "a message of 'rejected': 'content' must be text, got list. Join the texts",
    ),
    "one message": (
        {**ROW, "chosen": ANSWER},
        "'chosen' must be text, got dict. Write its text alone: a message's 'content'",
    ),
    "a message for a prompt": (
        {**ROW, "prompt": USER},
        "'prompt' must be text, got dict. Write its text alone",
    ),
    "no content": (
        {"prompt": "Why?", "chosen": [USER, {"role": "assistant", "content": None}]},
        "a message of 'chosen': 'content' must be text, got NoneType",
    ),
}


@pytest.mark.parametrize("kind", DIALOGUES)
def test_a_dialogue_that_is_not_read_is_named_with_the_way_to_write_it(tmp_path, kind):
    row, message = DIALOGUES[kind]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: ({message})") as caught:
        read_preferences(file, required=("chosen",))
    assert "\n" not in str(caught.value)


def test_messages_that_differ_in_leading_spaces_only_stay_two_texts(tmp_path):
    sides = {"chosen": "So", "rejected": " So"}
    row = {"prompt": "Why?"} | {
        name: [USER, {"role": "assistant", "content": text}]
        for name, text in sides.items()
    }
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row))
    (found,) = read_preferences(file).rows
    assert found.responses == {"chosen": " So", "rejected": "  So"}
