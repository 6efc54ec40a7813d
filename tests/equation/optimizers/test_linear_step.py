"""Shares of past gradients: they sum, forward is reverse, and replays agree."""

import functools
import itertools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from witnesses.closeness import assert_close
from witnesses.numpy_replays import (
    AdamW,
    LionReplay,
    Mean,
    Momentum,
    RmsPropMomentum,
    ScheduleFree,
    train,
)
from witnesses.references import flat
from zoo.optimizers import DECAY, TABLE, chain_sgd, marked, stateless

from ldjax.equation.update_parts import frozen_update, linear_step

PARAMS = {
    "kernel": jnp.array([[0.5, -1.0], [2.0, 0.3]]),
    "bias": jnp.array([0.1, -0.4]),
}
SIDES = ("a", "b")
NUM_STEPS = 4
VALUE = jnp.float64(1.0)  # of the loss, for optimizers that ask for it
_linear_step = linear_step  # replaced by a wrong one in a test


def _gradient(time, side):
    rng = np.random.default_rng(10 * time + SIDES.index(side))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), PARAMS)


class Run(NamedTuple):
    """A run in which every origin had its own copy of the moments.

    Everything is by step, flat; `shares` of the updates and `kept` of the moments after
    them with a leading axis over `names`: `(step, side)`, `(step, "decay")`, and the
    `"start"` and the `"noise"` of all steps.
    """

    names: list[Any]
    inputs: list[Any]  # parameters, state, gradient
    updates: list[np.ndarray]
    moments: list[np.ndarray]  # before the step; one more, after the last
    shares: list[np.ndarray]
    kept: list[np.ndarray]

    def share(self, time, *names):
        places = [self.names.index(name) for name in names]
        return self.shares[time][places].sum(axis=0)


def _rows(tree, num):
    """`[num, all]` of leaves with a leading axis."""
    rows = [np.asarray(leaf).reshape(num, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros((num, 0)), *rows], axis=1)


def _make_advance(optimizer, names):
    """One step, and the shares of all origins in it."""
    days = jnp.array([name[0] if name[1] == "decay" else -1 for name in names])
    is_start, is_noise = (
        jnp.array([name == (None, word) for name in names])
        for word in ("start", "noise")
    )
    over = lambda flags, leaf: flags.reshape(-1, *(1,) * leaf.ndim)

    @jax.jit
    def advance(params, state, given, held, time):
        gradient = jax.tree.map(lambda leaf: leaf.sum(axis=0), given)
        updates, new = optimizer.update(gradient, state, params, value=VALUE)
        step = _linear_step(optimizer, gradient, state, params, value=VALUE)
        if held is None:
            held = jax.tree.map(lambda m: over(is_start, m) * m[None], step.moments)

        def share(gradient, moments, day):
            decay = jax.tree.map(lambda p: jnp.where(day == time, p, 0), params)
            return step.carry(gradient, moments, decay)

        shares = jax.vmap(share)(given, held, days)
        if step.noise is not None:
            add = lambda rows, noise: rows + over(is_noise, noise) * noise[None]
            shares = jax.tree.map(add, shares, step.noise)
        return updates, new, step.moments, *shares

    return advance


def follow(optimizer, num_steps=NUM_STEPS, gradient_fn=_gradient):
    """A run from `optimizer.init`."""
    optimizer = optax.with_extra_args_support(optimizer)
    names = [*itertools.product(range(num_steps), (*SIDES, "decay"))]
    names += [(None, "start"), (None, "noise")]
    advance = _make_advance(optimizer, names)
    params, state, held = PARAMS, optimizer.init(PARAMS), None
    run = Run(names, [], [], [], [], [])
    for time in range(num_steps + 1):
        nothing = jax.tree.map(jnp.zeros_like, PARAMS)
        given = [
            gradient_fn(*name) if name in [(time, side) for side in SIDES] else nothing
            for name in names
        ]
        given = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
        gradient = jax.tree.map(lambda leaf: leaf.sum(axis=0), given)
        run.inputs.append((params, state, gradient))
        updates, state, moments, shares, held = advance(
            params, state, given, held, jnp.asarray(time)
        )
        run.moments.append(flat(moments) if moments else np.zeros(0))
        if time < num_steps:  # then only for the moments
            run.updates.append(flat(updates))
            run.shares.append(_rows(shares, len(names)))
            run.kept.append(_rows(held, len(names)))
        params = optax.apply_updates(params, updates)
    return run


def _rounding(optimizer, name=""):
    """Of a few steps: that of the narrowest number that is stored between them."""
    dtypes = {
        jnp.result_type(leaf)
        for leaf in jax.tree.leaves(optimizer.init(PARAMS))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    eps = max([np.finfo(np.float64).eps, *(float(jnp.finfo(d).eps) for d in dtypes)])
    # Muon's iterations enlarge small singular values, and errors, up to 3.4^5 times.
    return eps * (500 if name.startswith("muon") else 1) * 100


def check_sums(run, rtol):
    """Shares sum to the updates and to the moments after them."""
    for time, update in enumerate(run.updates):
        wholes = (run.shares[time], update), (run.kept[time], run.moments[time + 1])
        for shares, whole in wholes:
            scale = max(1e-3, abs(shares).max(initial=0))
            assert_close(shares.sum(axis=0), whole, rtol=rtol, scale=scale)


def check_reverse(optimizer, run, rtol):
    """What drawn directions see of each origin, by one sweep backward."""
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def pull(params, state, gradient, watched, after):
        step = linear_step(optimizer, gradient, state, params, value=VALUE)
        share, transposed = jax.vjp(step.carry, gradient, step.moments, params)
        leaves, structure = jax.tree.flatten(share[0])
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        watched = structure.unflatten(
            piece.reshape(leaf.shape).astype(leaf.dtype)
            for piece, leaf in zip(jnp.split(watched, ends), leaves, strict=True)
        )
        after = jax.tree.map(jnp.zeros_like, share[1]) if after is None else after
        return transposed((watched, after))

    num_steps = len(run.updates)
    watched = np.random.default_rng(0).normal(size=(num_steps, run.updates[0].size))
    forward = np.einsum("top,tp->o", np.array(run.shares), watched)
    reverse, after = np.zeros(len(run.names)), None
    for time in reversed(range(num_steps)):
        params, state, gradient = run.inputs[time]
        kappa, after, decay = pull(params, state, gradient, watched[time], after)
        for side in SIDES:
            share = flat(kappa) @ flat(_gradient(time, side))
            reverse[run.names.index((time, side))] = share
        reverse[run.names.index((time, "decay"))] = flat(decay) @ flat(params)
    if after:
        reverse[run.names.index((None, "start"))] = flat(after) @ run.moments[0]
    reverse[run.names.index((None, "noise"))] = forward[-1]  # it is in no input
    assert_close(reverse, forward, rtol=rtol, scale=max(1e-3, abs(forward).max()))


MORE = {
    "nesterov, decay": optax.chain(
        optax.add_decayed_weights(0.05), optax.sgd(DECAY, momentum=0.9, nesterov=True)
    ),
    "adam, decay before": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1)),
    "accumulated, decay before": optax.MultiSteps(
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)), 2
    ),
    "skipping branches": optax.chain(optax.radam(0.1), optax.ema(0.5)),
    "first power": chain_sgd(stateless(lambda g: jax.lax.stop_gradient(g**1))),
}
OPTIMIZERS = {name: optimizer for name, (optimizer, _) in TABLE.items()} | MORE
_FAST = ("clip, adamw", "accumulated", "schedule-free sgd", "first power")
_SLOW = (
    *("momentum", "adam", "accumulated, decay before", "muon", "apply if finite"),
    *("partition", "every second, momentum", "adam in bfloat16", "noise, adam"),
    *("skipping branches", "nesterov, decay", "rprop, optax"),
)


@pytest.mark.parametrize("name", marked(OPTIMIZERS, fast=_FAST, slow=_SLOW))
def test_shares_of_all_origins_sum_and_forward_is_reverse(name):
    optimizer = OPTIMIZERS[name]
    rtol = _rounding(optimizer, name)
    run = follow(optimizer)
    check_sums(run, rtol)
    check_reverse(optimizer, run, rtol)
    is_seeded = name == "yogi"  # its moments start at 1e-6
    assert is_seeded or not run.moments[0].any(), "no history at the start"


RATES = [np.asarray(DECAY(jnp.asarray(t, jnp.int32))).item() for t in range(NUM_STEPS)]
REPLAYED = {
    "momentum": (
        optax.sgd(0.1, momentum=0.9),
        lambda: Momentum([0.1] * NUM_STEPS, 0.9),
    ),
    "nesterov, decay": (
        MORE["nesterov, decay"],
        lambda: Momentum(RATES, 0.9, decay=0.05, nesterov=True),
    ),
    "adam": (optax.adam(0.1), lambda: AdamW([0.1] * NUM_STEPS)),
    "nadam": (optax.nadam(0.1), lambda: AdamW([0.1] * NUM_STEPS, nesterov=True)),
    "clip, adamw, schedule": (
        optax.chain(
            optax.clip_by_global_norm(0.5), optax.adamw(DECAY, weight_decay=0.1)
        ),
        lambda: AdamW(RATES, weight_decay=0.1, max_norm=0.5),
    ),
    "rmsprop, momentum": (
        optax.rmsprop(0.1, momentum=0.9),
        lambda: RmsPropMomentum(0.1, 0.9),
    ),
    "lion": (
        optax.lion(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        lambda: LionReplay(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
    ),
    "accumulated adamw": (
        optax.MultiSteps(
            optax.adamw(0.1, weight_decay=0.1), 2, accumulator_dtype=jnp.float64
        ),
        lambda: Mean(AdamW([0.1] * NUM_STEPS, weight_decay=0.1), 2),
    ),
    "schedule-free sgd": (contrib.schedule_free_sgd(0.05), lambda: ScheduleFree(0.05)),
}


def check_replays(optimizer, replay, rtol=1e-12):
    """Without an origin, its scales as they were, an optimizer's updates lack its part.

    The decay of all steps is checked by the sum.
    """
    run = follow(optimizer)
    given = {
        (time, side): flat(_gradient(time, side))
        for time, side in itertools.product(range(NUM_STEPS), SIDES)
    }
    times = range(NUM_STEPS)
    gradients = [given[t, "a"] + given[t, "b"] for t in times]
    thetas = train(replay, gradients, flat(PARAMS))
    for update, witness in zip(
        run.updates, replay.updates(gradients, thetas), strict=True
    ):
        assert_close(update, witness, rtol=rtol)

    def check(name, gradients_without, thetas_without):
        whole = replay.updates(gradients, thetas)
        rest = replay.updates(gradients_without, thetas_without)
        for time, (update, other) in enumerate(zip(whole, rest, strict=True)):
            scale = max(1e-3, abs(update).max())
            assert_close(run.share(time, name), update - other, rtol=rtol, scale=scale)

    for (time, side), gradient in given.items():
        without = [g - gradient if t == time else g for t, g in enumerate(gradients)]
        check((time, side), without, thetas)
    for time in times:
        without = [0 * theta if t == time else theta for t, theta in enumerate(thetas)]
        check((time, "decay"), gradients, without)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("nesterov, decay", "clip, adamw, schedule")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in REPLAYED
    ],
)
def test_a_run_replayed_without_an_origin_lacks_its_part(name):
    optimizer, make_replay = REPLAYED[name]
    # The weights of schedule-free averages are counted in float32.
    rtol = 1e-6 if name.startswith("schedule") else 1e-12
    check_replays(optimizer, make_replay(), rtol)


def _late(kind):
    """With the count of these states one ahead."""

    def late(state):
        return (
            state._replace(count=state.count + 1) if isinstance(state, kind) else state
        )

    def wrong(optimizer, gradient, state, params, **extra_args):
        is_leaf = lambda node: isinstance(node, kind)
        state = jax.tree.map(late, state, is_leaf=is_leaf)
        return linear_step(optimizer, gradient, state, params, **extra_args)

    return wrong


def _wrong_carry(change):
    def wrong(optimizer, gradient, state, params, **extra_args):
        step = linear_step(optimizer, gradient, state, params, **extra_args)
        return step._replace(carry=lambda *given: change(step.carry, gradient, *given))

    return wrong


def _forget_b1(carry, gradient, given, moments, params):
    del gradient
    return carry(given, jax.tree.map(lambda m: m / 0.9, moments), params)


def _clip_twice(carry, gradient, given, moments, params):
    factor = jnp.minimum(1, 0.5 / optax.tree.norm(gradient))
    return carry(jax.tree.map(lambda g: factor * g, given), moments, params)


def _blame(carry, gradient, given, moments, params):
    """What an example does is partly the weight decay's, which sums all the same."""
    del gradient
    moved = jax.tree.map(lambda g, p: g + 0.01 * p, given, params)
    decays = jax.tree.map(lambda g, p: p - 0.01 * g, given, params)
    return carry(moved, moments, decays)


MUTATIONS = {
    "a power of b1 dropped": _wrong_carry(_forget_b1),
    "the clip factor twice": _wrong_carry(_clip_twice),
    "the bias correction one late": _late(optax.ScaleByAdamState),
    "the schedule one late": _late(optax.ScaleByScheduleState),
    "weight decay for an example": _wrong_carry(_blame),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_account_is_caught(mutation, monkeypatch):
    optimizer, make_replay = REPLAYED["clip, adamw, schedule"]
    monkeypatch.setattr(sys.modules[__name__], "_linear_step", MUTATIONS[mutation])
    with pytest.raises(AssertionError, match="differ by more than"):
        check_replays(optimizer, make_replay())


def test_an_update_that_is_dropped_leaves_no_share():
    """Neither forward nor, where zero times no number lurks, backward."""
    optimizer = optax.apply_if_finite(optax.adam(0.1), 3)

    def gradient_fn(time, side):
        gradient = _gradient(time, side)
        no_number = jax.tree.map(lambda g: g * jnp.nan, gradient)
        return no_number if (time, side) == (1, "a") else gradient

    run = follow(optimizer, gradient_fn=gradient_fn)
    assert not run.updates[1].any()
    for time, shares in enumerate(run.shares):
        assert np.isfinite(shares).all()
        assert time < 1 or not run.share(time, (1, "a"), (1, "b")).any()
    check_sums(run, _rounding(optimizer))

    @jax.jit
    def pull(params, state, gradient):
        step = linear_step(optimizer, gradient, state, params)
        shares, transposed = jax.vjp(step.carry, gradient, step.moments, params)
        return transposed(jax.tree.map(jnp.ones_like, shares))

    kappa, moments, decay = pull(*run.inputs[1])
    assert not flat(kappa).any()
    assert not flat(decay).any()
    assert (flat(moments) == 1).all(), "what is held goes on as it is"


def test_an_accumulation_is_named_and_counts_for_the_update_it_ends_in():
    optimizer = optax.with_extra_args_support(
        optax.MultiSteps(optax.adamw(0.1), 2).gradient_transformation()
    )
    step = linear_step(optimizer, _gradient(0, "a"), optimizer.init(PARAMS), PARAMS)
    leaves = {name.split("[")[0] for name in step.accumulated}
    assert leaves == {".acc_grads"}
    assert any(".mu" in name for name in step.moments.keys() - step.accumulated)
    assert step.in_update == {"history", "accumulated", "weight_decay"}
    assert step.in_moments == {"history", "accumulated"}


def test_the_moments_are_those_that_reach_an_update():
    """At once, or through another moment; not what is only kept."""

    def update(updates, state, params=None):
        del params
        mix = lambda m, g: 0.9 * m + g
        new = {name: jax.tree.map(mix, state[name], updates) for name in state}
        return state["late"], new | {"late": state["trace"]}

    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    init = lambda params: {"trace": zeros, "late": zeros, "idle": zeros}
    optimizer = optax.GradientTransformation(init, update)
    step = linear_step(optimizer, _gradient(0, "a"), init(PARAMS), PARAMS)
    assert {name.split("'")[1] for name in step.moments} == {"trace", "late"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shares_are_kept_in_float32(dtype):
    """A bfloat16 moment would lose what is below its last place."""
    narrow = functools.partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    params, gradient = narrow(PARAMS), narrow(_gradient(0, "a"))
    optimizer = optax.chain(optax.clip(0.5), optax.sgd(0.1, momentum=0.9))
    step = linear_step(optimizer, gradient, optimizer.init(params), params)
    large = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), step.moments)
    small = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-5, "float32"), PARAMS)
    in_float32 = jax.tree.map(lambda m: m.astype(jnp.float32), large)
    update, moments = step.carry(small, in_float32, None)
    assert {leaf.dtype for leaf in jax.tree.leaves((update, moments))} == {
        np.dtype(np.float32)
    }
    own, _ = frozen_update(optimizer, gradient, optimizer.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(own(gradient))} == {np.dtype(dtype)}
    _, alone = step.carry(None, in_float32, None)
    assert (flat(moments) > flat(alone)).all()
