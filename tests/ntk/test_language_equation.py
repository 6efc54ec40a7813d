"""The equation on language: a small decoder of each style, plain SGD, float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo.decoders import STYLES, make_decoder, random_tokens

import ldjax
from ldjax.data.batches import Example, to_sequences

UPDATE = to_sequences([Example(random_tokens(3, 1), random_tokens(4, 2))], max_length=7)
PROBE = to_sequences([Example(random_tokens(2, 3), random_tokens(3, 4))], max_length=5)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(style, marks=[pytest.mark.exhaustive] if style == "qwen2" else [])
        for style in STYLES
    ],
)
def decoder(request):
    """`apply_fn`, parameters and `learning_rate -> comparison` of one style."""
    model, params = make_decoder(request.param, num_layers=1)
    apply_fn = ldjax.linen.apply_fn(model)
    # The rate is part of the state: one compiled step for all rates.
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    init, step = ldjax.make_step(apply_fn, ldjax.losses.sft, optimizer, full_vocab=True)

    def one_step(learning_rate):
        state = init(params)
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(learning_rate)
        return step(state, UPDATE, PROBE)[1]

    return apply_fn, params, one_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["jacobian", pytest.param("ntk_vp", marks=pytest.mark.exhaustive)]
)
def test_adaptation_kernel_and_residual_give_the_steps_prediction(decoder, method):
    apply_fn, params, one_step = decoder

    @jax.jit
    def predict(params):
        probe_fn, update_fn = (
            functools.partial(apply_fn, sequences=batch) for batch in (PROBE, UPDATE)
        )
        loss_fn = functools.partial(ldjax.losses.sft, batch=UPDATE)
        kernel = ldjax.empirical_ntk(probe_fn, update_fn, params, method=method)
        residual = jax.grad(loss_fn)(update_fn(params))
        A = ldjax.adaptation_matrix(probe_fn(params))
        change = -1e-3 * jnp.einsum("btvw,btw->btv", A, kernel @ residual)
        return jnp.where(PROBE.mask[..., None], change, 0)

    expected = np.asarray(predict(params))
    predicted = np.asarray(one_step(1e-3).predicted)
    assert np.abs(predicted - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.slow
def test_the_remainder_falls_fourfold_when_the_rate_halves(decoder):
    one_step = decoder[-1]
    rates = (1e-3, 5e-4, 2.5e-4)
    norms = [np.linalg.norm(one_step(rate).remainder) for rate in rates]
    for large, small in itertools.pairwise(norms):
        assert 3.8 < large / small < 4.2
