"""Policies on the toy world: trained without an account, sampled, judged.

What `phenomena.py` and `mitigation.py` share. A study is a world with its base model;
policies are parameters, kept at equal intervals of one run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import jax
import numpy as np

from ldjax import linen
from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.reference import add_reference
from ldjax.data.world.judge import Verdict, judge
from ldjax.data.world.world import World, make_world
from ldjax.equation.sequences import LossFn
from ldjax.finetune.prepare import prepare
from ldjax.finetune.recipes import Recipe, make_optimizer
from ldjax.finetune.rows import cropped, training_rows
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.finetune.start import Base, load_shapes
from ldjax.finetune.texts import Data, Encoder
from ldjax.models import PRESETS as MODELS
from ldjax.models.decoder.sampling import generate_greedy, generate_sampled
from ldjax.runs.loop import Observer, every, make_batch_fn, make_train_step, train
from ldjax.watch.probes import ProbeSet, make_observe_fn

__all__ = [
    "VERDICTS",
    "Policy",
    "Study",
    "check_model",
    "distinct_n",
    "judged",
    "make_study",
    "pairs",
    "responses",
    "sft_rows",
    "train_policy",
    "verdict_rates",
]

#: From best to worst.
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_LONGEST_SAMPLE = 64
_BATCH_OF_REFERENCES = 64


class Study(NamedTuple):
    """A world, its base model, and what is watched.

    Attributes:
      world: The toy world.
      data: Its rows; those that are watched have `chosen_initial`.
      base: The pretrained base model.
      encode: The tokenisation protocol.
      max_length: Of the longest prompt and response, in tokens.
      observed: Typed responses to some trained and some held-out prompts.
    """

    world: World
    data: Data
    base: Base
    encode: Encoder
    max_length: int
    observed: ProbeSet

    def apply_fn(self, params: Any, batch: Any) -> jax.Array:
        """Logits of a batch."""
        return linen.apply_fn(self.base.model)(params, batch)


class Policy(NamedTuple):
    """What is kept of a training run.

    Attributes:
      params: Parameters at equal intervals; the last ones are those of the end.
      epochs: Passes over the rows at each of them.
      curves: Quantities of the observed probes, `{name: [observation, probe]}`, with
        the number of updates in `"step"`.
    """

    params: list[Any]
    epochs: list[float]
    curves: Mapping[str, np.ndarray]


def check_model(model: str | None) -> None:
    """Refuses a model that there is not, before anything is written."""
    config = FinetuneConfig.of(model=model).resolved()
    config.check()
    if model is not None and model not in MODELS:
        load_shapes(model, config.model)


def make_study(
    world: str,
    *,
    model: str | None = None,
    seed: int,
    cache: Path,
    probe_prompts: int = 40,
    smoke: bool = False,
) -> Study:
    """A study; its base model is pretrained if the cache has none.

    Args:
      world: Preset of the world.
      model: What to start from, as of `finetune.py`.
      seed: Of the world, the base model and the choice of probes.
      cache: Where base models are kept.
      probe_prompts: Trained prompts that are watched, and half as many held-out ones.
      smoke: At tiny size.
    """
    config = FinetuneConfig.of(
        world=world,
        model=model,
        seed=seed,
        cache=cache,
        probe_prompts=probe_prompts,
        tracked=1,
        smoke=smoke,
    ).resolved()
    setup = prepare(config)
    return Study(
        world=make_world(world, seed=seed),
        data=setup.watched.texts,
        base=setup.base,
        encode=setup.encode,
        max_length=setup.max_length,
        observed=setup.watched.observed,
    )


def sft_rows(
    study: Study, rows: Sequence[PreferenceRow], target: Sequence[str] = ("chosen",)
) -> Any:
    """Rows for supervised finetuning on some of the responses to each prompt."""
    return training_rows(
        rows, study.encode, target=target, max_length=study.max_length
    )[0]


def pairs(study: Study, rows: Sequence[PreferenceRow], reference: Any) -> Any:
    """Pairs for preference optimisation, with the log-probs of the reference."""
    found, _ = training_rows(
        rows, study.encode, target=None, max_length=study.max_length
    )
    return add_reference(
        study.apply_fn, reference, found, batch_size=_BATCH_OF_REFERENCES
    )


def train_policy(
    study: Study,
    params: Any,
    rows: Any,
    loss_fn: LossFn,
    recipe: Recipe,
    *,
    keep: int = 1,
    observations: int = 20,
    seed: int,
) -> Policy:
    """Train, and keep the parameters at equal intervals.

    Args:
      study: What is watched.
      params: Where to start.
      rows: From `sft_rows` or `pairs`.
      loss_fn: `(logits, batch) -> scalar`.
      recipe: Optimizer, batch size and epochs.
      keep: Number of parameters kept.
      observations: In equal intervals, besides that at the start.
      seed: Of the order of the rows.
    """
    batch_size = recipe.batch_size
    batch_fn = make_batch_fn(rows, batch_size=batch_size, seed=seed)
    num_rows = len(jax.tree.leaves(rows)[0])
    # A multiple of both intervals, so that each of them ends where the run ends.
    step = np.lcm(keep, observations)
    wanted = recipe.epochs * (num_rows // batch_size)
    num_steps = int(step * max(1, round(wanted / step)))
    init, step_fn = make_train_step(study.apply_fn, loss_fn, make_optimizer(recipe))
    observe = make_observe_fn(study.apply_fn, study.observed)
    kept, table = [], {}
    for progress in train(
        init(params),
        num_steps=num_steps,
        step_fn=step_fn,
        batch_fn=cropped(batch_fn),
        save_every=num_steps // keep,
        observers={
            "observed": Observer(
                lambda state: observe(state.params), every(num_steps // observations)
            )
        },
    ):
        # Copies: the next step takes the memory of its state.
        kept.append(jax.device_get(progress.state.params))
        table = progress.table
    epochs = recipe.epochs * np.arange(1, keep + 1) / keep
    return Policy(kept, epochs.tolist(), table["observed"])


def responses(
    study: Study,
    params: Any,
    rows: Sequence[PreferenceRow],
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
) -> list[DrawnText]:
    """A free-running response to each prompt: sampled, or greedy without a key.

    With the ids that were drawn, which a policy that is trained on one is trained on.
    """
    tokenizer = study.base.tokenizer
    prompts = [
        list(next(iter(study.encode(row).examples.values())).prompt_ids) for row in rows
    ]
    longest = min(_LONGEST_SAMPLE, study.max_length)
    ends = tokenizer.end_ids
    if key is None:
        drawn = generate_greedy(
            study.base.model, params, prompts, max_new_tokens=longest, eos_id=ends
        )
    else:
        drawn = generate_sampled(
            study.base.model,
            params,
            prompts,
            key=key,
            max_new_tokens=longest,
            eos_id=ends,
            temperature=temperature,
        )
    return [DrawnText(ids, tokenizer) for ids in drawn.responses()]


def judged(
    study: Study, rows: Sequence[PreferenceRow], texts: Sequence[str]
) -> list[Verdict]:
    """The judge's verdict of each response."""
    return [
        judge(study.world, cast(str, row.prompt), text)  # the toy world has no messages
        for row, text in zip(rows, texts, strict=True)
    ]


def verdict_rates(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The share of each verdict."""
    counts = Counter(verdicts)
    return {name: counts[name] / len(verdicts) for name in VERDICTS}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different word n-grams within a response, mean over the responses.

    1 where nothing is repeated. A response of fewer than `n` words counts as 1.
    """

    def share(text: str) -> float:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0

    return float(np.mean([share(text) for text in texts]))
