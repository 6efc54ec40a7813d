"""The MLP against a NumPy forward pass, its sizes and its start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ldjax.models import MLP

SMALL = MLP(widths=(8, 5), activation=nn.tanh)


def _init(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28)))


@pytest.fixture(scope="module")
def default_params():
    return _init(MLP())


def _numpy_mlp(params, images, activation):
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    x = np.stack([image.flatten() for image in images])
    for depth in range(len(layers)):
        layer = layers[f"Dense_{depth}"]
        x = np.einsum("bi,ij->bj", x, layer["kernel"]) + layer["bias"]
        x = x if depth == len(layers) - 1 else activation(x)
    return x


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        (MLP(), lambda x: np.maximum(x, 0)),
        (SMALL, np.tanh),
        (MLP(widths=()), None),  # a linear classifier
    ],
)
def test_equals_the_numpy_forward_pass(model, activation):
    images = np.random.default_rng(1).random((3, 28, 28))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _init(model))
    logits = jax.jit(model.apply)(params, images)
    expected = _numpy_mlp(params, images, activation)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)


def test_default_is_four_hidden_layers_of_128(default_params):
    count = (784 * 128 + 128) + 3 * (128 * 128 + 128) + (128 * 10 + 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(default_params)) == count


def test_starts_uniformly_within_one_over_root_fan_in(default_params):
    params = default_params["params"]
    for depth, fan_in in enumerate([784, 128, 128, 128, 128]):
        bound = 1 / np.sqrt(fan_in)
        for leaf in params[f"Dense_{depth}"].values():
            assert 0.5 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        kernel = params[f"Dense_{depth}"]["kernel"]
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize("images_dtype", ["float32", "float64"])
@pytest.mark.parametrize("params_dtype", ["float32", "float64"])
def test_dtype_is_that_of_the_params(params_dtype, images_dtype):
    images = jnp.zeros((2, 28, 28), images_dtype)
    params = jax.eval_shape(SMALL.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: leaf.update(dtype=params_dtype), params)
    with jax.numpy_dtype_promotion("strict"):
        logits = jax.eval_shape(SMALL.apply, params, images)
    assert (logits.shape, logits.dtype) == ((2, 10), params_dtype)


@pytest.mark.parametrize("shape", [(28, 28), (1, 8, 8), (1, 28, 28, 1)])
def test_refuses_other_shapes(shape, monkeypatch):
    # As in use, where shapes in signatures are documentation.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`images` must be \[batch, 28, 28\], got"):
        SMALL.init(jax.random.key(0), jnp.zeros(shape))
