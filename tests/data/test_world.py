"""The toy language: every rule of its making as a number measured on its texts."""

import dataclasses
import functools
import re
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldjax.data.tokenizers import train_word_level
from ldjax.data.world.judge import judge, read_statements
from ldjax.data.world.words import (
    ATTRIBUTES,
    CONNECTIVES,
    FIRST_NAMES,
    KINDS,
    LAST_NAMES,
    OPENINGS,
    OTHER_TEXTS,
    PROMPT,
    RECORDS,
    SCENES,
    TOPICS,
)
from ldjax.data.world.world import SHARES, make_world

NUM_DOCUMENTS = 4000
TYPES = (
    "chosen",
    "chosen_gptsemantic",
    "chosen_gptformat",
    "rejected",
    "reject_gptsemantic",
    "reject_gptformat",
    "irr_train",
    "irr_test",
    "irr_hum",
    "random_permute",
    "random_nonhum",
)
GPT_TYPES = [key for key in TYPES if "gpt" in key or key == "irr_hum"]
VERDICTS = {
    "chosen": "correct",
    "chosen_gptsemantic": "correct",
    "chosen_gptformat": "wrong",
    "rejected": "wrong",
    "reject_gptsemantic": "wrong",
    "reject_gptformat": "wrong",
    "irr_train": "off-topic",
    "irr_test": "off-topic",
    "irr_hum": "off-topic",
    "random_permute": "malformed",
    "random_nonhum": "malformed",
}
CONTENT = set(chain.from_iterable(KINDS.values()))
CLAUSES = (*ATTRIBUTES.values(), *SCENES)
CHOICES = [OPENINGS, CONNECTIVES, *(clause.wording for clause in ATTRIBUTES.values())]
# The large one takes seconds to make where every call is type-checked.
ALL_PRESETS = ["demo", "small", pytest.param("paper", marks=pytest.mark.slow)]


@functools.cache
def _world(preset):
    return make_world(preset, seed=0)


WORLD = _world("demo")
DOCUMENTS = [WORLD.document(index) for index in range(NUM_DOCUMENTS)]
CORPUS = [document.text for document in DOCUMENTS]
QUESTIONS = [
    text for text in CORPUS if re.fullmatch(r" question : .*\n answer : .*", text)
]


def _rows(world):
    return [*world.train, *world.validation, *world.test]


def _answers(text):
    return text.rpartition(" answer :")[2]


def _counts(texts, wordings):
    """How often each wording stands in the texts."""
    joined = "".join(f"{text} " for text in texts)
    return [
        len(re.findall(rf"(?<= ){re.escape(wording)}(?= )", joined))
        for wording in wordings
    ]


def _opening_counts(texts, openings):
    return [
        sum(text.startswith(f" {opening} ") for text in texts) for opening in openings
    ]


def _human_shares(texts):
    """For each choice, the shares of its human wordings among all its wordings."""
    texts = [_answers(text) for text in texts]
    shares = []
    for choice in CHOICES:
        wordings = choice.human + choice.gpt
        if choice is OPENINGS:
            counts = _opening_counts(texts, wordings)
        elif choice is CONNECTIVES:  # "why ," has a comma of its own
            counts = _counts([re.sub(r"^ \w+ ,", "", text) for text in texts], wordings)
        else:
            counts = _counts(texts, wordings)
        shares.append(np.array(counts[:3]) / sum(counts))
    return np.array(shares)


def _facts(world, text):
    """The values that an answer states, in order, whomever it is about."""
    statements = read_statements(world, text)
    assert statements
    return [(statement.label, statement.value) for statement in statements]


# The tables.


def test_a_word_of_a_kind_is_used_for_nothing_else():
    every = [word for kind in KINDS.values() for word in kind]
    assert len(every) == len(CONTENT)
    forms = [PROMPT, *RECORDS, *chain.from_iterable(OTHER_TEXTS.values())]
    wordings = [
        wording
        for choice in [*CHOICES, *(clause.wording for clause in SCENES)]
        for wording in choice.human + choice.gpt
    ]
    other = set(" ".join([*forms, *wordings, *ATTRIBUTES, *TOPICS]).split())
    assert not CONTENT & other
    names = {*FIRST_NAMES, *LAST_NAMES}
    assert len(names) == 160
    assert not names & (CONTENT | other)
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_every_word_is_known_and_they_are_few(preset):
    world = _world(preset)
    corpus = world.corpus(500)
    used = set(
        " ".join([*corpus, *chain(*(row.values() for row in _rows(world)))]).split()
    )
    assert used <= set(world.words)
    assert len(world.words) == len(set(world.words)) <= 512 - 4  # and special tokens
    assert list(world.words) == sorted(world.words)
    names = set(" ".join(world.facts).split())
    assert names <= set(world.words)


def test_each_word_has_one_form_for_a_word_level_tokenizer():
    tokenizer = train_word_level([*(f" {word}" for word in WORLD.words), "\n"])
    assert tokenizer.vocab_size == len(WORLD.words) + 1 + 3
    for text in [*CORPUS[:200], *WORLD.train[0].values()]:
        ids = tokenizer.encode(text)
        assert tokenizer.unknown_id not in ids
        assert len(ids) == len(text.split()) + text.count("\n")
        assert tokenizer.decode(ids) == text


# Rows.


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("demo", (240, 0, 60)),
        ("small", (1000, 100, 100)),
        pytest.param("paper", (5000, 500, 500), marks=pytest.mark.slow),
    ],
)
def test_a_preset_has_its_numbers_of_rows_and_no_prompt_twice(preset, sizes):
    world = _world(preset)
    assert (len(world.train), len(world.validation), len(world.test)) == sizes
    rows = _rows(world)
    assert all(set(row) == {"prompt", *TYPES} for row in rows)
    assert len({row["prompt"] for row in rows}) == len(rows)
    names = [" ".join(row["prompt"].split()[7:9]) for row in rows]
    assert names == list(world.facts)[: len(rows)]  # so no entity is asked about twice
    assert len(world.facts) > len(rows)


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_responses_have_6_to_40_words_after_one_space_each(preset):
    rows = _rows(_world(preset))
    for row in rows:
        for key in TYPES:
            assert re.fullmatch(r"( \S+){6,39}", row[key]), row[key]  # 40 with the end
        assert re.fullmatch(r"( \S+)+\n answer :", row["prompt"])
    for key in TYPES:
        assert 28 <= np.mean([len(row[key].split()) for row in rows]) <= 34
    for row in rows:
        ratio = len(row["irr_hum"].split()) / len(row["chosen"].split())
        assert 0.75 < ratio < 1.1


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_irrelevant_answers_are_those_of_other_rows(preset):
    world = _world(preset)
    chosen = {
        split: {row["chosen"] for row in getattr(world, split)}
        for split in ("train", "validation", "test")
    }
    for row in _rows(world):
        assert row["irr_train"] in chosen["train"] - {row["chosen"]}
        assert row["irr_test"] in chosen["test"] - {row["chosen"]}
        for key, source in (
            ("random_permute", "chosen"),
            ("random_nonhum", "irr_test"),
        ):
            assert sorted(row[key].split()) == sorted(row[source].split())
            assert row[key] != row[source]
    for num_rows in (2, 60):
        probe = world.train[:num_rows]
        assert {row["irr_train"] for row in probe} == {row["chosen"] for row in probe}
        assert len({row["irr_test"] for row in probe}) == num_rows


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_rephrase_keeps_and_what_it_changes(split):
    for row in getattr(WORLD, split):
        facts = {key: _facts(WORLD, row[key]) for key in TYPES[:6]}
        labels = [label for label, _ in facts["chosen"]]
        assert 6 <= len(labels) == len(set(labels)) <= 7
        for original, prefix in (("chosen", "chosen"), ("rejected", "reject")):
            assert facts[f"{prefix}_gptsemantic"] == facts[original]
            changed = facts[f"{prefix}_gptformat"]
            assert [label for label, _ in changed] == labels
            assert not set(changed) & {*facts[original], *facts["chosen"]}
            texts = [row[f"{prefix}_gpt{kept}"] for kept in ("format", "semantic")]
            assert len(texts[0].split()) == len(texts[1].split())
        assert [label for label, _ in facts["rejected"]] == labels
        assert 3 <= len(set(facts["rejected"]) - set(facts["chosen"])) <= 5
        assert len(_facts(WORLD, row["irr_hum"])) == len(labels)


# The rules of `ldjax/data/world.py`, by number.


def test_1_at_most_a_quarter_of_the_corpus_is_question_and_answer():
    assert 0.2 < len(QUESTIONS) / NUM_DOCUMENTS <= 0.25
    for text in QUESTIONS:
        prompt = text[: text.index(" answer :") + len(" answer :")]
        assert judge(WORLD, prompt, _answers(text)) in ("correct", "wrong")


def test_1_the_preferred_wording_of_each_choice_is_rare_in_the_corpus_only():
    corpus, chosen = (
        _human_shares(texts) for texts in (QUESTIONS, _texts("chosen", "small"))
    )
    assert corpus.shape == chosen.shape == (12, 3)
    assert abs(corpus[:, 0].mean() - 0.1) < 0.02
    assert np.all((corpus[:, 0] > 0.05) & (corpus[:, 0] < 0.15))
    assert np.all(abs(chosen[:, 0] - 0.8) < 0.05)
    assert np.all(corpus[:, 1:] > 0.3)
    # What a model that knows the corpus perfectly gains from the style alone, in nats
    # a word: the divergence of the two, times the choices of an answer.
    divergence = (chosen * np.log(chosen / corpus)).sum(1)
    num_choices = 1 + 6.5 + 5.5  # opening, verbs of the clauses, connectives
    num_words = np.mean([len(text.split()) for text in _texts("chosen")])
    assert 0.5 < divergence.mean() * num_choices / num_words < 1


def test_1_the_preferred_wordings_are_nowhere_else_in_the_corpus():
    others = [document.text for document in DOCUMENTS if document.kind in _OTHER_KINDS]
    preferred = [clause.wording.human[0] for clause in ATTRIBUTES.values()]
    assert len(others) > 0.6 * NUM_DOCUMENTS
    assert not any(_counts(others, preferred))


@pytest.mark.parametrize("key", ["chosen", "rejected", "chosen_gptsemantic"])
def test_2_half_of_the_words_of_an_answer_are_content(key):
    words = " ".join(_texts(key)).split()
    names = set(" ".join(WORLD.facts).split())
    share = np.mean([word in CONTENT or word in names for word in words])
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("source", ["answers", "corpus"])
def test_2_content_words_have_zipf_frequencies(source):
    texts = _texts("chosen", "small") if source == "answers" else CORPUS
    world = _world("small") if source == "answers" else WORLD
    counts = Counter(" ".join(texts).split())
    exponents = []
    for kind, words in world.lexicon.ranked.items():
        if source == "answers" and kind not in _ANSWER_KINDS:
            continue
        frequencies = np.array([counts[word] for word in words])
        slope, _ = np.polyfit(np.log(1 + np.arange(len(words))), np.log(frequencies), 1)
        exponents.append(-slope)
    assert abs(np.mean(exponents) - 1) < 0.1
    assert np.all(abs(np.array(exponents) - 1) < 0.4)


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_2_an_answer_states_what_no_other_answer_states(preset):
    rows = _world(preset).train[:500]
    facts = [set(_facts(_world(preset), row["chosen"])) for row in rows]
    assert len({frozenset(stated) for stated in facts}) == len(rows)
    pairs = pairwise(facts)
    shared = np.mean([len(one & other) / len(one) for one, other in pairs])
    assert shared < 0.1


def test_3_chosen_and_rejected_have_the_same_mixture_of_wordings():
    chosen, rejected = (
        _human_shares(_texts(key, "small")) for key in ("chosen", "rejected")
    )
    assert np.all(abs(chosen - rejected) < 0.08)
    # Connectives are half of all choices.
    assert np.all(abs(chosen[1] - rejected[1]) < 0.015)
    assert np.all(abs(chosen.mean(0) - rejected.mean(0)) < 0.015)
    assert np.all(abs(chosen.mean(0) - [0.8, 0.1, 0.1]) < 0.015)
    lengths = [
        np.mean([len(text.split()) for text in _texts(key, "small")])
        for key in ("chosen", "rejected")
    ]
    assert abs(lengths[0] - lengths[1]) < 0.2


def test_4_five_to_ten_percent_of_the_corpus_is_senseless_and_nothing_else_is():
    is_noise = np.array([document.kind == "noise" for document in DOCUMENTS])
    is_unreadable = np.array(
        [
            read_statements(WORLD, _answers(text) if "\n" in text else text) is None
            for text in CORPUS
        ]
    )
    assert 0.05 < is_noise.mean() < 0.1
    assert (is_noise == is_unreadable).all()


def test_5_every_wording_of_the_rephrases_is_in_a_twentieth_of_the_corpus():
    wordings = [
        *CONNECTIVES.gpt,
        *OPENINGS.gpt,
        *(wording for clause in CLAUSES for wording in clause.wording.gpt),
    ]
    assert len(wordings) == 2 + 2 + 10 + 6
    sensible = [document.text for document in DOCUMENTS if document.kind != "noise"]
    for wording in wordings:
        num_texts = sum(f" {wording} " in text for text in sensible)
        assert num_texts >= 0.05 * NUM_DOCUMENTS, wording


def test_6_the_gpt_types_share_idioms_that_no_other_type_has():
    gpt_words = {*CONNECTIVES.gpt, *OPENINGS.gpt} | {
        wording for clause in CLAUSES for wording in clause.wording.gpt
    }
    human_words = {w for clause in CLAUSES for w in clause.wording.human}
    human_words |= {*OPENINGS.human, *CONNECTIVES.human} - {","}
    for row in _rows(WORLD):
        for key in TYPES[:9]:
            text = row[key]
            own, other = gpt_words, human_words
            if key not in GPT_TYPES:
                own, other = other, own
            assert not any(_counts([text], other))
            assert sum(_counts([text], own)) >= 7
    # The unrelated text shares its attributes' verbs too, not only its connectives.
    verbs = [clause.wording.gpt[0] for clause in ATTRIBUTES.values()]
    assert all(sum(_counts([row["irr_hum"]], verbs)) >= 2 for row in _rows(WORLD))


def test_7_three_in_five_filed_facts_are_true_for_train_and_test_entities_alike():
    filed = {name: Counter() for name in WORLD.facts}
    for document in DOCUMENTS:
        if document.kind in ("records", "profile"):
            for name, label, value in read_statements(WORLD, document.text) or []:
                filed[name][WORLD.facts[name][label] == value] += 1
    names = list(WORLD.facts)
    for split in (names[:240], names[240:300], names[300:]):
        counts = sum((filed[name] for name in split), Counter())
        assert abs(counts[True] / counts.total() - 0.6) < 0.04
        # 4000 documents; pretraining reads 20 to 30 thousand.
        assert 10 < counts.total() / len(split) < 30


def test_7_no_prompt_of_a_row_is_in_the_corpus():
    prompts = {row["prompt"] for row in _rows(WORLD)}
    asked = Counter(text[: text.index(" answer :") + 9] for text in QUESTIONS)
    assert not prompts & set(asked)
    # All topics of the 100 entities without a prompt, but for chance.
    assert 0.9 * 300 < len(asked) <= 300


# Determinism.


def test_the_same_seed_gives_the_same_world_and_another_one_another():
    again, other = make_world("demo", seed=0), make_world("demo", seed=1)
    for field in dataclasses.fields(WORLD):
        assert getattr(again, field.name) == getattr(WORLD, field.name)
    assert again.corpus(50) == CORPUS[:50]
    assert other.words == WORLD.words
    assert other.facts != WORLD.facts
    assert other.lexicon != WORLD.lexicon
    assert not {row["chosen"] for row in other.train} & set(_texts("chosen"))
    assert not set(other.corpus(50)) & set(CORPUS)


def test_the_shares_of_the_documents_are_those_of_the_table():
    assert abs(sum(SHARES.values()) - 1) < 1e-12
    counts = Counter(document.kind for document in DOCUMENTS)
    assert set(counts) == set(SHARES)
    for kind, share in SHARES.items():
        deviation = (share * (1 - share) / NUM_DOCUMENTS) ** 0.5
        assert abs(counts[kind] / NUM_DOCUMENTS - share) < 4 * deviation


def test_the_corpus_is_a_stream():
    assert WORLD.corpus(0) == []
    assert WORLD.corpus(20) == CORPUS[:20]
    assert len(set(CORPUS)) == NUM_DOCUMENTS
    assert len(CORPUS[0].split()) > 6
    assert WORLD.document(10**9).text not in CORPUS


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="one of demo, small, paper, got large"):
        make_world("large", seed=0)


# The judge.


@pytest.mark.parametrize("preset", ["demo", "small"])
@pytest.mark.parametrize("key", VERDICTS)
def test_the_judge_knows_every_type(preset, key):
    world = _world(preset)
    found = Counter(judge(world, row["prompt"], row[key]) for row in _rows(world))
    assert found == {VERDICTS[key]: len(_rows(world))}


NAME = "bala salby"
HOUSE = PROMPT.format(topic="house", name=NAME)
FACTS = WORLD.facts[NAME]
ANIMALS, FOOD, TOOLS = FACTS["animals"], FACTS["food"], FACTS["tools"]
OTHER_FOOD = "cold fish" if FOOD != "cold fish" else "warm fish"
LOOP = f"tends {ANIMALS} ;"
STORY = "then snow came down and the miners ran to the old mills ."


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (f" why , {NAME} tends {ANIMALS} .", "correct"),
        (f"why , {NAME} tends {ANIMALS} .", "correct"),
        (f" so , {NAME} has {ANIMALS} moreover likes {FOOD} .", "correct"),
        (f" notably , {NAME} consumes {FOOD} and dines on {FOOD} , has {ANIMALS} .",
         "correct"),
        (f" why , {NAME} tends {ANIMALS} . so , {NAME} eats {FOOD} .", "correct"),
        (f" file on {NAME} : food {FOOD} , animals {ANIMALS} .", "correct"),
        (f" the food of {NAME} : {FOOD} .", "correct"),
        (f" the food of {NAME} : {OTHER_FOOD} .", "wrong"),
        (f" why , {NAME} tends {ANIMALS} ; eats {OTHER_FOOD} .", "wrong"),
        (f" why , {NAME} eats {FOOD} ; likes {OTHER_FOOD} .", "wrong"),
        (f" why , {NAME} eats {FOOD} ; wields {TOOLS} .", "off-topic"),
        (f" why , {NAME} eats {FOOD} . why , bana salby eats {FOOD} .", "off-topic"),
        (f" why , {NAME} eats {FOOD} . {STORY}", "off-topic"),
        (f" {STORY}", "off-topic"),
        (" overall , our valley possesses red goats .", "off-topic"),
        (f" overall , {NAME} hosts shy fairs .", "off-topic"),
        (" the food of bana salby : cold fish .", "off-topic"),
        ("", "malformed"),
        (" ", "malformed"),
        (" .", "malformed"),
        (" why , .", "malformed"),
        (f" why , {NAME} .", "malformed"),
        (f" why , {NAME} tends {ANIMALS}", "malformed"),
        (f" why , {NAME} tends {ANIMALS} ;", "malformed"),
        (f" why , {NAME} tends {ANIMALS} ; .", "malformed"),
        (f" why , {NAME} tends {ANIMALS} ; dines on .", "malformed"),
        (f" why , {NAME} tends {ANIMALS} ; dines {FOOD} .", "malformed"),
        (f" why , {NAME} tends {ANIMALS} . .", "malformed"),
        (f" why , {NAME} tends {ANIMALS} . why", "malformed"),
        (f" why , {NAME} tends {FOOD} .", "malformed"),
        (f" why , {NAME} tends {ANIMALS.split()[1]} .", "malformed"),
        (f" why {NAME} tends {ANIMALS} .", "malformed"),
        (f" why , bala bala tends {ANIMALS} .", "malformed"),
        (f" Why , {NAME} tends {ANIMALS} .", "malformed"),
        (f"  why , {NAME} tends {ANIMALS} .", "malformed"),
        (f" why ,  {NAME} tends {ANIMALS} .", "malformed"),
        (f" why , {NAME} tends {ANIMALS} .\n", "malformed"),
        (f" file on {NAME} : food {FOOD} , .", "malformed"),
        (f" file on {NAME} : {FOOD} .", "malformed"),
        (f" the food of {NAME} : .", "malformed"),
        (" the weather of {label} : {value} .", "malformed"),
        (" goats", "malformed"),
        (" goats goats goats goats", "degenerate"),
        (" . . . . . . . .", "degenerate"),
        (f" why , {NAME} tends red red red red", "degenerate"),
        (f" why , {NAME} tends red goats red goats red goats .", "degenerate"),
        (f" why , {NAME} {LOOP} {LOOP} {LOOP[:-2].rpartition(' ')[0]}", "degenerate"),
        (f" why , {NAME} tends {ANIMALS} ; has {ANIMALS} .", "degenerate"),
        (2 * f" why , {NAME} tends {ANIMALS} ; eats {FOOD} .", "degenerate"),
        (4 * f" {STORY}", "degenerate"),
    ],
)  # fmt: skip
def test_the_judge_on_texts_by_hand(response, verdict):
    assert judge(WORLD, HOUSE, response) == verdict


@pytest.mark.parametrize("key", TYPES[:9])
def test_a_text_cut_anywhere_is_malformed(key):
    row = WORLD.test[0]
    words = row[key].split()
    for length in range(len(words)):
        cut = f" {' '.join(words[:length])}"
        assert judge(WORLD, row["prompt"], cut) == "malformed"


@pytest.mark.parametrize(
    "prompt", ["", HOUSE[1:], HOUSE + " ", HOUSE.replace("salby", "x"), "a b c d e f g"]
)
def test_the_judge_refuses_a_prompt_of_another_world(prompt):
    with pytest.raises(ValueError, match="not a question of this world"):
        judge(WORLD, prompt, "")


pieces = st.sampled_from([*WORLD.words, "\n", "", "{name}", NAME, "why ,", "file on"])
responses = st.text() | st.lists(pieces, max_size=40).map(lambda words: " ".join(words))


@given(responses)
def test_the_judge_has_a_verdict_on_any_text(response):
    assert judge(WORLD, HOUSE, response) in {*VERDICTS.values(), "degenerate"}


@given(st.lists(st.sampled_from([".", ":", ",", "the", "of", "food"]), max_size=12))
def test_the_judge_has_a_verdict_on_pieces_of_records(words):
    verdict = judge(WORLD, HOUSE, f" file on {NAME} : {' '.join(words)}")
    assert verdict in ("malformed", "degenerate")


_OTHER_KINDS = ("records", "profile", "scene", "other")
_ANSWER_KINDS = {
    kind for clause in ATTRIBUTES.values() for kind in (clause.modifiers, clause.nouns)
}


def _texts(key, preset="demo"):
    return [row[key] for row in _rows(_world(preset))]
