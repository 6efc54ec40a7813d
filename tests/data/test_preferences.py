"""Preference pairs and probing sets as files."""

import functools
import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldjax.data.preferences import PreferenceRow, read_preferences, write_preferences
from ldjax.data.response_types import RESPONSE_TYPES

# Without the time of day, which would get into the names of tests.
_packed = functools.partial(gzip.compress, mtime=0)

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh"
TEXT = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
GOOD = json.dumps(TEXT).encode()
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant:"


def file_of(tmp_path, *rows, name="a.jsonl"):
    """A file of these rows: bytes, or objects that become JSON."""
    lines = [
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
    ]
    data = b"\n".join(lines)
    file = tmp_path / name
    file.write_bytes(_packed(data) if name.endswith(".gz") else data)
    return file


def messages(*contents, roles=("user", "assistant") * 9):
    return [
        {"content": content, "role": role}
        for content, role in zip(contents, roles, strict=False)
    ]


# The forms of a row


def test_the_response_types_are_the_twelve_that_the_authors_evaluate():
    assert " ".join(RESPONSE_TYPES) == (
        "chosen chosen_initial chosen_gptsemantic chosen_gptformat rejected "
        "reject_gptsemantic reject_gptformat irr_train irr_test irr_hum "
        "random_permute random_nonhum"
    )


def test_texts_are_read_unchanged_and_in_the_order_of_the_types(tmp_path):
    texts = {name: f"\u2028 {name} “x”  \n" for name in RESPONSE_TYPES}
    backwards = dict(reversed(texts.items()))
    row = {**backwards, "chosen_selfr": "junk", "prompt": "\n\nHuman: Why?"}
    file = file_of(tmp_path, row, json.dumps(row, ensure_ascii=False).encode())
    read = read_preferences(file)
    for number, found in enumerate(read.rows, 1):
        assert found.prompt == "\n\nHuman: Why?"
        assert list(found.responses.items()) == list(texts.items())
        assert found.source == f"{file}:{number}"
    assert read.notes == {"field 'chosen_selfr' ignored": 2, "prompt occurs before": 1}


def test_a_dialogue_is_split_at_its_last_answer(tmp_path):
    row = {"chosen": f"{DIALOGUE} So it is.", "rejected": f"{DIALOGUE}No"}
    (found,) = read_preferences(file_of(tmp_path, row)).rows
    assert found.prompt == DIALOGUE
    assert found.responses == {"chosen": " So it is.", "rejected": "No"}


def test_messages_become_the_papers_prompt_and_a_response_with_one_space(tmp_path):
    row = {
        "prompt": "Why?\n",
        "chosen": messages("Why?\n", "So.\n"),
        "rejected": messages("Why?\n", "  \n No."),
        "score_chosen": 3.5,
    }
    read = read_preferences(file_of(tmp_path, row))
    assert read.rows[0].prompt == "Human: Why?\n\nAssistant:"
    assert read.rows[0].responses == {"chosen": " So.\n", "rejected": " \n No."}
    assert read.notes == {"field 'score_chosen' ignored": 1}


def test_one_file_may_have_all_forms_and_be_gzipped(tmp_path):
    rows = [
        TEXT,
        {"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"},
        {"prompt": "p", "chosen": messages("p", "a"), "rejected": messages("p", "b")},
    ]
    plain = read_preferences(file_of(tmp_path, *rows))
    zipped = read_preferences(file_of(tmp_path, *rows, name="a.jsonl.gz"))
    assert [row[:2] for row in plain.rows] == [row[:2] for row in zipped.rows]
    assert [row.prompt for row in plain.rows] == [
        "Why?",
        DIALOGUE,
        "Human: p\nAssistant:",
    ]


def test_rows_without_rejected_are_read_if_it_is_not_required(tmp_path):
    rows = [
        {"prompt": "p", "chosen": " a"},
        {"chosen": f"{DIALOGUE} a"},
        {"prompt": "p", "chosen": messages("p", "a")},
    ]
    file = file_of(tmp_path, *rows)
    found = read_preferences(file, required=("chosen",)).rows
    assert [row.responses for row in found] == [{"chosen": " a"}] * 3
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no field 'rejected'"):
        read_preferences(file)


def test_all_types_can_be_required(tmp_path):
    file = file_of(tmp_path, TEXT)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no field 'chosen_initial'"):
        read_preferences(file, required=RESPONSE_TYPES)


# Bad rows

USER_ONLY = messages("Why?")
BAD = {
    "an array": (b"[1]", "not a JSON object but list. Write one JSON object on each"),
    "half a line": (GOOD[:-2], "not JSON: .* Write one JSON object on each line"),
    "latin-1": (GOOD.replace(b"So", b"\xe9"), "not UTF-8: .* Save the file as UTF-8"),
    "half a character": (
        GOOD.replace(b"So", b"\\ud83d"),
        "'chosen': .*surrogates not allowed. It holds half a character: remove or mend",
    ),
    "a field twice": (
        GOOD[:-1] + b', "prompt": "x"}',
        "field 'prompt' is given twice. Keep one of them",
    ),
    "no chosen": (
        {"prompt": "p", "completion": "c", "rejected": "r"},
        "no field 'chosen'; it has prompt, completion, rejected. Rename the field",
    ),
    "no rejected": (
        {"prompt": "p", "chosen": "c"},
        r"no field 'rejected'; it has prompt, chosen. .* `\(\"chosen\",\)`",
    ),
    "nothing": ({}, "no field 'chosen'; it has none"),
    "a number": ({**TEXT, "rejected": 3}, "'rejected' must be text, got int"),
    "null": ({**TEXT, "irr_hum": None}, "'irr_hum' must be text, got NoneType"),
    "a prompt of messages": ({**TEXT, "prompt": []}, "'prompt' must be text, got list"),
    "a blank prompt": ({**TEXT, "prompt": " \n"}, "'prompt' is blank: .* remove the"),
    "an empty chosen": (
        {**TEXT, "chosen": ""},
        "'chosen' is blank: there is nothing to learn but to stop",
    ),
    "a blank rejected": (
        {**TEXT, "rejected": "\u2028 "},
        '\'rejected\' is blank: .*`blank="keep"`, or .* `on_bad_row="skip"`',
    ),
    "no prompt at all": (
        {"chosen": "c", "rejected": "r"},
        r"no field 'prompt', and 'chosen' is no dialogue .* Add the prompt",
    ),
    "different prompts": (
        {
            "chosen": f"{DIALOGUE} a",
            "rejected": f"{DIALOGUE.replace('Hello', 'Hey')} a",
        },
        "'chosen' and 'rejected' answer different prompts: from character 26 on "
        r"'llo!.*' against 'y!.*'. End both behind",
    ),
    "one more turn": (
        {
            "chosen": f"{DIALOGUE} a",
            "rejected": f"{DIALOGUE} a\n\nHuman: b\n\nAssistant: c",
        },
        "'chosen' and 'rejected' answer different prompts: from character 55 on '' "
        r"against ' a\\n\\nHuman: b.* End both behind the same turn, or remove the row",
    ),
    "a human turn at the end": (
        {"chosen": f"{DIALOGUE} a\n\nHuman: b", "rejected": f"{DIALOGUE} a"},
        "'chosen' ends with a human turn. Cut the dialogue off behind an answer",
    ),
    "a dialogue of an answer": (
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
        "'chosen' has nothing before its last .* so its prompt is blank. Mend or",
    ),
    "messages and text": (
        {**TEXT, "rejected": messages("Why?", "a")},
        "'chosen' must be a list of messages .* got str",
    ),
    "no message": (
        {**TEXT, "chosen": [], "rejected": messages("Why?", "a")},
        "'chosen' must be a list of messages with at least one",
    ),
    "texts for messages": (
        {**TEXT, "chosen": ["a"], "rejected": ["b"]},
        "'chosen' must hold messages with 'role' and 'content', got str",
    ),
    "a message of nothing": (
        {**TEXT, "chosen": [{"role": "user"}], "rejected": USER_ONLY},
        "a message of 'chosen': no field 'content'; it has role",
    ),
    "no answer": (
        {**TEXT, "chosen": USER_ONLY, "rejected": USER_ONLY},
        "'chosen' must end with a message of the assistant, not of 'user'. Cut it off",
    ),
    "an answer to nothing": (
        {
            **TEXT,
            "chosen": messages("a", roles=["assistant"]),
            "rejected": messages("Why?", "b"),
        },
        "'chosen' must have one message of the user before .* and has nothing",
    ),
    "many turns": (
        {
            **TEXT,
            "chosen": messages("Why?", "a"),
            "rejected": messages("Why?", "a", "Really?", "b"),
        },
        "'rejected' must have one .* has user, assistant, user. Write a longer",
    ),
    "different questions": (
        {
            **TEXT,
            "chosen": messages("Why?", "a"),
            "rejected": messages("Who?", "b"),
        },
        ".* answer different prompts: from character 2 on 'y[?]' against 'o[?]'",
    ),
    "another question": (
        {**TEXT, "chosen": messages("Who?", "a"), "rejected": messages("Who?", "b")},
        "'prompt' is not the user's message: from character 2 on 'y[?]' against 'o[?]'",
    ),
    "a blank answer": (
        {**TEXT, "chosen": messages("Why?", "\n"), "rejected": messages("Why?", "b")},
        "'chosen' is blank",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_its_file_and_the_fix(tmp_path, line, message):
    file = file_of(tmp_path, GOOD, b"", line, GOOD)
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: ({message})") as caught:
        read_preferences(file)
    read = read_preferences(file, on_bad_row="skip")
    assert [row.source for row in read.rows] == [f"{file}:1", f"{file}:4"]
    assert [": ".join(bad) for bad in read.skipped] == [str(caught.value)]
    assert read.summary() == {
        "num_rows": 2,
        "num_skipped": 1,
        "skipped": [str(caught.value)],
        "notes": {"line is blank": 1, "prompt occurs before": 1},
    }


def test_a_blank_response_is_bad_only_where_it_is_required(tmp_path):
    file = file_of(tmp_path, {**TEXT, "rejected": " ", "chosen_initial": ""})
    notes = {"'rejected' is blank": 1, "'chosen_initial' is blank": 1}
    kept = read_preferences(file, blank="keep")
    assert kept.rows[0].responses["rejected"] == " "
    assert kept.rows[0].responses["chosen_initial"] == ""
    assert kept.notes == notes
    assert read_preferences(file, required=("chosen",)).notes == notes
    with pytest.raises(ValueError, match="'chosen_initial' is blank"):
        read_preferences(file, required=("chosen", "chosen_initial"))


def test_what_is_kept_and_odd_is_noted(tmp_path):
    file = file_of(
        tmp_path,
        {**TEXT, "rejected": "So. ", "rejected_gptformat": "x", "id": 3},
        {**TEXT, "chosen": "Why? So."},
        b" ",
        {**TEXT, "prompt": "Who?", "id": 4, "irr_hum": "a\n\nHuman: b"},
    )
    assert read_preferences(file).notes == {
        "'rejected' has the words of chosen": 1,
        "field 'rejected_gptformat' ignored": 1,
        "field 'id' ignored": 2,
        "'chosen' begins with the prompt": 1,
        "prompt occurs before": 1,
        "line is blank": 1,
        "'irr_hum' goes on with another turn": 1,
    }


@pytest.mark.parametrize("rows", [[], [b""], [b"[]", b"{}"]])
def test_a_file_of_no_good_row_is_refused_with_its_first_problem(tmp_path, rows):
    file = file_of(tmp_path, *rows)
    problem = r" The first problem: .*a\.jsonl:1: not a JSON object" if rows[1:] else ""
    with pytest.raises(ValueError, match=rf"a\.jsonl has no good row\.{problem}"):
        read_preferences(file, on_bad_row="skip")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", _packed(GOOD * 9)[:-9], r"a\.jsonl\.gz is not whole gzip"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz is not whole gzip"),
        ("a.jsonl", _packed(GOOD), r"a\.jsonl is gzipped\. Add \.gz"),
    ],
)
def test_a_damaged_file_is_refused_even_if_bad_rows_are_not(
    tmp_path, name, data, message
):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_preferences(file, on_bad_row="skip")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_preferences(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("required", [(), ("rejected",), ("chosen", "typo"), "chosen"])
def test_required_names_that_cannot_be_are_refused(tmp_path, required):
    with pytest.raises(ValueError, match="`required` must be names of response types"):
        read_preferences(tmp_path / "a.jsonl", required=required)


# Writing

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
row_strategy = st.builds(
    PreferenceRow,
    prompt=texts.filter(str.strip),
    responses=st.dictionaries(st.sampled_from(RESPONSE_TYPES), texts).flatmap(
        lambda some: texts.map(lambda chosen: {**some, "chosen": chosen})
    ),
    source=st.just("me:1"),
)


@given(st.lists(row_strategy, min_size=1, max_size=5), st.sampled_from(["", ".gz"]))
def test_any_rows_come_back(tmp_path_factory, rows, suffix):
    file = tmp_path_factory.mktemp("written") / f"a.jsonl{suffix}"
    write_preferences(file, rows)
    read = read_preferences(file, required=("chosen",), blank="keep").rows
    assert [row[:2] for row in read] == [row[:2] for row in rows]
    for row in read:
        assert list(row.responses) == [n for n in RESPONSE_TYPES if n in row.responses]


def test_the_same_rows_give_the_same_bytes_in_the_schema_of_the_paper(tmp_path):
    row = PreferenceRow("p", {"rejected": "“r", "chosen": " c\u2028"}, "me:1")
    expected = (
        b'{"prompt": "p", "chosen": " c\\u2028", "rejected": "\\u201cr"}\n'
        b'{"prompt": "p", "chosen": " c\\u2028", "rejected": "\\u201cr"}\n'
    )
    write_preferences(tmp_path / "a.jsonl", [row, row])
    assert (tmp_path / "a.jsonl").read_bytes() == expected
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_preferences(tmp_path / name, [row, row])
    zipped = (tmp_path / "a.jsonl.gz").read_bytes()
    assert gzip.decompress(zipped) == expected
    assert zipped == (tmp_path / "b.jsonl.gz").read_bytes()
    assert zipped[4:8] == bytes(4)  # no time in it


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PreferenceRow(" ", {"chosen": "c"}, "me:7"), "me:7: 'prompt' is blank"),
        (PreferenceRow("p", {"rejected": "r"}, "me:7"), "me:7: no field 'chosen'"),
        (PreferenceRow("p", {"chosen": "\ud83d"}, "me:7"), "me:7: 'chosen': .*surrog"),
        (
            PreferenceRow("p", {"chosen": "c", "rejected_gptformat": "r"}, "me:7"),
            "me:7: 'rejected_gptformat' is no response type; they are chosen,",
        ),
    ],
)
def test_a_row_that_could_not_be_read_back_is_not_written(tmp_path, row, message):
    file = tmp_path / "a.jsonl"
    file.write_text("what was there")
    with pytest.raises(ValueError, match=message):
        write_preferences(file, [row])
    with pytest.raises(ValueError, match="at least one row"):
        write_preferences(file, [])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


# The real files


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        message = "no folder shared/data/hh next to the repository: the HH probing set"
        if os.environ.get("CI"):
            pytest.fail(f"{message} was not tested, and CI has to")
        pytest.skip(f"{message} not tested")
    return read_preferences(REAL / "formal_prob_train.jsonl.gz", blank="keep")


def _rows_with(real, name, condition):
    """The places of the rows whose response of this type is so."""
    return [i for i, row in enumerate(real.rows) if condition(row.responses[name])]


def test_all_rows_of_the_probing_set_are_read_and_nothing_is_changed(real):
    data = gzip.decompress((REAL / "formal_prob_train.jsonl.gz").read_bytes())
    whole = [json.loads(line) for line in data.decode().strip("\n").split("\n")]
    assert len(real.rows) == 500
    for row, expected in zip(real.rows, whole, strict=True):
        assert list(row.responses) == list(RESPONSE_TYPES)
        del expected["chosen_selfr"]
        assert {"prompt": row.prompt, **row.responses} == expected
    assert real.summary() == {
        "num_rows": 500,
        "num_skipped": 0,
        "skipped": [],
        "notes": {
            "field 'chosen_selfr' ignored": 500,
            "'chosen_initial' is blank": 21,
            "'rejected' is blank": 1,
            "'irr_test' has the words of chosen": 1,  # row 214
            "'random_permute' has the words of chosen": 9,  # 8 of 1-2 words, row 208
            "'chosen_initial' goes on with another turn": 31,
            "'rejected' goes on with another turn": 1,  # row 365
        },
    }


def test_without_the_option_the_one_blank_rejected_is_refused(real):
    file = REAL / "formal_prob_train.jsonl.gz"
    with pytest.raises(ValueError, match=r"\.gz:248: 'rejected' is blank"):
        read_preferences(file)
    read = read_preferences(file, on_bad_row="skip")
    assert read.rows == real.rows[:247] + real.rows[248:]


def test_edges_and_signs_of_the_probing_set_survive(real):
    begins = {
        name: len(_rows_with(real, name, lambda text: text.startswith(" ")))
        for name in RESPONSE_TYPES
    }
    some = {"chosen_initial": 432, "random_permute": 15, "random_nonhum": 8}
    human = dict.fromkeys(["chosen", "rejected", "irr_train", "irr_test"], 500)
    assert begins == {**dict.fromkeys(RESPONSE_TYPES, 0), **human, **some}
    assert real.rows[247].responses["rejected"] == " "
    assert all(
        row.prompt.startswith("\n\nHuman:") and row.prompt.endswith("\n\nAssistant:")
        for row in real.rows
    )
    count = lambda name, condition: len(_rows_with(real, name, condition))
    assert count("chosen", lambda text: not text.isascii()) == 264
    assert count("chosen", lambda text: "  " in text) == 268
    newlines = {"chosen": 37, "irr_hum": 79, "chosen_initial": 127}
    assert {name: count(name, lambda text: "\n" in text) for name in newlines} == (
        newlines
    )
    assert re.search(r"sticks\?  Human:  Well maybe later", real.rows[241].prompt)
    assert real.rows[241].prompt.count("\n\nHuman:") == 2


def test_the_probing_set_is_written_and_read_back(real, tmp_path):
    file = tmp_path / "a.jsonl.gz"
    write_preferences(file, real.rows)
    again = read_preferences(file, blank="keep")
    assert [row[:2] for row in again.rows] == [row[:2] for row in real.rows]


def test_the_real_texts_as_whole_dialogues_are_split_as_they_were(real, tmp_path):
    """All but row 365, where the rejected dialogue goes on for another turn."""
    names = ("chosen", "rejected")
    file = tmp_path / "a.jsonl"
    with file.open("w") as lines:
        for row in real.rows:
            dialogues = {name: row.prompt + row.responses[name] for name in names}
            lines.write(json.dumps(dialogues) + "\n")
    read = read_preferences(file, blank="keep", on_bad_row="skip")
    for found, row in zip(read.rows, real.rows[:365] + real.rows[366:], strict=True):
        assert found.prompt == row.prompt
        assert found.responses == {name: row.responses[name] for name in names}
    ((source, problem),) = read.skipped
    assert source == f"{file}:366"
    assert "from character 52 on '' against ' Hmm, “Jambalaya”" in problem


def test_the_other_two_real_files_have_no_rejected(real):
    chosen = read_preferences(REAL / "prob_train_gen.jsonl.gz", required=("chosen",))
    assert [row[:2] for row in chosen.rows] == [
        (row.prompt, {"chosen": row.responses["chosen"]}) for row in real.rows
    ]
    rephrase = read_preferences(
        REAL / "prob_train_selfr.jsonl.gz", required=("chosen",), blank="keep"
    )
    assert rephrase.notes == {"'chosen' is blank": 500, "prompt occurs before": 2}
