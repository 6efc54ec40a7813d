"""A model's chat template: conversations as its tokens, and which it is scored on."""

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ldjax.data.conversation import Conversation
from ldjax.data.templates.dialect import Rendered, has_marks, render
from ldjax.data.tokenizer import Tokenizer

__all__ = ["DATE", "PLAIN", "ChatTemplate"]

#: What a template is told that today is: the date that Llama 3's has where it is told
#: none.
DATE = datetime.date(2024, 7, 26)

#: For models without a template of their own: the paper's words for who speaks.
PLAIN = """\
{%- if tools %}
    {{- raise_exception("plain text has no place for tools; give a `chat_template`") }}
{%- endif %}
{{- start_token }}
{%- set names = {"user": "Human", "assistant": "Assistant", "system": "System"} %}
{%- for message in messages %}
    {%- if not loop.first %}{{- "\\n" }}{% endif %}
    {%- if message.tool_calls or message.role not in names %}
        {{- raise_exception("plain text has no place for tools or for the role "
            ~ message.role ~ "; give a `chat_template`") }}
    {%- endif %}
    {{- names[message.role] ~ ":" }}
    {%- if message.role == "assistant" %}
        {%- generation %}
        {{- " " ~ message.content ~ eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- " " ~ message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "\\nAssistant:" }}{% endif %}
"""

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """What turns a conversation into a text of its model.

    The same text as `transformers`' `apply_chat_template` makes, token for token. On
    which of them the assistant is scored the template says with `{% generation %}`, or
    else it is found by rendering: a turn is what the whole conversation has between the
    conversation before it, up to where an answer is asked for, and the one with it; but
    for white space behind the special token that ends the turn, before which a model
    stops.

    A special token that a message spells is one, as `transformers` reads it: so a
    message can end its turn and begin another. `spelled` finds such messages.

    Attributes:
      text: The template's.
      tools_text: That for conversations with tools, where it is another one.
      tokens: Special tokens by their names in templates, such as `bos_token`.
      date: What the template is told that today is.

    Examples:
      >>> template = ChatTemplate(
      ...     "{% for message in messages %}"
      ...     "[{{ message.role }}]{{ message.content }}{% endfor %}"
      ...     "{% if add_generation_prompt %}[assistant]{% endif %}"
      ... )
      >>> asked = [{"role": "user", "content": "Why?"}]
      >>> template.render(asked, add_generation_prompt=True)
      '[user]Why?[assistant]'
    """

    text: str
    tools_text: str | None = None
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: datetime.date = DATE

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, *, date: datetime.date = DATE
    ) -> "ChatTemplate | None":
        """The template of a tokenizer; None where it has none.

        Args:
          tokenizer: The model's.
          date: What the template is told that today is.
        """
        if tokenizer.chat_template is None:
            return None
        tools = tokenizer.chat_templates.get("tool_use")
        return cls(tokenizer.chat_template, tools, tokenizer.named_tokens, date)

    @classmethod
    def plain(cls, tokenizer: Tokenizer, *, start_document: bool) -> "ChatTemplate":
        """`PLAIN`, for a model that has no template of its own.

        Args:
          tokenizer: The model's.
          start_document: Whether texts begin as the documents of pretraining.
        """
        special = tokenizer.special_tokens
        start = (special.start or special.end) if start_document else ""
        return cls(PLAIN, tokens={"eos_token": special.end, "start_token": start})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """The text of some messages.

        Args:
          messages: Each with `role`, and `content` or `tool_calls`.
          tools: JSON schemas of functions.
          add_generation_prompt: Whether it goes on to where an answer begins.
          kwargs: Further variables of the template.

        Returns:
          The text.

        Raises:
          ValueError: If the template refuses them, with its line.
        """
        return self._rendered(messages, tools, add_generation_prompt, kwargs).text

    def encode(
        self, tokenizer: Tokenizer, conversation: Conversation
    ) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, and where the assistant speaks.

        Args:
          tokenizer: The model's.
          conversation: At least one message.

        Returns:
          The ids, and a mask that is 1 on the tokens of the assistant's turns.

        Raises:
          ValueError: If the template refuses it, or if a turn is not the same before
            and after others follow it.
        """
        text, spans = self.turns(tokenizer, conversation)
        ids, mask = tokenizer.encode_spans(text, spans)
        return ids, [*map(int, mask)]

    def asked(self, prompt: Conversation) -> str:
        """The text of a prompt, up to where the answer begins.

        Args:
          prompt: The messages before the answer.
        """
        return self.render(prompt.messages, prompt.tools, True, **prompt.kwargs)

    def turns(
        self, tokenizer: Tokenizer, conversation: Conversation, *, after: int = 0
    ) -> Rendered:
        """The text of a conversation, and the characters of the assistant's turns.

        Args:
          tokenizer: The model's.
          conversation: At least one message.
          after: So many messages have no turn of interest, where the template does not
            mark them.
        """
        messages, tools, kwargs = conversation
        source = self._source(tools)
        whole = self._rendered(messages, tools, False, kwargs)
        if has_marks(source):
            return whole
        special = tokenizer.special_pattern
        spans = []
        for place in range(after, len(messages)):
            if messages[place]["role"] != "assistant":
                continue
            before = self.render(messages[:place], tools, True, **kwargs)
            through = self.render(messages[: place + 1], tools, False, **kwargs)
            is_stable = whole.text.startswith(through) and through.startswith(before)
            if not is_stable:
                raise ValueError(_unstable(place, len(messages)))
            end = len(before) + _length(through[len(before) :], special)
            spans.append((len(before), end))
        self._check_tokens(tokenizer, whole.text, spans)
        return whole._replace(spans=tuple(spans))

    def spelled(
        self, tokenizer: Tokenizer, conversation: Conversation
    ) -> dict[int, list[str]]:
        """The special tokens that messages spell, by the place of the message.

        Args:
          tokenizer: The model's.
          conversation: Any.
        """
        found = {
            place: tokenizer.special_in("\0".join(_texts(message)))
            for place, message in enumerate(conversation.messages)
        }
        return {place: tokens for place, tokens in found.items() if tokens}

    def _source(self, tools: Sequence[Any]) -> str:
        return self.tools_text if tools and self.tools_text else self.text

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> Rendered:
        if not messages:
            raise ValueError(
                "it begins with an answer of the assistant, and a chat template needs "
                "a message before that to ask for it"
            )
        variables = {
            "documents": None,
            **self.tokens,
            **kwargs,
            "messages": [_message(message) for message in messages],
            "tools": [*tools] or None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self._source(tools), self.date, variables)

    def _check_tokens(
        self, tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]]
    ) -> None:
        """Refuses turns that begin or end inside a token."""
        ids = tokenizer.encode(text, read_special=True)
        for cut in (cut for span in spans for cut in span):
            head = tokenizer.encode(text[:cut], read_special=True)
            if ids[: len(head)] != head:
                around = f"{text[max(0, cut - 12) : cut]!r} {text[cut : cut + 12]!r}"
                raise ValueError(
                    f"a token lies across the edge of a turn, {around}: read alone, "
                    "what is before it has other tokens. Take the white space off the "
                    "message there"
                )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as `transformers` gives it to templates.

    Without fields that are null; the reasoning under all the names that templates know.
    """
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _length(turn: str, special: re.Pattern[str]) -> int:
    """Characters of a turn, without white space behind the token that ends it."""
    ends = [match.end() for match in special.finditer(turn)]
    return ends[-1] if ends and not turn[ends[-1] :].strip() else len(turn)


def _unstable(place: int, count: int) -> str:
    later = "" if place + 1 == count else ", once others follow it"
    return (
        f"the chat template writes message {place + 1} of {count}, of the assistant, "
        f"otherwise than when it is asked for{later} (some leave earlier reasoning "
        "out), so what is to be scored is not what the model would say. Give rows "
        "whose response is the last turn alone, or a template that marks the turns "
        "with `{% generation %}`"
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
