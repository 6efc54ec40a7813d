"""Files of rows: every format says the same, as far as asked; a bad file is named."""

import gzip
import io
import json

import polars as pl
import pytest

from ldjax.data.files.reading import open_data
from ldjax.data.files.records import read_records
from ldjax.finetune.settings.records import Objective, Texts
from ldjax.finetune.texts import load_texts

ASKED = [{"role": "user", "content": 'Why, "now"?\n'}]
SAID = {
    name: [{"role": "assistant", "content": f" {name}, é"}] for name in ("So", "No")
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": {"b": 1}}}}
CALL = {"function": {"name": "add", "arguments": {"x": 1}}}
CALLED = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "2"},
    *SAID["So"],
]
#: Rows of each type, as texts and as messages.
ROWS = {
    "prompt-completion": {
        "text": [{"prompt": 'Why, "now"?\n', "completion": " So, é"}] * 2,
        "messages": [{"prompt": ASKED, "completion": SAID["So"]}] * 2,
        "tools": [{"prompt": ASKED, "completion": CALLED, "tools": json.dumps([TOOL])}],
    },
    "language modelling": {
        "text": [{"text": "The sky,\nis blue. é"}],
        "messages": [{"messages": [*ASKED, *SAID["So"]]}],
    },
    "preference": {
        "text": [{"prompt": "Why?", "chosen": " So.", "rejected": " No."}],
        "messages": [{"prompt": ASKED, "chosen": SAID["So"], "rejected": SAID["No"]}],
    },
    "preference with implicit prompt": {
        "text": [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
        "messages": [
            {"chosen": ASKED + SAID["So"], "rejected": ASKED + SAID["No"]},
        ],
    },
    "unpaired preference": {
        "text": [
            {"prompt": "Why?", "completion": " So.", "label": True},
            {"prompt": "Why?", "completion": " No.", "label": False},
        ],
        "messages": [
            {"prompt": ASKED, "completion": SAID["So"], "label": True},
            {"prompt": ASKED, "completion": SAID["No"], "label": False},
        ],
    },
    "prompt-only": {
        "text": [{"prompt": "Why?"}],
        "messages": [{"prompt": ASKED}],
    },
}
CASES = [(name, form) for name, forms in ROWS.items() for form in forms]


def table(rows, write):
    file = io.BytesIO()
    getattr(pl.DataFrame(rows), write)(file)
    return file.getvalue()


def separated(rows, sign):
    cells = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        for row in rows
    ]
    return pl.DataFrame(cells).write_csv(separator=sign).encode()


FORMATS = {
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "ndjson": lambda rows: (
        b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode()
    ),
    "json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "csv": lambda rows: b"\xef\xbb\xbf" + separated(rows, ","),
    "tsv": lambda rows: separated(rows, "\t"),
    "parquet": lambda rows: table(rows, "write_parquet"),
    "arrow": lambda rows: table(rows, "write_ipc_stream"),
    "file.arrow": lambda rows: table(rows, "write_ipc"),
    "json.gz": lambda rows: gzip.compress(json.dumps(rows).encode(), mtime=0),
    "csv.gz": lambda rows: gzip.compress(separated(rows, ","), mtime=0),
    "parquet.gz": lambda rows: gzip.compress(table(rows, "write_parquet"), mtime=0),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_format_says_the_same(tmp_path, suffix, name, form):
    rows = ROWS[name][form]
    files = {"x": tmp_path / f"x.{suffix}", "wanted": tmp_path / "wanted.jsonl"}
    files["x"].write_bytes(FORMATS[suffix](rows))
    files["wanted"].write_bytes(FORMATS["jsonl"](rows))
    found, wanted = (open_data(file) for file in files.values())
    read, as_wanted = (file.rows(required=["chosen"]).rows for file in (found, wanted))
    assert [row[:2] for row in read] == [row[:2] for row in as_wanted]
    is_text = form == "text"
    count = len(rows)
    assert str(found) == (
        f"{files['x']}: {count} rows, {name}, as {'text' if is_text else 'messages'}"
    )
    places = [f", row {n + 1}" for n in range(count)]
    if suffix in ("jsonl", "ndjson"):
        places = [f":{n + 1}" for n in range(count)]
    assert [row.source for row in read] == [f"{files['x']}{place}" for place in places]


def test_what_a_table_has_for_other_rows_is_missing_in_a_row(tmp_path):
    """Structs of Parquet have every field that any row has; cells may be empty."""
    calls = [{"name": "add", "arguments": {n: 1}} for n in ("x", "y")]
    rows = [
        {"messages": [*ASKED, {"role": "assistant", "tool_calls": [c]}]} for c in calls
    ]
    path = tmp_path / "a.parquet"
    path.write_bytes(table([*rows, {"messages": None}], "write_parquet"))
    *read, last = read_records([path])
    assert [row.content for row in read] == rows
    assert last.content == {}
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\nWhy?, So.,\nWhy?,"[1, 2] is a list",x\n')
    first, second = read_records([path])
    assert first.content == {"prompt": "Why?", "chosen": " So."}
    assert second.content["chosen"] == "[1, 2] is a list"


def test_long_cells_and_large_numbers_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,completion\nWhy?,{'a' * 200_000}\n")
    assert len(next(iter(read_records([path]))).content["completion"]) == 200_000
    for suffix, number in (("parquet", 2**62), ("json", 10**40)):
        path = tmp_path / f"b.{suffix}"
        row = {"prompt": "Why?", "completion": " So.", "id": number}
        path.write_bytes(FORMATS[suffix]([row]))
        (found,) = read_records([path])
        assert found.content["id"] == number
        assert open_data(path).rows(required=["chosen"]).notes == {
            "field 'id' ignored": 1
        }


WHOLE = FORMATS["parquet"](ROWS["preference"]["text"])
BAD_FILES = {
    "half a parquet": (
        "a.parquet",
        WHOLE[: len(WHOLE) // 2],
        "is damaged, or no whole",
    ),
    "no parquet": ("a.parquet", b"prompt", "is no Parquet file but something else"),
    "a pointer": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\n",
        "no Parquet file but a pointer of Git LFS.*git lfs pull",
    ),
    "half an arrow stream": ("a.arrow", b"\xff\xff\xff\xff" + bytes(9), "is damaged"),
    "an empty parquet": ("a.parquet", b"", "is no Parquet file but .*or nothing"),
    "no rows": ("a.parquet", table(pl.DataFrame({"a": []}), "write_parquet"), "empty"),
    "an empty array": ("a.json", b"[ ]", r"has no good row\. It is empty"),
    "an empty csv": ("a.csv", b"", r"has no good row\. It is empty"),
    "only names": ("a.csv", b"prompt,completion\n", r"has no good row\. It is empty"),
    "latin-1": (
        "a.csv",
        b"prompt,completion\na,b\nc,\xe9\n",
        r"a\.csv:3: not UTF-8.*Save the file as UTF-8",
    ),
    "latin-1 json": ("a.json", b'[\n{"text": "\xe9"}]', r"a\.json:2: not UTF-8"),
    "utf-16": ("a.csv", "prompt,completion".encode("utf-16"), "is text in UTF-16"),
    "semicolons": (
        "a.csv",
        b"prompt;completion\na;b\n",
        r"a\.csv:1: one column.*separated by ';'.*commas",
    ),
    "a name twice": ("a.csv", b"prompt,prompt\na,b\n", ":1: .*'prompt' is there twice"),
    "no name": ("a.tsv", b"prompt\t\na\tb\n", ":1: .*one has no name"),
    "an open quote": ("a.csv", b'text\n"a\n', "not CSV: unexpected end of data"),
    "ragged": (
        "a.csv",
        b"prompt,completion\na,b\na,b,c\n",
        r"a\.csv, row 2: 3 cells, and 2 columns \(prompt, completion\).*in quotes",
    ),
    "short": ("a.csv", b"prompt,completion\na\n", r"row 1: 1 cells, and 2 columns"),
    "no array": ("a.json", b'[{"text": "a"}', "no whole JSON array: behind row 1"),
    "a broken array": (
        "a.json",
        b'[{"text": "a"}, {"text": }]',
        r"a\.json, row 2: not JSON: Expecting value",
    ),
    "a field twice": (
        "a.json",
        b'[{"text": "a", "text": "b"}]',
        "row 1: not JSON: field 'text' is given twice",
    ),
    "more behind": ("a.json", b'[{"text": "a"}] x', "behind row 1 there is '] x'"),
    "numbers": ("a.json", b"[1]", "row 1: not a JSON object but int"),
    "other columns": (
        "a.csv",
        b"instruction,output\na,b\n",
        "Rename 'instruction' to 'prompt', 'output' to 'completion'; read are",
    ),
    "steps": (
        "a.jsonl",
        b'{"prompt": "a", "completions": ["b"], "labels": [true]}',
        "steps with a label each",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_with_its_place_and_the_fix(tmp_path, kind):
    name, data, message = BAD_FILES[kind]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        open_data(path).rows(required=["chosen"])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_ragged_row_can_be_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\na,b,c\n\na,b\n")
    read = open_data(path).rows(required=["chosen"], on_bad_row="skip")
    assert [row.source for row in read.rows] == [f"{path}, row 2"]
    assert [bad.source for bad in read.skipped] == [f"{path}, row 1"]


PAIR = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
PAIRS = [PAIR | {"prompt": f"Why {n}?"} for n in range(5)]
BLANK = PAIR | {"rejected": " "}


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_behind_those_that_are_used_are_not_judged(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(FORMATS[suffix]([*PAIRS[:3], BLANK, *PAIRS[3:]]))
    required = ["chosen", "rejected"]
    data = open_data(path, most=3)
    assert str(data) == f"{path}: the first 3 rows, preference, as text"
    used = data.rows(required=required)
    assert [row.prompt for row in used.rows] == [row["prompt"] for row in PAIRS[:3]]
    assert used.summary()["num_rows"] == 3
    with pytest.raises(ValueError, match="4: 'rejected' is blank"):
        open_data(path, most=4).rows(required=required)
    # Bad rows are made up for by those behind them, and no more are looked at.
    most = open_data(path, most=4)
    skipping = most.rows(required=required, on_bad_row="skip")
    assert [row.prompt for row in skipping.rows] == [row["prompt"] for row in PAIRS[:4]]
    assert len(skipping.skipped) == 1
    assert most.rows(required=required, on_bad_row="skip") == skipping


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_with_fewer_rows_than_are_used_is_read_as_ever(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(FORMATS[suffix](PAIRS))
    whole, longer = open_data(path), open_data(path, most=6)
    assert str(longer) == str(whole)
    assert longer.rows(required=["chosen"]) == whole.rows(required=["chosen"])


def groups(rows):
    """Parquet with each row in a group of its own, the last of them overwritten."""
    file = io.BytesIO()
    frame = pl.DataFrame(rows)
    frame.write_parquet(file, row_group_size=1, compression="uncompressed")
    data = file.getvalue()
    place = data.index(rows[-1]["prompt"].encode()) - 40
    return data[:place] + b"\xff" * 40 + data[place + 40 :]


#: What none of its format can parse, behind two rows.
BROKEN = {
    "jsonl": FORMATS["jsonl"](PAIRS[:2]) + b'\n{"prompt": \xe9',
    "json": FORMATS["json"](PAIRS[:2])[:-1] + b', {"prompt"',
    "csv": FORMATS["csv"](PAIRS[:2]) + b'"Why?',
    "parquet": groups(PAIRS[:3]),
}


@pytest.mark.parametrize("suffix", BROKEN)
def test_rows_behind_those_that_are_used_are_not_parsed(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(BROKEN[suffix])
    asked = ["chosen", "rejected"]
    with pytest.raises(ValueError, match=f"a.{suffix}"):
        open_data(path).rows(required=asked)
    used = open_data(path, most=2).rows(required=asked)
    assert [row.prompt for row in used.rows] == ["Why 0?", "Why 1?"]


def test_a_part_behind_the_rows_that_are_used_is_not_opened(tmp_path):
    for number, data in enumerate([FORMATS["parquet"](PAIRS), b"PAR1"]):
        (tmp_path / f"train-0000{number}-of-00002.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"00001-of-00002\.parquet is damaged"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, most=5).rows(required=["chosen"]).rows) == 5


def test_the_type_is_that_of_the_first_rows_that_can_be_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"3\n{\n" + FORMATS["jsonl"]([PAIR, {"text": "a"}]))
    data = open_data(path, most=1)
    assert data.data_type.name == "preference"
    read = data.rows(required=["chosen"], on_bad_row="skip")
    assert ([row.source for row in read.rows], len(read.skipped)) == ([f"{path}:3"], 2)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: not a JSON object"):
        data.rows(required=["chosen"])


def test_what_is_drawn_for_the_first_rows_is_drawn_from_them(tmp_path):
    """A run on the first rows of a file is that on a file of these rows."""
    for name, rows in (("few", PAIRS[:3]), ("many", [*PAIRS[:3], BLANK, *PAIRS])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_bytes(FORMATS["jsonl"](rows))
    few, many = (
        load_texts(
            Texts(str(tmp_path / name / "a.jsonl"), max_rows=3),
            Objective("dpo"),
            seed=0,
        )
        for name in ("few", "many")
    )
    assert [row[:2] for row in few.train] == [row[:2] for row in many.train]
    assert few.summary == many.summary
