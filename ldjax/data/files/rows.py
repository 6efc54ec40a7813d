"""A row of any type to a prompt and the responses to it, as texts or as messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ldjax.data.conversation import (
    Conversation,
    Messages,
    answer,
    parse_messages,
    parse_options,
    parse_tools,
)
from ldjax.data.files.types import (
    DIALOGUE_COLUMNS,
    IMPLICIT,
    LANGUAGE,
    PAIRED,
    PROMPT_COMPLETION,
    PROMPTS,
    UNPAIRED,
    DataType,
)
from ldjax.data.preference_formats import TURN_MARKERS, Parsed, parse
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.text import text_field

__all__ = ["parse_row"]

#: Columns that a chat template reads besides the messages.
_OF_TEMPLATE = ("tools", "chat_template_kwargs")


def parse_row(
    content: dict[str, Any], data_type: DataType, required: Sequence[str]
) -> Parsed:
    """The prompt and the responses that a row holds.

    * Prompt-completion: the completion is what is chosen.
    * Language modelling: a `text` is what is chosen, after an empty prompt. Of
      `messages` the prompt is all before the first of the assistant, and chosen is the
      rest.
    * Preference: with an implicit prompt, chosen and rejected begin with it. It ends
      where they part: as text behind the last whole word, as messages before the first
      that differs.
    * Unpaired preference: chosen or rejected, as the `label` says.
    * Prompt-only: no response.

    Args:
      content: Its fields.
      data_type: Of the file.
      required: Response types that a row of preferences must have.

    Raises:
      ValueError: If it is no such row, and what is wrong with it.

    Examples:
      >>> row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
      >>> parsed = parse_row(row, IMPLICIT, ["chosen", "rejected"])
      >>> parsed.prompt, parsed.responses
      ('The sky is', {'chosen': ' blue.', 'rejected': ' green.'})
    """
    return _PARSERS[data_type](content, required)


def _preference(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    names = [name for name in RESPONSE_TYPES if name in content]
    if any(isinstance(content.get(name), list) for name in ("prompt", *names)):
        return _dialogues(content, names, required)
    texts = [content[name] for name in names]
    is_implicit = "prompt" not in content and len(texts) > 1
    if not is_implicit or any(_is_turns(text) for text in texts):
        return parse(content, required)
    require(content, required)
    responses = {name: text_field(content, name) for name in names}
    start = _shared_text([*responses.values()])
    prompt = responses[names[0]][:start]
    if not prompt.strip():
        raise ValueError(
            f"no field 'prompt', and {' and '.join(map(repr, names))} do not begin "
            "with the same words, which would be it. Add the prompt."
        )
    cut = {name: text[start:] for name, text in responses.items()}
    return Parsed(prompt, cut, _others(content, names))


def _is_turns(text: Any) -> bool:
    """Whether it is a whole dialogue as Anthropic-HH writes them."""
    return isinstance(text, str) and any(marker in text for marker in TURN_MARKERS)


def _shared_text(texts: Sequence[str]) -> int:
    """Where texts part: in front of the words that differ, and of a space there."""
    together = enumerate(zip(*texts, strict=False))
    shortest = min(texts, key=len)
    place = next((i for i, each in together if len(set(each)) > 1), len(shortest))
    if not all(text[place : place + 1].isspace() for text in texts):
        while place and not shortest[place - 1].isspace():  # it is inside of a word
            place -= 1
    return place - (shortest[place - 1 : place] == " ")


def _dialogues(
    content: dict[str, Any], names: Sequence[str], required: Sequence[str]
) -> Parsed:
    """Preferences as messages."""
    require(content, required)
    prompt = content.get("prompt")
    if isinstance(prompt, list):
        asked = parse_messages(prompt, "prompt")
        said = {name: _answer(content[name], name) for name in names}
    else:
        turns = {name: _turns(content[name], name) for name in names}
        asked = _shared_turns(turns)
        if prompt is not None:
            _check_asked(text_field(content, "prompt"), asked)
        said = {name: turns[name][len(asked) :] for name in names}
    return _parsed(content, asked, said, ["prompt", *names])


def _turns(value: Any, name: str) -> Messages:
    if not isinstance(value, list):
        raise ValueError(
            f"{name!r} must be a list of messages, as another response of the row is; "
            f"got {type(value).__name__}."
        )
    return parse_messages(value, name)


def _answer(value: Any, name: str) -> Messages:
    """A response to messages; a text is what the assistant says."""
    if isinstance(value, str):
        return answer(value).messages
    return _turns(value, name)


def _shared_turns(turns: Mapping[str, Messages]) -> Messages:
    """The messages that all responses begin with, of which each has one more."""
    shared: list[dict[str, Any]] = []
    for together in zip(*(each[:-1] for each in turns.values()), strict=False):
        if any(message != together[0] for message in together):
            break
        shared.append(together[0])
    if len(turns) == 1:  # nothing says where its prompt ends but the last answer
        return tuple(shared)
    if not shared:
        raise ValueError(
            f"{' and '.join(map(repr, turns))} do not begin with the same message, so "
            "they answer different prompts. Add the messages before the answers as "
            "'prompt', or remove the row."
        )
    return tuple(shared)


def _check_asked(prompt: str, asked: Messages) -> None:
    """Refuses a prompt, given as text besides, that nobody says."""
    said = [message.get("content", "").strip() for message in asked]
    if prompt.strip() not in said:
        raise ValueError(
            f"'prompt' is none of the messages before the answers: {prompt[:40]!r} "
            f"against {said[-1][:40]!r}. Keep the one that was answered."
        )


def _prompt_completion(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    del required
    require(content, ["prompt", "completion"])
    used = ["prompt", "completion"]
    if isinstance(content["prompt"], list):
        asked = parse_messages(content["prompt"], "prompt")
        said = _answer(content["completion"], "completion")
        parsed = _parsed(content, asked, {"completion": said}, used)
    else:
        prompt = _prompt(content)
        _refuse_mixed(content["completion"])
        responses: dict[str, Any] = {"completion": text_field(content, "completion")}
        parsed = Parsed(prompt, responses, _others(content, used))
    return parsed._replace(responses={"chosen": parsed.responses["completion"]})


def _refuse_mixed(completion: Any) -> None:
    if isinstance(completion, list):
        raise ValueError(
            "'prompt' is text and 'completion' a list of messages. Write both as "
            'messages, the prompt as [{"role": "user", "content": ...}].'
        )


def _unpaired(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    require(content, ["label"])
    side = "chosen" if _label(content["label"]) else "rejected"
    parsed = _prompt_completion(content, required)
    ignored = [name for name in parsed.ignored if name != "label"]
    return Parsed(parsed.prompt, {side: parsed.responses["chosen"]}, ignored)


def _label(value: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    found = words.get(str(value).lower())
    if found is None or isinstance(value, float):
        raise ValueError(
            f"'label' must be true (wanted) or false (not wanted), or 1 or 0, got "
            f"{value!r}."
        )
    return found


def _language(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    del required
    column = next((name for name in DIALOGUE_COLUMNS if name in content), None)
    if column is None:
        text = text_field(content, "text")
        return Parsed("", {"chosen": text}, _others(content, ["text"]))
    messages = parse_messages(content[column], column)
    roles = [message["role"] for message in messages]
    start = roles.index("assistant") if "assistant" in roles else len(roles)
    if start in (0, len(roles)):
        what = "begins with" if start == 0 else "has none of"
        raise ValueError(
            f"{column!r} {what} the assistant, whose messages are learned as answers "
            "to what stands before them. Add the messages that lack, or remove the row."
        )
    end = len(roles) - roles[::-1].index("assistant")
    said = {"chosen": messages[start:end]}
    return _parsed(content, messages[:start], said, [column])


def _prompt_only(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    del required
    require(content, ["prompt"])
    if isinstance(content["prompt"], list):
        asked = parse_messages(content["prompt"], "prompt")
        return _parsed(content, asked, {}, ["prompt"])
    return Parsed(_prompt(content), {}, _others(content, ["prompt"]))


_PARSERS: dict[DataType, Callable[[dict[str, Any], Sequence[str]], Parsed]] = {
    PAIRED: _preference,
    IMPLICIT: _preference,
    UNPAIRED: _unpaired,
    PROMPT_COMPLETION: _prompt_completion,
    LANGUAGE: _language,
    PROMPTS: _prompt_only,
}


def _parsed(
    content: dict[str, Any],
    asked: Messages,
    said: Mapping[str, Messages],
    used: Sequence[str],
) -> Parsed:
    """A dialogue and responses to it, with what its chat template is to know."""
    if asked[-1:] and asked[-1]["role"] == "assistant":
        raise ValueError(
            "the prompt ends with a message of the assistant, so nobody asks for the "
            "response. End it with one of the user or of a tool."
        )
    for name, messages in said.items():
        for place, message in (("begin", messages[0]), ("end", messages[-1])):
            if message["role"] != "assistant":
                raise ValueError(
                    f"the response in {name!r} must {place} with a message of the "
                    f"assistant, not of {message['role']!r}."
                )
    prompt = Conversation(
        asked,
        tools=parse_tools(content.get("tools")),
        kwargs=parse_options(content.get("chat_template_kwargs")),
    )
    responses: dict[str, Any] = {n: Conversation(each) for n, each in said.items()}
    return Parsed(prompt, responses, _others(content, [*used, *_OF_TEMPLATE]))


def _prompt(content: dict[str, Any]) -> str:
    prompt = text_field(content, "prompt")
    if not prompt.strip():
        raise ValueError(
            "'prompt' is blank: there is nothing to respond to. Mend or remove the row."
        )
    return prompt


def require(content: dict[str, Any], names: Sequence[str]) -> None:
    """Refuses a row that lacks a field which the others of its file have."""
    for name in names:
        if name not in content:
            raise ValueError(
                f"no field {name!r}, or a null one; it has "
                f"{', '.join(content) or 'none'}. Add it, or remove the row."
            )


def _others(content: dict[str, Any], used: Sequence[str]) -> list[str]:
    return [name for name in content if name not in used]
