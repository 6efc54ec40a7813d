"""The bridge from Linen modules: one position for classifiers, errors by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldjax import Sequences, linen


class Tagger(nn.Module):
    """Logits at every position."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(5)(nn.Embed(7, 3)(tokens))


class Classifier(nn.Module):
    """Logits of a whole input, with whatever layer is under test before them."""

    layer: nn.Module

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(4)(self.layer(tokens))


SENTENCES = Sequences(
    jnp.array([[1, 2, 3]]), jnp.array([[2, 3, 0]]), jnp.ones((1, 3), bool)
)
VECTORS = Sequences(jnp.ones((2, 3)), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool))


def test_language_logits_pass_through_unchanged():
    variables = Tagger().init(jax.random.key(0), SENTENCES.tokens)
    expected = Tagger().apply(variables, SENTENCES.tokens)
    actual = linen.apply_fn(Tagger())(variables["params"], SENTENCES)
    assert actual.shape == (1, 3, 5)
    np.testing.assert_array_equal(actual, expected)


def test_a_classifier_gets_its_one_position():
    module = Classifier(nn.Dense(3))
    variables = module.init(jax.random.key(0), VECTORS.tokens)
    logits = linen.logits_fn(module, VECTORS)(variables["params"])
    assert logits.shape == (2, 1, 4)
    expected = module.apply(variables, VECTORS.tokens)
    np.testing.assert_array_equal(logits[:, 0], expected)


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.5, deterministic=False), nn.BatchNorm(use_running_average=False)],
    ids=["dropout", "batch statistics"],
)
def test_logits_that_depend_on_more_than_parameters_are_refused(layer):
    module = Classifier(layer)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = module.init(keys, VECTORS.tokens)["params"]
    with pytest.raises(ValueError, match="not a function of its parameters"):
        linen.apply_fn(module)(params, VECTORS)
