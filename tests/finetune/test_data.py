"""Data of every type on the way to a run: examples, batches, probes, runs."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from ldjax.data.conversation import Conversation
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import fill_types
from ldjax.data.tokenizers import train_word_level
from ldjax.finetune import run as finetune
from ldjax.finetune.rows import cropped, training_rows
from ldjax.finetune.settings.records import Objective, Texts, Tokens
from ldjax.finetune.texts import Encoder, find_lengths, load_texts
from ldjax.losses import make_loss
from ldjax.models import Pretrained, Transformer, llama_config, save

TOKENIZER = train_word_level(["why is it so no yes ? . Human: Assistant: a b c d \n"])
ENCODE = Encoder(TOKENIZER, max_length=64, max_prompt_length=32)


def row(prompt, place=1, **responses):
    return PreferenceRow(prompt, responses, f"a:{place}")


def turn(role, content):
    return {"role": role, "content": content}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_of_language_modelling_is_scored_whole_and_unchanged():
    text = "why is it so ?"
    (example,) = ENCODE(row("", chosen=text)).examples.values()
    assert list(example.prompt_ids) == [TOKENIZER.start_id]
    assert list(example.response_ids) == [*TOKENIZER.encode(text), TOKENIZER.end_id]
    # What spells the token that documents begin with, and means it, begins once.
    spelled = f"{TOKENIZER.special_tokens.end}why"
    reading = Encoder(TOKENIZER, 64, 32, Tokens(special_tokens="read"))
    (example,) = reading(row("", chosen=spelled)).examples.values()
    assert list(example.prompt_ids) == [TOKENIZER.start_id]
    assert list(example.response_ids) == [*TOKENIZER.encode("why"), TOKENIZER.end_id]
    with pytest.raises(ValueError, match="a:1: the prompt has no token"):
        Encoder(TOKENIZER, 64, 32, Tokens(document_start=False))(row("", chosen=text))


def test_texts_without_prompts_are_other_texts_to_each_other():
    rows = [row("", 1, chosen="why is"), row("", 2, chosen="it so")]
    unseen = [row("", 3, chosen="a b")]
    first, second = fill_types(rows, seed=0, unseen=unseen)
    assert first.responses["irr_train"] == "it so"
    assert first.responses["irr_test"] == second.responses["irr_test"] == "a b"
    assert first.responses["random_permute"] == "is why"


def test_a_row_of_one_side_is_filled_and_read():
    rows = [row("why", 1, chosen=" a b"), row("is", 2, rejected=" c d")]
    filled = fill_types(rows, seed=0)
    assert list(filled[1].responses) == ["rejected", "irr_train"]
    assert filled[1].responses["irr_train"] == " a b"
    only = row("why is")
    assert list(ENCODE(only).examples) == []
    assert list(ENCODE.prompt_ids(only)) == [
        TOKENIZER.start_id,
        *TOKENIZER.encode("why is"),
    ]


#: Of four prompts the sides that there are.
SIDES = [("chosen",), ("rejected",), ("rejected",), ("chosen", "rejected")]


def unpaired():
    words = {"chosen": " yes it", "rejected": " no ."}
    rows = [
        row("why", n, **{side: words[side] for side in sides})
        for n, sides in enumerate(SIDES)
    ]
    return training_rows(rows, ENCODE, target=None, max_length=8)[0]


def test_a_side_that_a_row_lacks_has_nothing_scored():
    rows = unpaired()
    for side, batch in rows.items():
        assert batch.mask.any(1).tolist() == [side in sides for sides in SIDES]
    only = jax.tree.map(lambda leaf: leaf[:1], rows)
    assert not only["rejected"].mask.any()
    batch = cropped(lambda step: only)(0)
    assert batch["chosen"].mask.sum() == only["chosen"].mask.sum()


def test_kto_of_unpaired_rows_is_the_mean_over_the_responses_that_there_are():
    """Loss and gradient are those of each response alone, against one point."""
    rng = np.random.default_rng(0)
    batch = {
        side: jax.tree.map(jnp.asarray, each)._replace(
            reference=jnp.asarray(rng.normal(size=4) - 9)
        )
        for side, each in unpaired().items()
    }
    logits = {
        side: jnp.asarray(rng.normal(size=(*each.mask.shape, TOKENIZER.vocab_size)))
        for side, each in batch.items()
    }
    loss_fn = make_loss("kto", reduction="responses")
    found, grads = jax.value_and_grad(loss_fn)(logits, batch)
    ratios = {}
    for side, each in batch.items():
        log_probs = np.asarray(jax.nn.log_softmax(logits[side]))
        picked = np.take_along_axis(log_probs, np.asarray(each.targets)[..., None], -1)
        sums = (picked[..., 0] * np.asarray(each.mask)).sum(1)
        is_there = np.asarray(each.mask).any(1)
        ratios[side] = (sums - np.asarray(each.reference))[is_there]
    point = max(np.concatenate([*ratios.values()]).mean(), 0)
    gaps = [0.1 * (ratios["chosen"] - point), 0.1 * (point - ratios["rejected"])]
    losses = 1 - 1 / (1 + np.exp(-np.concatenate(gaps)))
    assert len(losses) == 5
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-12)
    twice = make_loss("kto")(logits, batch)
    np.testing.assert_allclose(twice, 2 * losses.mean(), rtol=1e-12)
    assert not np.asarray(grads["chosen"])[1:3].any()
    assert not np.asarray(grads["rejected"])[0].any()


def test_a_file_that_the_loss_does_not_take_is_refused_in_a_line(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": "why", "completion": " a"}])
    texts = Texts(data=str(file))
    assert load_texts(texts, Objective("sft"), seed=0).told == (
        f"{file}: 1 rows, prompt-completion, as text",
    )
    with pytest.raises(ValueError, match=r"prompt-completion .*the loss dpo takes"):
        load_texts(texts, Objective("dpo"), seed=0)


def test_splits_and_prompts_that_are_watched_only(tmp_path):
    lines(tmp_path / "train.jsonl", [{"prompt": "why", "completion": " a"}] * 3)
    lines(tmp_path / "test.jsonl", [{"prompt": "is it"}])
    texts = Texts(data=str(tmp_path), test_data=tmp_path)
    found = load_texts(texts, Objective("sft"), seed=0)
    assert [len(found.train), len(found.test)] == [3, 1]
    assert "split train of train, test): 3 rows" in found.told[0]
    assert "split test of train, test): 1 rows, prompt-only" in found.told[1]
    assert find_lengths(found, ENCODE).given == 4


def test_messages_after_a_text_are_read_as_before_without_a_template(tmp_path):
    sides = {"chosen": " yes", "rejected": "no"}
    content = {"prompt": "why\n"} | {
        side: [turn("user", "why\n"), turn("assistant", text)]
        for side, text in sides.items()
    }
    file = lines(tmp_path / "a.jsonl", [content] * 2)
    found = load_texts(Texts(data=str(file)), Objective("dpo"), seed=0)
    assert isinstance(found.train[0].prompt, Conversation)
    plain = found.read_by(ENCODE)
    assert plain.train[0].prompt == "Human: why\n\nAssistant:"
    assert plain.train[0].responses == {"chosen": " yes", "rejected": " no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, drawn."""
    config = llama_config(
        vocab_size=TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2
    )
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    path = tmp_path_factory.mktemp("hub") / "tiny"
    save(path, Pretrained(model, params["params"], config, TOKENIZER))
    return path


def contents(kind, form, count=8):
    """Rows of a type."""
    made = []
    for n in range(count):
        words = [f"why is {letter} ?" for letter in "abcd"]
        prompt: Any = words[n % 4]
        yes: Any = f" yes {'it ' * n}"
        no: Any = f" no {'so ' * n}"
        if form == "messages":
            prompt = [turn("user", prompt)]
            yes, no = ([turn("assistant", text)] for text in (yes, no))
        made.append(
            {
                "completion": {"prompt": prompt, "completion": yes},
                "pair": {"prompt": prompt, "chosen": yes, "rejected": no},
                "implicit": {"chosen": prompt + yes, "rejected": prompt + no},
                "unpaired": {
                    "prompt": prompt,
                    "completion": (yes, no)[n % 2],
                    "label": n % 2 == 0,
                },
                "language": {
                    "text" if form == "text" else "messages": prompt + yes,
                },
            }[kind]
        )
    return made


RUNS = [
    ("kto", "unpaired", "text", "json"),
    ("sft", "completion", "messages", "parquet"),
    ("sft", "language", "text", "csv"),
    ("sft", "completion", "text", "tsv"),
    ("sft", "language", "messages", "parquet"),
    ("dpo", "pair", "text", "arrow"),
    ("dpo", "pair", "messages", "json"),
    ("dpo", "implicit", "text", "parquet"),
    ("dpo", "implicit", "messages", "jsonl"),
    ("kto", "unpaired", "messages", "parquet"),
    ("reinforce", "pair", "messages", "parquet"),
]


@pytest.mark.parametrize(
    ("loss", "kind", "form", "suffix"),
    [
        # Messages are trained on in `test_chat.py`, too.
        pytest.param(*run, marks=pytest.mark.exhaustive if n else pytest.mark.slow)
        for n, run in enumerate(RUNS)
    ],
)
def test_a_run_from_a_folder_of_any_type(tmp_path, folder, loss, kind, form, suffix):
    data = tmp_path / "data"
    data.mkdir()
    rows, file = contents(kind, form), data / f"train.{suffix}"
    match suffix:
        case "csv" | "tsv":
            pl.DataFrame(rows).write_csv(file, separator=",\t"[suffix == "tsv"])
        case "parquet":
            pl.DataFrame(rows).write_parquet(file)
        case "arrow":
            pl.DataFrame(rows).write_ipc_stream(file)
        case _:
            file.write_text(json.dumps(rows))
    lines(data / "test.jsonl", [{"prompt": "why it ?"}] * 3)
    told = []
    run = finetune.finetune(
        finetune.Config.of(
            loss=loss,
            data=str(data),
            test_data=data,
            model=str(folder),
            out=tmp_path / "run",
            cache=tmp_path / "cache",
            epochs=2.0,
            nodes=1,
            token_maps=0,
            smoke=True,
        ),
        tell=told.append,
    )
    assert run.holds
    first = str(told[0])
    assert f"{data} (split train of train, test): 8 rows" in first
    assert "prompt-only, as text" in first
    types = set(run.run.metrics()["type"].unique())
    assert "chosen_initial" in types
    assert ("rejected" in types) == (loss != "sft")
