"""A toy language for learning dynamics: questions, preferred answers, and a corpus.

A world is a few hundred to a few thousand entities with ten true facts each. A prompt
asks about one entity; the preferred answer states six or seven of its facts, and all
other types of response that the study of learning dynamics watches are made from it.
Everything follows from the preset and the seed.

What makes the effects of finetuning large enough to see is part of the construction:

1. *Style gap.* Less than a quarter of the corpus is question and answer, and there
   each of an answer's dozen wordings is the preferred one about one time in ten
   (`EVERYDAY`); in finetuning it is eight times in ten (`PREFERRED`). Learning the
   style lifts every answer, trained on or not.
2. *Content.* About half of an answer's words are content, drawn with Zipf frequencies.
   Their combination belongs to one answer, so that it can only be memorised.
3. *Same style on both sides.* The chosen and the rejected answer are by the same
   writer, with the same attributes in the same order; they differ in three to five
   facts.
4. *Noise.* One document in seventeen is senseless: shuffled, or with half of its words
   replaced. So shuffled text has been seen, and can fall.
5. *Known paraphrases.* Every wording of the rephrased answers is in at least one
   document of twenty. `*_gptsemantic` keeps the facts, `*_gptformat` the order and the
   length.
6. *Sources.* The rephrased answers and the unrelated text `irr_hum` are by one writer
   (`GPT`) with its own openings, connectives and verbs, whatever they mean.
7. *Learnable answers.* The corpus files facts of all entities, six in ten of them
   true, in other kinds of sentences; its own questions are about entities that no
   prompt asks about.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from ldjax.data.world.rows import (
    Facts,
    answer,
    choose,
    choose_labels,
    other_facts,
    responses,
)
from ldjax.data.world.texts import (
    EVERYDAY,
    GPT,
    Lexicon,
    make_lexicon,
    noise,
    other_text,
    records,
    scene,
    shuffled,
)
from ldjax.data.world.words import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    PROMPT,
    TOPICS,
    all_words,
)

__all__ = ["PRESETS", "Document", "World", "WorldSize", "make_world"]

DocumentKind = Literal["question", "records", "profile", "scene", "other", "noise"]

# Shares of the corpus; together 1.
SHARES: dict[DocumentKind, float] = {
    "question": 0.24,  # the form of finetuning
    "records": 0.26,
    "profile": 0.06,  # what the gpt writer says of an entity
    "scene": 0.10,
    "other": 0.28,
    "noise": 0.06,
}
GPT_SHARE_OF_QUESTIONS = 1 / 6
TRUE_SHARE = 0.6

# Streams of random numbers, next to the seed.
_LEXICON, _NAMES, _FACTS, _ROWS, _SHUFFLES, _DOCUMENTS = range(6)


class WorldSize(NamedTuple):
    """How large a world is.

    Attributes:
      num_train: Prompts to train on.
      num_validation: Prompts to choose settings by.
      num_test: Prompts never trained on.
      num_first_names: First names.
      num_last_names: Last names. Each pair of names is an entity; those that no prompt
        asks about are for the questions of the corpus.

    Examples:
      >>> PRESETS["demo"].num_train
      240
    """

    num_train: int
    num_validation: int
    num_test: int
    num_first_names: int
    num_last_names: int


PRESETS = {
    "demo": WorldSize(240, 0, 60, 20, 20),
    "small": WorldSize(1000, 100, 100, 40, 40),
    "paper": WorldSize(5000, 500, 500, 80, 80),
}


class Document(NamedTuple):
    """A document of the corpus.

    Attributes:
      kind: What it is.
      text: The text, beginning with a space.

    Examples:
      >>> make_world("demo", seed=0).document(0).kind in SHARES
      True
    """

    kind: DocumentKind
    text: str


@dataclass(frozen=True)
class World:
    r"""A closed world: its facts, its prompts with all responses, and its corpus.

    Attributes:
      size: The numbers it was made with.
      seed: The seed of all draws.
      words: Every word that its texts hold, sorted, without spaces. A word-level
        tokenizer that knows them all is `train_word_level` of `[f" {word}" ...]` and
        of the line break, `"\n"`.
      facts: The true value of each attribute of each entity, by name and label. The
        entities of the prompts come first: train, validation, test.
      lexicon: Words by kind, the most frequent first.
      train: Rows, each with a `prompt`, and with one response for each type but
        `chosen_initial`, which a model has to write. `irr_train` is the chosen answer
        of another training prompt (its neighbour, so that all are within the first
        `n` rows for even `n`), `irr_test` that of another test prompt.
      validation: Such rows of prompts that are not trained on.
      test: Such rows of still other prompts.

    Examples:
      >>> world = make_world("demo", seed=0)
      >>> world.train[0]["prompt"]
      ' question : what of the ... of ... ?\n answer :'
      >>> world.train[0]["irr_train"] == world.train[1]["chosen"]
      True
      >>> world.corpus(3) == world.corpus(5)[:3]
      True
    """

    size: WorldSize
    seed: int
    words: tuple[str, ...]
    facts: Mapping[str, Facts]
    lexicon: Lexicon
    train: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]

    def corpus(self, num_documents: int) -> list[str]:
        """The first documents to pretrain on; there is no end to them."""
        return [self.document(index).text for index in range(num_documents)]

    def document(self, index: int) -> Document:
        """One document of the corpus with its kind."""
        rng = np.random.default_rng((self.seed, _DOCUMENTS, index))
        kind = source = _pick_kind(rng)
        while source == "noise":
            source = _pick_kind(rng)
        text = self._text(rng, source)
        if kind == "noise":
            text = noise(rng, text, self.words)
        return Document(kind, text)

    def _text(self, rng: np.random.Generator, kind: DocumentKind) -> str:
        if kind == "other":
            return other_text(rng, self.lexicon)
        if kind == "scene":
            return scene(rng, self.lexicon, 6 + int(rng.random() * 2))
        is_question = kind == "question"
        name = choose(rng, self._unasked_names if is_question else self._names)
        topic = choose(rng, tuple(TOPICS))
        facts = self._believed(rng, name, choose_labels(rng, topic))
        if kind == "records":
            return records(rng, name, facts)
        if kind == "profile":
            return answer(rng, GPT, name, facts)
        writer = GPT if rng.random() < GPT_SHARE_OF_QUESTIONS else EVERYDAY
        prompt = PROMPT.format(topic=topic, name=name)
        return prompt + answer(rng, writer, name, facts)

    def _believed(
        self, rng: np.random.Generator, name: str, labels: Sequence[str]
    ) -> Facts:
        """Some facts, true more often than not."""
        true = {label: self.facts[name][label] for label in labels}
        lies = other_facts(rng, self.lexicon, true)
        return lies | {
            label: true[label] for label in labels if rng.random() < TRUE_SHARE
        }

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.facts)

    @cached_property
    def _unasked_names(self) -> tuple[str, ...]:
        return self._names[sum(self.size[:3]) :]


def make_world(preset: str, *, seed: int) -> World:
    """Make a world.

    Args:
      preset: One of `PRESETS`.
      seed: The seed of the facts, the texts and the frequencies of the words.

    Returns:
      The world; the same one for the same arguments.

    Raises:
      ValueError: If there is no such preset.

    Examples:
      >>> world = make_world("demo", seed=0)
      >>> len(world.train), len(world.test)
      (240, 60)
      >>> sorted(world.test[0])
      ['chosen', 'chosen_gptformat', 'chosen_gptsemantic', 'irr_hum', 'irr_test',
       'irr_train', 'prompt', 'random_nonhum', 'random_permute', 'reject_gptformat',
       'reject_gptsemantic', 'rejected']
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset}.")
    size = PRESETS[preset]
    first = FIRST_NAMES[: size.num_first_names]
    last = LAST_NAMES[: size.num_last_names]
    pairs = np.random.default_rng((seed, _NAMES)).permutation(len(first) * len(last))
    names = [f"{first[i % len(first)]} {last[i // len(first)]}" for i in pairs]
    lexicon = make_lexicon(np.random.default_rng((seed, _LEXICON)))
    rng = np.random.default_rng((seed, _FACTS))
    attributes = [(clause, ()) for clause in ATTRIBUTES.values()]
    facts = {
        name: dict(zip(ATTRIBUTES, lexicon.values(rng, attributes), strict=True))
        for name in names
    }
    rows = [
        responses(
            np.random.default_rng((seed, _ROWS, index)), lexicon, name, facts[name]
        )
        for index, name in enumerate(names[: sum(size[:3])])
    ]
    train = rows[: size.num_train]
    validation = rows[size.num_train : -size.num_test]
    test = rows[-size.num_test :]
    for split in (train, validation, test):
        _add_unrelated(np.random.default_rng((seed, _SHUFFLES)), split, train, test)
    return World(
        size=size,
        seed=seed,
        words=all_words(first + last),
        facts=facts,
        lexicon=lexicon,
        train=train,
        validation=validation,
        test=test,
    )


def _add_unrelated(
    rng: np.random.Generator,
    rows: list[dict[str, str]],
    train: list[dict[str, str]],
    test: list[dict[str, str]],
) -> None:
    """Add the responses that come from other rows, and shuffled words."""
    for index, row in enumerate(rows):
        # Rows are in random order, so a neighbour is any other row; train and test
        # have even numbers of rows, so none is its own.
        neighbour = index ^ 1
        row["irr_train"] = train[neighbour % len(train)]["chosen"]
        row["irr_test"] = test[neighbour % len(test)]["chosen"]
        row["random_permute"] = shuffled(rng, row["chosen"])
        row["random_nonhum"] = shuffled(rng, row["irr_test"])


def _pick_kind(rng: np.random.Generator) -> DocumentKind:
    return _KINDS[bisect(_CUMULATIVE, rng.random())]


_KINDS: tuple[DocumentKind, ...] = tuple(SHARES)
_CUMULATIVE = tuple(accumulate(SHARES.values()))[:-1]
