"""The responses to a conversation as token ids, by the chat template of their model."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ldjax.data.batches import truncate_examples
from ldjax.data.conversation import Conversation, answer
from ldjax.data.drawn import DrawnText
from ldjax.data.preference_formats import in_order
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import RowExamples, equal_sides
from ldjax.data.templates.template import PLAIN, ChatTemplate
from ldjax.data.tokenizer import Tokenizer

__all__ = ["conversation_examples"]


def conversation_examples(
    row: PreferenceRow,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    max_length: int,
    max_prompt_length: int,
    keep: Literal["start", "end"] = "end",
    refuses_spelled: bool = False,
) -> RowExamples:
    """A row whose prompt is a conversation, as token ids.

    The prompt is rendered up to where an answer begins, and each response together with
    it: so all have the same prompt, and prompt and response together are the tokens of
    the whole conversation, up to the last one that is scored. Scored are the turns of
    the assistant behind the prompt, as the template says (`ChatTemplate`): what the
    template writes at the end of a turn is scored with it, and no END is added.

    A response that a model with this tokenizer drew is read as the ids that were drawn.
    A text stands for one message of the assistant.

    Prompt and responses are cut as `ldjax.data.batches.truncate_examples` says.

    Args:
      row: The row.
      tokenizer: The model's.
      template: The model's, or `ChatTemplate.plain`.
      max_length: The limit of prompt and response together, in tokens.
      max_prompt_length: The limit of a prompt that has to be cut, in tokens.
      keep: Which part of a prompt to keep.
      refuses_spelled: Whether messages that spell special tokens are refused. They are
        read as such otherwise, as `transformers` does, which is noted.

    Returns:
      The examples, what was cut and what is to be known of them.

    Raises:
      ValueError: If the template refuses the row, or renders the prompt or a turn
        otherwise once others follow; by the row.
    """
    assert isinstance(row.prompt, Conversation)
    try:
        reading = _Reading.of(tokenizer, template, row.prompt)
        responses = {}
        for name, response in in_order(row.responses).items():
            try:
                responses[name] = reading.answered(response)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from error
        notes = reading.notes(row, is_refused=refuses_spelled)
    except ValueError as error:
        raise ValueError(f"{row.source}: {error}") from error
    prompt_ids = reading.prompt_ids
    cut = truncate_examples(
        prompt_ids,
        [ids for ids, _ in responses.values()],
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        keep=keep,
    )
    examples = {
        name: example._replace(scored=scored and scored[: len(example.response_ids)])
        for example, (name, (_, scored)) in zip(cut, responses.items(), strict=True)
    }
    return RowExamples(
        examples=examples,
        is_prompt_cut=any(len(e.prompt_ids) < len(prompt_ids) for e in cut),
        cut_types=tuple(
            name
            for name, example in examples.items()
            if len(example.response_ids) < len(responses[name][0])
        ),
        notes=(*notes, *equal_sides(examples)),
    )


class _Reading(NamedTuple):
    """How the responses to one prompt become ids."""

    tokenizer: Tokenizer
    template: ChatTemplate
    prompt: Conversation
    text: str
    prompt_ids: list[int]

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, template: ChatTemplate, prompt: Conversation
    ) -> "_Reading":
        text = template.asked(prompt)
        ids = tokenizer.encode(text, read_special=True)
        if not ids:
            raise ValueError(
                "the chat template makes no token of the prompt, from which the first "
                "of the answer could be predicted"
            )
        return cls(tokenizer, template, prompt, text, ids)

    def answered(
        self, response: Conversation | str
    ) -> tuple[list[int], tuple[bool, ...] | None]:
        """The ids of a response, and which are scored; None if all are."""
        if isinstance(response, DrawnText) and self.tokenizer.agrees(
            response.tokenizer
        ):
            return [*response.ids], None
        if isinstance(response, str):
            response = answer(str(response))
        whole = self.template.turns(
            self.tokenizer,
            self.prompt.followed_by(response),
            after=len(self.prompt.messages),
        )
        if not whole.text.startswith(self.text):
            raise ValueError(
                "the chat template writes the prompt otherwise once an answer follows "
                "it, so that the answer is not one to the prompt as it is asked"
            )
        begin = len(self.text)
        ids, mask = self.tokenizer.encode_spans(whole.text, whole.spans)
        length = len(self.prompt_ids)
        if ids[:length] != self.prompt_ids:
            raise ValueError(
                "the tokens of the prompt are others when the answer follows, so that "
                "the model would be trained behind other ones than it is asked with. "
                "White space does so at the end of what asks for an answer, or at the "
                f"beginning of one: {whole.text[max(0, begin - 12) : begin]!r}, "
                f"{whole.text[begin : begin + 12]!r}"
            )
        ids, scored = ids[length:], mask[length:]
        if True not in scored:
            raise ValueError("the chat template marks no token of it to be scored")
        until = len(scored) - scored[::-1].index(True)
        scored = scored[:until]
        return ids[:until], None if all(scored) else tuple(scored)

    def notes(self, row: PreferenceRow, *, is_refused: bool) -> Sequence[str]:
        """Where messages spell special tokens, and if there is no template."""
        notes = []
        if self.template.text == PLAIN:
            notes.append(
                "the model has no chat template: messages are written as 'Human: ...' "
                "and 'Assistant: ...'"
            )
        spoken = {"prompt": self.prompt} | {
            name: response if isinstance(response, Conversation) else answer(response)
            for name, response in row.responses.items()
            if not isinstance(response, DrawnText)
        }
        for name, conversation in spoken.items():
            found = self.template.spelled(self.tokenizer, conversation)
            for place, tokens in found.items():
                if is_refused:
                    raise ValueError(
                        f"message {place + 1} of {name!r} spells {tokens[0]!r}, which "
                        "the model would read as its special token. Remove it, or "
                        'pass `special_tokens="read"`'
                    )
                notes += [
                    f"special token {token!r} in a message of {name!r} read as such: "
                    "it may end a turn or begin one"
                    for token in tokens
                ]
        return list(dict.fromkeys(notes))
