"""What a model is finetuned on and watched with: texts, and how they are read."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldjax.data.conversation import Conversation
from ldjax.data.files.fitting import check_type
from ldjax.data.files.folders import HELD_OUT, TRAINED
from ldjax.data.files.reading import DataFile, open_data
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.responses import RowExamples, fill_types, to_examples
from ldjax.data.templates.rows import conversation_examples
from ldjax.data.templates.template import ChatTemplate
from ldjax.data.tokenizers import Tokenizer
from ldjax.data.world.world import World, make_world
from ldjax.finetune.settings.config import HUB_DATA
from ldjax.finetune.settings.records import Objective, Texts, Tokens
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
      told: What the files are, a line for each, and how many of their rows are left
        out.
      again: The same read again, where it depends on the model which texts they are.
    """

    train: list[PreferenceRow]
    test: list[PreferenceRow]
    summary: dict[str, Any]
    told: tuple[str, ...] = ()
    again: Callable[["Encoder"], "Data"] | None = None

    def read_by(self, encode: "Encoder") -> "Data":
        """The texts as the protocol needs them, which has a chat template or none.

        Where bad rows are left out, those that the protocol refuses are too.

        Args:
          encode: The protocol.

        Raises:
          ValueError: If it refuses all rows.
        """
        return self if self.again is None else self.again(encode)


def load_texts(texts: Texts, objective: Objective, *, seed: int) -> Data:
    """The texts that are asked for, with the types that can be made filled in.

    Args:
      texts: Which.
      objective: What is trained on them.
      seed: Seed of the toy world, and of what is drawn.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it has no rows, a bad one that is not to be left out, or rows that
        the loss cannot be trained on.
    """
    if texts.data == "toy":
        return _toy(make_world(texts.world, seed=seed))
    train, test = Path(texts.data), texts.test_data
    required: Sequence[str] = objective.required
    if texts.data == HUB_DATA:
        # Rows that are left out must be the same ones whatever is trained.
        required = [*required, "chosen", "rejected"]
        train, its_test = hub_data()
        test = test or its_test
    files = [open_data(train, split=texts.split, most=texts.max_rows)]
    check_type(files[0].data_type, objective.loss, objective.target, train)
    if test is not None:
        files.append(open_data(test, prefer=(*HELD_OUT, *TRAINED)))
    required = [name for name in RESPONSE_TYPES if name in required]
    read = functools.partial(_read, files, texts, required, seed)
    depends = texts.on_bad_row == "skip" or any(file.has_plain_form for file in files)
    return read()._replace(again=read if depends else None)


def _read(
    files: Sequence[DataFile],
    texts: Texts,
    required: Sequence[str],
    seed: int,
    encode: "Encoder | None" = None,
) -> Data:
    """The rows of the training file, and of that of held-out prompts if there is one.

    Args:
      files: The two.
      texts: How they are read.
      required: Response types that a row must have.
      seed: Seed of what is drawn.
      encode: The protocol, once it is known.
    """
    is_plain = encode is not None and encode.chat_template is None
    found = [
        file.rows(
            required=required,
            on_bad_row=texts.on_bad_row,
            blank=texts.blank,
            is_plain=is_plain and file.has_plain_form,
            # Where they are not left out, what first reads them refuses them.
            check=encode if texts.on_bad_row == "skip" else None,
        )
        for file in files
    ]
    unseen = [row for held_out in found[1:] for row in held_out.rows]
    summary: dict[str, Any] = {
        name: each.summary()
        for name, each in zip(("train", "test"), found, strict=False)
    }
    rows = fill_types(found[0].rows, seed=seed, unseen=unseen)
    summary["left_out"] = _left_out(rows, has_unseen=bool(unseen))
    told = [*map(str, files)]
    for each in found:
        if each.skipped:
            count, first = len(each.skipped), ": ".join(each.skipped[0])
            told.append(f"note: {count:,} bad rows are left out, the first {first}")
    return Data(rows, unseen, summary, tuple(told))


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

    def prompt_ids(
        self, row: PreferenceRow, *, tokenizer: Tokenizer | None = None
    ) -> Sequence[int]:
        """The prompt as it is read, before an empty response where there is none."""
        asked = row if row.responses else row._replace(responses={"chosen": ""})
        examples = self(asked, tokenizer=tokenizer).examples
        return next(iter(examples.values())).prompt_ids


class Lengths(NamedTuple):
    """How long texts are, in tokens, before `chosen_initial` has been sampled.

    Attributes:
      given: Length of the longest prompt and response of the data.
      sample: Length of a response that is sampled, without its END.
      bound: Most that the longest prompt and response can be with those that are still
        to be sampled.
      response: Most that the longest response can be, alone.
    """

    given: int
    sample: int
    bound: int
    response: int


def find_lengths(texts: Data, encode: Encoder) -> Lengths:
    """How long the texts are, by reading all of them once."""
    rows = (*texts.train, *texts.test)
    encoded = [encode(row).examples for row in rows]
    given = max(example.num_tokens for row in encoded for example in row.values())
    prompts = [
        len(next((e.prompt_ids for e in row.values()), ()) or encode.prompt_ids(of))
        for of, row in zip(rows, encoded, strict=True)
        if "chosen_initial" not in row
    ]
    sample = min(_LONGEST_SAMPLE, given // 2)
    with_sample = max(prompts, default=0) + sample + 1
    bound = max(given, min(encode.max_length, with_sample)) if prompts else given
    answers = (e.response_ids for row in encoded for e in row.values())
    longest = max([*map(len, answers), sample + 1 if prompts else 0])
    return Lengths(given, sample, bound, longest)


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
