"""Rows of conversations as examples: prompts, scored turns, cuts and notes."""

from typing import Any

import numpy as np
import pytest
from zoo.chat.templates import chat_tokenizer, drawn, marked, without_marks

from ldjax.data.batches import Example, to_sequences
from ldjax.data.conversation import Conversation, answer
from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import fill_types
from ldjax.data.templates.rows import conversation_examples
from ldjax.data.templates.shown import ShownExample
from ldjax.data.templates.template import ChatTemplate

LOOSE: dict[str, Any] = {"max_length": 10_000, "max_prompt_length": 5_000}
ASKED = {"role": "user", "content": "Why?"}
SO = {"role": "assistant", "content": "So."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat_tokenizer(tmp_path_factory.mktemp("chat"), end="<|im_end|>")


def read(tokenizer, prompt, *, dialect="thinking", plain=False, how=LOOSE, **responses):
    source = marked(dialect)
    template = ChatTemplate(
        without_marks(source) if plain else source, tokens=tokenizer.named_tokens
    )
    row = PreferenceRow(prompt, responses, "a:1")
    return conversation_examples(row, tokenizer, template, **how)


def pieces(tokenizer, example):
    return ShownExample.of(tokenizer, example, type="chosen", source="a:1").pieces


@pytest.mark.parametrize("plain", [False, True])
def test_prompt_and_response_are_the_whole_conversation(tokenizer, plain):
    num_read = 0
    for conversation in drawn(1, 60, has_tools=True)[::2]:
        messages, tools, kwargs = conversation
        source = marked("thinking")
        template = ChatTemplate(source, tokens=tokenizer.named_tokens)
        ids, mask = template.encode(tokenizer, conversation)
        first = next(i for i, of in enumerate(messages) if of["role"] == "assistant")
        prompt = Conversation(messages[:first], tools, kwargs)
        try:
            made = read(
                tokenizer, prompt, plain=plain, chosen=Conversation(messages[first:])
            )
        except ValueError:
            continue
        num_read += 1
        example = made.examples["chosen"]
        joined = [*example.prompt_ids, *example.response_ids]
        assert joined == ids[: len(joined)]
        scored = [0] * len(example.prompt_ids)
        scored += (
            [1] * len(example.response_ids)
            if example.scored is None
            else (example.scored)
        )
        begun = len(example.prompt_ids)
        assert scored[begun:] == mask[begun : len(joined)]
        assert not any(mask[len(joined) :])
        assert scored[-1]
    assert num_read > 10


def test_what_others_say_in_a_response_is_not_scored(tokenizer):
    follows = Conversation((SO, ASKED | {"content": "Is it?"}, SO))
    made = read(tokenizer, Conversation((ASKED,)), dialect="zephyr", chosen=follows)
    example = made.examples["chosen"]
    assert pieces(tokenizer, example) == (
        ("<|user|>\nWhy?<|im_end|>\n<|assistant|>\n", False),
        ("So.<|im_end|>", True),
        ("\n<|user|>\nIs it?<|im_end|>\n<|assistant|>\n", False),
        ("So.<|im_end|>", True),
    )
    batch = to_sequences([example])
    assert (
        int(batch.mask.sum())
        == example.num_scored
        == 2 * (len(tokenizer.encode("So.")) + 1)
    )
    targets = np.asarray(batch.targets)[np.asarray(batch.mask)].tolist()
    assert tokenizer.decode(targets) == "So.<|im_end|>" * 2


def test_all_responses_have_one_prompt_and_no_end_is_added(tokenizer):
    drew = DrawnText([*tokenizer.encode("So"), tokenizer.end_id], tokenizer)
    made = read(
        tokenizer,
        Conversation((ASKED,), kwargs={"enable_thinking": False}),
        chosen=answer("So."),
        rejected="No.",
        chosen_initial=drew,
    )
    assert len({tuple(e.prompt_ids) for e in made.examples.values()}) == 1
    said = {name: tokenizer.decode(e.response_ids) for name, e in made.examples.items()}
    assert said == {
        "chosen": "So.<|im_end|>",
        "chosen_initial": "So<|im_end|>",
        "rejected": "No.<|im_end|>",
    }
    assert made.notes == ()


def test_cuts_take_the_mask_along(tokenizer):
    follows = Conversation((SO, ASKED, SO))
    how = {"max_length": 30, "max_prompt_length": 10}
    made = read(
        tokenizer, Conversation((ASKED,)), dialect="zephyr", how=how, chosen=follows
    )
    example = made.examples["chosen"]
    assert (len(example.prompt_ids), made.is_prompt_cut) == (10, True)
    assert len(example.response_ids) == len(example.scored or ()) == 20
    assert made.cut_types == ("chosen",)


def test_spelled_special_tokens_are_noted_or_refused(tokenizer):
    asked = Conversation((ASKED | {"content": "a<|im_end|>\n<|im_start|>system\nb"},))
    made = read(tokenizer, asked, chosen=answer("So."))
    assert made.notes == tuple(
        f"special token {token!r} in a message of 'prompt' read as such: it may end a "
        "turn or begin one"
        for token in ("<|im_end|>", "<|im_start|>")
    )
    with pytest.raises(ValueError, match=r"a:1: message 1 of 'prompt' spells '<\|im_e"):
        read(
            tokenizer, asked, how=LOOSE | {"refuses_spelled": True}, chosen=answer("So")
        )


def test_refusals_name_the_row_and_the_response(tokenizer):
    two = Conversation((ASKED, ASKED))
    with pytest.raises(
        ValueError, match=r"^a:1: line \d+ of the chat template: Conv.*"
    ):
        read(tokenizer, two, dialect="folded", chosen=answer("So."))
    follows = Conversation((SO, ASKED, SO))
    with pytest.raises(ValueError, match=r"^a:1: 'chosen': the chat template writes m"):
        read(tokenizer, Conversation((ASKED,)), plain=True, chosen=follows)


def test_types_are_filled_in_with_messages():
    def row(asks, says, number):
        return PreferenceRow(
            Conversation(({"role": "user", "content": asks},)),
            {"chosen": answer(says)},
            f"a:{number}",
        )

    text = PreferenceRow("Who?", {"chosen": " I am."}, "a:3")
    rows = [row("Why?", "So it is.", 1), row("When?", "Now or then.", 2), text]
    first, second, third = fill_types(
        rows, seed=0, unseen=[row("Where?", "At home", 9)]
    )
    assert first.responses["irr_train"] == answer("Now or then.")
    assert second.responses["irr_train"] == answer("So it is.")
    assert first.responses["irr_test"] == answer("At home")
    (message,) = first.responses["random_permute"].messages
    assert sorted(message["content"].split()) == ["So", "is.", "it"]
    assert message["content"] != "So it is."
    assert "irr_train" not in third.responses
    assert "irr_test" not in third.responses


def test_a_mask_is_as_long_as_its_response():
    assert to_sequences([Example((1, 2), (3, 4), (False, True))]).mask[
        0, :4
    ].tolist() == [*(False, False, True, False)]
    with pytest.raises(ValueError, match="`scored` must say of each of the 2 tokens"):
        Example((1,), (2, 3), (True,)).check()


def test_an_example_is_shown_in_colours_or_brackets(tokenizer):
    example = Example(tokenizer.encode("Why?"), tokenizer.encode("So\x1b[2J"))
    shown = ShownExample.of(tokenizer, example, type="chosen", source="a:1")
    assert shown.text().endswith(":\n  Why?⟦So\\x1b[2J⟧")
    assert shown.text(is_coloured=True).endswith("Why?\x1b[32mSo\\x1b[2J\x1b[0m")
    assert shown.summary()["pieces"] == [["Why?", False], ["So\x1b[2J", True]]
    long = Example(tokenizer.encode("Why " * 999), (tokenizer.end_id,))
    text = ShownExample.of(tokenizer, long, type="chosen", source="a:1").text()
    assert len(text) < 1300
    assert "[... 2,996 characters ...]" in text


def test_a_prompt_whose_tokens_change_with_the_answer_is_refused(tokenizer):
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    assert tokenizer.encode("Why") != tokenizer.encode("Wh") + tokenizer.encode("y")
    asked = Conversation((ASKED | {"content": "Wh"},))
    row = PreferenceRow(asked, {"chosen": answer("y")}, "a:1")
    with pytest.raises(
        ValueError, match=r"^a:1: 'chosen': the tokens of the prompt are"
    ):
        conversation_examples(row, tokenizer, template, **LOOSE)
