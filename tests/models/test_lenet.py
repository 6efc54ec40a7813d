"""LeNet against a NumPy forward pass with loops, its sizes and its start."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ldjax.models import LeNet


@pytest.fixture(scope="module")
def params():
    return jax.jit(LeNet().init)(jax.random.key(0), jnp.zeros((1, 28, 28)))


def _images(num, dtype=np.float64):
    return np.random.default_rng(1).random((num, 28, 28)).astype(dtype)


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


def test_equals_the_numpy_forward_pass(params):
    params, images = _in_float64(params), _images(2)
    expected = np.stack([_numpy_lenet(params, image) for image in images])
    logits = jax.jit(LeNet().apply)(params, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)


def test_parameter_count_is_that_of_the_paper(params):
    counts = [6 * 25 + 6, 16 * 150 + 16, 400 * 60 + 60, 60 * 42 + 42, 42 * 10 + 10]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(counts) == 29_624


def test_starts_uniformly_within_one_over_root_fan_in(params):
    layers = ["Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"]
    for name, fan_in in zip(layers, [25, 150, 400, 60, 42], strict=True):
        bound = 1 / np.sqrt(fan_in)
        for leaf in params["params"][name].values():
            assert 0.5 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
    kernel = params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), 1 / np.sqrt(3 * 400), rtol=0.02)
    assert abs(np.mean(kernel)) < 0.01 / np.sqrt(400)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shape_is_batch_by_ten(params, batch):
    shape = jax.eval_shape(LeNet().apply, params, jnp.zeros((batch, 28, 28)))
    assert shape.shape == (batch, 10)


@pytest.mark.parametrize("images_dtype", ["float32", "float64"])
@pytest.mark.parametrize("params_dtype", ["float32", "float64"])
def test_dtype_is_that_of_the_params(params, params_dtype, images_dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(params_dtype), params)
    images = jnp.zeros((1, 28, 28), images_dtype)
    assert jax.eval_shape(LeNet().apply, params, images).dtype == params_dtype


def test_images_are_independent_of_their_batch(params):
    params, images, apply = _in_float64(params), _images(2), jax.jit(LeNet().apply)
    alone = jax.vmap(lambda image: apply(params, image[None]))(images)[:, 0]
    together = np.asarray(apply(params, images))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(28, 28), (1, 8, 8), (1, 28, 28, 1)])
def test_refuses_other_shapes(params, shape, monkeypatch):
    # As in use, where shapes in signatures are documentation.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`images` must be \[batch, 28, 28\], got"):
        LeNet().apply(params, jnp.zeros(shape))
