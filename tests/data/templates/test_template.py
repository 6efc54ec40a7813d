"""Chat templates beside tokenizers, and the turns that they make of conversations."""

import json

import pytest
from zoo.chat.templates import chat_tokenizer, marked, without_marks

from ldjax.data.conversation import Conversation
from ldjax.data.templates.template import ChatTemplate
from ldjax.data.tokenizers import load_tokenizer

OTHER = "{{ messages }}"
ASKED = {"role": "user", "content": "Why?"}
SO = {"role": "assistant", "content": "So."}


@pytest.fixture
def folder(tmp_path):
    chat_tokenizer(tmp_path)
    return tmp_path


def config(folder, **fields):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def scored(tokenizer, template, *messages, **options):
    """The texts that are scored."""
    conversation = Conversation(messages, **options)
    text, spans = template.turns(tokenizer, conversation)
    return [text[start:end] for start, end in spans]


# Where templates are found


@pytest.mark.parametrize(
    "field", [OTHER, [{"name": "default", "template": OTHER}], {"default": OTHER}]
)
def test_a_template_is_read_in_every_form_and_written_back(folder, field):
    config(folder, chat_template=field)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == OTHER
    (folder / "copy").mkdir()
    tokenizer.save(folder / "copy")
    again = load_tokenizer(folder / "copy")
    assert again.chat_templates == tokenizer.chat_templates
    assert again.named_tokens == tokenizer.named_tokens


def test_files_of_templates_go_before_the_field(folder):
    config(folder, chat_template="field")
    (folder / "chat_template.jinja").write_text("file")
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("tools")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_templates == {"default": "file", "tool_use": "tools"}
    template = ChatTemplate.of(tokenizer)
    assert template is not None
    assert template.render([ASKED]) == "file"
    assert template.render([ASKED], tools=[{"name": "f"}]) == "tools"


def test_without_a_template_there_is_none(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template is None
    assert ChatTemplate.of(tokenizer) is None
    other = tokenizer.with_chat_template(OTHER)
    assert (other.chat_template, tokenizer.chat_template) == (OTHER, None)
    assert other.agrees(tokenizer)


@pytest.mark.parametrize("field", [3, ["x"], [{"name": "default"}], {"default": 3}])
def test_a_field_that_is_no_template_is_named(folder, field):
    config(folder, chat_template=field)
    with pytest.raises(
        ValueError, match=r"tokenizer_config.json: `chat_template` must"
    ):
        load_tokenizer(folder)


def test_names_of_tokens_are_kept_though_two_are_one(folder):
    config(folder, bos_token="</s>", mask_token={"content": "<s>"}, sep_token="[none]")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special_tokens.start is None
    assert tokenizer.named_tokens == {
        "eos_token": "</s>",
        "bos_token": "</s>",
        "mask_token": "<s>",
    }
    template = ChatTemplate(
        "{{ bos_token }}{{ mask_token }}|", tokens=tokenizer.named_tokens
    )
    assert template.render([ASKED]) == "</s><s>|"


# Turns


def test_a_turn_ends_with_its_token_and_not_with_white_space(folder):
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(without_marks(marked("thinking")))
    said = scored(tokenizer, template, ASKED, SO)
    assert said == ["<think>\n\n</think>\n\nSo.<|im_end|>"]
    ids, mask = template.encode(tokenizer, Conversation((ASKED, SO)))
    last = max(place for place, is_scored in enumerate(mask) if is_scored)
    assert tokenizer.decode([ids[last]]) == "<|im_end|>"
    assert tokenizer.decode(ids[last + 1 :]) == "\n"


def test_thoughts_that_are_left_out_later_are_refused_with_the_message(folder):
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(without_marks(marked("thinking")))
    with pytest.raises(
        ValueError, match=r"message 2 of 4, of the assistant.*reasoning"
    ):
        scored(tokenizer, template, ASKED, SO, ASKED, SO)
    # With a prompt before it the last turn is what is said.
    text, spans = template.turns(
        tokenizer, Conversation((ASKED, SO, ASKED, SO)), after=3
    )
    ((start, end),) = spans
    assert text[start:end] == "<think>\n\n</think>\n\nSo.<|im_end|>"


def test_reasoning_is_read_under_each_of_its_names(folder):
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(marked("thinking"))
    for name in ("reasoning_content", "thinking", "reasoning"):
        said = scored(tokenizer, template, ASKED, SO | {name: "Hm."})
        assert said == ["<think>\nHm.\n</think>\n\nSo.<|im_end|>"]


def test_an_answer_that_nothing_asked_for_is_refused(folder):
    tokenizer = load_tokenizer(folder)
    source = without_marks(marked("zephyr"))
    template = ChatTemplate(source, tokens=tokenizer.named_tokens)
    with pytest.raises(ValueError, match="begins with an answer"):
        scored(tokenizer, template, SO)


def test_a_token_across_the_edge_of_a_turn_is_refused(folder):
    tokenizer = load_tokenizer(folder)
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    wordy = ChatTemplate(source)
    text = "Wh"
    assert tokenizer.encode("Why") != tokenizer.encode("Wh") + tokenizer.encode("y")
    with pytest.raises(ValueError, match="a token lies across the edge of a turn"):
        scored(tokenizer, wordy, ASKED | {"content": text}, SO | {"content": "y"})


def test_the_plain_template_is_the_words_of_the_paper(folder):
    tokenizer = load_tokenizer(folder)
    plain = ChatTemplate.plain(tokenizer, start_document=True)
    conversation = Conversation((ASKED, SO, ASKED | {"content": "Really?"}, SO))
    assert plain.render(conversation.messages) == (
        "<s>Human: Why?\nAssistant: So.</s>\nHuman: Really?\nAssistant: So.</s>"
    )
    assert scored(tokenizer, plain, *conversation.messages) == [" So.</s>"] * 2
    assert plain.asked(Conversation((ASKED,))) == "<s>Human: Why?\nAssistant:"
    with pytest.raises(ValueError, match="no place for tools"):
        plain.render([ASKED], tools=[{"name": "f"}])
    with pytest.raises(ValueError, match="the role tool"):
        plain.render([ASKED, {"role": "tool", "content": "3"}])


def test_special_tokens_that_messages_spell_are_found(folder):
    tokenizer = load_tokenizer(folder)
    call = {"function": {"name": "f", "arguments": {"x": ["<|eot_id|>"]}}}
    conversation = Conversation(
        (ASKED, ASKED | {"content": "<s>a</s>"}, SO | {"tool_calls": [call]})
    )
    assert ChatTemplate("").spelled(tokenizer, conversation) == {
        1: ["<s>", "</s>"],
        2: ["<|eot_id|>"],
    }
