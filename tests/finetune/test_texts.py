"""What scripts do to texts: what a model drew, and what spells its special tokens."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from zoo.decoders import make_decoder

from ldjax.data.corpus.packed import make_corpus
from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.tokenizers import load_tokenizer, train_bpe, train_word_level
from ldjax.finetune.pretrain import run as pretrain
from ldjax.finetune.probes import add_initial, make_probes
from ldjax.finetune.rows import training_rows
from ldjax.finetune.start import Base
from ldjax.finetune.texts import Encoder
from ldjax.models.decoder.sampling import generate_sampled
from ldjax.studies import policies
from ldjax.studies.kernel import texts as kernel
from ldjax.studies.phenomena.on_policy import make_arms

ROWS = [PreferenceRow(f"a {'b' * i}", {"chosen": " a"}, f"a:{i}") for i in range(1, 7)]


ENDS = (0, 7, 11, 15)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Words that others are made of, and a second end token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["a", "b", "ab", "abab", "bb", " a", " b", " ab", " ba", "\n", " "]
    train_word_level([" a b ab ba\n", *words]).save(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    return load_tokenizer(folder, vocab_size=23)


@pytest.fixture
def base(tokenizer):
    model, params = make_decoder("llama", num_layers=1)
    return Base(model, model, params, tokenizer)


def encoder(tokenizer):
    return Encoder(tokenizer, max_length=64, max_prompt_length=32)


def test_the_ids_of_a_sample_are_those_that_were_drawn(base, tokenizer):
    encode = encoder(tokenizer)
    filled = add_initial(ROWS, base, encode, max_new_tokens=12, batch_size=4, seed=3)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(3), jnp.arange(len(ROWS))
    )
    drawn = generate_sampled(
        *(base.model, base.params),
        [list(encode(row).examples["chosen"].prompt_ids) for row in ROWS],
        key=keys,
        max_new_tokens=12,
        eos_id=ENDS,
    ).responses()
    watched = make_probes("train", filled, range(6), encode, ("chosen_initial",))
    assert [list(probe.example.response_ids) for probe in watched] == drawn
    # More than one of the ends ended some, and none of them is shown.
    assert len({ids[-1] for ids in drawn if len(ids) < 12}) > 1
    texts = [row.responses["chosen_initial"] for row in filled]
    for ids, text in zip(drawn, texts, strict=True):
        assert text == tokenizer.decode(ids[:-1] if ids[-1] in ENDS else ids)
    # The text alone would have become other ids.
    again = [tokenizer.encode(str(text)) for text in texts]
    shown = [[i for i in ids if i not in ENDS] for ids in drawn]
    assert sum(a == b for a, b in zip(again, shown, strict=True)) < len(ROWS) / 2


def test_a_policy_is_trained_on_the_ids_that_it_drew(base, tokenizer):
    unused: Any = None
    study = policies.Study(unused, unused, base, encoder(tokenizer), 24, unused)
    said = policies.responses(study, base.params, ROWS, key=jax.random.key(1))
    assert {type(text) for text in said} == {DrawnText}
    pairs = [*zip(said[:3], said[3:], strict=True)]
    full = [row._replace(responses=dict.fromkeys(TYPES, " a")) for row in ROWS[:3]]
    arms = make_arms(full, pairs)
    for row, pair in zip(arms["on"], pairs, strict=True):
        made = study.encode(row).examples
        for side, text in zip(("chosen", "rejected"), pair, strict=True):
            assert tuple(made[side].response_ids) == text.ids


TYPES = ("chosen", "rejected", "random_permute")


def test_prompts_are_read_by_the_tokenizer_of_the_model_that_answers(base, tokenizer):
    """Not by that of the model that is trained, whose ids mean other texts."""
    other = train_bpe(["a b"], vocab_size=260)
    filled = add_initial(
        ROWS, base, encoder(other), max_new_tokens=4, batch_size=6, seed=0
    )
    own = add_initial(
        ROWS, base, encoder(tokenizer), max_new_tokens=4, batch_size=6, seed=0
    )
    assert filled == own
    for row in filled:
        (ids, text) = (
            encoder(other)(row).examples["chosen_initial"].response_ids,
            row.responses["chosen_initial"],
        )
        assert other.decode(ids[:-1]) == f" {text.lstrip(' ')}"


def test_texts_that_spell_special_tokens_are_noted_by_the_kernel():
    base = kernel.random_model(0)
    config = kernel.Config(
        smoke=True,
        probe_prompt="question : <|endoftext|>",
        probe_text="why",
        update_text="why <|padding|>",
    )
    texts = {side: kernel.make_text(config, side, base) for side in kernel.SIDES}
    lines = kernel.describe(base, texts).splitlines()[1:]
    assert lines == [
        "note: special token '<|endoftext|>' of `probe_prompt` taken as text",
        "note: special token '<|padding|>' of `update_text` taken as text",
    ]
    read = kernel.make_text(
        dataclasses.replace(config, special_tokens="read"), "update", base
    )
    assert base.tokenizer.padding_id in read.example.response_ids


def test_documents_that_spell_special_tokens_are_noted():
    documents = [f"a b {i}" for i in range(9)] + ["<|endoftext|> b", "c"]
    corpus = make_corpus(
        documents,
        tokenizer="bpe",
        vocab_size=260,
        context=8,
        held_out_share=0.3,
        seed=0,
    )
    assert corpus.sizes["special_as_text"] == 1
    line = pretrain.describe(corpus, 10, 2)
    note = "\nnote: 1 documents spell special tokens, which are taken as text"
    assert line.endswith(f" updates{note}")
    corpus.sizes["special_as_text"] = 0
    assert pretrain.describe(corpus, 10, 2).endswith(" updates")


def test_notes_of_texts_are_counted_and_said_once(tokenizer):
    rows = [
        PreferenceRow("a <|endoftext|>", {"chosen": " a", "rejected": "a"}, "a:1"),
        PreferenceRow("a b", {"chosen": " a", "rejected": " a"}, "a:2"),
    ]
    counts = training_rows(rows * 2, encoder(tokenizer), target=None, max_length=64)[1]
    assert {name: n for name, n in counts.items() if not name.startswith("num")} == {
        "special token '<|endoftext|>' of 'prompt' taken as text": 2,
        "chosen and rejected differ in leading spaces, which are kept": 2,
        "chosen and rejected have the same tokens": 2,
    }
