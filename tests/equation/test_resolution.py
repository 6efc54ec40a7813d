"""The rounding floor bounds the error of what is measured, against float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ldjax
from ldjax import Sequences, losses, make_step
from ldjax.equation import resolution
from ldjax.models import Transformer, gpt2_config, llama_config

VOCAB, LENGTH = 64, 16


class Case:
    """A decoder in float32, one update of it, and the same in float64."""

    def __init__(self, config, *, layers, width, scale=1.0, shift=0.0, dtype=None):
        size = {"vocab_size": VOCAB, "width": width, "mlp_width": 4 * width}
        config = config(**size, num_layers=layers, max_positions=32)
        narrow = Transformer(dataclasses.replace(config, dtype=dtype))
        self.shift = shift
        self.apply_fn = functools.partial(self.shifted, ldjax.linen.apply_fn(narrow))
        exact_fn = ldjax.linen.apply_fn(Transformer(config))
        self.exact_fn = functools.partial(self.shifted, exact_fn)
        ids = jnp.asarray(
            np.random.default_rng(0).integers(VOCAB, size=(2, 16, LENGTH))
        )
        self.batch = Sequences(ids[0], ids[1], jnp.ones((16, LENGTH), bool))
        params = narrow.init(jax.random.key(0), ids[0])["params"]
        self.params = jax.tree.map(
            lambda p: p * jnp.float32(scale) if p.ndim > 1 else p, params
        )

    def shifted(self, apply_fn, params, batch):
        logits = apply_fn(params, batch)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits + jnp.asarray(self.shift, logits.dtype)

    def error_and_floor(self, rate):
        init, step = make_step(
            self.apply_fn, losses.sft, optax.sgd(rate), parts=None, full_vocab=False
        )
        state, comparison = step(init(self.params), self.batch, self.batch)

        @jax.jit
        def log_probs(params):
            params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
            logits = self.exact_fn(params, self.batch)
            return ldjax.token_log_probs(logits, *self.batch[1:3])

        exact = log_probs(state.params) - log_probs(self.params)
        return np.abs(comparison.measured - exact), np.asarray(comparison.floor)


CASES = {
    "2 layers": {"layers": 2, "width": 32},
    "logits around 30": {"layers": 2, "width": 32, "shift": 30.0},
    "logits around -100": {"layers": 2, "width": 32, "shift": -100.0},
    "logits around 300": {"layers": 2, "width": 32, "shift": 300.0},
    "4 layers, large weights": {"layers": 4, "width": 64, "scale": 3.0},
    "8 layers, large weights": {"layers": 8, "width": 128, "scale": 3.0},
    "8 layers": {"layers": 8, "width": 128},
    "computed in bfloat16": {"layers": 2, "width": 32, "dtype": "bfloat16"},
    "computed in float16": {"layers": 2, "width": 32, "dtype": "float16"},
}
CI = ("logits around -100", "8 layers, large weights", "computed in bfloat16")


@pytest.mark.parametrize(
    "config",
    [pytest.param(gpt2_config, marks=pytest.mark.exhaustive), llama_config],
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=getattr(pytest.mark, "slow" if n in CI else "exhaustive"))
        for n in CASES
    ],
)
def test_the_floor_bounds_the_error(name, config):
    case = Case(config, **CASES[name])
    error, floor = case.error_and_floor(rate=1e-3)
    ratio = error / floor
    print(
        f"\n{name}, {config.__name__}: error over floor, largest {ratio.max():.3f}, "
        f"median {np.median(ratio):.4f}; floor {np.median(floor):.1e} nats"
    )
    assert (ratio < 1).all()
    # It is no bound that says nothing.
    assert np.median(ratio) > 1e-3


def test_a_function_computes_with_its_coarsest_arithmetic():
    eps = lambda dtype: float(jnp.finfo(dtype).eps)
    x = jnp.ones(3, jnp.bfloat16)
    assert resolution.compute_eps(lambda x: x * 2, x) == eps(jnp.bfloat16)
    stored = lambda x: x[::-1].astype(jnp.float32) * 2
    assert resolution.compute_eps(stored, x) == eps(jnp.float32)
    inside = jax.jit(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x))
    assert resolution.compute_eps(inside, x.astype(jnp.float16)) == eps(jnp.float16)
    moves = lambda i, x: x[i].astype(jnp.float64) + 1
    assert resolution.compute_eps(moves, 0, x) == eps(jnp.float64)


def test_parameters_are_rounded_both_ways_in_equal_shares():
    values = jnp.linspace(-3, 3, 10_001)
    moved = resolution.perturbed(values, 1e-6) - values
    size = np.abs(moved) / np.abs(values).clip(1e-30)
    at_zero = values == 0
    assert np.allclose(size[~at_zero], 1e-6, rtol=1e-6)
    up = np.mean((moved * values)[~at_zero] > 0)
    assert abs(up - 0.5) < 0.02  # four standard errors
    assert not moved[at_zero].any()
