"""Numbers of options that cannot be meant are refused by the option's name."""

import dataclasses
import importlib
import numbers
from typing import Any

import numpy as np
import pytest

from ldjax.cli import COMMANDS, STUDIES
from ldjax.command import parse
from ldjax.command.options import COUNT, POSITIVE, changed, flat, wrong_numbers
from ldjax.finetune import pipeline, recipes
from ldjax.finetune.rows import count_steps
from ldjax.finetune.settings.config import Config

SCRIPTS = (
    *("finetune", "kernel", "stability", "mitigation", "mnist"),
    *("phenomena", "pretrain", "squeezing"),
)
WRONG_FLOATS = (float("nan"), float("inf"), float("-inf"), -7.0, 1e300, -1e-60)
WRONG_COUNTS = (-7, 10**21, 10**4000)
#: What is not wrong: a clip at infinity is none.
RIGHT = {("clip", float("inf")), ("clip", 1e300)}


#: What has no number by default.
OF_NO_DEFAULT = {
    "max_rows": 8,
    "lora_rank": 2,
    "lora_alpha": 2.0,
    "max_prompt_length": 8,
    "sft_epochs": 1.0,
    "dpo_epochs": 1.0,
}


def wrong_settings(config):
    """Name of a field, and the settings with a wrong number there."""
    for name, value in flat(config).items():
        item = value[0] if isinstance(value, tuple) and value else value
        if isinstance(item, bool) or not isinstance(item, numbers.Real):
            continue
        for wrong in WRONG_FLOATS if isinstance(item, float) else WRONG_COUNTS:
            new = (wrong, *value[1:]) if isinstance(value, tuple) else wrong
            if (name, wrong) not in RIGHT:
                yield name, changed(config, **{name: new})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_of_a_command_has_a_range(script):
    place, _ = (COMMANDS | STUDIES)[script]
    config = importlib.import_module(place).Config()
    unsaid = {name for name, value in flat(config).items() if value is None}
    config = changed(config, **{n: OF_NO_DEFAULT[n] for n in unsaid & {*OF_NO_DEFAULT}})
    if hasattr(config, "resolved"):
        config = config.resolved()
    refused = 0
    for name, wrong in wrong_settings(config):
        with pytest.raises(ValueError, match="--") as error:
            wrong.resolved().check() if hasattr(wrong, "resolved") else wrong.check()
        message = str(error.value)
        assert f"--{name.replace('_', '-')}" in message, wrong
        assert "\n" not in message
        assert len(message) < 400
        refused += 1
    assert refused >= 4
    config.check()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"learning_rate": 1e-60}, "--learning-rate must be positive: between 1.2e-38"),
        ({"epochs": float("inf")}, "--epochs must be positive: between"),
        ({"epochs": 0.0}, "--epochs must be positive: between"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "--lora-alpha must be positive"),
        ({"warmup_steps": 10**21}, "--warmup-steps must be not negative and at most"),
        ({"coefficients": {"beta": float("nan")}}, "--coefficients"),
        ({"max_length": 64, "max_prompt_length": 64}, "must be less than --max-length"),
        ({"max_length": 1}, "--max-length must be at least 2, got 1"),
    ],
)
def test_what_is_allowed_is_said(settings, part):
    config = Config.of(loss="dpo", **settings)
    with pytest.raises(ValueError, match="--") as error:
        config.resolved().check()
    assert part in str(error.value)


@pytest.mark.parametrize("name", ["sft_epochs", "dpo_epochs"])
def test_the_epochs_of_a_stage_are_refused_by_the_pipelines_own_option(tmp_path, name):
    config = pipeline.Config(out=tmp_path / "run")
    config = dataclasses.replace(config, **{name: float("inf")})
    with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be"):
        pipeline.main(config)


def test_numpys_numbers_are_numbers():
    numbers = dataclasses.make_dataclass("Numbers", ["rate", "size"])
    ranges = {"rate": POSITIVE, "size": COUNT}
    assert not wrong_numbers(numbers(np.float32(1e-3), np.int64(4)), ranges)
    (wrong,) = wrong_numbers(numbers(np.float32(1e-3), np.int64(-4)), ranges)
    assert wrong.startswith("--size")


def test_more_updates_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match=r"`epochs=1e\+30` of 40 examples are"):
        count_steps(40, batch_size=8, epochs=1e30)
    with pytest.raises(ValueError, match="`batch_size` must be at most the number"):
        count_steps(4, batch_size=8, epochs=10.0)
    assert count_steps(40, batch_size=8, epochs=1e-30) == 1


@pytest.mark.parametrize("clip", [0.0, float("inf")])
def test_a_clip_at_nothing_or_infinity_is_none(clip):
    recipe = recipes.RECIPES["slow", "sft"]._replace(clip=clip)
    optimizer = recipes.make_optimizer(recipe)
    gradient = {"w": np.array([1e30, 0.0], np.float32)}
    updates: Any
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(
        updates["w"], -recipe.learning_rate * gradient["w"], rtol=1e-6
    )


@dataclasses.dataclass(frozen=True)
class Inside:
    data: str = "toy"
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Outside:
    inside: Inside = dataclasses.field(default_factory=Inside)
    seed: int = 0


def test_options_of_records_stand_side_by_side():
    config = changed(Outside(), rate=0.5, seed=3)
    assert flat(config) == {"data": "toy", "rate": 0.5, "seed": 3}
    assert parse(Outside, None, ["--rate", "0.5", "--seed", "3"]) == config
    with pytest.raises(TypeError, match="Outside has no option inside, speed"):
        changed(config, inside=Inside(), speed=1.0)
    wrong = changed(config, rate=float("nan"))
    assert wrong_numbers(wrong, {}) == ["--rate must be finite, got nan"]
