"""The split of an update: it sums, it is linear, and NumPy's optimizers agree."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from witnesses.closeness import assert_close
from witnesses.numpy_optimizers import (
    Accumulated,
    Adam,
    Adopt,
    Anchored,
    Lion,
    Muon,
    RmsProp,
    Rprop,
    ScheduleFreeSgd,
    Sgd,
)
from witnesses.references import flat, unflat
from zoo.optimizers import TABLE, anchored, chain_sgd, marked, rprop, stateless

from ldjax.equation.update_parts import PARTS, frozen_update
from ldjax.report import figures, measures

REPORT = Path(figures.__file__).parent

PARAMS = {
    "kernel": jnp.array([[0.5, -1.0], [2.0, 0.3]]),
    "bias": jnp.array([0.1, -0.4]),
}
_frozen_update = frozen_update  # replaced by a wrong one in a test


def _gradient(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), PARAMS)


def _split(optimizer, gradient, state, params, *parts):
    """The real update, own at each part, and the rest; with the next state."""
    optimizer = optax.with_extra_args_support(optimizer)
    value = jnp.float64(1.0)
    updates, new_state = optimizer.update(gradient, state, params, value=value)
    own, rest = _frozen_update(optimizer, gradient, state, params, value=value)
    return updates, [own(part) for part in parts], rest, new_state


# Some two hundred roundings on the way, of numbers not much larger than the parts.
ROUNDING = 5e-14
# Each of Muon's five iterations may enlarge a small singular value, and its errors, 3.4
# times: 480 times the 32 roundings of the first product.
ROUNDING_OF_MUON = 5e-12

# Nothing of the gradient is in the first update: a rate that is zero then, gradients
# that are collected first, a step that is handed out one step late.
_STARTS_LATER = {
    *("scheduled sgd", "nesterov", "momentum, decay", "clip, adamw", "injected"),
    *("accumulated", "accumulated sgd", "accumulated sums", "accumulated, skipping"),
    *("every second", "every second, momentum", "adam, every second", "adopt"),
    *("rprop, optax", "no rate", "at times", "schedule-free adamw", "adopt, nesterov"),
}


def _check(
    optimizer, names, num_steps=4, *, starts_later=False, seeded=False, rtol=None
):
    split = jax.jit(lambda *args: _split(optimizer, *args))
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(num_steps):
        gradient, other = _gradient(step), _gradient(100 + step)
        mixed = jax.tree.map(lambda a, b: 0.3 * a - 2 * b, gradient, other)
        zero = jax.tree.map(jnp.zeros_like, gradient)
        updates, shares, rest, state = split(
            gradient, state, params, gradient, other, mixed, zero
        )
        assert sorted(rest) == names
        if step == 0:
            has_history = flat(rest.get("history", 0.0)).any()
            assert not has_history or seeded, "no history at the start"
            assert not flat(rest.get("accumulated", 0.0)).any()
            assert flat(shares[0]).any() != starts_later, "the gradient has a share"
        total = jax.tree.map(lambda *xs: sum(xs), shares[0], *rest.values())
        largest = max(abs(flat(part)).max() for part in [shares[0], *rest.values()])
        scale = max(1e-3, largest)
        assert_close(total, updates, rtol=rtol or ROUNDING, scale=scale)
        linear = jax.tree.map(lambda a, b: 0.3 * a - 2 * b, *shares[:2])
        assert_close(
            *(shares[2], linear),
            rtol=rtol or ROUNDING,
            scale=max(1e-3, abs(flat(linear)).max()),
        )
        assert not flat(shares[3]).any(), "zero gives zero"
        params = optax.apply_updates(params, updates)


_FAST = (
    *("scheduled sgd", "nesterov", "momentum, decay", "adam", "clip, adamw"),
    *("rmsprop, centered", "lamb", "injected", "partition", "accumulated"),
    *("lion", "clip by value, adam", "rprop", "muon", "every second, momentum"),
    *("schedule-free sgd", "cocob", "anchored", "noise", "flattened"),
)
_SLOW = (
    *("rates in the state", "adopt", "accumulated, skipping", "adam, every second"),
    *("momentum that starts anew", "schedule-free adamw", "madgrad", "mechanize"),
    *("noise, adam", "galore", "rprop, optax", "lars", "fromage", "nonnegative"),
    *("masked", "plateau", "adam in bfloat16", "rounded"),
)


@pytest.mark.parametrize("name", marked(TABLE, fast=_FAST, slow=_SLOW))
def test_own_and_rest_sum_to_the_real_update_and_own_is_linear(name):
    is_seeded = name == "yogi"  # its moments start at 1e-6
    rtol = ROUNDING_OF_MUON if name.startswith("muon") else ROUNDING
    starts_later = name in _STARTS_LATER
    _check(*TABLE[name], starts_later=starts_later, seeded=is_seeded, rtol=rtol)


@pytest.mark.parametrize("name", ["momentum", "adamw", "clip, adamw"])
def test_a_forgotten_part_is_caught(name, monkeypatch):
    def forgetful(*args, **kwargs):
        own, rest = frozen_update(*args, **kwargs)
        return own, jax.tree.map(jnp.zeros_like, rest)

    monkeypatch.setattr(sys.modules[__name__], "_frozen_update", forgetful)
    with pytest.raises(AssertionError):
        _check(*TABLE[name])


@pytest.mark.parametrize("name", ["rprop", "sgd", "momentum", "lion"])
def test_to_call_everything_history_is_caught(name, monkeypatch):
    def lazy(optimizer, gradient, state, params, **extra_args):
        updates, _ = optimizer.update(gradient, state, params, **extra_args)
        own = lambda part: jax.tree.map(jnp.zeros_like, part)
        return own, {"history": updates}

    monkeypatch.setattr(sys.modules[__name__], "_frozen_update", lazy)
    with pytest.raises(AssertionError, match="no history at the start"):
        _check(TABLE[name][0], ["history"])


WITNESSED = {
    "sgd": (optax.sgd(0.1), Sgd(0.1)),
    "momentum": (optax.sgd(0.1, momentum=0.9), Sgd(0.1, 0.9)),
    "nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        Sgd(0.1, 0.9, nesterov=True),
    ),
    "rmsprop": (optax.rmsprop(0.1), RmsProp(0.1)),
    "adam": (optax.adam(0.1), Adam(0.1)),
    "nadam": (optax.nadam(0.1), Adam(0.1, nesterov=True)),
    "adamw": (optax.adamw(0.1, weight_decay=0.1), Adam(0.1, weight_decay=0.1)),
    "clip, adamw": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1)),
        Adam(0.1, weight_decay=0.1, max_norm=0.5),
    ),
    "clip by value, adam": (
        optax.chain(optax.clip(0.3), optax.adam(0.1)),
        Adam(0.1, max_entry=0.3),
    ),
    "sign_sgd": (optax.sign_sgd(0.1), Lion(0.1)),
    "lion": (
        optax.lion(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        Lion(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
    ),
    "adopt": (contrib.adopt(0.1), Adopt(0.1)),
    "rprop": (rprop(0.1), Rprop(0.1)),
    "accumulated sgd": (optax.MultiSteps(optax.sgd(0.1), 3), Accumulated(Sgd(0.1), 3)),
    "accumulated adamw": (
        optax.MultiSteps(optax.adamw(0.1, weight_decay=0.1), 2),
        Accumulated(Adam(0.1, weight_decay=0.1), 2),
    ),
    "every second, momentum": (
        optax.chain(optax.apply_every(2), optax.sgd(0.1)),
        Accumulated(Sgd(0.1), 2, mean=False),
    ),
    "schedule-free sgd": (contrib.schedule_free_sgd(0.05), ScheduleFreeSgd(0.05)),
    "anchored": (chain_sgd(anchored(0.1)), Anchored(0.1, 0.1)),
}


def _assert_witnessed(optimizer, witness, params, rtol=1e-12, num_steps=4):
    """Every part, of any share of the gradient, at every step."""
    split = jax.jit(lambda *args: _split(optimizer, *args))
    state = optimizer.init(params)
    drawn = lambda seed: unflat(
        np.random.default_rng(seed).normal(size=flat(params).size), params
    )
    for step in range(num_steps):
        gradient, part = drawn(step), drawn(100 + step)
        updates, (own,), rest, state = split(gradient, state, params, part)
        expected = witness.step(flat(gradient), flat(params))
        close = lambda found, wanted: assert_close(
            flat(found), wanted, rtol=rtol, scale=max(1e-3, abs(wanted).max())
        )
        close(updates, expected.update(flat(gradient)))
        close(own, expected.own(flat(part)))
        zero = np.zeros(flat(params).size)
        for label in PARTS:
            close(rest.get(label, zero), expected.rest.get(label, zero))
        params = optax.apply_updates(params, updates)


_WITNESSED_FAST = (
    *("nesterov", "clip, adamw", "clip by value, adam", "lion", "rprop"),
    *("accumulated adamw", "schedule-free sgd"),
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in _WITNESSED_FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in WITNESSED
    ],
)
def test_every_part_equals_the_numpy_optimizers(name):
    optimizer, witness = WITNESSED[name]
    # Optax accumulates in float32, and counts in it.
    rtol = 1e-6 if name.startswith(("accumulated", "adopt", "schedule")) else 1e-12
    _assert_witnessed(optimizer, witness, PARAMS, rtol)
    if name == "clip, adamw":
        assert witness.clip < 1, "the clip factor was at work"


def test_muon_is_the_product_of_its_left_factors():
    params = {"kernel": jnp.array([[0.5, -1.0, 0.2], [2.0, 0.3, -0.7]])}
    _assert_witnessed(contrib.muon(0.1), Muon(0.1, (2, 3)), params)


def test_a_hand_made_transformation_is_split():
    def init(params):
        return {
            "slow": jax.tree.map(jnp.zeros_like, params),
            "count": jnp.zeros((), int),
        }

    def update(updates, state, params=None):
        slow = jax.tree.map(lambda s, g: 0.5 * s + g, state["slow"], updates)
        norm = jnp.sqrt(sum((s**2).sum() for s in jax.tree.leaves(slow)))
        rate = 0.1 / (1 + norm + state["count"])
        step = lambda s, p: -rate * (s + 0.01 * p)
        return jax.tree.map(step, slow, params), {
            "slow": slow,
            "count": state["count"] + 1,
        }

    _check(optax.GradientTransformation(init, update), ["history", "weight_decay"])


def test_a_constant_or_a_product_of_moments_is_not_split():
    constant = optax.stateless(lambda g, _: jax.tree.map(lambda x: x + 1.0, g))
    product = optax.stateless(lambda g, p: jax.tree.map(jnp.multiply, g, p))
    with pytest.raises(ValueError, match="a constant term"):
        _check(constant, [])
    with pytest.raises(ValueError, match="`mul`"):
        _check(product, [])


def _quantised(g):
    return (g / 0.05).astype(jnp.int32).astype(g.dtype) * 0.05


def _average_from_zero():
    """A pull to an average of the parameters that starts at zero."""

    def update(updates, state, params=None):
        mix = lambda a, p: 0.9 * a + 0.1 * p
        average = jax.tree.map(mix, state["average"], params)
        pull = lambda g, p, a: g + p - a
        return jax.tree.map(pull, updates, params, average), {"average": average}

    zero = lambda params: {"average": jax.tree.map(jnp.zeros_like, params)}
    return optax.GradientTransformation(zero, update)


@pytest.mark.parametrize(
    ("optimizer", "operation"),
    [
        (chain_sgd(stateless(_quantised)), "`convert_element_type` to int32"),
        (
            chain_sgd(stateless(lambda g: g.astype(bool).astype(g.dtype))),
            "`convert_element_type` to bool",
        ),
        (chain_sgd(stateless(jnp.abs)), "`abs`"),
        (chain_sgd(stateless(lambda g: jnp.maximum(g, 0.1))), "`max`"),
        (chain_sgd(stateless(lambda g: jnp.clip(g, 0.1, 0.3))), "`max`"),
        (chain_sgd(_average_from_zero()), "the state's `.*average"),
        pytest.param(
            optax.lbfgs(0.1, memory_size=1, linesearch=None),
            "because of `",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["quantised", "bool", "size", "floor", "band", "average", "lbfgs"],
)
def test_what_is_not_linear_is_refused_by_name_and_the_total_is_offered(
    optimizer, operation
):
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(PARAMS)
    with pytest.raises(
        ValueError, match=rf"cannot be split.*{operation}.*parts=None"
    ) as e:
        frozen_update(optimizer, _gradient(0), state, PARAMS)
    assert "\n" not in str(e.value)


def test_a_state_of_another_optimizer_is_refused():
    adam = optax.with_extra_args_support(optax.adam(0.1))
    with pytest.raises(ValueError, match=r"0 leaves.*makes 3"):
        frozen_update(adam, {"w": 1.0}, optax.sgd(0.1).init({"w": 1.0}), {"w": 1.0})


def test_two_sets_of_parameters_are_refused():
    optimizer = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    theta = optax.LookaheadParams.init_synced(jnp.ones(2))
    with pytest.raises(ValueError, match=r"copies.*lookahead.*parts=None"):
        frozen_update(
            optax.with_extra_args_support(optimizer),
            *(jnp.ones(2), optimizer.init(theta), theta),
        )


def test_yogis_moments_start_where_optax_puts_them():
    """At 1e-6, not at zero: that is all the history there is at the start."""
    optimizer, gradient = optax.yogi(0.1), _gradient(0)
    state = optimizer.init(PARAMS)
    split = jax.jit(functools.partial(_split, optimizer))
    updates, (own,), rest, _ = split(gradient, state, PARAMS, gradient)
    ratio = flat(rest["history"]) / flat(own)
    assert_close(ratio, 0.9e-6 / (0.1 * flat(gradient)), rtol=1e-12)
    assert_close(flat(own) + flat(rest["history"]), flat(updates), rtol=1e-12)


def test_an_entry_whose_gradient_is_zero_has_no_share_of_a_sign():
    theta, gradient = jnp.ones(3), jnp.array([2.0, 0.0, -1.0])
    optimizer = optax.sign_sgd(0.5)
    state = optimizer.init(theta)
    _, shares, rest, _ = _split(optimizer, gradient, state, theta, gradient, theta)
    assert_close(shares, [jnp.array([-0.5, 0, 0.5]), jnp.array([-0.25, 0, -0.5])])
    assert not rest


def test_copies_of_the_parameters_make_no_parts_that_cancel():
    """In float32, at a small rate: no part is far larger than the update."""
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    for optimizer in (
        contrib.schedule_free_sgd(1e-5),
        contrib.mechanize(optax.sgd(0.1)),
    ):
        split = jax.jit(functools.partial(_split, optimizer))
        params, state = theta, optimizer.init(theta)
        for step in range(3):
            gradient = jax.tree.map(lambda g: g.astype(jnp.float32), _gradient(step))
            updates, (own,), rest, state = split(gradient, state, params, gradient)
            # The update is a difference of parameters, each rounded several times.
            rounding = 16 * np.finfo(np.float32).eps * abs(flat(params)).max()
            parts = [flat(part) for part in (own, *rest.values())]
            assert abs(sum(parts) - flat(updates)).max() < rounding
            largest = abs(flat(updates)).max() + rounding
            assert max(abs(part).max() for part in parts) < 3 * largest
            params = optax.apply_updates(params, updates)


@pytest.mark.parametrize(
    "theta",
    [jnp.float64(2.0), {"learning_rate": jnp.float64(2.0), "b1": jnp.float64(1.0)}],
    ids=["a number", "named like hyperparameters"],
)
@pytest.mark.parametrize("make", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_hyperparameters_are_not_taken_for_moments(make, theta):
    gradient = jax.tree.map(jnp.ones_like, theta)
    plain, injected = (
        _split(optimizer, gradient, optimizer.init(theta), theta, gradient)[:3]
        for optimizer in (make(0.5), optax.inject_hyperparams(make)(learning_rate=0.5))
    )
    assert_close(injected, plain, rtol=1e-12)


def _looped(g):
    """A carry, what each step leaves, backwards, with inputs of its own."""

    def step(carry, row):
        carry = 0.5 * carry + row
        return carry, carry - row.sum()

    last, rows = jax.lax.scan(step, jnp.zeros(3), g, reverse=True)
    return rows + last[None]


def _by_size(g):
    """The sign of one number as a scale of another; a sum with it is one, too."""
    sign = jnp.sign(g[::-1])
    return g * sign + g / (3 + sign) + sign


# Of a `[2, 3]` array: what is linear, and what is with one factor frozen.
OPERATIONS = {
    "split": lambda g: jnp.concatenate(jnp.split(g, 3, axis=1)[::-1], axis=1),
    "gather": lambda g: g[jnp.array([1, 1]), :] + g[:, jnp.array([2, 0, 0])],
    "slices": lambda g: jax.lax.dynamic_update_slice(
        g, jax.lax.dynamic_slice(g, (0, 1), (1, 2)), (1, 0)
    ),
    "set": lambda g: g.at[0].set(g[1] * 2),
    "add": lambda g: g.at[0].add(g[1] * 2),
    "pad": lambda g: jnp.pad(g, ((1, 0), (0, 0)))[:2],
    "cumsum": lambda g: jnp.cumsum(g, axis=1),
    "barrier": lambda g: jax.lax.optimization_barrier(g),
    "stopped": lambda g: jax.lax.stop_gradient(g) + g[:, ::-1],
    "convolved": lambda g: jnp.stack(
        [jnp.convolve(row, jnp.arange(3.0), "same") for row in g]
    ),
    "clamped": lambda g: jax.lax.clamp(-0.1, g, 0.2),
    "half": lambda g: jnp.minimum(0.3, jnp.maximum(g, 0.0)),
    "bounded by the norm": lambda g: jnp.clip(
        g, -jnp.sqrt((g**2).mean()), abs(g).max()
    ),
    "odd power": lambda g: g**5,
    "loop": _looped,
    "loop of scales": lambda g: (
        g * jax.lax.fori_loop(0, 3, lambda i, x: x + i, (g**2).sum())
    ),
    "by size": _by_size,
    "branches": lambda g: jax.lax.cond(g[0, 0] > 0, lambda g: 2 * g, jnp.tanh, g),
    "branch of a scale": lambda g: (
        g * jax.lax.cond(g.sum() > 0, jnp.sum, jnp.max, g**2)
    ),
    "product": lambda g: (g @ g.T) @ g,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_linear_with_its_scales_frozen(name):
    optimizer = optax.with_extra_args_support(stateless(OPERATIONS[name]))
    rng = np.random.default_rng(0)
    g, other = (jnp.asarray(rng.normal(size=(2, 3))) for _ in range(2))

    @jax.jit
    def parts(g, other):
        own, rest = frozen_update(optimizer, g, optimizer.init(g), g)
        assert not rest
        return own(g), own(other), own(0.3 * g - 2 * other), own(0 * g)

    whole, share, mixed, nothing = parts(g, other)
    assert_close(whole, OPERATIONS[name](g))
    assert_close(mixed, 0.3 * whole - 2 * share)
    assert not np.any(nothing)


def test_every_part_has_a_word_and_a_colour_wherever_parts_are_shown():
    dated = ("before", *(f"history of {side}" for side in ("chosen", "rejected")))
    names = [*PARTS, *dated, "rounding"]
    page = "".join(path.read_text() for path in (REPORT / "template").glob("*.js"))
    assert not [name for name in names if f"part:{name}" not in measures.PARTS]
    assert not [name for name in names if name not in figures.COLORS]
    assert not [name for name in names if f'"part:{name}": "' not in page]


@pytest.mark.parametrize("function", [jnp.tanh, lambda x: x**3], ids=["tanh", "cube"])
def test_the_share_of_a_monotone_function_is_that_of_aumann_and_shapley(function):
    r"""A part `p` of `x` has `p` times the mean of phi's derivative from 0 to `x`."""
    g, part = jnp.array([0.5, -1.2, 0.01]), jnp.array([0.7, 0.3, -2.0])
    optimizer = stateless(function)
    _, (share,), _, _ = _split(optimizer, g, optimizer.init(g), g, part)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    slope = jax.vmap(jax.vmap(jax.grad(function)))
    slopes = slope(jnp.asarray((nodes[:, None] + 1) / 2) * g[None])
    assert_close(share, part * (jnp.asarray(weights) @ slopes) / 2)
