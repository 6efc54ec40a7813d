"""The experiments on models in folders of Hugging Face, and on names of the hub."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from shell.scripts import ROOT, run_script

from ldjax.cli import COMMANDS
from ldjax.command.options import changed
from ldjax.data.tokenizers import SpecialTokens, train_bpe
from ldjax.data.world.world import make_world
from ldjax.equation.subset import split
from ldjax.finetune import budget, start
from ldjax.finetune.settings import config as settings
from ldjax.models import (
    Pretrained,
    Transformer,
    gpt2_config,
    is_adapter,
    llama_config,
    load,
    neox_config,
    qwen2_config,
    save,
)
from ldjax.models.hub.parameters import abstract_params

HERE = Path(__file__).parent
NO_TOKENIZER: Any = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama that knows END by another name than ldjax's own models."""
    texts = [text for row in make_world("demo", seed=0).train for text in row.values()]
    end = SpecialTokens("</s>", None)
    tokenizer = train_bpe(texts, vocab_size=300, special_tokens=end)
    # More rows than tokens, as Pythia and Qwen have.
    config = llama_config(
        vocab_size=tokenizer.vocab_size + 5, width=16, num_layers=1, num_heads=2
    )
    model = Transformer(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    path = tmp_path_factory.mktemp("hub") / "tiny"
    save(path, Pretrained(model, params, config, tokenizer))
    return path


@pytest.mark.slow
def test_adapters_of_a_folder_are_trained_alone_watched_and_loaded_back(
    folder, tmp_path
):
    out = tmp_path / "run"
    options = ("--lora-rank", 2, "--dtype", "bfloat16", "--max-length", 48)
    result = run_script(
        *("finetune.py", "--smoke", "--model", folder, *options, "--out", out),
        *("--cache", tmp_path, "--no-one-step"),
        HF_HUB_OFFLINE="1",  # whatever network the machine has
    )
    assert result.returncode == 0, result.stderr + result.stdout
    assert "FAILS" not in result.stdout
    base, trained, adapters = map(load, (folder, out, out / "adapter"))
    assert adapters.config == trained.config
    assert adapters.tokenizer is not None
    assert adapters.tokenizer.special_tokens.end == "</s>"
    chosen, frozen = split(trained.params, is_adapter)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), frozen, base.params)
    assert all(jax.tree.leaves(same))
    assert all(jax.tree.leaves(jax.tree.map(lambda x: bool(x.any()), chosen)))
    back = jax.tree.map(
        lambda a, b: bool((a == b).all()), adapters.params, trained.params
    )
    assert all(jax.tree.leaves(back))


@pytest.mark.parametrize(
    ("script", "options", "parts"),
    [
        ("finetune", {"model": "EleutherAI/pythia-410m"}, ["hf download"]),
        (
            "pipeline",
            {"model": "EleutherAI/pythia-410m", "data": "hh-helpful-base"},
            ["hf download", "dataset", "--data FOLDER/helpful-base/train.jsonl.gz"],
        ),
        ("pipeline", {"model": "EleutherAI/pythia-410m"}, ["hf download"]),
        ("kernel", {"model": "EleutherAI/pythia-70m"}, ["hf download"]),
        ("finetune", {"model": "./nowhere/model"}, ["no folder nowhere/model"]),
        ("finetune", {"model": "pythia"}, ["0.1M", "EleutherAI/pythia-410m"]),
        ("finetune", {"model": "a b/c"}, ["cannot be the name of a model"]),
    ],
)
def test_a_model_that_is_not_there_is_one_message(
    monkeypatch, script, options, parts, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    module = importlib.import_module(COMMANDS[script][0])
    places = {"out": tmp_path / "run", "cache": tmp_path / "cache"}
    config = changed(module.Config(), **options, **places)
    with pytest.raises(SystemExit) as caught:
        module.main(config)
    message = str(caught.value)
    assert message.startswith(f"{script}: ")
    for part in parts:
        assert part in message
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["pythia-410m", "qwen1.5-0.5b"])
def test_the_papers_runs_fit_a_gpu_of_80_gigabytes(name):
    # In a process of its own: where every call is type-checked it takes minutes.
    code = f"import test_models as t; t.plan_the_papers_run({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))},
    )
    assert done.returncode == 0, done.stderr


def plan_the_papers_run(name):
    model = {
        "pythia-410m": neox_config(
            vocab_size=50304, num_layers=24, width=1024, num_heads=16
        ),
        "qwen1.5-0.5b": qwen2_config(
            vocab_size=151936,
            num_layers=24,
            width=1024,
            num_heads=16,
            num_kv_heads=16,
            mlp_width=2816,
        ),
    }[name]
    preset = settings.PRESETS_OF_THE_PAPER[name]
    config = settings.Config.of(**preset, loss="dpo").resolved()
    config.check()
    recipe = config.recipe
    assert (recipe.optimizer, recipe.learning_rate) == ("rmsprop", 5e-7)
    assert (recipe.batch_size, recipe.clip, recipe.warmup_steps) == (4, 10.0, 150)
    trained = dataclasses.replace(model, dtype=config.model.dtype)
    shapes = abstract_params(model)
    base = start.Base(Transformer(model), Transformer(trained), shapes, NO_TOKENIZER)
    budget.default_limit = lambda: int(0.8 * 80e9)
    work = budget.Work(config.objective, recipe, max_length=512, num_tracked=12)
    plan = budget.fits(base, work)
    # Parameters and RMSprop's moments, to the byte but for its counters.
    assert plan.parts["parameters"] == 4 * base.num_params
    assert abs(plan.parts["optimizer"] - 4 * base.num_params) <= 64
    assert plan.total <= 0.8 * 80e9


def test_fewer_probes_at_a_time_are_taken_until_it_fits_or_it_is_refused(monkeypatch):
    config = settings.Config()
    work = budget.Work(config.objective, config.recipe, max_length=64, num_tracked=12)
    model = Transformer(gpt2_config(vocab_size=1000, num_layers=1))
    shapes = abstract_params(model.config)
    base = start.Base(model, model, shapes, NO_TOKENIZER)

    tried = []

    def parts(base, work, probes):
        tried.append(probes)
        small = {"parameters": 10**6, "optimizer": 10**6, "update": 10**6}
        return small | {"observation": probes * 10**6}

    def plan(limit):
        monkeypatch.setattr(budget, "default_limit", lambda: limit)
        return budget.fits(base, work)

    monkeypatch.setattr(budget, "_parts", parts)
    monkeypatch.setattr(budget, "_process_bytes", lambda base: 3 * 10**6)
    roomy, tight = plan(10**12), plan(23 * 10**6)
    tried.clear()
    with pytest.raises(MemoryError, match=r"does not fit: .* 1 MB to use\. Choose"):
        plan(10**6)
    assert not roomy.parts
    assert roomy.probes == budget.MOST_PROBES
    # 1.8 times as much and the process: 2 and 6 MB fit into 23, 2 and 12 do not.
    assert tight.probes == 6
    assert tight.total == 3 * 10**6 + int(1.8 * 8 * 10**6)
    # That nothing fits is known by the smallest one, not by all of them.
    assert tried == [1]
    tried.clear()
    plan(23 * 10**6)
    # Those between two are not traced: a large model's plan takes seconds.
    assert tried == [1, budget.MOST_PROBES]


def test_a_preset_sets_the_defaults_of_a_command_and_what_is_given_counts(monkeypatch):
    def parsed(*args):
        monkeypatch.setattr(sys, "argv", ["finetune.py", *args])
        return settings.from_command_line(settings.Config, None)

    preset = ("--preset", "pythia-410m")
    plain, other = parsed(*preset), parsed(*preset, "--dtype", "float32")
    model, texts = plain.model, plain.texts
    assert (model.model, model.dtype) == ("EleutherAI/pythia-410m", "bfloat16")
    assert (texts.data, texts.max_rows) == (settings.HUB_DATA, 5000)
    assert plain.optimizer.recipe == "paper"
    assert other.model == dataclasses.replace(model, dtype="float32")
    assert parsed(*preset, "--init", "runs/sft").model.model is None
    assert parsed() == settings.Config()
