"""One JSON object to a prompt and its responses, in the formats of `preferences`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ldjax.data.conversation import Conversation
from ldjax.data.response_types import RESPONSE_TYPES, SIDES
from ldjax.data.text import text_field

TURN_MARKERS = _HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


#: Fields in which rows hold dialogues that are not read.
_UNREAD = ("messages", "conversations", "conversation", "dialog", "dialogue")
_AS_TEXT = (
    "Write the dialogue up to the answer as one text in 'prompt', as transformers' "
    "`apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)` "
    "does, and the answer's text in 'chosen'"
)


class Parsed(NamedTuple):
    """A prompt, its responses by type, and the fields that were left out."""

    prompt: str | Conversation
    responses: dict[str, Any]
    ignored: list[str]


def parse(content: dict[str, Any], required: Sequence[str]) -> Parsed:
    """The row that a JSON object holds; a `ValueError` says what is wrong with it."""
    _refuse_unread(content)
    for name in required:
        if name not in content:
            raise ValueError(
                f"no field {name!r}; it has {', '.join(content) or 'none'}. Rename "
                "the field that holds it, or leave out of `required` what is not "
                'needed, down to `("chosen",)`.'
            )
    names = [name for name in RESPONSE_TYPES if name in content]
    if "prompt" not in content:
        prompt, responses = _parse_dialogues(content, names)
    elif any(isinstance(content[name], list) for name in names):
        prompt, responses = _parse_messages(content, names)
    else:
        prompt = _prompt(content)
        responses = {name: _text(content, name) for name in names}
    ignored = [name for name in content if name not in (*names, "prompt")]
    return Parsed(prompt, responses, ignored)


def in_order(responses: dict[str, Any]) -> dict[str, Any]:
    """Responses in the order of `RESPONSE_TYPES`; other names are refused."""
    for name in responses:
        if name not in RESPONSE_TYPES:
            raise ValueError(
                f"{name!r} is no response type; they are {', '.join(RESPONSE_TYPES)}."
            )
    return {name: responses[name] for name in RESPONSE_TYPES if name in responses}


def _prompt(content: dict[str, Any]) -> str:
    prompt = _text(content, "prompt")
    if not prompt.strip():
        raise ValueError(
            "'prompt' is blank: there is nothing to respond to. Mend or remove the row."
        )
    return prompt


def _parse_dialogues(
    content: dict[str, Any], names: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Anthropic-HH: each response is a whole dialogue, which ends with it."""
    prompts, responses = {}, {}
    for name in names:
        before, marker, responses[name] = _text(content, name).rpartition(_ASSISTANT)
        if not marker:
            raise ValueError(
                f"no field 'prompt', and {name!r} is no dialogue either: it lacks "
                f"{_ASSISTANT!r}. Add the prompt."
            )
        if _HUMAN in responses[name]:
            raise ValueError(
                f"{name!r} ends with a human turn. Cut the dialogue off behind an "
                "answer of the assistant."
            )
        if not before.strip():
            raise ValueError(
                f"{name!r} has nothing before its last {_ASSISTANT!r}, so its prompt "
                "is blank. Mend or remove the row."
            )
        prompts[name] = before + marker
    return _same(prompts), responses


def _parse_messages(
    content: dict[str, Any], names: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """UltraFeedback: each response is a list of messages, the last of which is it."""
    prompt = _prompt(content)
    prompts, answers = {}, {}
    for name in names:
        *turns, answer = _messages(content[name], name)
        if answer[0] != "assistant":
            raise ValueError(
                f"{name!r} must end with a message of the assistant, not of "
                f"{answer[0]!r}. Cut it off behind an answer."
            )
        if [role for role, _ in turns] != ["user"]:
            roles = ", ".join(role for role, _ in turns) or "nothing"
            raise ValueError(
                f"{name!r} must have one message of the user before its answer, and "
                f"has {roles}. Write a longer dialogue as text, in 'prompt'."
            )
        prompts[name] = turns[0][1]
        answers[name] = answer[1]
    asked = _same(prompts)
    if asked.strip() != prompt.strip():
        raise ValueError(
            f"'prompt' is not the user's message: {_difference(prompt, asked)}. Keep "
            "the one that was answered."
        )
    sides = [answers[name] for name in SIDES if name in answers]
    spare = [answer.lstrip(" ") for answer in sides]
    if len(set(spare)) == len(set(sides)):
        answers = {name: answer.lstrip(" ") for name, answer in answers.items()}
    responses = {name: f" {answer}" for name, answer in answers.items()}
    return f"Human: {prompt}\nAssistant:", responses


def _refuse_unread(content: dict[str, Any]) -> None:
    """Refuses forms of dialogues that are not read, with the way to write them."""
    for name in _UNREAD:
        if isinstance(content.get(name), list) and "chosen" not in content:
            raise ValueError(
                f"a dialogue in {name!r}, and no field 'chosen': lists of messages are "
                f"not read so. {_AS_TEXT}."
            )
    lists = [n for n in RESPONSE_TYPES if isinstance(content.get(n), list)]
    if lists and "prompt" not in content:
        raise ValueError(
            f"no field 'prompt', which {lists[0]!r} holds implicitly, as a list of "
            f"messages. {_AS_TEXT}; the other responses likewise."
        )


def _text(content: dict[str, Any], name: str) -> str:
    """The text in a field; what is none is refused with the way to write it."""
    try:
        return text_field(content, name)
    except ValueError as error:
        found = content.get(name)
        if name == "content" and isinstance(found, list):
            fix = "Join the texts of its parts to one text; others are not read."
        elif name == "prompt" and isinstance(found, list):
            fix = f"{_AS_TEXT}."
        elif isinstance(found, dict | list):
            fix = "Write its text alone: a message's 'content'."
        else:
            raise
        raise ValueError(f"{error} {fix}") from error


def _messages(messages: Any, name: str) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f"{name!r} must be a list of messages with at least one, as another "
            f"response of the row is; got {type(messages).__name__}."
        )
    pairs = []
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError(
                f"{name!r} must hold messages with 'role' and 'content', got "
                f"{type(message).__name__}."
            )
        try:
            pairs.append((text_field(message, "role"), _text(message, "content")))
        except ValueError as error:
            raise ValueError(f"a message of {name!r}: {error}") from error
    return pairs


def _same(prompts: dict[str, str]) -> str:
    """The prompt that all responses of a row have."""
    (first, prompt), *others = prompts.items()
    for name, other in others:
        if other != prompt:
            raise ValueError(
                f"{first!r} and {name!r} answer different prompts: "
                f"{_difference(prompt, other)}. End both behind the same turn, or "
                "remove the row."
            )
    return prompt


def _difference(left: str, right: str) -> str:
    pairs = enumerate(zip(left, right, strict=False))
    shorter = min(len(left), len(right))
    start = next((place for place, (a, b) in pairs if a != b), shorter)
    ends = [repr(text[start : start + 30]) for text in (left, right)]
    return f"from character {start} on {ends[0]} against {ends[1]}"
