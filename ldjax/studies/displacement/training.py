"""Training on pairs, with an account of the watched ones at every update."""

from typing import Any

import jax
import numpy as np

from ldjax import linen, losses
from ldjax.data.reference import add_reference
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.rows import training_rows
from ldjax.finetune.settings import Config as FinetuneConfig
from ldjax.finetune.setup import Setup, choose, make_encoder
from ldjax.losses import make_loss
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


def finetuned(stage: FinetuneConfig, setup: Setup) -> Any:
    """Parameters after SFT on the chosen answers."""
    encode = make_encoder(stage, setup.base)
    rows, _ = training_rows(
        setup.data.train, encode, target=("chosen",), max_length=setup.max_length
    )
    init, step = make_train_step(
        linen.apply_fn(setup.base.model),
        losses.sft,
        make_optimizer(stage.as_recipe()),
    )
    num_steps = updates(stage, setup)
    (last,) = train(
        init(setup.base.params),
        num_steps=num_steps,
        step_fn=step,
        batch_fn=make_batch_fn(rows, batch_size=stage.batch_size, seed=stage.seed),
        save_every=num_steps,
    )
    return last.state.params


def updates(stage: FinetuneConfig, setup: Setup) -> int:
    """Of a training on one row for each prompt."""
    return max(1, round(stage.epochs * (len(setup.data.train) // stage.batch_size)))


def account_for(
    config: Config, stage: FinetuneConfig, setup: Setup, start: Any
) -> Account:
    """Train on the pairs, with an account of the watched ones."""
    apply_fn = linen.apply_fn(setup.base.model)
    rows = setup.rows
    if stage.named_loss.has_reference:
        rows = add_reference(apply_fn, start, rows, batch_size=stage.batch_size)
    num_rows = len(setup.data.train)
    places = np.array(choose(setup.data.train, stage.tracked, config.seed))
    watched = Batch(jax.tree.map(lambda leaf: leaf[places], rows), places)
    batch_fn = make_batch_fn(
        Batch(rows, np.arange(num_rows)), batch_size=stage.batch_size, seed=stage.seed
    )
    loss_fn = make_loss(stage.loss, **stage.coefficients)
    optimizer = make_optimizer(stage.as_recipe())
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
    return Account(last.table, np.asarray(after - before), stage.batch_size)
