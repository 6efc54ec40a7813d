"""The split of an update: it sums, it is linear, and NumPy's optimizers agree."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close
from numpy_optimizers import Adam, RmsProp, Sgd
from references import flat, unflat

from ldjax.update_parts import frozen_update

PARAMS = {
    "kernel": jnp.array([[0.5, -1.0], [2.0, 0.3]]),
    "bias": jnp.array([0.1, -0.4]),
}
_frozen_update = frozen_update  # replaced by a wrong one in a test
WITHOUT_BIAS = {"kernel": True, "bias": False}
DECAY = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)


def _injected(learning_rate):
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(learning_rate))


# name: (optimizer, the parts it has beside the gradient's own)
TABLE = {
    "sgd": (optax.sgd(0.1), []),
    "scheduled sgd": (optax.sgd(DECAY), []),
    "momentum": (optax.sgd(0.1, momentum=0.9), ["history"]),
    "nesterov": (optax.sgd(DECAY, momentum=0.9, nesterov=True), ["history"]),
    "momentum, decay": (
        optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(DECAY, momentum=0.9)),
        ["history", "weight_decay"],
    ),
    "momentum in float32": (
        optax.sgd(0.1, momentum=0.5, accumulator_dtype=jnp.float32),
        ["history"],
    ),
    "adam": (optax.adam(0.1), ["history"]),
    "amsgrad": (optax.amsgrad(0.1), ["history"]),
    "nadam": (optax.nadam(0.1), ["history"]),
    "nadamw": (optax.nadamw(0.1), ["history", "weight_decay"]),
    "adamw": (optax.adamw(0.1), ["history", "weight_decay"]),
    "adamw, masked": (optax.adamw(0.1, mask=WITHOUT_BIAS), ["history", "weight_decay"]),
    "clip, adamw": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(DECAY)),
        ["history", "weight_decay"],
    ),
    "clip by block": (
        optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1)),
        [],
    ),
    "adaptive clip": (optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)), []),
    "normalised": (optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)), []),
    "rmsprop": (optax.rmsprop(0.1), []),
    "rmsprop, momentum": (optax.rmsprop(0.1, momentum=0.9), ["history"]),
    "rmsprop, centered": (optax.rmsprop(0.1, centered=True), []),
    "adagrad": (optax.adagrad(0.1), []),
    "adadelta": (optax.adadelta(0.1), []),
    "yogi": (optax.yogi(0.1), ["history"]),
    "radam": (optax.radam(0.1), ["history"]),
    "adabelief": (optax.adabelief(0.1), ["history"]),
    "novograd": (optax.novograd(0.1), ["history"]),
    "adamax": (optax.adamax(0.1), ["history"]),
    "lamb": (optax.lamb(0.1, weight_decay=0.01), ["history", "weight_decay"]),
    "lars": (optax.lars(0.1, weight_decay=0.01), ["history", "weight_decay"]),
    "fromage": (optax.fromage(0.1), ["weight_decay"]),
    "adafactor": (
        optax.adafactor(0.1, min_dim_size_to_factor=2, clipping_threshold=1.0),
        [],
    ),
    "ema": (optax.chain(optax.ema(0.9), optax.scale(-0.1)), ["history"]),
    "nonnegative": (
        optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
        ["weight_decay"],  # where a parameter is set to zero it is its own reason
    ),
    "centralised": (optax.chain(optax.centralize(), optax.sgd(0.1)), []),
    "injected": (
        optax.inject_hyperparams(_injected)(learning_rate=DECAY),
        ["history", "weight_decay"],
    ),
    "partition": (
        optax.partition(
            {"a": optax.adam(0.1), "b": optax.set_to_zero()},
            {"kernel": "a", "bias": "b"},
        ),
        ["history"],
    ),
    "masked": (optax.masked(optax.adam(0.1), WITHOUT_BIAS), ["history"]),
    "accumulated": (optax.MultiSteps(optax.adamw(0.1), 2), ["history", "weight_decay"]),
    "apply if finite": (optax.apply_if_finite(optax.adam(0.1), 3), ["history"]),
    "plateau": (
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        ["history"],
    ),
}


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


def _check(optimizer, names, num_steps=4):
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
        total = jax.tree.map(lambda *xs: sum(xs), shares[0], *rest.values())
        scale = max(
            1e-3, *(abs(flat(part)).max() for part in [shares[0], *rest.values()])
        )
        assert_close(total, updates, rtol=1e-12, scale=scale)
        linear = jax.tree.map(lambda a, b: 0.3 * a - 2 * b, *shares[:2])
        assert_close(
            shares[2], linear, rtol=1e-12, scale=max(1e-3, abs(flat(linear)).max())
        )
        assert not flat(shares[3]).any(), "zero gives zero"
        params = optax.apply_updates(params, updates)


_FAST = (
    *("scheduled sgd", "nesterov", "momentum, decay", "adam", "clip, adamw"),
    *("rmsprop, centered", "lamb", "injected", "partition", "accumulated"),
)


@pytest.mark.parametrize(
    "name",
    [n if n in _FAST else pytest.param(n, marks=pytest.mark.slow) for n in TABLE],
)
def test_own_and_rest_sum_to_the_real_update_and_own_is_linear(name):
    _check(*TABLE[name])


@pytest.mark.parametrize("name", ["momentum", "adamw", "clip, adamw"])
def test_a_forgotten_part_is_caught(name, monkeypatch):
    def forgetful(*args, **kwargs):
        own, rest = frozen_update(*args, **kwargs)
        return own, jax.tree.map(jnp.zeros_like, rest)

    monkeypatch.setattr(sys.modules[__name__], "_frozen_update", forgetful)
    with pytest.raises(AssertionError):
        _check(*TABLE[name])


WITNESSED = {
    "sgd": (optax.sgd(0.1), Sgd(0.1)),
    "momentum": (optax.sgd(0.1, momentum=0.9), Sgd(0.1, 0.9)),
    "nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        Sgd(0.1, 0.9, nesterov=True),
    ),
    "rmsprop": (optax.rmsprop(0.1), RmsProp(0.1)),
    "adam": (optax.adam(0.1), Adam(0.1)),
    "clip, adamw": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1)),
        Adam(0.1, weight_decay=0.1, max_norm=0.5),
    ),
}


@pytest.mark.parametrize("name", WITNESSED)
def test_every_part_equals_the_numpy_optimizers(name):
    optimizer, witness = WITNESSED[name]
    split = jax.jit(lambda *args: _split(optimizer, *args))
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(4):
        gradient, part = _gradient(step), _gradient(100 + step)
        updates, (own,), rest, state = split(gradient, state, params, part)
        expected = witness.step(flat(gradient), flat(params))
        assert_close(flat(updates), expected.update(flat(gradient)), rtol=1e-12)
        assert_close(flat(own), expected.scale * flat(part), rtol=1e-12)
        for label, vector in (
            ("history", expected.history),
            ("weight_decay", expected.decay),
        ):
            assert (label in rest) == (vector is not None)
            if vector is not None:
                assert_close(rest[label], unflat(vector, PARAMS), rtol=1e-12)
        params = optax.apply_updates(params, updates)
    if name == "clip, adamw":
        assert witness.clip < 1, "the clip factor was at work"


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


@pytest.mark.parametrize(
    ("optimizer", "operation"),
    [
        (optax.lion(0.1), "`sign`"),
        (optax.sign_sgd(0.1), "`sign`"),
        (optax.chain(optax.clip(0.1), optax.sgd(0.1)), "`(max|min|clamp)`"),
        (
            optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)),
            "because of .+",
        ),
    ],
    ids=["lion", "sign_sgd", "clip", "noise"],
)
def test_what_is_not_linear_is_refused_by_name_and_the_total_is_offered(
    optimizer, operation
):
    with pytest.raises(
        ValueError, match=rf"cannot be split.*{operation}.*parts=None"
    ) as e:
        _check(optimizer, [])
    print(e.value)


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
