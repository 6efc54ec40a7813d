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
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.origins import Known, Responses, Training, Trajectory, account
from ldjax.runs.loop import Observer, every, make_batch_fn, make_train_step, train
from ldjax.studies.displacement.measure import (
    Pairs,
    make_alone_fn,
    make_labels_fn,
    make_watched_step,
)
from ldjax.studies.displacement.results import Account
from ldjax.studies.displacement.settings import Config
from ldjax.watch.record import TRAIN, row_name

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
    """Train on the pairs, and account for the watched ones."""
    apply_fn, batch_size = linen.apply_fn(setup.base.model), stage.recipe.batch_size
    rows, prompts = setup.rows, setup.watched.texts.train
    if stage.objective.named.has_reference:
        rows = add_reference(apply_fn, start, rows, batch_size=batch_size)
    names = np.array([row_name(TRAIN, place) for place in range(len(prompts))])
    places = np.array(choose(prompts, stage.watch.tracked, config.seed))
    watched = jax.tree.map(lambda leaf: leaf[places], rows)
    named = make_batch_fn((rows, names), batch_size=batch_size, seed=stage.seed)
    how = apply_fn, stage.objective.loss_fn, make_optimizer(stage.recipe)
    init, step_fn = make_watched_step(*how, watched)
    run = Trajectory(
        updates(stage, setup),
        init(start),
        step_fn,
        batch_fn=lambda step: named(step)[0],
        names_of=lambda step: named(step)[1].tolist(),
    )
    (last,) = train(
        run.start,
        num_steps=run.num_steps,
        step_fn=step_fn,
        batch_fn=run.batch_fn,
        save_every=run.num_steps,
        observers=_observers(config, how, watched, run),
    )
    chosen, types = watched["chosen"].plain, ("chosen",) * len(places)
    ledger = account(
        Training(*how),
        run._replace(known=Known((run.num_steps,), lambda step: last.state)),
        Responses(tuple(names[places].tolist()), types, chosen),
    )
    # The whole change, by two forward passes that no step has seen.
    before, after = (
        sequence_log_probs(apply_fn(params, chosen), chosen.targets, chosen.mask)
        for params in (start, last.state.params)
    )
    return Account(last.table, np.asarray(after - before), ledger, batch_size)


def _observers(
    config: Config, how: tuple[Any, Any, Any], watched: Pairs, run: Trajectory
) -> dict[str, Observer]:
    """What is looked at between updates, but at the end: no update follows there."""
    labels_fn, alone_fn = make_labels_fn(*how, watched), make_alone_fn(*how, watched)

    def labels(state: Any) -> dict[str, Any]:
        step = int(state.step)
        if step == run.num_steps:
            return {}
        return {
            name: np.packbits(values, axis=-1) if name.endswith(":rises") else values
            for name, values in labels_fn(state, run.batch_fn(step)).items()
        }

    def alone(state: Any) -> dict[str, Any]:
        return {} if int(state.step) == run.num_steps else alone_fn(state)

    is_due = every(max(1, run.num_steps // config.observations))
    return {"labels": Observer(labels, is_due), "alone": Observer(alone, is_due)}
