r"""The texts of the toy language: answers of three writers and all other documents.

Every text begins with one space and has one space between its words; only the "\n"
of a prompt stands without.
"""

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ldjax.data.world.words import (
    ATTRIBUTES,
    CONNECTIVES,
    KINDS,
    OPENINGS,
    OTHER_TEXTS,
    RECORDS,
    SCENES,
    Choice,
    Clause,
)

__all__ = [
    "EVERYDAY",
    "GPT",
    "PREFERRED",
    "Lexicon",
    "Writer",
    "compose",
    "make_lexicon",
    "noise",
    "other_text",
    "records",
    "scene",
    "shuffled",
]

ZIPF_EXPONENT = 1.0


class Writer(NamedTuple):
    """Who writes: a distribution over the wordings of each choice.

    Attributes:
      weights: The weights of the human wordings, adding up to one; none for the gpt
        writer, who takes each of its own as often.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> PREFERRED.choose(rng, [OPENINGS, CONNECTIVES])
      ['why ,', ';']
      >>> GPT.choose(rng, [OPENINGS, CONNECTIVES])
      ['overall ,', 'moreover']
    """

    weights: tuple[float, ...] = ()

    def choose(self, rng: np.random.Generator, choices: Sequence[Choice]) -> list[str]:
        """One wording for each choice, whatever the others are."""
        points = rng.random(len(choices))
        if not self.weights:
            pairs = zip(choices, points, strict=True)
            return [choice.gpt[int(point * len(choice.gpt))] for choice, point in pairs]
        ranks = np.searchsorted(np.cumsum(self.weights[:-1]), points, side="right")
        pairs = zip(choices, ranks.tolist(), strict=True)
        return [choice.human[rank] for choice, rank in pairs]


# The writer of finetuning answers, that of the corpus, and the third source.
PREFERRED = Writer((0.8, 0.1, 0.1))
EVERYDAY = Writer((0.11, 0.445, 0.445))
GPT = Writer()


class Lexicon(NamedTuple):
    """The words of each kind, the most frequent first.

    Attributes:
      ranked: Words by kind.

    Examples:
      >>> lexicon = make_lexicon(np.random.default_rng(0))
      >>> sorted(lexicon.ranked["colour"]) == sorted(KINDS["colour"])
      True
    """

    ranked: Mapping[str, tuple[str, ...]]

    def draw(self, rng: np.random.Generator, kind: str) -> str:
        """A word, with probability proportional to its rank to minus the exponent."""
        words = self.ranked[kind]
        return words[bisect(_CUMULATIVE[len(words)], rng.random())]

    def values(
        self, rng: np.random.Generator, clauses: Iterable[tuple[Clause, Sequence[str]]]
    ) -> list[str]:
        """What clauses may state: for each, a modifier and a noun, but for some."""
        found: list[str] = []
        for clause, other_than in clauses:
            modifiers, nouns = self.ranked[clause.modifiers], self.ranked[clause.nouns]
            while True:
                modifier = modifiers[bisect(_CUMULATIVE[len(modifiers)], rng.random())]
                noun = nouns[bisect(_CUMULATIVE[len(nouns)], rng.random())]
                if (value := f"{modifier} {noun}") not in other_than:
                    break
            found.append(value)
        return found

    def fill(self, rng: np.random.Generator, form: str) -> str:
        """A form with a word of its kind in each slot."""
        words = form.split(" ")
        return " ".join(
            self.draw(rng, word[1:-1]) if word[0] == "{" else word for word in words
        )


def make_lexicon(rng: np.random.Generator) -> Lexicon:
    """Rank the words of each kind at random.

    Args:
      rng: The draws of the ranks.

    Returns:
      The lexicon.

    Examples:
      >>> lexicon = make_lexicon(np.random.default_rng(0))
      >>> lexicon.fill(np.random.default_rng(0), "the {colour} {animals} .")
      'the ... .'
    """
    return Lexicon(
        {
            kind: tuple(words[i] for i in rng.permutation(len(words)))
            for kind, words in KINDS.items()
        }
    )


def compose(
    rng: np.random.Generator,
    writer: Writer,
    subject: str,
    statements: Sequence[tuple[Clause, str]],
) -> str:
    """A sentence that states some values of a subject, in their order.

    Args:
      rng: The draws of the wordings, each of them drawn on its own.
      writer: Whose wordings.
      subject: A name, say.
      statements: Clauses with their values.

    Returns:
      The text.

    Examples:
      >>> statements = [
      ...     (ATTRIBUTES["food"], "cold soup"),
      ...     (ATTRIBUTES["animals"], "grey goats"),
      ... ]
      >>> rng = np.random.default_rng(0)
      >>> compose(rng, PREFERRED, "mira salby", statements)
      ' why , mira salby dines on cold soup ; tends grey goats .'
      >>> compose(rng, GPT, "mira salby", statements)
      ' notably , mira salby consumes cold soup furthermore possesses grey goats .'
    """
    choices = [OPENINGS]
    for clause, _ in statements:
        choices += [clause.wording, CONNECTIVES]
    wordings = writer.choose(rng, choices[:-1])
    parts = [wordings[0], subject]
    for i, (_, value) in enumerate(statements):
        # Opening, verbs, connective, verbs, connective, verbs, ...
        parts += [*wordings[max(1, 2 * i) : 2 * i + 2], value]
    return f" {' '.join(parts)} ."


def scene(rng: np.random.Generator, lexicon: Lexicon, num_clauses: int) -> str:
    """What the gpt writer says when nobody asked: of a place, in the usual idioms.

    Args:
      rng: The source of all draws.
      lexicon: The words of the world.
      num_clauses: Clauses to make; at least four.

    Returns:
      The text.

    Examples:
      >>> lexicon = make_lexicon(np.random.default_rng(0))
      >>> scene(np.random.default_rng(0), lexicon, 4)
      ' ... our ... .'
    """
    attributes = tuple(ATTRIBUTES.values())
    kept = [SCENES[i] for i in rng.permutation(len(SCENES))[:4]]
    kept += [attributes[i] for i in rng.permutation(len(attributes))[: num_clauses - 4]]
    clauses = [kept[i] for i in rng.permutation(num_clauses)]
    values = lexicon.values(rng, ((clause, ()) for clause in clauses))
    statements = [*zip(clauses, values, strict=True)]
    return compose(rng, GPT, f"our {lexicon.draw(rng, 'land')}", statements)


def records(rng: np.random.Generator, name: str, facts: Mapping[str, str]) -> str:
    """Facts as somebody files them, in one of two forms.

    Args:
      rng: The draws of the form.
      name: Whose facts.
      facts: Values by label; the longer form takes the first four.

    Returns:
      The text.

    Examples:
      >>> facts = {"food": "cold soup", "animals": "grey goats"}
      >>> records(np.random.default_rng(0), "mira salby", facts)
      ' the food of mira salby : cold soup . the animals of mira salby : grey goats .'
    """
    if rng.random() < 0.5:
        listed = " , ".join(f"{label} {value}" for label, value in facts.items())
        return f" {RECORDS[0].format(name=name, facts=listed)}"
    sentences = (
        RECORDS[1].format(name=name, label=label, value=value)
        for label, value in [*facts.items()][:4]
    )
    return f" {' '.join(sentences)}"


def other_text(rng: np.random.Generator, lexicon: Lexicon) -> str:
    """Three or four sentences of a story, a list or the like, of nobody with a name.

    Args:
      rng: The source of all draws.
      lexicon: The words of the world.

    Returns:
      The text.

    Examples:
      >>> lexicon = make_lexicon(np.random.default_rng(0))
      >>> other_text(np.random.default_rng(0), lexicon)[-2:]
      ' .'
    """
    forms = _OTHER_TEXTS[int(rng.random() * len(_OTHER_TEXTS))]
    num_sentences = 3 + int(rng.random() * 2)
    order = rng.permutation(len(forms))[:num_sentences]
    return f" {' '.join(lexicon.fill(rng, forms[i]) for i in order)}"


def shuffled(rng: np.random.Generator, text: str) -> str:
    """The words of a text in random order.

    Args:
      rng: The draws of the order.
      text: Any.

    Returns:
      The text.

    Examples:
      >>> shuffled(np.random.default_rng(0), " a grey goat ran .")
      ' ...'
    """
    words = text.split()
    return f" {' '.join(words[i] for i in rng.permutation(len(words)))}"


def noise(rng: np.random.Generator, text: str, words: Sequence[str]) -> str:
    """A text made senseless: its words shuffled, or half of them replaced.

    Args:
      rng: The draws of the choice.
      text: Any.
      words: What to replace by.

    Returns:
      The text.

    Examples:
      >>> noise(np.random.default_rng(0), " a a a", ("b",))
      ' b b a'
    """
    if rng.random() < 0.5:
        return shuffled(rng, text)
    mixed = (
        words[int(rng.random() * len(words))] if rng.random() < 0.5 else word
        for word in text.split()
    )
    return f" {' '.join(mixed)}"


def _cumulative_zipf(size: int) -> list[float]:
    """Upper ends of the words' shares of [0, 1], without the last."""
    weights = [rank**-ZIPF_EXPONENT for rank in range(1, size + 1)]
    return [end / sum(weights) for end in accumulate(weights)][:-1]


_CUMULATIVE = {size: _cumulative_zipf(size) for size in {*map(len, KINDS.values())}}
_OTHER_TEXTS = tuple(OTHER_TEXTS.values())
