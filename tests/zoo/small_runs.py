"""Small training runs, made by a step of their own: what a ledger is made of."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from zoo.cases import apply_toy, make_dpo, sentences, toy_params

from ldjax import losses
from ldjax.equation.subset import trained_of
from ldjax.origins import Responses, Training, Trajectory

__all__ = [
    "NAMES",
    "State",
    "by_pairs",
    "by_rows",
    "responses_of",
    "small_run",
    "warmup",
]

NUM_ROWS, BATCH = 6, 3
NAMES = [f"train/{i}" for i in range(NUM_ROWS)]


class State(NamedTuple):
    params: Any
    opt_state: Any


def warmup(count):
    """A rate in float64; those of optax's schedules are rounded to float32."""
    return 0.02 * jnp.minimum(jnp.asarray(count, float) / 3, 1.0)


def make_step(training):
    """A plain step, which takes the memory of its state."""
    optimizer = optax.with_extra_args_support(training.optimizer)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        trained, whole = trained_of(state.params, training.where)

        def loss_of(trained):
            params = whole(trained)
            if isinstance(batch, dict):
                logits = {k: training.apply_fn(params, s) for k, s in batch.items()}
            else:
                logits = training.apply_fn(params, batch)
            return training.loss_fn(logits, batch)

        gradient = jax.grad(loss_of)(trained)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        return State(whole(trained), opt_state), None

    def init(params):
        trained, _ = trained_of(params, training.where)
        return State(params, training.optimizer.init(trained))

    return init, step


def by_rows(num=NUM_ROWS, length=4, seed=4):
    """Rows to train on, one side."""
    return sentences(seed, num, length)


def by_pairs(num=NUM_ROWS):
    """Pairs to train on."""
    return {"chosen": sentences(6, num, 4), "rejected": sentences(7, num, 5)}


def places_of(step):
    """Which rows are in a batch: all of them once, then all of them again."""
    epoch, half = divmod(step, NUM_ROWS // BATCH)
    order = np.random.default_rng(epoch).permutation(NUM_ROWS)
    return order[half * BATCH : (half + 1) * BATCH]


def responses_of(sequences, *, type_="chosen", names=NAMES):
    """What is watched."""
    count = len(sequences.mask)
    return Responses(tuple(names[:count]), (type_,) * count, sequences)


def small_run(
    optimizer,
    *,
    rows=None,
    num_steps=12,
    params=None,
    apply_fn=apply_toy,
    loss_fn=None,
    start=None,
    where=None,
):
    """A run: how it is trained, and its trajectory."""
    rows = by_rows() if rows is None else rows
    if loss_fn is None:
        margins = np.linspace(-0.3, 0.3, BATCH)
        loss_fn = make_dpo(0.5, margins) if isinstance(rows, dict) else losses.sft
    training = Training(apply_fn, loss_fn, optimizer, where=where)
    init, step = make_step(training)
    take = lambda step: jax.tree.map(lambda leaf: leaf[places_of(step)], rows)
    return training, Trajectory(
        num_steps=num_steps,
        start=init(toy_params() if params is None else params)
        if start is None
        else start,
        step_fn=step,
        batch_fn=take,
        names_of=lambda step: [NAMES[i] for i in places_of(step)],
    )


def unexplained(ledger, *parts):
    """What is left of each response's change without these parts, as a share of it."""
    balance = ledger.sum()
    told = sum(balance[part].to_numpy() for part in parts)
    return np.abs(told / balance["measured"].to_numpy() - 1)
