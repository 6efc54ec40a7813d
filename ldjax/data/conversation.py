"""Dialogues as messages: their record, and the checks of what a file says they are."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ldjax.data.text import text_field

__all__ = [
    "ROLES",
    "Conversation",
    "Messages",
    "answer",
    "parse_messages",
    "parse_options",
    "parse_tools",
]

Messages = tuple[dict[str, Any], ...]

#: Who may speak; chat templates rename them as their models need it.
ROLES = ("system", "developer", "user", "assistant", "tool")
#: The words of other formats for them.
_OTHER_WORDS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}


class Conversation(NamedTuple):
    """Messages of a dialogue, and what its chat template is to know besides.

    The prompt of a row holds the messages before the response, and each response those
    that follow: most often one of the assistant, or a call of a tool, what the tool
    returned and the answer. Tools and options are those of the prompt.

    Attributes:
      messages: Each with a `role` of `ROLES`, and a `content` or `tool_calls` or both;
        other fields (`name`, `tool_call_id`, `reasoning_content`) are kept.
      tools: JSON schemas of functions that the assistant may call.
      kwargs: Further variables of the template, such as `enable_thinking`.

    Examples:
      >>> asked = Conversation(({"role": "user", "content": "Why?"},))
      >>> print(asked.followed_by(answer("So.")))
      user: Why?
      assistant: So.
    """

    messages: Messages
    tools: tuple[dict[str, Any], ...] = ()
    kwargs: Mapping[str, Any] = {}

    def __str__(self) -> str:
        """For people, and to tell dialogues apart: who says or calls what."""
        return "\n".join(map(_shown, self.messages))

    def followed_by(self, response: "Conversation") -> "Conversation":
        """The whole dialogue of a prompt and a response to it."""
        return self._replace(messages=(*self.messages, *response.messages))

    def with_answers(self, change: Callable[[str], str]) -> "Conversation":
        """With other words of the assistant; calls and what others say stay.

        Args:
          change: From what the assistant says to what it says instead.
        """

        def changed(message: dict[str, Any]) -> dict[str, Any]:
            if message["role"] != "assistant" or "content" not in message:
                return message
            return message | {"content": change(message["content"])}

        return self._replace(messages=tuple(map(changed, self.messages)))


def answer(text: str) -> Conversation:
    """A response that is one message of the assistant.

    Args:
      text: What it says.
    """
    return Conversation(({"role": "assistant", "content": text},))


def parse_messages(messages: Any, name: str) -> Messages:
    """The messages in a field, checked; their texts are unchanged.

    Messages in the words of ShareGPT, `from` and `value`, get those that chat templates
    know: `role` and `content`, and of who speaks `user` for human, `assistant` for gpt.

    Args:
      messages: What the field holds: a list of objects, or its JSON text (as the cell
        of a CSV file has it).
      name: Of the field.

    Returns:
      At least one. Fields that are null are left out. A content in parts of text is
      joined to one.

    Raises:
      ValueError: If they are no messages, with the number of the message, the first
        being 1.

    Examples:
      >>> parse_messages([{"role": "user", "content": "Why?", "name": None}], "prompt")
      ({'role': 'user', 'content': 'Why?'},)
      >>> parse_messages([{"role": "human", "content": "Why?"}], "prompt")
      Traceback (most recent call last):
        ...
      ValueError: message 1 of 'prompt': the role 'human' is not known; write 'user'.
    """
    messages = _unpacked(messages, name, list, "a list of messages")
    if not messages:
        raise ValueError(f"{name!r} must hold at least one message.")
    checked = []
    for number, message in enumerate(messages, 1):
        try:
            checked.append(_message(message))
        except ValueError as error:
            raise ValueError(f"message {number} of {name!r}: {error}") from error
    return tuple(checked)


def parse_tools(tools: Any, name: str = "tools") -> tuple[dict[str, Any], ...]:
    """The JSON schemas of the functions in a field, unchanged.

    Args:
      tools: A list of objects, or its JSON text, or of such texts; None for no tool.
      name: Of the field.

    Raises:
      ValueError: If there is one that is no schema, by its number.

    Examples:
      >>> [tool["name"] for tool in parse_tools('[{"name": "add"}]')]
      ['add']
    """
    if tools is None:
        return ()
    checked = []
    for number, given in enumerate(_unpacked(tools, name, list, "a list of tools"), 1):
        place = f"tool {number} of {name!r}"
        tool = _unpacked(given, place, dict, "the JSON schema of a function")
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"{place} has no name: a schema is an object with 'name', "
                "'description' and 'parameters', or such a one in 'function', as "
                "transformers' `get_json_schema` writes it."
            )
        checked.append(tool)
    return tuple(checked)


def parse_options(options: Any, name: str = "chat_template_kwargs") -> dict[str, Any]:
    """The variables for a chat template in a field.

    Args:
      options: An object, or its JSON text; None for no variable.
      name: Of the field.

    Raises:
      ValueError: If it is no object.

    Examples:
      >>> parse_options({"enable_thinking": False, "date": None})
      {'enable_thinking': False}
    """
    if options is None:
        return {}
    found = _unpacked(options, name, dict, "an object of variables by their names")
    return {key: value for key, value in found.items() if value is not None}


def _unpacked(value: Any, name: str, kind: type, expected: str) -> Any:
    """A value of a kind; JSON text is read first."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(
                f"{name!r} must be {expected}, and is text that is no JSON: {error}."
            ) from error
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} must be {expected}, got {type(value).__name__}.")
    return value


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(
            f"it must be an object with 'role' and 'content', got "
            f"{type(message).__name__}."
        )
    message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message and {"from", "value"} <= message.keys():
        said_by = text_field(message, "from")
        names = {"from": "role", "value": "content"}
        message = {names.get(key, key): value for key, value in message.items()}
        message["role"] = _OTHER_WORDS.get(said_by.lower(), said_by)
    role = text_field(message, "role")
    if role not in ROLES:
        other = _OTHER_WORDS.get(role.lower())
        fix = f"write {other!r}" if other else f"it must be one of {', '.join(ROLES)}"
        raise ValueError(f"the role {role!r} is not known; {fix}.")
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"])
    calls = message.get("tool_calls")
    if calls is not None:
        if role != "assistant":
            raise ValueError(f"'tool_calls' of {role!r}: only the assistant has them.")
        message["tool_calls"] = [
            _call(call, number)
            for number, call in enumerate(
                _unpacked(calls, "tool_calls", list, "a list of calls"), 1
            )
        ]
    if "content" in message or not message.get("tool_calls"):
        text_field(message, "content")
    return message


def _joined(parts: list[Any]) -> str:
    """A content in parts as one text."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise ValueError(
                f"'content' has a part of type {kind!r}, and only text is read: leave "
                "it out, or describe it in words."
            )
        texts.append(text_field(part, "text"))
    return "".join(texts)


def _call(call: Any, number: int) -> dict[str, Any]:
    """A call of a tool, in the form that it has."""
    place = f"call {number} of 'tool_calls'"
    call = _unpacked(call, place, dict, "an object with 'function'")
    call = {key: value for key, value in call.items() if value is not None}
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"{place} has no name of a function: it must be "
            '{"type": "function", "function": {"name": ..., "arguments": {...}}}.'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as the answers of some servers have them
        _unpacked(arguments, f"arguments of {place}", dict, "an object")
    elif not isinstance(arguments, dict):
        raise ValueError(
            f"{place}: 'arguments' must be an object, got {type(arguments).__name__}."
        )
    return call


def _shown(message: dict[str, Any]) -> str:
    said = [message["content"]] if message.get("content") else []
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        said.append(f"{function['name']}({arguments})")
    return f"{message['role']}: {' '.join(said)}"
