"""What rows of each type become, and what a bad one is told."""

import json
from typing import Any

import pytest

from ldjax.data.conversation import Conversation, parse_messages, parse_tools
from ldjax.data.files.fitting import check_type, fitting_losses
from ldjax.data.files.reading import open_data
from ldjax.data.files.types import (
    IMPLICIT,
    LANGUAGE,
    PAIRED,
    PROMPT_COMPLETION,
    PROMPTS,
    UNPAIRED,
)
from ldjax.data.preferences import read_preferences
from ldjax.losses import LOSSES


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


USER, YES, NO = (
    turn("user", "Why?"),
    turn("assistant", "So."),
    turn("assistant", "No."),
)


def rows_of(tmp_path, *rows, **how: Any):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_data(file).rows(required=("chosen",), **how).rows


def said(*messages):
    return Conversation(tuple(messages))


ASKED, LIST = said(USER), [USER]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
SHAREGPT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "So."},
]
READ = {
    "a completion": (
        {"prompt": "Why?", "completion": " So."},
        ("Why?", {"chosen": " So."}),
    ),
    "a text": ({"text": "The sky."}, ("", {"chosen": "The sky."})),
    "wanted": (
        {"prompt": "Why?", "completion": " So.", "label": 1},
        ("Why?", {"chosen": " So."}),
    ),
    "not wanted": (
        {"prompt": LIST, "completion": [NO], "label": False},
        (ASKED, {"rejected": said(NO)}),
    ),
    "only a prompt": ({"prompt": LIST}, (ASKED, {})),
    "an implicit prompt": (
        {"chosen": "Q: a?\nA: It is great", "rejected": "Q: a?\nA: It is green"},
        ("Q: a?\nA: It is", {"chosen": " great", "rejected": " green"}),
    ),
    "an implicit prompt that ends a line": (
        {"chosen": "Why?\nSo.", "rejected": "Why?\nNo."},
        ("Why?\n", {"chosen": "So.", "rejected": "No."}),
    ),
    "one that goes on": (
        {"chosen": "The sky is", "rejected": "The sky is blue"},
        ("The sky", {"chosen": " is", "rejected": " is blue"}),
    ),
    "pairs of messages": (
        {"prompt": LIST, "chosen": [YES], "rejected": [NO], "tools": TOOLS},
        (
            Conversation((USER,), tools=tuple(TOOLS)),
            {"chosen": said(YES), "rejected": said(NO)},
        ),
    ),
    "messages with an implicit prompt": (
        {"chosen": [USER, YES, USER, NO], "rejected": [USER, YES, USER, YES]},
        (said(USER, YES, USER), {"chosen": said(NO), "rejected": said(YES)}),
    ),
    "that part early": (
        {"chosen": [USER, YES, USER, YES], "rejected": [USER, NO]},
        (ASKED, {"chosen": said(YES, USER, YES), "rejected": said(NO)}),
    ),
    "a prompt as text before messages": (
        {"prompt": "Why?", "chosen": [USER, YES], "rejected": [USER, NO]},
        (ASKED, {"chosen": said(YES), "rejected": said(NO)}),
    ),
    "a text after messages": (
        {"prompt": LIST, "completion": "So."},
        (ASKED, {"chosen": said(YES)}),
    ),
    "a dialogue": (
        {"messages": [USER, YES, USER, NO, USER]},
        (ASKED, {"chosen": said(YES, USER, NO)}),
    ),
    "a dialogue that is JSON": (
        {"messages": json.dumps([USER, YES]), "chat_template_kwargs": '{"a": 1}'},
        (Conversation((USER,), kwargs={"a": 1}), {"chosen": said(YES)}),
    ),
    "another's words": (
        {"conversations": SHAREGPT},
        (said(turn("system", "Be kind."), USER), {"chosen": said(YES)}),
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_a_row_becomes_a_prompt_and_responses(tmp_path, kind):
    row, wanted = READ[kind]
    (found,) = rows_of(tmp_path, row)
    assert found[:2] == wanted


PAIR = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
BAD = {
    "no completion": (
        {"prompt": "a", "completion": "b"},
        {"prompt": "Why?"},
        "no field 'completion', or a null one; it has prompt",
    ),
    "null": (
        {"prompt": "a", "completion": "b"},
        {"prompt": "Why?", "completion": None},
        "no field 'completion', or a null one",
    ),
    "a blank completion": (
        {"prompt": "a", "completion": "b"},
        {"prompt": "Why?", "completion": "\n"},
        "'chosen' is blank",
    ),
    "a blank prompt": ({"prompt": "a"}, {"prompt": " "}, "'prompt' is blank"),
    "mixed": (
        {"prompt": "a", "completion": "b"},
        {"prompt": "Why?", "completion": [YES]},
        "'prompt' is text and 'completion' a list of messages",
    ),
    "a blank text": ({"text": "a"}, {"text": " "}, "'chosen' is blank"),
    "a number": ({"text": "a"}, {"text": 3}, "'text' must be text, got int"),
    "a word for a label": (
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": "b", "label": "good"},
        "'label' must be true .* got 'good'",
    ),
    "no label": (
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": "b", "label": None},
        "no field 'label'",
    ),
    "nothing shared": (
        {"chosen": "a b", "rejected": "a c"},
        {"chosen": "a b", "rejected": "d"},
        "'chosen' and 'rejected' do not begin with the same words",
    ),
    "no message shared": (
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [USER, YES], "rejected": [turn("user", "Who?"), NO]},
        "do not begin with the same message, so they answer different prompts",
    ),
    "parted by the user": (
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {
            "chosen": [USER, YES, turn("user", "a"), YES],
            "rejected": [USER, YES, turn("user", "b"), NO],
        },
        "the prompt ends with a message of the assistant",
    ),
    "no answer": (
        {"prompt": LIST, "completion": [YES]},
        {"prompt": LIST, "completion": [USER]},
        "response in 'completion' must begin with a message of the assistant, not",
    ),
    "a last word of the user": (
        {"prompt": LIST, "completion": [YES]},
        {"prompt": LIST, "completion": [YES, USER]},
        "must end with a message of the assistant, not of 'user'",
    ),
    "an asked answer": (
        {"prompt": LIST},
        {"prompt": [USER, YES]},
        "the prompt ends with a message of the assistant",
    ),
    "another question": (
        PAIR | {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Who?", "chosen": [USER, YES], "rejected": [USER, NO]},
        "'prompt' is none of the messages before the answers: 'Who",
    ),
    "messages and text": (
        PAIR | {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Why?", "chosen": [USER, YES], "rejected": "No."},
        "'rejected' must be a list of messages, as another response .* got str",
    ),
    "nobody answers": ({"messages": [USER, YES]}, {"messages": [USER]}, "has none of"),
    "nobody asks": ({"messages": [USER, YES]}, {"messages": [YES]}, "begins with the"),
    "no message": ({"messages": [USER, YES]}, {"messages": []}, "at least one message"),
    "no JSON": (
        {"messages": [USER, YES]},
        {"messages": "Why?"},
        "'messages' must be a list of messages, and is text that is no JSON",
    ),
    "a role": (
        {"messages": [USER, YES]},
        {"messages": [turn("human", "Why?"), YES]},
        "message 1 of 'messages': the role 'human' is not known; write 'user'",
    ),
    "an unknown role": (
        {"messages": [USER, YES]},
        {"messages": [USER, turn("critic", "a")]},
        "message 2 of .*'critic' is not known; it must be one of system, developer",
    ),
    "no role": (
        {"messages": [USER, YES]},
        {"messages": [USER, {"content": "a"}]},
        "message 2 of 'messages': no field 'role'",
    ),
    "no content": (
        {"messages": [USER, YES]},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "message 2 of 'messages': no field 'content'",
    ),
    "an image": (
        {"messages": [USER, YES]},
        {"messages": [turn("user", [{"type": "image"}]), YES]},
        "'content' has a part of type 'image', and only text is read",
    ),
    "a call of the user": (
        {"messages": [USER, YES]},
        {"messages": [turn("user", "a", tool_calls=[]), YES]},
        "'tool_calls' of 'user': only the assistant",
    ),
    "a call of nothing": (
        {"messages": [USER, YES]},
        {"messages": [USER, turn("assistant", "", tool_calls=[{"function": {}}])]},
        "call 1 of 'tool_calls' has no name of a function",
    ),
    "arguments": (
        {"messages": [USER, YES]},
        {
            "messages": [
                USER,
                turn("assistant", "", tool_calls=[{"name": "a", "arguments": [1]}]),
            ]
        },
        "'arguments' must be an object, got list",
    ),
    "a tool": (
        {"messages": [USER, YES]},
        {"messages": [USER, YES], "tools": [{"type": "function"}]},
        "tool 1 of 'tools' has no name: a schema is",
    ),
    "options": (
        {"messages": [USER, YES]},
        {"messages": [USER, YES], "chat_template_kwargs": [1]},
        "'chat_template_kwargs' must be an object of variables",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_with_its_line_and_the_fix(tmp_path, kind):
    good, bad, message = BAD[kind]
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*({message})") as caught:
        rows_of(tmp_path, good, bad)
    assert "\n" not in str(caught.value)
    (kept,) = rows_of(tmp_path, good, bad, on_bad_row="skip")
    assert kept.source.endswith(":1")


def test_files_of_before_are_read_as_they_were(tmp_path):
    dialogue = "\n\nHuman: Why?\n\nAssistant:"
    rows = [
        {**PAIR, "irr_hum": "x", "chosen_selfr": "junk"},
        {"chosen": f"{dialogue} So.", "rejected": f"{dialogue} No."},
        {"prompt": "Why?", "chosen": [USER, YES], "rejected": [USER, NO]},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    before, found = read_preferences(file), open_data(file)
    assert found.has_plain_form
    asked: dict[str, Any] = {"required": ("chosen", "rejected")}
    assert found.rows(**asked, is_plain=True) == before
    assert found.rows(**asked).rows[:2] == before.rows[:2]
    assert found.rows(**asked).rows[2].prompt == ASKED
    assert found.rows(**asked).notes == before.notes


def test_contents_in_parts_and_arguments_as_text_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (joined,) = parse_messages([turn("user", parts)], "prompt")
    assert joined == turn("user", "ab")
    call = {"id": "1", "function": {"name": "add", "arguments": '{"x": null}'}}
    (called,) = parse_messages([{"role": "assistant", "tool_calls": [call]}], "x")
    assert called["tool_calls"] == [call]
    assert str(Conversation((called,))) == 'assistant: add({"x": null})'
    assert parse_tools(['{"name": "add"}']) == ({"name": "add"},)
    assert parse_tools(None) == ()


TAKEN = {
    PAIRED: set(LOSSES),
    IMPLICIT: set(LOSSES),
    UNPAIRED: {"kto"},
    PROMPT_COMPLETION: {"sft", "gradient_ascent", "unlikelihood"},
    LANGUAGE: {"sft", "gradient_ascent", "unlikelihood"},
    PROMPTS: set(),
}


@pytest.mark.parametrize("data_type", TAKEN, ids=lambda each: each.name)
def test_each_type_fits_some_losses_and_the_others_say_what_they_take(
    tmp_path, data_type
):
    assert set(fitting_losses(data_type)) == TAKEN[data_type]
    for loss in LOSSES:
        if loss in TAKEN[data_type]:
            check_type(data_type, loss, ["chosen"], tmp_path)
            continue
        with pytest.raises(ValueError, match=f"the loss {loss} takes pref") as caught:
            check_type(data_type, loss, ["chosen"], tmp_path)
        fix = "fit the loss" if TAKEN[data_type] else r"fit no loss.*`test_data`"
        assert caught.match(fix)
        assert caught.match(data_type.name)


def test_a_target_needs_its_side(tmp_path):
    with pytest.raises(ValueError, match="of the target chosen rejected takes pref"):
        check_type(LANGUAGE, "sft", ["chosen", "rejected"], tmp_path)
    check_type(PAIRED, "sft", ["chosen", "rejected"], tmp_path)
