"""What is accounted is what was stored: parameters narrower than the computation.

A step's numbers are compared with what an evaluation outside of it makes of the
parameters that it returned, down to rates at which nothing moves.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo.decoders import CONFIGS, random_params, random_tokens

import ldjax
from ldjax import losses, make_pending_step, make_step
from ldjax.data.batches import Example
from ldjax.models import Transformer
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn

OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=0.1),
}
#: From all that move to none (in bfloat16 and float16).
RATES = (1e-2, 1e-4, 1e-6, 1e-9)

ROWS = [Example(random_tokens(3, 2 * i), random_tokens(4, 2 * i + 1)) for i in range(3)]
WATCHED = ProbeSet.of(
    [Probe(f"test/{i}", "chosen", row) for i, row in enumerate(ROWS)],
    max_length=8,
    batch_size=None,
)
((_, BATCH),) = WATCHED.batches


@functools.cache
def model(param_dtype, dtype=None):
    config = dataclasses.replace(
        CONFIGS["llama"], num_layers=2, param_dtype=param_dtype, dtype=dtype
    )
    return Transformer(config)


@functools.cache
def steps(param_dtype, name, form):
    """`(watch_fn, step of a rate)`; the rate is a number of the optimizer's state."""
    narrow = model(param_dtype, param_dtype)
    apply_fn = ldjax.linen.apply_fn(narrow)
    watch_fn = ldjax.linen.apply_fn(model(param_dtype, "float32"))
    make = OPTIMIZERS[name]
    # The others would be rounded to the parameters' dtype: in bfloat16, 0.999 is 1.
    static = set(inspect.signature(make).parameters) - {"learning_rate"}
    optimizer = optax.inject_hyperparams(make, static_args=static)(learning_rate=1e-3)
    problem = (in_float32(apply_fn), losses.sft, optimizer)
    params = random_params(narrow)

    def at(state, rate):
        hyperparams = state.opt_state.hyperparams
        rate = jnp.asarray(rate, hyperparams["learning_rate"].dtype)
        opt_state = state.opt_state._replace(
            hyperparams=hyperparams | {"learning_rate": rate}
        )
        return state._replace(opt_state=opt_state)

    if form == "immediate":
        init, step = make_step(*problem, watch_fn=watch_fn)
        take = lambda rate: step(at(init(params), rate), BATCH, BATCH)
    else:
        init, step, finish = make_pending_step(*problem, watch_fn=watch_fn)

        def take(rate):
            state = init(params, BATCH, BATCH)
            state, _ = step(state._replace(now=at(state.now, rate)), BATCH)
            return state.now, finish(state)

    return params, watch_fn, take


def in_float32(apply_fn):
    return lambda params, batch: apply_fn(params, batch).astype(jnp.float32)


@functools.cache
def witness(watch_fn):
    """Log-probs outside of a step, and their derivative along a direction.

    The derivative is by a copy of the parameters in float32, so that a direction is
    not rounded to theirs.
    """

    @jax.jit
    def evaluate(params, direction):
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)

        def log_probs(p):
            with jax.default_matmul_precision("highest"):
                return ldjax.token_log_probs(watch_fn(p, BATCH), *BATCH[1:3])

        return jax.jvp(log_probs, (wide,), (direction,))

    return evaluate


def wide_difference(new, old):
    return jax.tree.map(
        lambda n, o: n.astype(jnp.float32) - o.astype(jnp.float32), new, old
    )


def check(param_dtype, name, form):
    params, watch_fn, take = steps(param_dtype, name, form)
    moved = []
    for rate in RATES:
        state, comparison = take(rate)
        stored = wide_difference(state.params, params)
        moved.append(np.mean([np.mean(x != 0) for x in jax.tree.leaves(stored)]))
        old, predicted = witness(watch_fn)(params, stored)
        new, _ = witness(watch_fn)(state.params, stored)
        floor = np.asarray(comparison.floor)
        # Two compiled programs: each is within its floor.
        assert (np.abs(comparison.measured - (new - old)) <= floor).all(), rate
        # A direction of the parameters' dtype: rounded coordinate by coordinate.
        eps = float(jnp.finfo(params_dtype(params)).eps)
        scale = float(np.abs(predicted).max())
        assert np.abs(comparison.predicted - predicted).max() <= 4 * eps * scale, rate
        parts = jax.tree.map(np.asarray, comparison.parts)
        largest = max(np.abs(part).max() for part in parts.values())
        gap = np.abs(sum(parts.values()) - comparison.predicted).max()
        assert gap <= 1e-6 * largest
        if not moved[-1]:
            assert not np.any(comparison.predicted)
    assert moved[0] > 0.5
    return moved


def params_dtype(params):
    return jax.tree.leaves(params)[0].dtype


def _cases(*fast):
    """These run in the slow suite, the others in the exhaustive one."""
    return [
        pytest.param(
            *case, marks=pytest.mark.slow if case in fast else pytest.mark.exhaustive
        )
        for dtype in ("float32", "bfloat16", "float16")
        for name in OPTIMIZERS
        for form in ("immediate", "pending")
        for case in [(dtype, name, form)]
    ]


@pytest.mark.parametrize(
    ("param_dtype", "name", "form"),
    _cases(
        ("bfloat16", "adamw", "immediate"),
        ("bfloat16", "sgd", "pending"),
        ("float16", "momentum", "immediate"),
        ("float32", "adam", "immediate"),
    ),
)
def test_a_step_accounts_for_what_it_stored(param_dtype, name, form):
    moved = check(param_dtype, name, form)
    print(f"\n{param_dtype}, {name}, {form}: share that moved {moved}")
    if param_dtype != "float32":
        assert moved[-1] < 0.01


@pytest.mark.slow
def test_the_rounding_is_the_part_along_what_storing_did_to_the_update():
    """`rounding` is a difference of derivatives: here it is one."""
    params, watch_fn, take = steps("bfloat16", "sgd", "immediate")
    narrow = in_float32(ldjax.linen.apply_fn(model("bfloat16", "bfloat16")))
    rate = 1e-3
    state, comparison = take(rate)
    gradient = jax.jit(
        jax.grad(lambda p: losses.sft(narrow(p, BATCH), BATCH)),
        compiler_options={"xla_allow_excess_precision": False},
    )(params)
    nominal = jax.tree.map(
        lambda g: (jnp.bfloat16(-rate) * g).astype(jnp.float32), gradient
    )
    stored = wide_difference(state.params, params)
    lost = jax.tree.map(jnp.subtract, stored, nominal)
    _, rounding = witness(watch_fn)(params, lost)
    largest = np.abs(comparison.parts["update"]).max()
    # Gradients of two programs in bfloat16, of about 2 ** -8 relative accuracy.
    assert np.abs(comparison.parts["rounding"] - rounding).max() <= 0.02 * largest
    assert np.abs(rounding).max() > 0.1 * largest


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float16"])
def test_changes_between_stored_parameters_are_those_of_the_step(param_dtype):
    """The other doors to a change: probes of a loop of one's own."""
    params, watch_fn, take = steps(param_dtype, "sgd", "immediate")
    state, comparison = take(1e-3)
    change = make_change_fn(watch_fn, WATCHED)(params, state.params)
    for name in ("predicted", "measured"):
        expected = np.asarray(getattr(comparison, name)).sum(-1)
        floor = np.asarray(comparison.floor).sum(-1)
        assert (np.abs(change[name] - expected) <= floor).all()
