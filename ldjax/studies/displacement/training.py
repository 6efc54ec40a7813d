"""Training on pairs, with an account of the watched ones at every update."""

from typing import Any

import jax
import numpy as np

from ldjax import linen, losses
from ldjax.data.reference import add_reference
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.finetune.prepare import Prepared
from ldjax.finetune.probes import choose
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.rows import training_rows
from ldjax.finetune.settings import Config as FinetuneConfig
from ldjax.runs.loop import Observer, every, make_batch_fn, make_train_step, train
from ldjax.studies.displacement.measure import (
    Batch,
    make_alone_fn,
    make_labels_fn,
    make_origin_step,
)
from ldjax.studies.displacement.results import Account
from ldjax.studies.displacement.settings import Config

__all__ = ["account_for", "finetuned"]


def finetuned(stage: FinetuneConfig, setup: Prepared) -> Any:
    """Parameters after SFT on the chosen answers."""
    rows, _ = training_rows(
        setup.watched.texts.train,
        setup.encode,
        target=("chosen",),
        max_length=setup.max_length,
    )
    init, step = make_train_step(
        linen.apply_fn(setup.base.model),
        losses.sft,
        make_optimizer(stage.recipe),
    )
    num_steps = updates(stage, setup)
    (last,) = train(
        init(setup.base.params),
        num_steps=num_steps,
        step_fn=step,
        batch_fn=make_batch_fn(
            rows, batch_size=stage.recipe.batch_size, seed=stage.seed
        ),
        save_every=num_steps,
    )
    return last.state.params


def updates(stage: FinetuneConfig, setup: Prepared) -> int:
    """Of a training on one row for each prompt."""
    updates_of_one = len(setup.watched.texts.train) // stage.recipe.batch_size
    return max(1, round(stage.recipe.epochs * updates_of_one))


def account_for(
    config: Config, stage: FinetuneConfig, setup: Prepared, start: Any
) -> Account:
    """Train on the pairs, with an account of the watched ones."""
    apply_fn = linen.apply_fn(setup.base.model)
    rows = setup.rows
    if stage.objective.named.has_reference:
        rows = add_reference(apply_fn, start, rows, batch_size=stage.recipe.batch_size)
    prompts = setup.watched.texts.train
    places = np.array(choose(prompts, stage.watch.tracked, config.seed))
    watched = Batch(jax.tree.map(lambda leaf: leaf[places], rows), places)
    batch_fn = make_batch_fn(
        Batch(rows, np.arange(len(prompts))),
        batch_size=stage.recipe.batch_size,
        seed=stage.seed,
    )
    loss_fn = stage.objective.loss_fn
    optimizer = make_optimizer(stage.recipe)
    init, step_fn = make_origin_step(apply_fn, loss_fn, optimizer, watched)
    labels_fn = make_labels_fn(apply_fn, loss_fn, optimizer, watched)
    alone_fn = make_alone_fn(apply_fn, loss_fn, optimizer, watched)
    num_steps = updates(stage, setup)

    def labels(state: Any) -> dict[str, Any]:
        step = int(state.step)
        if step == num_steps:  # no update follows
            return {}
        found = labels_fn(state, batch_fn(step))
        return {
            name: np.packbits(values, axis=-1) if name.endswith(":rises") else values
            for name, values in found.items()
        }

    def alone(state: Any) -> dict[str, Any]:
        return {} if int(state.step) == num_steps else alone_fn(state)

    is_due = every(max(1, num_steps // config.observations))
    (last,) = train(
        init(start),
        num_steps=num_steps,
        step_fn=step_fn,
        batch_fn=batch_fn,
        save_every=num_steps,
        observers={
            "labels": Observer(labels, is_due),
            "alone": Observer(alone, is_due),
        },
    )
    # The whole change, by two forward passes that no step has seen.
    chosen = watched.pairs["chosen"].plain
    before, after = (
        sequence_log_probs(apply_fn(params, chosen), chosen.targets, chosen.mask)
        for params in (start, last.state.params)
    )
    return Account(last.table, np.asarray(after - before), stage.recipe.batch_size)
