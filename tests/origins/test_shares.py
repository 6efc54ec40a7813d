"""The ledger is what one gets by keeping every origin's share of the moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from jax.flatten_util import ravel_pytree
from witnesses.closeness import assert_close
from witnesses.origin_shares import (
    AdamW,
    Every,
    Momentum,
    RmsProp,
    accounted,
    log_prob_fn,
)
from zoo.cases import apply_toy, toy_params
from zoo.small_runs import (
    by_pairs,
    by_rows,
    responses_of,
    small_run,
    unexplained,
    warmup,
)

from ldjax.equation.sequences import sides_of
from ldjax.origins import account

THETA, UNFLAT = ravel_pytree(toy_params())
DECAYS = {"embed": True, "kernel": True, "bias": False, "readout": True}
MASK = np.asarray(
    ravel_pytree(
        {name: jnp.full_like(leaf, DECAYS[name]) for name, leaf in toy_params().items()}
    )[0]
)

OPTIMIZERS = {
    "sgd": (optax.sgd(0.05), lambda: Momentum(0.05)),
    "momentum": (optax.sgd(0.05, 0.9), lambda: Momentum(0.05, 0.9)),
    "nesterov": (
        optax.sgd(0.05, 0.9, nesterov=True),
        lambda: Momentum(0.05, 0.9, nesterov=True),
    ),
    "momentum, decay": (
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, 0.9)),
        lambda: Momentum(0.05, 0.9, decay=0.1),
    ),
    "rmsprop": (optax.rmsprop(0.005), lambda: RmsProp(0.005)),
    "adam": (optax.adam(0.02), lambda: AdamW(lambda _: 0.02)),
    "clip, adamw": (
        optax.chain(
            optax.clip_by_global_norm(0.3),
            optax.adamw(warmup, weight_decay=0.1, mask=DECAYS),
        ),
        lambda: AdamW(
            lambda count: float(warmup(count)), max_norm=0.3, decay=0.1, mask=MASK
        ),
    ),
    "accumulated": (
        optax.MultiSteps(
            optax.adamw(0.02, weight_decay=0.1), 3, accumulator_dtype=jnp.float64
        ),
        lambda: Every(AdamW(lambda _: 0.02, decay=0.1), 3),
    ),
}
FAST = ("clip, adamw", True)


def brute_force(training, trajectory, witness, probes, nodes=3):
    """What every origin did to every probe, with all moments stored."""

    def sides_at(step):
        return jax.tree.map(jnp.asarray, sides_of(trajectory.batch_fn(step)))

    def loss_fn(logits, sides):
        if "update" in sides:
            return training.loss_fn(logits["update"], sides["update"])
        return training.loss_fn(logits, sides)

    return accounted(
        witness,
        np.asarray(THETA),
        num_steps=trajectory.num_steps,
        batch_fn=sides_at,
        logits_fn=lambda theta, sides: {
            name: apply_toy(UNFLAT(theta), side) for name, side in sides.items()
        },
        loss_fn=loss_fn,
        log_prob=log_prob_fn(apply_toy, UNFLAT),
        probes=[
            jax.tree.map(lambda leaf: leaf[k], probes.sequences)  # noqa: B023
            for k in range(len(probes.types))
        ],
        n=nodes,
    )[0]


def by_origin(ledger, probes):
    """The same of a ledger: by step, side and row, or decay and step."""
    found = {}
    for k, name in enumerate(probes.prompt_names):
        rows = ledger.table.filter(pl.col("probe") == name)
        row = pl.int_range(pl.len()).over("step", "origin", "side")
        for step, origin, side, place, value in rows.select(
            "step", "origin", "side", row.alias("row"), "value"
        ).rows():
            if origin in ("gradient", "weight_decay"):
                key = (step, side, place) if side else ("decay", step)
                found.setdefault(key, np.zeros(len(probes.types)))[k] = value
    return found


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        pytest.param(
            name,
            pairs,
            marks=() if (name, pairs) == FAST else pytest.mark.slow,
            id=f"{name}-{'pairs' if pairs else 'rows'}",
        )
        for name in OPTIMIZERS
        for pairs in (False, True)
    ],
)
def test_every_origin_has_its_share(name, pairs):
    optimizer, witness = OPTIMIZERS[name]
    rows = by_pairs() if pairs else by_rows()
    training, trajectory = small_run(optimizer, rows=rows)
    probes = responses_of(by_rows(3, 5, seed=21))
    ledger = account(training, trajectory, probes)
    found, expected = (
        by_origin(ledger, probes),
        brute_force(training, trajectory, witness(), probes),
    )
    scale = max(np.abs(shares).max() for shares in expected.values())
    for origin in {**found, **expected}:
        nothing = np.zeros(len(probes.types))
        assert_close(
            found.get(origin, nothing),
            expected.get(origin, nothing),
            rtol=1e-10,
            scale=scale,
        )
    assert (unexplained(ledger, "gradient", "weight_decay") <= 1e-6).all()
