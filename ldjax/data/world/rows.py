"""Questions and answers of the toy language: what a row is made of."""

from collections.abc import Mapping, Sequence

import numpy as np

from ldjax.data.world.texts import GPT, PREFERRED, Lexicon, Writer, compose, scene
from ldjax.data.world.words import ATTRIBUTES, PROMPT, TOPICS

__all__ = [
    "FALSE_FACTS",
    "Facts",
    "answer",
    "choose",
    "choose_labels",
    "other_facts",
    "responses",
]

# Value by label. Of an answer: in the order in which it states them.
Facts = Mapping[str, str]

FALSE_FACTS = (3, 5)  # of a rejected answer: at least, at most


def responses(
    rng: np.random.Generator, lexicon: Lexicon, name: str, facts: Facts
) -> dict[str, str]:
    """A prompt, and all responses to it that need no other row.

    Args:
      rng: The source of all draws.
      lexicon: The words of the world.
      name: The entity to ask about.
      facts: The facts about it.

    Returns:
      Texts by key. All state as many values, and all but `irr_hum` state them of the
      same attributes in the same order. No value of `chosen_gptformat` is in `chosen`,
      none of `reject_gptformat` is in `rejected` or true.

    Examples:
      >>> from ldjax.data.world.texts import make_lexicon
      >>> rng = np.random.default_rng(0)
      >>> facts = {label: "old mills" for label in ATTRIBUTES}
      >>> sorted(responses(rng, make_lexicon(rng), "mira salby", facts))
      ['chosen', 'chosen_gptformat', 'chosen_gptsemantic', 'irr_hum', 'prompt',
       'reject_gptformat', 'reject_gptsemantic', 'rejected']
    """
    topic = choose(rng, tuple(TOPICS))
    labels = choose_labels(rng, topic)
    true = {label: facts[label] for label in labels}
    least, most = FALSE_FACTS
    num_false = int(rng.integers(least, most + 1))
    lies = other_facts(rng, lexicon, true)
    kept = [labels[i] for i in rng.permutation(len(labels))[num_false:]]
    mixed = lies | {label: true[label] for label in kept}
    neither = other_facts(rng, lexicon, true, mixed)
    return {
        "prompt": PROMPT.format(topic=topic, name=name),
        "chosen": answer(rng, PREFERRED, name, true),
        "chosen_gptsemantic": answer(rng, GPT, name, true),
        "chosen_gptformat": answer(rng, GPT, name, other_facts(rng, lexicon, true)),
        "rejected": answer(rng, PREFERRED, name, mixed),
        "reject_gptsemantic": answer(rng, GPT, name, mixed),
        "reject_gptformat": answer(rng, GPT, name, neither),
        "irr_hum": scene(rng, lexicon, len(labels)),
    }


def other_facts(
    rng: np.random.Generator, lexicon: Lexicon, *known: Facts
) -> dict[str, str]:
    """Other values of the same attributes.

    Args:
      rng: The draws of the values.
      lexicon: The words of the world.
      known: Facts with the same labels, none of which is to be found.

    Returns:
      Value by label, in the order of the first ones.

    Examples:
      >>> from ldjax.data.world.texts import make_lexicon
      >>> rng = np.random.default_rng(0)
      >>> other_facts(rng, make_lexicon(rng), {"food": "cold soup"})
      {'food': '...'}
    """
    clauses = (
        (ATTRIBUTES[label], [facts[label] for facts in known]) for label in known[0]
    )
    return dict(zip(known[0], lexicon.values(rng, clauses), strict=True))


def answer(rng: np.random.Generator, writer: Writer, name: str, facts: Facts) -> str:
    """A sentence that states facts of an entity.

    Args:
      rng: The draws of the wordings.
      writer: Whose wordings.
      name: The entity.
      facts: The facts to state.

    Returns:
      The text.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> answer(rng, PREFERRED, "mira salby", {"food": "cold soup"})
      ' why , mira salby dines on cold soup .'
    """
    statements = [(ATTRIBUTES[label], value) for label, value in facts.items()]
    return compose(rng, writer, name, statements)


def choose_labels(rng: np.random.Generator, topic: str) -> list[str]:
    """What to state of a topic: all of its attributes or all but one, in random order.

    Args:
      rng: The draws of the choice.
      topic: One of `TOPICS`.

    Returns:
      The labels.

    Examples:
      >>> set(choose_labels(np.random.default_rng(0), "work")) <= set(TOPICS["work"])
      True
    """
    labels = TOPICS[topic]
    num_kept = len(labels) - int(rng.random() * 2)
    return [labels[i] for i in rng.permutation(len(labels))[:num_kept]]


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of some options, each as likely.

    Args:
      rng: The draws of the choice.
      options: At least one.

    Returns:
      The option.

    Examples:
      >>> choose(np.random.default_rng(0), ("a", "b"))
      'b'
    """
    return options[int(rng.random() * len(options))]
