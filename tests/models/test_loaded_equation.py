"""The equation and the exact kernels on models that were saved and loaded."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.references import flat
from zoo.decoders import STYLES, make_decoder, random_tokens
from zoo.kernel_models import compiled

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.models import Pretrained, RotaryScaling, load, save

pytestmark = pytest.mark.slow

EXACT = 1e-10

UPDATE = to_sequences([Example(random_tokens(2, 1), random_tokens(3, 2))], max_length=5)
PROBE = to_sequences([Example(random_tokens(2, 3), random_tokens(2, 4))], max_length=4)

# Waves of 1 to 0.001 radians per token: all three regimes within 64 tokens.
SCALING = RotaryScaling(kind="llama3", factor=8.0, original_max_positions=64)

exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


class Loaded:
    """A model after its way through a folder; brute force reads the drawn one."""

    def __init__(self, style, folder):
        changes = {"rotary_scaling": SCALING} if style == "llama" else {}
        model, self.drawn = make_decoder(style, num_layers=1, **changes)
        save(folder, Pretrained(model, self.drawn, model.config, None))
        self.model, self.params, config, _ = load(folder, param_dtype="float64")
        assert config == dataclasses.replace(model.config, param_dtype="float64")
        self.apply_fn = ldjax.linen.apply_fn(self.model)
        self._drawn_fn = ldjax.linen.apply_fn(model)

    @functools.cached_property
    def jacobians(self):
        """`J[row, p]` of the probe and of the update, with their logits."""

        def dense(batch):
            run = lambda params: self._drawn_fn(params, batch)
            leaves = jax.tree.leaves(jax.jacrev(run)(self.drawn))
            logits = run(self.drawn)
            return [leaf.reshape(logits.size, -1) for leaf in leaves], logits

        both = compiled(lambda: (dense(PROBE), dense(UPDATE)))()
        return [
            (np.concatenate(blocks, axis=1), np.asarray(logits))
            for blocks, logits in both
        ]

    @property
    def gradient(self):
        J, logits = self.jacobians[1]
        G = references.sft_residual(logits, *map(np.asarray, UPDATE[1:3]))
        return J.T @ G.ravel()

    def change(self, direction):
        """`A J_o d` where the probe is scored: every label's change."""
        J, logits = self.jacobians[0]
        moved = (J @ direction).reshape(logits.shape)
        change = np.einsum("blvw,blw->blv", references.adaptation(logits), moved)
        return change * np.asarray(PROBE.mask)[..., None]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Models by style, each loaded once."""
    folder = tmp_path_factory.mktemp("models")
    return functools.cache(lambda style: Loaded(style, folder / style))


def make_step(loaded, optimizer):
    """A compiled step at every label, and its first state."""
    init, step = ldjax.make_step(
        loaded.apply_fn, ldjax.losses.sft, optimizer, full_vocab=True
    )
    return init(loaded.params), compiled(step)


@pytest.mark.parametrize("style", STYLES)
def test_loading_gives_back_the_parameters(loaded, style):
    assert_close(loaded(style).params, loaded(style).drawn, rtol=0.0)


@pytest.mark.parametrize(
    "style", ["llama", *map(exhaustive, ("gpt2", "neox", "qwen2"))]
)
def test_the_step_and_its_order(loaded, style):
    model = loaded(style)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    state, step = make_step(model, optimizer)
    norms = []
    for rate in (1e-3, 5e-4, 2.5e-4):
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(rate)
        comparison = step(state, UPDATE, PROBE)[1]
        expected = model.change(-rate * model.gradient)
        assert_close(comparison.predicted, expected, rtol=EXACT)
        norms.append(np.linalg.norm(comparison.remainder))
    for large, small in itertools.pairwise(norms):
        assert 3.8 < large / small < 4.2


def make_kernel(model, params, method, P=None):
    probe_fn, update_fn = (
        ldjax.linen.logits_fn(model.model, batch) for batch in (PROBE, UPDATE)
    )
    return ldjax.empirical_ntk(
        probe_fn, update_fn, params, method=method, preconditioner=P
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["structured", "factored"])
@pytest.mark.parametrize("style", STYLES)
def test_the_kernel_is_that_of_the_jacobians(loaded, style, method):
    model = loaded(style)
    found = compiled(lambda p: make_kernel(model, p, method).dense())(model.params)
    (probe, z), (update, y) = model.jacobians
    expected = (probe @ update.T).reshape(z.shape + y.shape)
    assert_close(found, expected, rtol=EXACT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["structured", "factored"])
@pytest.mark.parametrize("style", STYLES)
def test_an_rmsprop_step_is_that_of_the_preconditioned_kernel(loaded, style, method):
    model, optimizer = loaded(style), optax.rmsprop(1e-3)
    state, step = make_step(model, optimizer)
    earlier, gradient = (
        jax.tree.map(jnp.asarray, references.unflat(vector, model.params))
        for vector in (np.cos(np.arange(model.gradient.size)), model.gradient)
    )
    _, opt_state = optimizer.update(earlier, state.opt_state, model.params)
    state = state._replace(opt_state=opt_state)
    predicted = step(state, UPDATE, PROBE)[1].predicted

    P = ldjax.preconditioner(optimizer, gradient, opt_state, model.params)
    assert flat(P).max() > 2 * flat(P).min()
    assert_close(predicted, model.change(-flat(P) * model.gradient), rtol=EXACT)

    @compiled
    def predict(params):
        G = jax.grad(ldjax.losses.sft)(model.apply_fn(params, UPDATE), UPDATE)
        A = ldjax.adaptation_matrix(model.apply_fn(params, PROBE))
        moved = make_kernel(model, params, method, P) @ G
        return jnp.where(
            PROBE.mask[..., None], -jnp.einsum("btvw,btw->btv", A, moved), 0
        )

    assert_close(predict(model.params), predicted, rtol=EXACT)
