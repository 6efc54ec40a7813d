"""Ids and masks of conversations, token for token as `transformers` has them."""

import datetime

import pytest
from witnesses.parity import fetched_smollm2, library
from zoo.chat.templates import (
    DIALECTS,
    chat_tokenizer,
    drawn,
    marked,
    without_marks,
)

from ldjax.data.conversation import Conversation
from ldjax.data.templates.template import ChatTemplate
from ldjax.data.tokenizers import load_tokenizer

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


def check_masks(ours, theirs, sources, conversations):
    """With marks and without them; how many are read without.

    Without its marks `transformers` marks nothing, so what is wanted is what it marks
    with them, but for what the prompt for an answer has already (that there are no
    thoughts).
    """
    by_marks, by_prefixes = (
        ChatTemplate(source, tokens=ours.named_tokens, date=DATE) for source in sources
    )
    num_read = 0
    for conversation in conversations:
        ids, mask = by_transformers(theirs, sources[0], conversation)
        assert sum(mask)
        assert by_marks.encode(ours, conversation) == (ids, mask)
        try:
            got = by_prefixes.encode(ours, conversation)
        except ValueError:
            got = None
        turns = asked_for(theirs, sources[1], conversation)
        assert (got is None) == (turns is None)
        if turns is not None:
            ends = [0, *(end for _, end in turns)]
            for end, (begin, _) in zip(ends, turns, strict=False):
                mask[end:begin] = [0] * (begin - end)
            assert got == (ids, mask)
            num_read += 1
    return num_read


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_ids_and_masks_are_those_of_transformers(ours, theirs, dialect, count):
    source = marked(dialect)
    conversations = drawn(7, count, has_tools=DIALECTS[dialect])
    sources = source, without_marks(source)
    assert check_masks(ours, theirs, sources, conversations) >= count / 3


@pytest.mark.slow
def test_those_of_smollm2_are_too(tmp_path, monkeypatch):
    """By the template and the tokenizer that come with the model."""
    file = fetched_smollm2()
    auto = library("transformers").AutoTokenizer
    theirs = auto.from_pretrained(file.parent, gguf_file=file.name)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    plain = ours.chat_template
    assert plain is not None
    assert plain == theirs.chat_template
    # A turn as it is, and one with the marks of the assistant.
    turn = plain[plain.index("{{'<|im_start|>'") : plain.index("{% endfor %}")]
    begin, said = "{{'<|im_start|>' + message['role'] + '\n'}}", "message['content']"
    assert turn == begin[:-2] + f" + {said} + '<|im_end|>' + '\n'}}}}"
    by_role = (
        f"{begin}{{% if message['role'] == 'assistant' %}}{{% generation %}}"
        f"{{{{ {said} + '<|im_end|>' }}}}{{% endgeneration %}}{{{{ '\n' }}}}"
        f"{{% else %}}{{{{ {said} + '<|im_end|>' + '\n' }}}}{{% endif %}}"
    )
    sources = plain.replace(turn, by_role), plain
    conversations = drawn(9, MANY, has_tools=False)
    assert check_masks(ours, theirs, sources, conversations) >= 200


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
