"""What a model is finetuned on and watched with: texts, and how they are read."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldjax.data.conversation import Conversation
from ldjax.data.preferences import (
    PreferenceRow,
    Preferences,
    read_preferences,
)
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.responses import RowExamples, fill_types, to_examples
from ldjax.data.templates.rows import conversation_examples
from ldjax.data.templates.template import ChatTemplate
from ldjax.data.tokenizers import Tokenizer
from ldjax.data.world.world import World, make_world
from ldjax.finetune.settings import HUB_DATA, Texts, Tokens
from ldjax.finetune.start import Base
from ldjax.models.hub.files import download

__all__ = ["Data", "Encoder", "Lengths", "find_lengths", "hub_data", "load_texts"]

_LONGEST_SAMPLE = 64
_LONGEST_CUT_PROMPT = 256


class Data(NamedTuple):
    """Rows by set, and an account of how they were read.

    Attributes:
      train: Rows to train on, and to watch as the set `train` (the paper's D_prob).
      test: Rows that are watched only, as the set `test` (D_probtest).
      summary: For `summary.json`.
    """

    train: list[PreferenceRow]
    test: list[PreferenceRow]
    summary: dict[str, Any]


def load_texts(texts: Texts, required: Sequence[str], *, seed: int) -> Data:
    """The texts that are asked for, with the types that can be made filled in.

    Args:
      texts: Which.
      required: Response types that a row must have.
      seed: Seed of the toy world, and of what is drawn.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it has no rows, or a bad one that is not to be left out.
    """
    if texts.data == "toy":
        return _toy(make_world(texts.world, seed=seed))
    train, test = Path(texts.data), texts.test_data
    if texts.data == HUB_DATA:
        # Rows that are left out must be the same ones whatever is trained.
        required = [*required, "chosen", "rejected"]
        train, its_test = hub_data()
        test = test or its_test
    required = tuple(name for name in RESPONSE_TYPES if name in required)

    def read(path: Path) -> Preferences:
        return read_preferences(
            path, required=required, on_bad_row=texts.on_bad_row, blank=texts.blank
        )

    found = read(train)
    held_out = None if test is None else read(test)
    unseen = [] if held_out is None else held_out.rows
    summary = {"train": found.summary()}
    if held_out is not None:
        summary["test"] = held_out.summary()
    rows = fill_types(found.rows[: texts.max_rows], seed=seed, unseen=unseen)
    summary["left_out"] = _left_out(rows, has_unseen=bool(unseen))
    return Data(rows, unseen, summary)


def _toy(world: World) -> Data:
    """The rows of a toy world."""

    def rows(name: str, dicts: Sequence[dict[str, str]]) -> list[PreferenceRow]:
        return [
            PreferenceRow(
                content["prompt"],
                {type_: text for type_, text in content.items() if type_ != "prompt"},
                f"{name}:{number}",
            )
            for number, content in enumerate(dicts, 1)
        ]

    train, test = rows("train", world.train), rows("test", world.test)
    return Data(train, test, {"num_train": len(train), "num_test": len(test)})


def hub_data() -> tuple[Path, Path]:
    """Anthropic's helpful-base pairs, training and test, from the hub or its cache."""
    files = [f"helpful-base/{name}.jsonl.gz" for name in ("train", "test")]
    try:
        folder = download("Anthropic/hh-rlhf", patterns=files, kind="dataset")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}\nThey are `data=FOLDER/{files[0]}` and "
            f"`test_data=FOLDER/{files[1]}`"
        ) from error
    train, test = (folder / file for file in files)
    return train, test


def _left_out(rows: Sequence[PreferenceRow], *, has_unseen: bool) -> dict[str, int]:
    """Of how many rows a type could not be made (see `fill_types`)."""
    made = ["irr_train", "random_permute"]
    if has_unseen:
        made += ["irr_test", "random_nonhum"]
    lacking = {type_: sum(type_ not in row.responses for row in rows) for type_ in made}
    return {type_: count for type_, count in lacking.items() if count}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The tokenisation protocol of a run, from rows of texts to token ids.

    Attributes:
      tokenizer: The tokenizer of the model that is trained; its chat template is the
        one that is in force.
      max_length: Most tokens of prompt and response together.
      max_prompt_length: Most tokens of a prompt that has to be cut.
      tokens: The rest of the protocol.
    """

    tokenizer: Tokenizer
    max_length: int
    max_prompt_length: int
    tokens: Tokens = dataclasses.field(default_factory=Tokens)

    @classmethod
    def of(cls, tokens: Tokens, base: Base) -> "Encoder":
        """The protocol that is asked for, within the positions that a model has.

        Raises:
          FileNotFoundError: If there is no such chat template.
          ValueError: If there is no room for a prompt.
        """
        tokenizer = base.tokenizer
        if tokens.chat_template not in ("auto", "none"):
            tokenizer = tokenizer.with_chat_template(_text(Path(tokens.chat_template)))
        model, limit = base.model.config, tokens.max_length
        if model.positions == "learned":  # the last token is not read
            limit = min(limit, model.max_positions + 1)
        prompt_limit = tokens.max_prompt_length
        if prompt_limit is None:
            prompt_limit = min(_LONGEST_CUT_PROMPT, limit // 2)
        if prompt_limit >= limit:
            raise ValueError(
                f"`max_prompt_length` must be less than {limit}, the most tokens of "
                f"prompt and response that the model has positions for, got "
                f"{prompt_limit}"
            )
        return cls(tokenizer, limit, prompt_limit, tokens)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template of conversations, if one is in force."""
        return self._template_of(self.tokenizer)

    def __call__(
        self, row: PreferenceRow, *, tokenizer: Tokenizer | None = None
    ) -> RowExamples:
        """A row as examples, by another tokenizer if it is given.

        A conversation is read by its chat template, and where there is none by
        `ChatTemplate.plain`.
        """
        # That of the same model may lack the chat template that is in force.
        if tokenizer is None or tokenizer.agrees(self.tokenizer):
            tokenizer = self.tokenizer
        limits: dict[str, Any] = {
            "max_length": self.max_length,
            "max_prompt_length": self.max_prompt_length,
            "keep": self.tokens.keep,
        }
        is_begun = self.tokens.document_start
        if isinstance(row.prompt, Conversation):
            template = self._template_of(tokenizer)
            template = template or ChatTemplate.plain(
                tokenizer, start_document=is_begun
            )
            refuses = self.tokens.special_tokens == "text"
            return conversation_examples(
                row, tokenizer, template, **limits, refuses_spelled=refuses
            )
        return to_examples(
            row,
            tokenizer,
            **limits,
            start_document=is_begun,
            leading_space=self.tokens.leading_space,
            special_tokens=self.tokens.special_tokens,
        )

    def _template_of(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        if self.tokens.chat_template == "none":
            return None
        date = datetime.date.fromisoformat(self.tokens.chat_date)
        return ChatTemplate.of(tokenizer, date=date)

    def texts(self, row: PreferenceRow) -> tuple[str, dict[str, str]]:
        """Prompt and responses of a row, for people.

        Those of a conversation are what the model reads, with the special tokens.
        """
        if isinstance(row.prompt, str):
            return row.prompt, row.responses
        decode, examples = self.tokenizer.decode, self(row).examples
        prompts = [decode(example.prompt_ids) for example in examples.values()]
        said = {
            type_: decode(example.response_ids) for type_, example in examples.items()
        }
        return next(iter(prompts), str(row.prompt)), said

    def longest(self, rows: Sequence[PreferenceRow]) -> int:
        """Tokens of the longest prompt and response; 0 of none."""
        examples = [e for row in rows for e in self(row).examples.values()]
        return max((example.num_tokens for example in examples), default=0)

    def prompt_length(self, row: PreferenceRow) -> int:
        """Tokens of the prompt as it is read."""
        return len(next(iter(self(row).examples.values())).prompt_ids)


class Lengths(NamedTuple):
    """How long texts are, in tokens, before `chosen_initial` has been sampled.

    Attributes:
      given: Length of the longest prompt and response of the data.
      sample: Length of a response that is sampled, without its END.
      bound: Most that the longest prompt and response can be with those that are still
        to be sampled.
    """

    given: int
    sample: int
    bound: int


def find_lengths(texts: Data, encode: Encoder) -> Lengths:
    """How long the texts are, by reading all of them once."""
    encoded = [encode(row).examples for row in (*texts.train, *texts.test)]
    given = max(example.num_tokens for row in encoded for example in row.values())
    prompts = [
        len(next(iter(row.values())).prompt_ids)
        for row in encoded
        if "chosen_initial" not in row
    ]
    sample = min(_LONGEST_SAMPLE, given // 2)
    with_sample = max(prompts, default=0) + sample + 1
    bound = max(given, min(encode.max_length, with_sample)) if prompts else given
    return Lengths(given, sample, bound)


def _text(file: Path) -> str:
    """The text of a chat template's file."""
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no chat template {file}: `chat_template` is a file of one, "
            "`none` or `auto`"
        )
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the chat template {file} is no UTF-8: {error}") from error
