"""The equation for SFT and for both sides of DPO, under the optimizers in use.

A small transformer in float64, at its second step, so that there is a history. Under a
preconditioner `P` the kernel is that of the network in the coordinates `phi`, with
`theta = theta_0 + sqrt(P) phi`; so neural-tangents' K serves every optimizer.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses.references import exact_parts
from zoo.decoders import make_decoder, random_tokens

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.data.reference import add_reference

RATE, CLIP, B1, B2, EPS, DECAY = 1e-3, 0.05, 0.9, 0.99, 1e-3, 0.9


def example(prompt, response, seed):
    return Example(random_tokens(prompt, seed), random_tokens(response, seed + 50))


SIDES = {
    "chosen": to_sequences([example(3, 4, 1), example(2, 3, 2)], max_length=7),
    "rejected": to_sequences([example(3, 3, 3), example(2, 4, 4)], max_length=7),
}
PROBE = to_sequences([example(2, 3, 5)], max_length=5)

# RMSprop and Adam with a large epsilon: with a small one the first steps are signs of
# gradients, whose remainder is not yet of second order at any useful rate.
OPTIMIZERS = {
    "sgd": optax.inject_hyperparams(optax.sgd)(learning_rate=RATE),
    "rmsprop": optax.inject_hyperparams(optax.rmsprop)(
        learning_rate=RATE, decay=DECAY, eps=EPS, eps_in_sqrt=False
    ),
    "clip, adamw": optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.inject_hyperparams(optax.adamw)(
            learning_rate=RATE, b1=B1, b2=B2, eps=EPS, weight_decay=0.1
        ),
    ),
}

# Each method is compiled anew; that they agree everywhere is tested in `test_ntk.py`.
METHODS = {
    "sgd": ("jacobian", "ntk_vp"),
    "rmsprop": ("jacobian",),
    "clip, adamw": ("ntk_vp",),
}


def preconditioner(name, gradient, opt_state):
    """`P` of the step that was taken: what each coordinate of its gradient is times."""
    if name == "sgd":
        return jax.tree.map(jnp.ones_like, gradient)
    second = optax.tree.get(opt_state, "nu")
    if name == "rmsprop":
        return jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + EPS), second)
    factor = min(1.0, CLIP / float(optax.tree.norm(gradient))) * (1 - B1) / (1 - B1**2)
    return jax.tree.map(lambda v: factor / (jnp.sqrt(v / (1 - B2**2)) + EPS), second)


@pytest.fixture(
    scope="module",
    params=[pytest.param("sft", marks=pytest.mark.exhaustive), "dpo"],
)
def setting(request):
    """`apply_fn`, parameters, loss and update."""
    model, params = make_decoder("gpt2", num_layers=1)
    apply_fn = ldjax.linen.apply_fn(model)
    if request.param == "sft":
        return apply_fn, params, ldjax.losses.sft, SIDES["chosen"]
    elsewhere = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    pairs = add_reference(apply_fn, elsewhere, SIDES, batch_size=2)
    return apply_fn, params, ldjax.losses.dpo(0.5), pairs


@pytest.fixture(
    scope="module",
    # The last has everything that the others have.
    params=[
        pytest.param("sgd", marks=pytest.mark.exhaustive),
        pytest.param("rmsprop", marks=pytest.mark.exhaustive),
        "clip, adamw",
    ],
)
def second_step(request, setting):
    """The state before it, and `learning_rate -> (state, comparison)`."""
    apply_fn, params, loss_fn, update = setting
    init, step = ldjax.make_step(
        apply_fn, loss_fn, OPTIMIZERS[request.param], full_vocab=True
    )
    state, _ = step(init(params), update, PROBE)

    def take(rate):
        opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.asarray(rate))
        return step(state._replace(opt_state=opt_state), update, PROBE)

    return request.param, state, take


def sides_of(update):
    return update if isinstance(update, dict) else {"update": update}


@pytest.mark.slow
def test_each_side_is_adaptation_kernel_and_residual(setting, second_step):
    apply_fn, _, loss_fn, update = setting
    name, state, take = second_step
    after, comparison = take(RATE)
    sides = sides_of(update)

    def loss_of(params):
        logits = {side: apply_fn(params, batch) for side, batch in sides.items()}
        return loss_fn(logits if isinstance(update, dict) else logits["update"], update)

    gradient = jax.grad(loss_of)(state.params)
    scale = jax.tree.map(jnp.sqrt, preconditioner(name, gradient, after.opt_state))
    origin = jax.tree.map(jnp.zeros_like, scale)

    def in_coordinates(batch):
        def logits_fn(phi):
            move = jax.tree.map(jnp.multiply, scale, phi)
            return apply_fn(jax.tree.map(jnp.add, state.params, move), batch)

        return logits_fn

    logits = {side: in_coordinates(batch)(origin) for side, batch in sides.items()}
    residuals = sides_of(
        jax.grad(loss_fn)(
            logits if isinstance(update, dict) else logits["update"], update
        )
    )
    A = ldjax.adaptation_matrix(in_coordinates(PROBE)(origin))
    for (side, batch), method in itertools.product(sides.items(), METHODS[name]):
        kernel_times = jax.jit(
            lambda phi, vector, batch=batch, method=method: (
                ldjax.empirical_ntk(
                    in_coordinates(PROBE), in_coordinates(batch), phi, method=method
                )
                @ vector
            )
        )
        K_G = kernel_times(origin, residuals[side])
        change = -RATE * jnp.einsum("btvw,btw->btv", A, K_G)
        expected = np.asarray(jnp.where(PROBE.mask[..., None], change, 0))
        part = np.asarray(comparison.parts[side])
        assert np.abs(part - expected).max() <= 1e-12 * np.abs(expected).max()
        assert np.abs(expected).max() > 1e-6  # it is about something


@pytest.mark.slow
def test_the_parts_sum_to_the_prediction(setting, second_step):
    update = setting[-1]
    name, _, take = second_step
    comparison = take(RATE)[1]
    rest = {"sgd": set(), "rmsprop": set(), "clip, adamw": {"history", "weight_decay"}}
    expected = set(sides_of(update)) | rest[name] | {"rounding"}
    assert set(comparison.parts) == expected
    predicted = np.asarray(comparison.predicted)
    parts = exact_parts(comparison).values()
    total = sum(np.asarray(part) for part in parts)
    largest = max(np.abs(part).max() for part in parts)
    assert np.abs(total - predicted).max() <= 1e-12 * largest


@pytest.mark.slow
def test_the_remainder_falls_fourfold_when_the_rate_halves(second_step):
    _, _, take = second_step
    rates = (4e-4, 2e-4, 1e-4)
    norms = [np.linalg.norm(take(rate)[1].remainder) for rate in rates]
    for large, small in itertools.pairwise(norms):
        assert 3.8 < large / small < 4.2
