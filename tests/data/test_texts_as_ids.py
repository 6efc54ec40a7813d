"""Texts are what the user wrote: special tokens, drawn ids and white space."""

import copy
import json
from typing import Any

import pytest

from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import count_notes, to_examples
from ldjax.data.tokenizers import load_tokenizer, train_bpe, train_word_level

LOOSE: dict[str, Any] = {"max_length": 99, "max_prompt_length": 50}
RAW: dict[str, Any] = {"start_document": False, "leading_space": "raw"}


# Texts that spell special tokens


def chat_tokenizer(folder, *, end="<|im_end|>", start=None, others=(), ends=None):
    """With ChatML's tokens, as its files would say it."""
    inner = train_bpe(["Why? So it is. user assistant"] * 3, vocab_size=290)._inner
    tokens = ["<|im_start|>", "<|im_end|>", *others, *([start] if start else [])]
    inner.add_special_tokens(tokens)
    inner.save(str(folder / "tokenizer.json"))
    named = {"eos_token": end, "bos_token": start}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if ends is not None:
        ids = [inner.token_to_id(token) for token in ends]
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]})
        )
    return load_tokenizer(folder)


CHAT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
HOW: dict[str, Any] = {**LOOSE, "start_document": True, "leading_space": "raw"}


def chat_row(prompt=CHAT, chosen="So it is.", **others):
    return PreferenceRow(prompt, {"chosen": chosen, **others}, "a:1")


def test_a_dialogue_of_a_chat_template_is_read_as_its_tokens(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    start, end = (tokenizer._inner.token_to_id(f"<|im_{x}|>") for x in ("start", "end"))
    made = to_examples(chat_row(rejected="No."), tokenizer, **HOW)
    example = made.examples["chosen"]
    assert list(example.prompt_ids) == [
        *(start, *tokenizer.encode("user\nWhy?"), end, *tokenizer.encode("\n")),
        *(start, *tokenizer.encode("assistant\n")),
    ]  # with nothing before it: the template has no start token
    assert list(example.response_ids) == [*tokenizer.encode("So it is."), end]
    # What `transformers` makes of the same text, which reads all special tokens.
    tokenizer._inner.encode_special_tokens = False
    assert list(example.prompt_ids) == (
        tokenizer._inner.encode(CHAT, add_special_tokens=False).ids
    )
    assert count_notes([made, made]) == {
        "special token '<|im_start|>' of 'prompt' read as such": 2,
        "special token '<|im_end|>' of 'prompt' read as such": 2,
    }


def test_special_tokens_can_be_taken_as_text_and_that_is_noted(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    made = to_examples(chat_row(), tokenizer, **HOW, special_tokens="text")
    ids = made.examples["chosen"].prompt_ids
    assert ids[0] == tokenizer.end_id
    assert tokenizer.end_id not in ids[1:]
    assert tokenizer.decode(ids[1:]) == CHAT
    assert len(ids) > len(tokenizer.encode(CHAT, read_special=True)) + 10
    assert made.notes == (
        "special token '<|im_start|>' of 'prompt' taken as text",
        "special token '<|im_end|>' of 'prompt' taken as text",
    )


@pytest.mark.parametrize(
    ("prompt", "is_chat"),
    [
        (CHAT, True),
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi", True),
        ("<|im_start|> User\nHi", True),
        ("<|user|>\nHi<|im_end|>\n<|assistant|>\n", True),
        ("[INST] Hi [/INST]", True),
        ("What does <|im_start|> mean?", False),
        ("<|im_start|>users of it", False),
        ("Human: what is <|im_end|>\nAssistant:", False),
        ("<|im_end|>user", False),  # END begins no turn
        ("user: hi", False),
        ("", False),
    ],
)
def test_a_dialogue_is_known_by_the_roles_of_its_turns(tmp_path, prompt, is_chat):
    tokenizer = chat_tokenizer(tmp_path)
    assert tokenizer.is_chat(prompt) == is_chat
    row = chat_row(prompt, chosen="<|im_end|>")
    made = to_examples(row, tokenizer, **HOW)
    how = "read as such" if is_chat else "taken as text"
    assert f"special token '<|im_end|>' of 'chosen' {how}" in made.notes
    ids = list(made.examples["chosen"].response_ids)
    # Its own end is the end; in other texts it is ten characters before one.
    assert ids == [tokenizer.end_id] if is_chat else len(ids) > 5
    forced = to_examples(row, tokenizer, **HOW, special_tokens="read")
    assert list(forced.examples["chosen"].response_ids) == [tokenizer.end_id]


def test_start_and_end_are_not_doubled(tmp_path):
    tokenizer = chat_tokenizer(
        tmp_path, start="<s>", ends=("<|im_end|>", "<|im_start|>")
    )
    row = chat_row(
        f"<s>{CHAT}", "So.<|im_end|>", rejected="No.", irr_hum="<|im_start|>"
    )
    made = to_examples(row, tokenizer, **HOW)
    assert list(made.examples["chosen"].prompt_ids) == (
        tokenizer.encode(f"<s>{CHAT}", read_special=True)
    )
    end = [tokenizer.end_id]
    responses = {name: list(e.response_ids) for name, e in made.examples.items()}
    assert responses == {
        "chosen": tokenizer.encode("So.") + end,
        "rejected": tokenizer.encode("No.") + end,
        "irr_hum": [tokenizer._inner.token_to_id("<|im_start|>")],  # an end, too
    }
    without = to_examples(chat_row(), tokenizer, **HOW).examples["chosen"]
    assert without.prompt_ids[0] == tokenizer.start_id  # a start of its own is put
    assert without.prompt_ids[1:] == made.examples["chosen"].prompt_ids[1:]


def test_an_end_token_within_a_dialogue_is_what_the_row_says(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    more = "So.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>"
    made = to_examples(chat_row(chosen=more), tokenizer, **HOW)
    ids = list(made.examples["chosen"].response_ids)
    assert ids == tokenizer.encode(more, read_special=True)
    assert ids.count(tokenizer.end_id) == 2


# Responses that a model drew


def test_the_drawn_ids_are_watched_whatever_their_text_is_read_as(tmp_path):
    tokenizer = train_bpe(["ab ab ab"], vocab_size=270)
    whole, (a, b) = tokenizer.encode("ab"), tokenizer.encode_batch(["a", "b"])
    assert len(whole) == 1
    cases = {
        "chosen": [*a, *b, tokenizer.end_id],  # another tokenization
        "chosen_initial": [*a, *b],  # cut off: no end was drawn
        "rejected": [tokenizer.end_id],
        "irr_hum": [tokenizer.padding_id, *a, tokenizer.end_id],
        "irr_test": [tokenizer.encode("é")[0]],  # half a character
    }
    texts = {name: DrawnText(ids, tokenizer) for name, ids in cases.items()}
    assert texts["chosen"] == "ab"
    assert texts["rejected"] == ""
    row = PreferenceRow("Q", texts | {"random_permute": "ab"}, "a:1")
    copied = copy.deepcopy(row)
    for how in ("raw", "single"):
        for told in (row, copied):
            made = to_examples(
                *(told, tokenizer), **LOOSE, start_document=False, leading_space=how
            )
            for name, ids in cases.items():
                assert list(made.examples[name].response_ids) == ids
    assert list(made.examples["random_permute"].response_ids)[:-1] == (
        tokenizer.encode(" ab")
    )


def test_ids_of_another_tokenizer_are_read_by_their_text():
    ours = train_bpe(["ab ab ab"], vocab_size=270)
    theirs = train_bpe(["xy xy xy"], vocab_size=270)
    text = DrawnText([*theirs.encode("ab"), theirs.end_id], theirs)
    made = to_examples(chat_row("Q", text), ours, **HOW).examples["chosen"]
    assert list(made.response_ids) == [*ours.encode("ab"), ours.end_id]
    again = train_bpe(["ab ab ab"], vocab_size=270)
    own = DrawnText(again.encode("a") + again.encode("b"), again)
    made = to_examples(chat_row("Q", own), ours, **HOW).examples["chosen"]
    assert tuple(made.response_ids) == own.ids


def test_every_end_token_of_the_model_is_known_kept_and_not_shown(tmp_path):
    tokenizer = chat_tokenizer(tmp_path, ends=("<|im_start|>", "<|im_end|>"))
    other = tokenizer._inner.token_to_id("<|im_start|>")
    assert tokenizer.end_ids == (tokenizer.end_id, other)
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").end_ids == tokenizer.end_ids
    for end in tokenizer.end_ids:
        assert DrawnText([*tokenizer.encode("So."), end], tokenizer) == "So."


@pytest.mark.parametrize(
    ("content", "ends"),
    [
        ('{"eos_token_id": 3}', 1),  # in config.json, an ordinary token: a default
        ('{"eos_token_id": START}', 2),
        ('{"eos_token_id": [START, 99999, -1, true, "x", null]}', 2),
        ('{"eos_token_id": null}', 1),
        ("{}", 1),
    ],
)
def test_end_tokens_of_config_json_count_where_they_are_special(
    tmp_path, content, ends
):
    start = chat_tokenizer(tmp_path)._inner.token_to_id("<|im_start|>")
    (tmp_path / "config.json").write_text(content.replace("START", str(start)))
    assert len(load_tokenizer(tmp_path).end_ids) == ends


# White space


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("yes", " yes"), (" yes", "  yes"), ("", " "), (" yes", "yes")],
)
def test_sides_that_differ_in_leading_spaces_only_stay_two_texts(chosen, rejected):
    tokenizer = train_bpe(["yes yes"], vocab_size=270)
    row = chat_row("Q", chosen, rejected=rejected, irr_hum="no")
    notes = {}
    for how in ("raw", "single"):
        made = to_examples(
            *(row, tokenizer), **LOOSE, start_document=True, leading_space=how
        )
        shown = [
            tokenizer.decode(made.examples[name].response_ids[:-1])
            for name in ("chosen", "rejected")
        ]
        assert shown == [chosen, rejected]
        notes[how] = made.notes
    assert notes["raw"] == ()
    assert notes["single"] == (
        "chosen and rejected differ in leading spaces, which are kept",
    )


def test_white_space_at_the_end_and_in_the_middle_is_kept():
    tokenizer = train_bpe(["yes yes"], vocab_size=270)
    row = chat_row(" Q \n", " yes\n \t", rejected=" yes  yes ")
    made = to_examples(row, tokenizer, **HOW)
    assert tokenizer.decode(made.examples["chosen"].prompt_ids[1:]) == " Q \n"
    assert tokenizer.decode(made.examples["chosen"].response_ids[:-1]) == " yes\n \t"
    assert tokenizer.decode(made.examples["rejected"].response_ids[:-1]) == " yes  yes "


def test_sides_that_became_equal_are_noted():
    tokenizer = train_bpe(["yes yes"], vocab_size=258)
    note = "chosen and rejected have the same tokens"
    same = to_examples(chat_row("Q", " yes", rejected=" yes"), tokenizer, **HOW)
    assert same.notes == (note,)
    # Cut behind what they have in common.
    short: dict[str, Any] = {"max_length": 8, "max_prompt_length": 4}
    row = chat_row("Q", " yes, it is", rejected=" yes, it was")
    cut = to_examples(row, tokenizer, **RAW, **short)
    assert cut.notes == (note,)
    assert cut.cut_types == ("chosen", "rejected")
    assert to_examples(row, tokenizer, **HOW).notes == ()
    # A word-level tokenizer knows neither word.
    unknown = to_examples(
        chat_row("Q", " x", rejected=" y"), train_word_level(["Q"]), **HOW
    )
    assert unknown.notes == (note,)
    assert count_notes([unknown, cut, same]) == {note: 3}
