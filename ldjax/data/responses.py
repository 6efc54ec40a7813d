"""The responses of a row: types that can be made from others, and all as token ids."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ldjax.data.batches import Example, truncate_examples
from ldjax.data.conversation import Conversation
from ldjax.data.drawn import DrawnText
from ldjax.data.preference_formats import in_order
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES, SIDES
from ldjax.data.tokenizers import Tokenizer

__all__ = [
    "RowExamples",
    "count_cuts",
    "count_notes",
    "fill_types",
    "shuffle_words",
    "to_examples",
]


class RowExamples(NamedTuple):
    """The responses of one row as token ids, and what was cut off them.

    Attributes:
      examples: By response type, all with the same prompt.
      is_prompt_cut: Whether the prompt was cut.
      cut_types: Types of the responses that were cut; they have no END token.
      notes: What a reader should know of how the texts were read: special tokens that
        were taken as text, or read as such, and responses that have become the same.

    Examples:
      >>> RowExamples({"chosen": Example((5,), (7, 0))}, False, ()).examples["chosen"]
      Example(prompt_ids=(5,), response_ids=(7, 0), scored=None)
    """

    examples: dict[str, Example]
    is_prompt_cut: bool
    cut_types: tuple[str, ...]
    notes: tuple[str, ...] = ()


def fill_types(
    rows: Sequence[PreferenceRow],
    *,
    seed: int,
    unseen: Sequence[PreferenceRow] = (),
) -> list[PreferenceRow]:
    """The rows, with the response types that need no writer where they lack them.

    * irr_train: chosen of another row.
    * irr_test: chosen of a row of `unseen` with neither prompt nor chosen in `rows`.
    * random_permute: chosen with its words shuffled (`shuffle_words`).
    * random_nonhum: irr_test with its words shuffled.

    What a row has is kept. A response is never taken from a row of the same prompt, nor
    if it is blank or has the words of the row's own chosen or rejected. (The authors
    drew rows with no such condition: in one row of their probing set irr_test is what
    was chosen.) The same one may be drawn for several rows.

    A type that cannot be made of a row is left out: where no other row has another
    prompt and other words, or where the words have only one order, such as "Yes.".

    Args:
      rows: The probing set.
      seed: The seed of draws and shuffles. Each row has draws of its own, so that
        shuffles do not depend on the other rows.
      unseen: Rows that are not trained on. Without them, rows that have no irr_test
        get neither it nor random_nonhum.

    Returns:
      The rows in order.

    Examples:
      >>> first = PreferenceRow("Why?", {"chosen": " So it is."}, "a:1")
      >>> second = PreferenceRow("Who?", {"chosen": " I."}, "a:2")
      >>> fill_types([first, second], seed=0)[0].responses
      {'chosen': ' So it is.', 'irr_train': ' I.', 'random_permute': ' it is. So'}
    """
    donors = {"irr_train": rows}
    if unseen:
        prompts = {str(row.prompt) for row in rows}
        answers = {_words(row, "chosen") for row in rows}
        donors["irr_test"] = [
            row
            for row in unseen
            if (not row.prompt or str(row.prompt) not in prompts)
            and _words(row, "chosen") not in answers
        ]
    with_words = {
        name: (others, {_words(other, "chosen") for other in others})
        for name, others in donors.items()
    }
    return [
        row._replace(responses=_filled(row, place, with_words, seed))
        for place, row in enumerate(rows)
    ]


def shuffle_words(text: str, rng: np.random.Generator) -> str:
    r"""The words of a text in another order; the white space stays where it is.

    The order of the words differs from the given one wherever that is possible: not
    with a single word, or one word many times. (The authors split at single spaces, so
    that double spaces and newlines wander, and the order may stay what it was.)

    Args:
      text: Any text; words are separated by white space.
      rng: Draws the order.

    Returns:
      A text of the same length and words.

    Examples:
      >>> shuffle_words(" one  two\nthree", np.random.default_rng(0))
      ' three  one\ntwo'
    """
    words = text.split()
    if len(set(words)) < 2:
        return text
    shuffled = words
    while shuffled == words:
        shuffled = [words[place] for place in rng.permutation(len(words))]
    in_turn = iter(shuffled)
    # A function, since a replacement text would have its backslashes read.
    return re.sub(r"\S+", lambda _: next(in_turn), text)


def to_examples(
    row: PreferenceRow,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_prompt_length: int,
    start_document: bool,
    leading_space: Literal["raw", "single"],
    keep: Literal["start", "end"] = "end",
    special_tokens: Literal["auto", "read", "text"] = "auto",
) -> RowExamples:
    """A row as token ids, by the paper's protocol.

    Prompt and response are tokenised apart and joined, so that a prompt has the same
    ids before every response. Each response ends with the END token, blank ones too,
    and no other place holds one but the start of the prompt, if asked for, and what the
    row itself spells where its special tokens are read. A text that ends with an end
    token of the model gets no second one, and a prompt that begins with the start
    token no second one either; before a dialogue that a chat template wrote END stands
    for no start token.

    An empty prompt (a text of language modelling) is the token that documents begin
    with, and the text after it is left as it is, but for such a token that it spells.

    A response that a model with this tokenizer drew (`ldjax.data.drawn.DrawnText`) is
    read as the ids that were drawn: with the end token that was drawn, or none.

    Prompt and responses are cut as `truncate_examples` says, by the longest response of
    this row. The authors count two more as responses: the prompt itself and
    `chosen_selfr`, which is not read here; so they cut some prompts that would fit.

    Args:
      row: The row.
      tokenizer: The model's.
      max_length: The limit of prompt and response together, in tokens.
      max_prompt_length: The limit of a prompt that has to be cut, in tokens.
      start_document: Begin the prompt with the token that documents begin with in
        pretraining: the tokenizer's start token, or END where it has none. It counts
        as one of the prompt's, and is lost first when the end of the prompt is kept.
      leading_space: "raw" takes the responses as they are, as the authors do: human
        ones of Anthropic-HH begin with a space and rewritten ones do not. "single"
        begins each with exactly one, blank ones too, so that types differ by their
        words only. Where chosen and rejected would become one text by it, both are read
        as they are, and noted.
      keep: Which part of a prompt to keep; the authors: "end" for Anthropic-HH, "start"
        for UltraFeedback.
      special_tokens: Whether special tokens that a text spells are meant ("read"), or
        are text like any other ("text"), which is noted. "auto" reads them in rows
        whose prompt is a dialogue as chat templates write it (`Tokenizer.is_chat`).

    Returns:
      The examples, what was cut and what is to be known of them.

    Raises:
      ValueError: If the tokenizer makes END out of a text that does not spell it, if
        the prompt has no token, or as `truncate_examples`.

    References:
      Ren & Sutherland 2025, their code.

    Examples:
      >>> from ldjax.data.tokenizers import train_word_level
      >>> tokenizer = train_word_level(["Why? So."])
      >>> row = PreferenceRow("Why?", {"chosen": " So.", "rejected": " "}, "a:1")
      >>> lengths = {"max_length": 5, "max_prompt_length": 2}
      >>> made = to_examples(
      ...     row, tokenizer, **lengths, start_document=True, leading_space="raw"
      ... )
      >>> made.is_prompt_cut, made.cut_types
      (True, ())
      >>> [tokenizer.decode(ids) for ids in made.examples["chosen"][:2]]
      ['Why?', ' So.<|endoftext|>']
    """
    assert isinstance(row.prompt, str)
    # A text that nothing stands before (language modelling) is all that is scored.
    spoken = row.prompt or row.responses.get("chosen", "")
    is_chat = special_tokens != "text" and tokenizer.is_chat(spoken)
    if not row.prompt:
        leading_space = "raw"
    reading = _Reading(tokenizer, is_chat or special_tokens == "read")
    texts, spaces = reading.spaced(in_order(row.responses), leading_space)
    prompt_ids, responses = reading.ids(row, texts)
    if not row.prompt:
        responses = {name: reading.unbegun(ids) for name, ids in responses.items()}
    prompt_ids = reading.begun(prompt_ids, start_document, is_chat and bool(row.prompt))
    if not prompt_ids:
        raise ValueError(
            f"{row.source}: the prompt has no token to predict a response from. Give "
            "it a text, or pass `start_document=True`."
        )
    examples = truncate_examples(
        prompt_ids,
        [*responses.values()],
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        keep=keep,
    )
    named = dict(zip(texts, examples, strict=True))
    return RowExamples(
        examples=named,
        is_prompt_cut=any(len(e.prompt_ids) < len(prompt_ids) for e in examples),
        cut_types=tuple(
            name
            for name, example in named.items()
            if len(example.response_ids) < len(responses[name])
        ),
        notes=(
            *spaces,
            *reading.notes({"prompt": row.prompt, **texts}),
            *equal_sides(named),
        ),
    )


def count_cuts(rows: Sequence[RowExamples]) -> dict[str, int]:
    """How much was cut, for a run's `summary.json`.

    Args:
      rows: What `to_examples` returned.

    Returns:
      The number of prompts and of responses, and how many of them were cut.

    Examples:
      >>> example = Example((5,), (7, 0))
      >>> count_cuts([RowExamples({"chosen": example, "rejected": example}, True, ())])
      {'num_prompts': 1, 'num_prompts_cut': 1, 'num_responses': 2,
       'num_responses_cut': 0}
    """
    return {
        "num_prompts": len(rows),
        "num_prompts_cut": sum(row.is_prompt_cut for row in rows),
        "num_responses": sum(len(row.examples) for row in rows),
        "num_responses_cut": sum(len(row.cut_types) for row in rows),
    }


def count_notes(rows: Iterable[RowExamples]) -> dict[str, int]:
    """How many rows have each note, for a run's `summary.json`.

    Args:
      rows: What `to_examples` returned.

    Examples:
      >>> example = Example((5,), (7, 0))
      >>> rows = [RowExamples({"chosen": example}, False, (), ("odd",))] * 2
      >>> count_notes(rows)
      {'odd': 2}
    """
    return dict(Counter(note for row in rows for note in row.notes))


class _Reading(NamedTuple):
    """How the texts of a row become ids."""

    tokenizer: Tokenizer
    is_special_read: bool

    def ids(
        self, row: PreferenceRow, texts: dict[str, str]
    ) -> tuple[list[int], dict[str, list[int]]]:
        """The ids of the prompt, and of the responses with their end."""
        end, ends = self.tokenizer.end_id, self.tokenizer.end_ids
        written: dict[str, Any] = {"prompt": row.prompt} | {
            name: text for name, text in texts.items() if not self.is_drawn(text)
        }
        encoded = self.tokenizer.encode_batch(
            [*written.values()], read_special=self.is_special_read
        )
        found = dict(zip(written, encoded, strict=True))
        for name, ids in found.items():
            spelled = written[name].count(self.tokenizer.special_tokens.end)
            if ids.count(end) > spelled * self.is_special_read:
                raise ValueError(
                    f"{row.source}: the tokenizer makes its END token out of the text "
                    f"of {name!r}, where it would score a stop that is none. Its END "
                    "must be a token of its own, which stands for no word."
                )
        responses = {}
        for name, text in texts.items():
            if self.is_drawn(text):
                assert isinstance(text, DrawnText)
                responses[name] = [*text.ids]
            elif found[name][-1:] and found[name][-1] in ends:
                responses[name] = found[name]
            else:
                responses[name] = [*found[name], end]
        return found["prompt"], responses

    def is_drawn(self, text: str) -> bool:
        """Whether it has ids of this tokenizer."""
        return isinstance(text, DrawnText) and self.tokenizer.agrees(text.tokenizer)

    def spaced(
        self, texts: dict[str, str], leading_space: Literal["raw", "single"]
    ) -> tuple[dict[str, str], list[str]]:
        """Texts with leading spaces as asked for, and a note if that cannot be."""
        if leading_space == "raw":
            return texts, []
        single = {
            name: text if self.is_drawn(text) else f" {text.lstrip(' ')}"
            for name, text in texts.items()
        }
        given, asked = ({t[n] for n in SIDES if n in t} for t in (texts, single))
        if len(asked) < len(given):
            return texts, [
                "chosen and rejected differ in leading spaces, which are kept"
            ]
        return single, []

    def begun(self, ids: list[int], start_document: bool, is_chat: bool) -> list[int]:
        """A prompt with the token that documents begin with, if it is to have one."""
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        if not start_document or (is_chat and start == end) or ids[:1] == [start]:
            return ids
        return [start, *ids]

    def unbegun(self, ids: list[int]) -> list[int]:
        """A text without the token that documents begin with, if it spells one."""
        start = self.tokenizer.start_id
        return ids[1:] if len(ids) > 1 and ids[0] == start else ids

    def notes(self, texts: dict[str, str]) -> list[str]:
        """What became of the special tokens that the texts spell."""
        how = "read as such" if self.is_special_read else "taken as text"
        return [
            f"special token {token!r} of {name!r} {how}"
            for name, text in texts.items()
            if not self.is_drawn(text)
            for token in self.tokenizer.special_in(text)
        ]


def equal_sides(examples: dict[str, Example]) -> list[str]:
    """A note where there is nothing between the two sides to learn."""
    sides = {tuple(examples[n].response_ids) for n in SIDES if n in examples}
    is_pair = all(name in examples for name in SIDES)
    return ["chosen and rejected have the same tokens"] * (is_pair and len(sides) == 1)


def _filled(
    row: PreferenceRow,
    place: int,
    donors: dict[str, tuple[Sequence[PreferenceRow], set[str]]],
    seed: int,
) -> dict[str, str | Conversation]:
    responses = dict(row.responses)

    def rng(name: str) -> np.random.Generator:
        return np.random.default_rng((seed, RESPONSE_TYPES.index(name), place))

    for name, (others, answers) in donors.items():
        other = _other_chosen(row, others, answers, rng(name))
        if other is not None:
            responses.setdefault(name, other)
    for name, whole in (("random_permute", "chosen"), ("random_nonhum", "irr_test")):
        shuffled = _shuffled(responses.get(whole, ""), rng(name))
        # One word, or one word many times, has no other order.
        if shuffled != responses.get(whole, ""):
            responses.setdefault(name, shuffled)
    return in_order(responses)


def _other_chosen(
    row: PreferenceRow,
    donors: Sequence[PreferenceRow],
    answers: set[str],
    rng: np.random.Generator,
) -> str | Conversation | None:
    # A blank one is taken from nowhere.
    own = {"", _words(row, "chosen"), _words(row, "rejected")}
    if answers <= own:  # no need to look at every row for each
        return None
    for place in rng.permutation(len(donors)):
        donor = donors[place]
        # What follows messages are messages, and what follows a text is a text.
        is_alike = isinstance(donor.prompt, str) == isinstance(row.prompt, str)
        # Texts that nothing stands before have no prompt in common.
        is_other = is_alike and (not row.prompt or str(donor.prompt) != str(row.prompt))
        if is_other and _words(donor, "chosen") not in own:
            return donor.responses["chosen"]
    return None


def _shuffled(
    response: str | Conversation, rng: np.random.Generator
) -> str | Conversation:
    """A response with its words in another order, in each message of the assistant."""
    if isinstance(response, str):
        return shuffle_words(response, rng)
    return response.with_answers(lambda text: shuffle_words(text, rng))


def _words(row: PreferenceRow, name: str) -> str:
    """The words of a response, without those that say who speaks."""
    response = row.responses.get(name, "")
    speaks = () if isinstance(response, str) else ("assistant:",)
    return " ".join(word for word in str(response).split() if word not in speaks)
