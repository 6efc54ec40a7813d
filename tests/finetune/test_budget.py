"""The plan of a run's memory, against a whole trace and against a process."""

from typing import Any

import pytest
from shell.scripts import run_script

from ldjax.finetune import budget
from ldjax.finetune.settings.config import Config
from ldjax.finetune.start import Base
from ldjax.models import Transformer, llama_config
from ldjax.models.hub.parameters import abstract_params

EXHAUSTIVE = pytest.mark.exhaustive


def base_of(num_layers):
    config = llama_config(
        vocab_size=600, num_layers=num_layers, width=24, num_heads=3, num_kv_heads=1
    )
    model = Transformer(config)
    tokenizer: Any = None
    return Base(model, model, abstract_params(config), tokenizer)


@pytest.mark.parametrize("loss", ["sft", "dpo", "simpo", "reinforce", "grpo"])
def test_a_run_by_every_kind_of_loss_has_a_plan(loss):
    config = Config.of(loss=loss, batch_size=4)
    work = budget.Work(config.objective, config.recipe, max_length=9, num_tracked=8)
    parts = budget.make_plan(base_of(1), work, 4).parts
    assert parts["an update and its account"] > parts["parameters"]


@pytest.mark.parametrize("loss", ["sft", pytest.param("dpo", marks=EXHAUSTIVE)])
def test_a_plan_between_two_others_bounds_that_of_as_many_probes(loss):
    config = Config.of(loss=loss, batch_size=4)
    work = budget.Work(config.objective, config.recipe, max_length=33, num_tracked=6)
    least, most = (budget.make_plan(base_of(1), work, n) for n in (1, 16))
    for probes in (3, 12):
        there = budget.make_plan(base_of(1), work, probes)
        between = budget._between(least, most, probes, work.num_tracked)
        assert between.probes == probes
        for name, size in there.parts.items():
            # Probes in slices lie in memory twice, all at once they do not.
            assert size <= 1.04 * between.parts[name], (name, probes)
            assert between.parts[name] <= 1.25 * size, (name, probes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("loss", ["sft", "dpo", "grpo"])
def test_a_deep_model_is_planned_from_a_few_of_its_blocks(monkeypatch, loss):
    config = Config.of(loss=loss, batch_size=4)
    base = base_of(9)
    work = budget.Work(config.objective, config.recipe, max_length=33, num_tracked=8)
    few = budget._parts(base, work, probes=8)
    monkeypatch.setattr(budget, "_TRACED_DEPTHS", (4, 9))
    whole = budget._parts(base, work, probes=8)
    for name, size in whole.items():
        assert size <= 1.03 * few[name]
        assert few[name] <= 1.1 * size


@pytest.mark.exhaustive
def test_a_plan_bounds_what_a_process_takes(tmp_path):
    result = run_script("experiments.benchmarks.memory", "--smoke", cache=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    assert result.stdout.count("holds: ") == 2
