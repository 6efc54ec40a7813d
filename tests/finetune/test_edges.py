"""Data and settings at their ends: what is small, equal or extreme still runs."""

import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from shell.scripts import run_script
from zoo.cases import apply_toy, sentences, toy_params
from zoo.watched import watched_only

from ldjax.data.batches import Example
from ldjax.data.tokenizers import train_word_level
from ldjax.finetune import results
from ldjax.finetune import run as finetune
from ldjax.finetune.track.observers import make_observers
from ldjax.finetune.track.step import make_tracked_step
from ldjax.losses import sft
from ldjax.models import Pretrained, Transformer, llama_config, load, save
from ldjax.runs.folder import open_run
from ldjax.watch.probes import Probe, ProbeSet

QUESTION = "is the number {} in the list I wrote for you last week , or is it not in ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, drawn, which hardly ever says END."""
    tokenizer = train_word_level([QUESTION.format(i) + " yes no" for i in range(20)])
    config = llama_config(
        vocab_size=tokenizer.vocab_size, width=16, num_layers=1, num_heads=2
    )
    model = Transformer(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    path = tmp_path_factory.mktemp("hub") / "tiny"
    save(path, Pretrained(model, params, config, tokenizer))
    return path


def probe_of(prompt, type_):
    return Probe(f"tracked/{prompt}", type_, Example((prompt, 2), (3, 1)))


def order_of(loss_fn):
    """The order check of a toy model whose loss may be flat."""
    tracked = ProbeSet.of(
        [probe_of(i, "chosen") for i in (0, 1)], max_length=4, batch_size=None
    )
    init, step = make_tracked_step(apply_toy, loss_fn, optax.sgd(0.1), tracked)
    observers = make_observers(
        apply_toy,
        watched_only(tracked),
        num_steps=2,
        evaluations=1,
        probe_batch_size=8,
        is_explained=False,
    )
    state = init(toy_params())
    return observers["order"].observe(state, *step(state, sentences(6, 3, 4)))


def test_the_order_of_an_update_that_moves_nothing_is_none():
    assert order_of(lambda logits, batch: 0.0 * logits.sum()) == {}
    assert order_of(sft)["remainder_ratio"] > 3
    check = results.check_order([])
    assert check.holds
    assert "nothing moved" in check.text
    assert not results.check_order([4.0, 3.0]).holds


def test_a_run_in_which_nothing_moved_keeps_its_identities():
    nothing = {k: np.zeros((3, 2)) for k in ("predicted", "measured", "floor")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        series = {"part:update": nothing["predicted"], **nothing}
        ends = {"log_prob": np.zeros((2, 2))}
        checks = results.check_identities({"train": series}, ends)
    assert all(check.holds for check in checks)
    assert all(np.isfinite(check.numbers["value"]) for check in checks)


def test_a_model_of_nans_is_named_before_it_is_trained(folder, tmp_path):
    found = load(folder)
    leaves, structure = jax.tree.flatten(found.params)
    leaves[-1] = leaves[-1].at[..., :2].set(jnp.nan)
    save(tmp_path / "bad", found._replace(params=structure.unflatten(leaves)))
    config = finetune.Config.of(
        model=str(tmp_path / "bad"),
        data=str(write_pairs(tmp_path / "pairs.jsonl", 8 * [("yes", "no")])),
        out=tmp_path / "run",
        cache=tmp_path,
    )
    with pytest.raises(ValueError, match="that are no numbers") as error:
        finetune.finetune(config)
    assert re.search(r"\w+ has \d+ of \d+ that are NaN", str(error.value))
    assert "learning rate" not in str(error.value)
    assert not (tmp_path / "run").exists()


def write_pairs(path, pairs):
    """A file of questions with a chosen and a rejected answer each."""
    rows = [
        {"prompt": QUESTION.format(i), "chosen": chosen, "rejected": rejected}
        for i, (chosen, rejected) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finetuned(tmp_path, folder, pairs, *options):
    """The run, and what it printed."""
    data, out = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "run"
    result = run_script(
        *("finetune.py", "--data", data, "--model", folder, "--out", out),
        *("--probe-prompts", 3, "--tracked", 2, "--token-maps", 1),
        *("--evaluations", 2, "--batch-size", 4, "--cache", tmp_path, *options),
        cache=tmp_path.parent / "compiled",
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return open_run(out), result.stdout


def texts_of(run):
    """The watched texts by prompt and type."""
    lines = (run.path / "probes.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {(line["probe"], line["type"]): line for line in found}


@pytest.mark.slow
def test_pairs_that_answer_yes_or_no_and_say_the_same_are_a_run(tmp_path, folder):
    # Chosen is rejected: the sides cancel but for a rounding, which a tiny rate
    # swallows. The samples are longer than all other texts.
    run, told = finetuned(
        *(tmp_path, folder, 8 * [("yes", "yes")]),
        *("--loss", "dpo", "--recipe", "slow", "--clip", "inf", "--epochs", 1),
        *("--learning-rate", 1e-30),
    )
    settings, summary = run.config["settings"], run.summary
    assert settings["clip"] == "inf"
    texts = texts_of(run)
    by_type = {type_: line for (_, type_), line in texts.items()}
    assert by_type["chosen_initial"]["num_tokens"] > by_type["chosen"]["num_tokens"]
    # No row has another answer, and one word has one order.
    assert summary["data"]["left_out"] == {"irr_train": 8, "random_permute": 8}
    assert {"irr_train", "random_permute"}.isdisjoint(by_type)
    assert "left out: irr_train of 8, random_permute of 8 prompts" in told
    measured, floor = (
        run.metrics().filter(pl.col("quantity") == quantity)["value"].to_numpy()
        for quantity in ("measured", "floor")
    )
    assert (abs(measured) <= floor).all()
    assert summary["fidelity"]["all"]["r_squared"] is None
    assert summary["fidelity"]["margin"]["remainder_ratio"] is None
    assert "nothing moved" in told
    assert " nan" not in told
    assert all(check["holds"] for check in summary["identities"])


@pytest.mark.slow
def test_one_row_and_one_update_are_a_run(tmp_path, folder):
    run, told = finetuned(
        *(tmp_path, folder, [("yes", "no")]),
        *("--batch-size", 1, "--epochs", 1, "--tracked", 1, "--keep", "start"),
        *("--max-length", 30, "--max-prompt-length", 20),
        *("--no-one-step", "--token-maps", 0),
    )
    settings = run.config["settings"]
    assert (settings["max_length"], settings["max_prompt_length"]) == (30, 20)
    # The question is of more tokens than are asked for: it has all of those.
    tokens = np.load(run.path / "tokens.npz")
    first = [np.flatnonzero(row)[0] for row in tokens["mask_0"]]
    assert {int(place) for place in first} == {19}
    assert max(map(len, told.splitlines())) < 200
    assert run.summary["fidelity"]["chosen"]["r_squared"] is None


@pytest.mark.slow
def test_a_run_made_before_goes_on_by_first_order(tmp_path, folder):
    """Its settings say nothing of nodes and dates, nor does its table."""
    how = (folder, 8 * [("yes", "no")], "--loss", "dpo", "--epochs", 1)
    run, _ = finetuned(
        *(tmp_path, *how, "--nodes", 0, "--history", "whole", "--checkpoint-every", 1)
    )
    metrics, config = run.metrics(), run.config
    assert (config["settings"]["nodes"], config["settings"]["history"]) == (None, None)
    for name in ("nodes", "history", "tolerance"):
        del config["settings"][name]
    (run.path / "config.json").write_text(json.dumps(config))
    shutil.rmtree(max((run.path / "checkpoints").iterdir()))
    again, told = finetuned(tmp_path, *how, "--resume")
    assert again.metrics().equals(metrics)
    assert "derivatives at the start of each update, history whole" in told
    assert {"predicted", "part:history"} <= set(metrics["quantity"])
    assert "integrated" not in set(metrics["quantity"])
    assert again.summary["balance"] == {}


@pytest.mark.slow
def test_a_run_that_was_begun_without_dates_gets_none(folder, tmp_path):
    """Its checkpoints have no moments by where they come from."""
    out = tmp_path / "run"
    options = {
        **{"out": out, "cache": tmp_path, "model": str(folder), "loss": "dpo"},
        "data": str(write_pairs(tmp_path / "pairs.jsonl", 8 * [("yes", "no")])),
        **{"epochs": 1.0, "batch_size": 4, "checkpoint_every": 1, "nodes": 0},
        **{"probe_prompts": 1, "tracked": 1, "token_maps": 0, "one_step": False},
    }
    finetune.finetune(finetune.Config.of(history="whole", evaluations=1, **options))
    shutil.rmtree(out / "checkpoints" / "2")

    def refused(message, **others):
        there = contents(out)
        config = finetune.Config.of(resume=True, evaluations=1, **options, **others)
        with pytest.raises(ValueError, match=message) as error:
            finetune.finetune(config)
        assert "\n" not in str(error.value)
        assert contents(out) == there

    refused("begun with `history=whole`, not `history=dated`", history="dated")
    # Nor where its settings say that it has some.
    config = open_run(out).config
    config["settings"]["history"] = "dated"
    (out / "config.json").write_text(json.dumps(config))
    refused(r"checkpoint of step 1 .*origins/\S+ is nothing there")


def contents(folder):
    """The bytes of every file but the lock."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in files}
