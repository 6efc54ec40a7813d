"""The judge of the toy language: what a program can say of any response.

It reads a response by the tables that the texts are written by (`world_words`), word
for word. There is nothing to tune, and no text that it has no verdict on.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ldjax.data.world.words import (
    ATTRIBUTES,
    CONNECTIVES,
    KINDS,
    OPENINGS,
    OTHER_TEXTS,
    PROMPT,
    RECORDS,
    SCENES,
    TOPICS,
    Clause,
)
from ldjax.data.world.world import World

__all__ = ["Statement", "Verdict", "judge", "read_prompt", "read_statements"]

Verdict = Literal["correct", "wrong", "off-topic", "malformed", "degenerate"]


class Statement(NamedTuple):
    """What one clause says.

    Attributes:
      subject: A name, a place (`our village`), or empty for text about neither.
      label: The attribute, or the kind of the noun of what is none.
      value: Modifier and noun.

    Examples:
      >>> Statement("mira salby", "food", "cold soup").label
      'food'
    """

    subject: str
    label: str
    value: str


def judge(world: World, prompt: str, response: str) -> Verdict:
    """Judge a response to a prompt.

    Args:
      world: Whose facts are true.
      prompt: A question of that world, whether or not it is in one of its splits.
      response: Any text. The space that it should begin with may be missing.

    Returns:
      The first of these that holds. `degenerate`: it repeats itself, that is, a
      block of words stands twice in a row and begins a third time, at most a third
      of its words differ, or each statement stands there twice on average.
      `malformed`: it is not all sentences, in the forms of any of the writers and
      documents. `off-topic`: a sentence is not about the entity asked about, or an
      attribute does not belong to the topic. `wrong`: a stated fact is false.
      `correct`: none of these; how many facts are stated does not matter.

    Raises:
      ValueError: If `prompt` is not a question of this world.

    Examples:
      >>> from ldjax.data.world.world import make_world
      >>> world = make_world("demo", seed=0)
      >>> row = world.test[0]
      >>> [judge(world, row["prompt"], row[key]) for key in ("chosen", "rejected")]
      ['correct', 'wrong']
      >>> judge(world, row["prompt"], row["irr_hum"])
      'off-topic'
      >>> judge(world, row["prompt"], row["random_permute"])
      'malformed'
      >>> judge(world, row["prompt"], " why , why , why , why ,")
      'degenerate'
    """
    name, topic = read_prompt(world, prompt)
    if _repeats(response.split()):
        return "degenerate"
    statements = read_statements(world, response)
    if statements is None:
        return "malformed"
    if len(statements) >= 2 * len(set(statements)):
        return "degenerate"
    if any(
        statement.subject != name or statement.label not in TOPICS[topic]
        for statement in statements
    ):
        return "off-topic"
    facts = world.facts[name]
    is_true = all(facts[statement.label] == statement.value for statement in statements)
    return "correct" if is_true else "wrong"


def read_prompt(world: World, prompt: str) -> tuple[str, str]:
    r"""Whom and what a prompt asks about.

    Args:
      world: Whose entities there are.
      prompt: A question.

    Returns:
      The name and the topic.

    Raises:
      ValueError: If it is not a question of this world.

    Examples:
      >>> from ldjax.data.world.world import make_world
      >>> prompt = " question : what of the work of bala salby ?\n answer :"
      >>> read_prompt(make_world("demo", seed=0), prompt)
      ('bala salby', 'work')
    """
    words = prompt.split()
    name, topic = " ".join(words[7:9]), "".join(words[5:6])
    is_known = name in world.facts and topic in TOPICS
    if not is_known or prompt != PROMPT.format(topic=topic, name=name):
        raise ValueError(
            f"`prompt` is not a question of this world: {prompt!r}. They have the form "
            f"{PROMPT!r}; `World.facts` has the names, `TOPICS` the topics."
        )
    return name, topic


def read_statements(world: World, text: str) -> list[Statement] | None:
    """What a text says, sentence by sentence.

    Args:
      world: Whose entities there are.
      text: Any text.

    Returns:
      The statements; None if a part of the text is not a sentence of the language.

    Examples:
      >>> from ldjax.data.world.world import make_world
      >>> world = make_world("demo", seed=0)
      >>> read_statements(world, " so , bala salby eats cold soup .")
      [Statement(subject='bala salby', label='food', value='cold soup')]
      >>> read_statements(world, " so , bala salby eats cold") is None
      True
    """
    words = text.removeprefix(" ").split(" ")
    if words[-1] != ".":
        return None
    statements: list[Statement] = []
    for sentence in _split(words[:-1], (".",)):
        found = _read_sentence(world, sentence)
        if not found:
            return None
        statements += found
    return statements


def _read_sentence(world: World, words: Sequence[str]) -> list[Statement]:
    """The statements of a sentence without its full stop; none if it is not one."""
    return (
        _read_answer(world, words)
        or _read_records(world, words)
        or _read_other_text(words)
    )


def _read_answer(world: World, words: Sequence[str]) -> list[Statement]:
    """Opening, subject, clauses between connectives."""
    opening, subject = " ".join(words[:2]), " ".join(words[2:4])
    if opening not in _ALL_OPENINGS or not _is_subject(world, subject):
        return []
    statements: list[Statement] = []
    for clause_words in _split(words[4:], _ALL_CONNECTIVES):
        clause = _CLAUSES.get(" ".join(clause_words[:-2]))
        if clause is None or not _is_value(clause_words[-2:], clause):
            return []
        value = " ".join(clause_words[-2:])
        statements.append(Statement(subject, clause.nouns, value))
    return statements


def _read_records(world: World, words: Sequence[str]) -> list[Statement]:
    """Facts on file: taken apart by position, and put together again to compare."""
    sentence = f"{' '.join(words)} ."
    in_file, in_record = " ".join(words[2:4]), " ".join(words[3:5])
    label, value = "".join(words[1:2]), " ".join(words[6:])
    if sentence == RECORDS[0].format(name=in_file, facts=" ".join(words[5:])):
        name, parts = in_file, _split(words[5:], (",",))
    elif sentence == RECORDS[1].format(label=label, name=in_record, value=value):
        name, parts = in_record, [[label, *words[6:]]]
    else:
        return []
    if name not in world.facts or not all(
        part and part[0] in ATTRIBUTES and _is_value(part[1:], ATTRIBUTES[part[0]])
        for part in parts
    ):
        return []
    return [Statement(name, part[0], " ".join(part[1:])) for part in parts]


def _read_other_text(words: Sequence[str]) -> list[Statement]:
    """A sentence about nobody with a name."""
    for form in _OTHER_FORMS:
        if len(words) == len(form) and all(
            word in KINDS[slot[1:-1]] if slot[0] == "{" else word == slot
            for word, slot in zip(words, form, strict=True)
        ):
            return [Statement("", "", " ".join(words))]
    return []


def _is_subject(world: World, subject: str) -> bool:
    our, _, land = subject.partition(" ")
    return subject in world.facts or (our == "our" and land in KINDS["land"])


def _is_value(words: Sequence[str], clause: Clause) -> bool:
    return (
        len(words) == 2
        and words[0] in KINDS[clause.modifiers]
        and words[1] in KINDS[clause.nouns]
    )


def _split(words: Sequence[str], separators: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in separators:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _repeats(words: Sequence[str]) -> bool:
    """Whether few words differ, or a block stands twice and starts a third time.

    It has to start with two words. Connectives alone are no block: shuffled answers
    have several in a row.
    """
    if len(words) >= 8 and 3 * len(set(words)) <= len(words):
        return True
    for length in range(1, 9):
        num_equal = 0
        for i in range(length, len(words)):
            num_equal = num_equal + 1 if words[i] == words[i - length] else 0
            if num_equal >= length + 2 and not _MARKS.issuperset(words[i - length : i]):
                return True
    return False


_ALL_OPENINGS = frozenset(OPENINGS.human + OPENINGS.gpt)
_ALL_CONNECTIVES = CONNECTIVES.human + CONNECTIVES.gpt
_MARKS = frozenset((*_ALL_CONNECTIVES, "."))
_CLAUSES = {
    wording: clause
    for clause in (*ATTRIBUTES.values(), *SCENES)
    for wording in clause.wording.human + clause.wording.gpt
}
_OTHER_FORMS = [
    form.removesuffix(" .").split() for forms in OTHER_TEXTS.values() for form in forms
]
