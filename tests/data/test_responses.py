"""Response types made from others, and rows as token ids."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldjax.data.batches import Example
from ldjax.data.preferences import PreferenceRow, read_preferences
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.responses import (
    count_cuts,
    fill_types,
    shuffle_words,
    to_examples,
)
from ldjax.data.tokenizers import (
    SpecialTokens,
    load_tokenizer,
    train_bpe,
    train_word_level,
)

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh"
WORDS = train_word_level([" a b c d", " Q", "Q", "a"])
END = WORDS.end_id
LOOSE = {"max_length": 99, "max_prompt_length": 50}
RAW = {"start_document": False, "leading_space": "raw"}


def row_of(number, chosen, rejected=" no", **others):
    responses = {"chosen": chosen, "rejected": rejected, **others}
    return PreferenceRow(f"prompt {number}", responses, f"a:{number}")


ROWS = [row_of(i, f" answer {i} is  this\none") for i in range(20)]
UNSEEN = [row_of(100 + i, f" other {i} it is") for i in range(20)]


# Words in another order


@given(st.text(st.sampled_from("ab \n\u2028\x1c'\\"), max_size=12), st.integers(0, 3))
@example(" \\1 \\g<0>", 0)
@example("a a a a a a b", 1)
def test_shuffling_moves_words_and_nothing_else(text, seed):
    shuffled = shuffle_words(text, np.random.default_rng(seed))
    words = text.split()
    assert sorted(shuffled.split()) == sorted(words)
    assert re.split(r"\S+", shuffled) == re.split(r"\S+", text)
    assert (shuffled.split() != words) == (len(set(words)) > 1)


# Types that rows lack


def test_types_are_filled_in_from_the_right_rows():
    filled = fill_types(ROWS, seed=0, unseen=UNSEEN)
    chosen = [row.responses["chosen"] for row in ROWS]
    unseen = [row.responses["chosen"] for row in UNSEEN]
    for row, before in zip(filled, ROWS, strict=True):
        made = row.responses
        assert row[::2] == before[::2]
        assert list(made) == [
            *("chosen", "rejected", "irr_train"),
            *("irr_test", "random_permute", "random_nonhum"),
        ]
        assert made["irr_train"] in chosen
        assert made["irr_train"] != made["chosen"]
        assert made["irr_test"] in unseen
        for name, whole in (
            ("random_permute", "chosen"),
            ("random_nonhum", "irr_test"),
        ):
            assert made[name] != made[whole]
            assert sorted(made[name].split()) == sorted(made[whole].split())
            assert made[name].startswith(" ")
    assert len({row.responses["irr_train"] for row in filled}) > 8
    places = [
        (
            chosen.index(row.responses["irr_train"]),
            unseen.index(row.responses["irr_test"]),
        )
        for row in filled
    ]
    assert sum(train == test for train, test in places) < 5  # two draws, not one
    assert ROWS[0].responses.keys() == {"chosen", "rejected"}  # not changed


def test_what_rows_have_is_kept():
    texts = {name: f"text of {name}" for name in RESPONSE_TYPES}
    whole = PreferenceRow("p", texts, "a:0")
    assert fill_types([whole, *ROWS], seed=0, unseen=UNSEEN)[0] == whole


def test_without_unseen_rows_only_an_irr_test_that_is_there_is_shuffled():
    rows = fill_types([ROWS[0], row_of(50, " a", irr_test=" b c")], seed=0)
    assert rows[0].responses.keys() == {
        *("chosen", "rejected", "irr_train", "random_permute")
    }
    assert rows[1].responses["irr_test"] == " b c"
    assert rows[1].responses["random_nonhum"] == " c b"


def test_the_same_seed_gives_the_same_types_and_another_others():
    first = fill_types(ROWS, seed=0, unseen=UNSEEN)
    assert first == fill_types(ROWS, seed=0, unseen=UNSEEN)
    other = fill_types(ROWS, seed=1, unseen=UNSEEN)
    for name in ("irr_train", "irr_test", "random_permute", "random_nonhum"):
        assert [row.responses[name] for row in first] != [
            row.responses[name] for row in other
        ]
    fewer = fill_types(ROWS[:7], seed=0)
    assert [row.responses["random_permute"] for row in fewer] == [
        row.responses["random_permute"] for row in first[:7]
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_response_is_taken_that_answers_the_prompt(seed):
    row = row_of(0, " Yes.", " No.")
    unfit = [
        row_of(1, "Yes. "),  # its own chosen
        row_of(2, "No."),  # its own rejected
        row_of(0, " Sure."),  # of the same prompt
        row_of(3, " \n"),  # blank
    ]
    rows = [row, *unfit, row_of(4, " fit")]
    assert fill_types(rows, seed=seed)[0].responses["irr_train"] == " fit"


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_was_seen_becomes_irr_test(seed):
    rows = [row_of(0, " a"), row_of(1, " b")]
    unseen = [row_of(1, " x"), row_of(2, "b"), row_of(3, " "), row_of(4, " fit")]
    for row in fill_types(rows, seed=seed, unseen=unseen):
        assert row.responses["irr_test"] == " fit"
    for row in fill_types(rows, seed=seed, unseen=unseen[:3]):
        assert "irr_test" not in row.responses


YES_OR_NO = [row_of(i, *(" yes", " no")[:: 1 - 2 * (i % 2)]) for i in range(2000)]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:1],
        [row_of(1, " a"), row_of(2, "a ")],
        [row_of(1, " a"), row_of(1, " b")],
        YES_OR_NO,
    ],
)
def test_one_response_has_no_other(rows):
    for row in fill_types(rows, seed=0):
        assert "irr_train" not in row.responses


@pytest.mark.parametrize("text", ["", " yes", " ha ha ha"])
def test_words_with_one_order_are_not_shuffled(text):
    (row,) = fill_types([row_of(0, text, irr_test=text)], seed=0)
    assert row.responses.keys() == {"chosen", "rejected", "irr_test"}


def test_no_rows_have_no_types():
    assert fill_types([], seed=0) == []


# Token ids


def test_prompt_and_responses_are_tokenised_apart_and_responses_end():
    row = row_of(0, " a b", "a", irr_hum="")._replace(prompt=" Q")
    made = to_examples(row, WORDS, **LOOSE, **RAW)
    prompt = WORDS.encode(" Q")
    assert made.examples == {
        "chosen": Example(prompt, [*WORDS.encode(" a b"), END]),
        "rejected": Example(prompt, [*WORDS.encode("a"), END]),
        "irr_hum": Example(prompt, [END]),
    }
    assert not made.is_prompt_cut
    assert made.cut_types == ()


def test_the_ids_of_a_prompt_do_not_depend_on_the_response():
    tokenizer = train_bpe(["ta ta ta"], vocab_size=270)
    assert len(tokenizer.encode("ta")) == 1  # so it would be lost if they were joined
    row = PreferenceRow("t", {"chosen": "a"}, "a:1")
    (made,) = to_examples(row, tokenizer, **LOOSE, **RAW).examples.values()
    assert made.prompt_ids == tokenizer.encode("t")
    assert made.response_ids == [*tokenizer.encode("a"), tokenizer.end_id]


@pytest.mark.parametrize(
    ("leading_space", "texts"),
    [
        ("raw", ["a b", " a b", "   a b", "", " ", "\n a"]),
        ("single", [" a b", " a b", " a b", " ", " ", " \n a"]),
    ],
)
def test_the_leading_space_is_raw_or_single(leading_space, texts):
    tokenizer = train_bpe(["a b"], vocab_size=258)
    raw = ["a b", " a b", "   a b", "", " ", "\n a"]
    responses = dict(zip(RESPONSE_TYPES, raw, strict=False))
    row = PreferenceRow(" prompt", responses, "a:1")
    how = {"start_document": False, "leading_space": leading_space}
    made = to_examples(row, tokenizer, **LOOSE, **how)
    assert [tokenizer.decode(e.response_ids) for e in made.examples.values()] == [
        f"{text}<|endoftext|>" for text in texts
    ]
    assert tokenizer.decode(made.examples["chosen"].prompt_ids) == " prompt"


@pytest.mark.parametrize(
    ("keep", "num_words", "expected"),
    [("end", 3, "E123"), ("end", 4, "234"), ("start", 4, "E12")],
)
def test_a_prompt_begins_with_end_unless_its_start_is_cut(keep, num_words, expected):
    tokenizer = train_bpe([], vocab_size=258)
    row = PreferenceRow("1234"[:num_words], {"chosen": "x"}, "a:1")
    lengths = {"max_length": 6, "max_prompt_length": 3}
    how = {"start_document": True, "leading_space": "raw"}
    made = to_examples(row, tokenizer, **lengths, **how, keep=keep)
    prompt = tokenizer.decode(made.examples["chosen"].prompt_ids)
    assert prompt.replace("<|endoftext|>", "E") == expected
    assert made.is_prompt_cut == (num_words == 4)


@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(["start", "end"]),
)
def test_all_responses_of_a_row_are_cut_by_the_papers_rule(
    num_prompt, nums, max_prompt_length, room, keep
):
    tokenizer = train_bpe([], vocab_size=258)
    max_length = max_prompt_length + room
    text = "abcdefghijkl"
    responses = {
        name: text[:num] for name, num in zip(RESPONSE_TYPES, nums, strict=False)
    }
    row = PreferenceRow(text[:num_prompt], responses, "a:1")
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    made = to_examples(row, tokenizer, **lengths, **RAW, keep=keep)
    prompt = text[:num_prompt]
    if num_prompt + max(nums) + 1 > max_length:  # one more for END
        first, last = prompt[:max_prompt_length], prompt[-max_prompt_length:]
        prompt = first if keep == "start" else last
    cut = []
    for name, num in zip(responses, nums, strict=True):
        ids = made.examples[name]
        assert tokenizer.decode(ids.prompt_ids) == prompt
        whole = f"{text[:num]}<|endoftext|>"
        if len(prompt) + num + 1 > max_length:
            whole = text[: max_length - len(prompt)]
            cut.append(name)
        assert tokenizer.decode(ids.response_ids) == whole
    assert made.is_prompt_cut == (len(prompt) < num_prompt)
    assert made.cut_types == tuple(cut)
    assert count_cuts([made, made]) == {
        "num_prompts": 2,
        "num_prompts_cut": 2 * (len(prompt) < num_prompt),
        "num_responses": 2 * len(nums),
        "num_responses_cut": 2 * len(cut),
    }


def test_text_that_spells_the_end_token_is_text():
    row = row_of(0, "<|endoftext|>")._replace(prompt="Q<|endoftext|>")
    tokenizer = train_bpe(["a"], vocab_size=258)
    chosen = to_examples(row, tokenizer, **LOOSE, **RAW).examples["chosen"]
    assert tokenizer.end_id not in chosen.prompt_ids
    assert chosen.response_ids[-1] == tokenizer.end_id
    assert list(chosen.response_ids).count(tokenizer.end_id) == 1


@pytest.mark.parametrize(("prompt", "name"), [("Q new", "prompt"), ("Q", "rejected")])
def test_a_tokenizer_that_makes_end_out_of_text_is_refused(tmp_path, prompt, name):
    WORDS.save(tmp_path)
    special = SpecialTokens(end="<|unknown|>", padding=None)
    tokenizer = load_tokenizer(tmp_path, special_tokens=special)
    row = row_of(3, " a", " b new")._replace(prompt=prompt)
    with pytest.raises(ValueError, match=f"a:3: .* END .* text of '{name}'.*own"):
        to_examples(row, tokenizer, **LOOSE, **RAW)


def test_a_prompt_of_no_token_needs_end_before_it():
    row = row_of(3, " a")._replace(prompt="")
    with pytest.raises(
        ValueError, match=r"a:3: the prompt has no token.*start_document"
    ):
        to_examples(row, WORDS, **LOOSE, **RAW)
    how = {"start_document": True, "leading_space": "raw"}
    made = to_examples(row, WORDS, **LOOSE, **how)
    assert made.examples["chosen"].prompt_ids == [END]


def test_a_name_that_is_no_type_is_refused():
    row = row_of(3, " a", rejected_gptformat=" b")
    with pytest.raises(ValueError, match="'rejected_gptformat' is no response type"):
        to_examples(row, WORDS, **LOOSE, **RAW)


# The real file


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        message = "no folder shared/data/hh next to the repository: the HH probing set"
        if os.environ.get("CI"):
            pytest.fail(f"{message} was not tested, and CI has to")
        pytest.skip(f"{message} not tested")
    return read_preferences(REAL / "formal_prob_train.jsonl.gz", blank="keep").rows


def test_types_of_the_probing_set_are_made_without_its_irregularities(real):
    """Row 214 has chosen as irr_test, and 9 rows have chosen as random_permute."""
    pairs = [
        row._replace(responses={n: row.responses[n] for n in ("chosen", "rejected")})
        for row in real
    ]
    rows, unseen = pairs[:400], pairs[400:]
    seen = [row.responses["chosen"].split() for row in rows]
    for row in fill_types(rows, seed=0, unseen=unseen):
        words = {name: text.split() for name, text in row.responses.items()}
        own = (words["chosen"], words["rejected"])
        assert words["irr_train"] not in own
        assert words["irr_test"] not in seen
        for name, whole in (
            ("random_permute", "chosen"),
            ("random_nonhum", "irr_test"),
        ):
            assert (name in words) == (len(set(words[whole])) > 1)
            if name in words:
                assert words[name] != words[whole]
                assert row.responses[name].startswith(" ")
    assert fill_types(real, seed=0, unseen=unseen) == real


def test_the_probing_set_as_token_ids(real):
    tokenizer = train_bpe(
        [text for row in real[::25] for text in row.responses.values()], vocab_size=600
    )
    lengths = {"max_length": 512, "max_prompt_length": 256}
    made = [to_examples(row, tokenizer, **lengths, **RAW) for row in real]
    for row, examples in zip(real, made, strict=True):
        assert list(examples.examples) == list(RESPONSE_TYPES)
        for name, ids in examples.examples.items():
            prompt, response = map(tokenizer.decode, ids[:2])
            assert ids.num_tokens <= 512
            whole = f"{row.responses[name]}<|endoftext|>"
            if name in examples.cut_types:
                assert whole.encode().startswith(response.rstrip("\ufffd").encode())
            else:
                assert response == whole
            assert row.prompt.endswith(prompt.lstrip("\ufffd"))
            assert (prompt == row.prompt) == (not examples.is_prompt_cut)
    counts = count_cuts(made)
    assert counts["num_responses"] == 6000
    assert counts["num_prompts_cut"] > 32
    assert counts["num_responses_cut"] > 0
    assert len(made[247].examples["rejected"].response_ids) == 2  # a space and END
    assert len(made[6].examples["chosen_initial"].response_ids) == 1
