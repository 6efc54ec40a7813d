"""Ids and masks of conversations, token for token as `transformers` has them."""

import datetime

import pytest
from witnesses.parity import library
from zoo.chat_templates import (
    DIALECTS,
    chat_tokenizer,
    drawn,
    marked,
    without_marks,
)

from ldjax.data.conversation import Conversation
from ldjax.data.templates.template import ChatTemplate

DATE = datetime.date(2026, 2, 3)
FEW, MANY = 40, 240


class Day(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(DATE.year, DATE.month, DATE.day)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    chat_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return chat_tokenizer(folder)


@pytest.fixture
def theirs(folder, monkeypatch):
    """`transformers`' tokenizer of the same files, on a fixed day."""
    transformers = library("transformers")
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Day)
    return transformers.AutoTokenizer.from_pretrained(folder)


def by_transformers(theirs, template, conversation, **options):
    """Ids, and the mask of the assistant's tokens."""
    messages, tools, kwargs = conversation
    made = theirs.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **kwargs,
        **options,
    )
    return made["input_ids"], made["assistant_masks"]


def asked_for(theirs, template, conversation):
    """Ids before and through each turn of the assistant; None where they change."""
    messages, tools, kwargs = conversation
    how = {"tools": list(tools) or None, "chat_template": template, **kwargs}

    def made(count, **options):
        asked = list(messages[:count])
        return (
            theirs.apply_chat_template(asked, tokenize=False, **how, **options),
            theirs.apply_chat_template(asked, **how, **options)["input_ids"],
        )

    text, ids = made(len(messages))
    found = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before, through = made(place, add_generation_prompt=True), made(place + 1)
            is_begun = text.startswith(through[0]) and through[0].startswith(before[0])
            if not is_begun or ids[: len(before[1])] != before[1]:
                return None
            found.append((len(before[1]), len(through[1])))
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_ids_and_masks_are_those_of_transformers(ours, theirs, dialect, count):
    source, num_read = marked(dialect), 0
    plain = without_marks(source)
    tokens = ours.named_tokens
    by_marks = ChatTemplate(source, tokens=tokens, date=DATE)
    by_prefixes = ChatTemplate(plain, tokens=tokens, date=DATE)
    for conversation in drawn(7, count, has_tools=DIALECTS[dialect]):
        wanted = by_transformers(theirs, source, conversation)
        assert sum(wanted[1])
        assert by_marks.encode(ours, conversation) == wanted
        # Without its marks `transformers` marks nothing; here the turns are found.
        try:
            got = by_prefixes.encode(ours, conversation)
        except ValueError:
            got = None
        turns = asked_for(theirs, plain, conversation)
        assert (got is None) == (turns is None)
        if got is not None and turns is not None:
            # What the prompt for an answer has already (no thoughts) is none of it.
            ids, mask = wanted
            for begin, end in zip([0, *(t for _, t in turns)], turns, strict=False):
                mask[begin : end[0]] = [0] * (end[0] - begin)
            assert got == (ids, mask)
            num_read += 1
    assert num_read >= count / 4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompts_are_those_of_transformers(ours, theirs, dialect):
    source = marked(dialect)
    template = ChatTemplate(source, tokens=ours.named_tokens, date=DATE)
    for messages, tools, kwargs in drawn(8, 50, has_tools=DIALECTS[dialect]):
        asked = Conversation(messages[:-1], tools, kwargs)
        assert template.asked(asked) == theirs.apply_chat_template(
            list(asked.messages),
            tools=list(tools) or None,
            chat_template=source,
            add_generation_prompt=True,
            tokenize=False,
            **kwargs,
        )
