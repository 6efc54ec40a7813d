"""Policies of every remedy: trained, and asked."""

import time
from collections.abc import Mapping
from typing import Any

import jax

from ldjax import losses
from ldjax.data.preferences import PreferenceRow
from ldjax.finetune.recipes import RECIPES
from ldjax.studies.mitigation.results import (
    ARMS,
    DECODINGS,
    LENGTHS,
    LOSSES,
    SAME_LENGTH,
    Moment,
    Said,
)
from ldjax.studies.mitigation.settings import Config
from ldjax.studies.policies import (
    Policy,
    Study,
    judged,
    pairs,
    responses,
    sft_rows,
    train_policy,
)

__all__ = ["held_out", "listen", "train_all"]


def train_all(config: Config, study: Study, seed: int) -> dict[str, Policy]:
    """Every policy of a seed, by what SFT trained on and by the loss: `extend dpo`."""
    rows = study.data.train[: config.prompts]
    begin = time.perf_counter()
    trained: dict[str, Policy] = {}

    def run(stage: str, start: Any, examples: Any, loss_fn: Any, **options: Any):
        trained[stage] = train_policy(
            study, start, examples, loss_fn, seed=seed, **options
        )
        seconds = time.perf_counter() - begin
        print(f"seed {seed}, {seconds:4.0f} s: {stage} done", flush=True)
        return trained[stage].params[-1]

    sft = RECIPES["small", "sft"]._replace(epochs=config.sft_epochs)
    dpo = RECIPES["small", "dpo"]
    starts, preferred = {}, {}
    for arm, target in ARMS.items():
        examples = sft_rows(study, rows, target)
        starts[arm] = run(
            f"{arm} sft", study.base.params, examples, losses.sft, recipe=sft
        )
        preferred[arm] = pairs(study, rows, starts[arm])
        run(
            f"{arm} dpo",
            starts[arm],
            preferred[arm],
            losses.dpo(),
            recipe=dpo._replace(epochs=LENGTHS[-1]),
            keep=len(LENGTHS),
            observations=LENGTHS[-1] * config.evaluations,
        )
    for name in config.losses:
        run(
            f"baseline {name}",
            starts["baseline"],
            preferred["baseline"],
            LOSSES[name],
            recipe=dpo._replace(epochs=SAME_LENGTH),
            observations=SAME_LENGTH * config.evaluations,
        )
    return trained


def held_out(study: Study) -> list[PreferenceRow]:
    """Prompts that no policy is trained on."""
    validation = [
        PreferenceRow(row["prompt"], {"chosen": row["chosen"]}, f"validation:{number}")
        for number, row in enumerate(study.world.validation, 1)
    ]
    return [*study.data.test, *validation]


def listen(
    study: Study,
    trained: Mapping[str, Policy],
    moments: Mapping[str, Moment],
    asked: list[PreferenceRow],
    seed: int,
) -> dict[str, dict[str, Said]]:
    """The responses of every policy, by decoding, by moment."""
    keys = {"sampled": jax.random.key(seed), "greedy": None}

    def said(params: Any, decoding: str) -> Said:
        texts = responses(study, params, asked, key=keys[decoding])
        return Said([*texts], judged(study, asked, texts))

    return {
        decoding: {
            name: said(trained[moment.stage].params[moment.kept], decoding)
            for name, moment in moments.items()
        }
        for decoding in DECODINGS
    }
