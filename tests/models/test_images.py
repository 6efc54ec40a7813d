"""LeNet and the MLP against NumPy forward passes, their sizes and their start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ldjax.models import MLP, LeNet

SMALL = MLP(widths=(8, 5), activation=nn.tanh)


def _init(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28)))


@pytest.fixture(scope="module")
def lenet_params():
    return _init(LeNet())


@pytest.fixture(scope="module")
def mlp_params():
    return _init(MLP())


def _images(num):
    return np.random.default_rng(1).random((num, 28, 28))


def _in_float64(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def _conv(image, layer, padding):
    """One image [height, width, in] by definition: a sum over the window."""
    kernel, bias = layer["kernel"], layer["bias"]
    image = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    height, width = (side - 4 for side in image.shape[:2])
    out = np.empty((height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            window = image[row : row + 5, column : column + 5]
            out[row, column] = np.einsum("ijc,ijcd->d", window, kernel) + bias
    return out


def _pool(image):
    return np.mean([image[i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def _numpy_lenet(params, image):
    layers = jax.tree.map(np.asarray, params["params"])
    x = _pool(np.tanh(_conv(image[..., None], layers["Conv_0"], padding=2)))
    x = _pool(np.tanh(_conv(x, layers["Conv_1"], padding=0))).reshape(400)
    for name in ("Dense_0", "Dense_1"):
        x = np.tanh(x @ layers[name]["kernel"] + layers[name]["bias"])
    return x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"]


def _numpy_mlp(params, images, activation):
    layers = jax.tree.map(np.asarray, params["params"])
    x = np.stack([image.flatten() for image in images])
    for depth in range(len(layers)):
        layer = layers[f"Dense_{depth}"]
        x = np.einsum("bi,ij->bj", x, layer["kernel"]) + layer["bias"]
        x = x if depth == len(layers) - 1 else activation(x)
    return x


def test_lenet_equals_the_numpy_forward_pass(lenet_params):
    params, images = _in_float64(lenet_params), _images(2)
    expected = np.stack([_numpy_lenet(params, image) for image in images])
    logits = jax.jit(LeNet().apply)(params, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        (MLP(), lambda x: np.maximum(x, 0)),
        (SMALL, np.tanh),
        (MLP(widths=()), None),  # a linear classifier
    ],
)
def test_an_mlp_equals_the_numpy_forward_pass(model, activation):
    params, images = _in_float64(_init(model)), _images(3)
    logits = jax.jit(model.apply)(params, images)
    expected = _numpy_mlp(params, images, activation)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)


def test_parameter_count_of_lenet_is_that_of_the_paper(lenet_params):
    counts = [6 * 25 + 6, 16 * 150 + 16, 400 * 60 + 60, 60 * 42 + 42, 42 * 10 + 10]
    sizes = (leaf.size for leaf in jax.tree.leaves(lenet_params))
    assert sum(sizes) == sum(counts) == 29_624


def test_the_mlp_has_four_hidden_layers_of_128(mlp_params):
    count = (784 * 128 + 128) + 3 * (128 * 128 + 128) + (128 * 10 + 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(mlp_params)) == count


def test_lenet_starts_uniformly_within_one_over_root_fan_in(lenet_params):
    layers = ["Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"]
    for name, fan_in in zip(layers, [25, 150, 400, 60, 42], strict=True):
        bound = 1 / np.sqrt(fan_in)
        for leaf in lenet_params["params"][name].values():
            assert 0.5 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
    kernel = lenet_params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), 1 / np.sqrt(3 * 400), rtol=0.02)
    assert abs(np.mean(kernel)) < 0.01 / np.sqrt(400)


def test_the_mlp_starts_uniformly_within_one_over_root_fan_in(mlp_params):
    for depth, fan_in in enumerate([784, 128, 128, 128, 128]):
        bound = 1 / np.sqrt(fan_in)
        layer = mlp_params["params"][f"Dense_{depth}"]
        for leaf in layer.values():
            assert 0.5 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(
            np.std(layer["kernel"]), bound / np.sqrt(3), rtol=0.05
        )


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shape_is_batch_by_ten(lenet_params, batch):
    images = jnp.zeros((batch, 28, 28))
    assert jax.eval_shape(LeNet().apply, lenet_params, images).shape == (batch, 10)


@pytest.mark.parametrize("images_dtype", ["float32", "float64"])
@pytest.mark.parametrize("params_dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("model", "promotion"),
    [(LeNet(), "standard"), (SMALL, "strict")],  # Flax's pooling mixes dtypes
)
def test_dtype_is_that_of_the_params(model, promotion, params_dtype, images_dtype):
    images = jnp.zeros((2, 28, 28), images_dtype)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: leaf.update(dtype=params_dtype), params)
    with jax.numpy_dtype_promotion(promotion):
        logits = jax.eval_shape(model.apply, params, images)
    assert (logits.shape, logits.dtype) == ((2, 10), params_dtype)


def test_images_are_independent_of_their_batch(lenet_params):
    params, images = _in_float64(lenet_params), _images(2)
    apply = jax.jit(LeNet().apply)
    alone = jax.vmap(lambda image: apply(params, image[None]))(images)[:, 0]
    together = np.asarray(apply(params, images))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(28, 28), (1, 8, 8), (1, 28, 28, 1)])
@pytest.mark.parametrize("model", [LeNet(), SMALL])
def test_refuses_other_shapes(model, shape, monkeypatch):
    # As in use, where shapes in signatures are documentation.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`images` must be \[batch, 28, 28\], got"):
        model.init(jax.random.key(0), jnp.zeros(shape))
