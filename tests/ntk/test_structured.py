"""The structured kernel against dense Jacobians, one module of the zoo at a time."""

import re
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from zoo.kernel_checks import (
    RTOL,
    assert_each_leaf_matters,
    assert_keeps_the_contract,
    dense,
    exact_or_refused,
    expected_dense,
    make_fn,
    make_kernel,
)
from zoo.kernel_models import (
    LAYERS,
    compiled,
    drawn,
    make_model,
    random_params,
    vectors,
)
from zoo.kernel_modules import VOCAB, Counted, Neighbours, Scaled, Wrapped

from ldjax import empirical_ntk, linen

pytestmark = pytest.mark.slow

CONTRACTIONS = ("operator", "gram", "instantiated")
FAST = {"tied"}
# The other decoders meet the structured kernel in test_factored, compiled once.
MODELS = ["tied", "tied pair", "mlp", "lenet", *LAYERS, "qwen2 padded"]


def _slow_but(fast, names):
    return [
        n if n in fast else pytest.param(n, marks=pytest.mark.exhaustive) for n in names
    ]


def _all_contractions(model, **options):
    """Dense kernels by every way to contract, in one compilation."""

    @compiled
    def kernels(params):
        ways = [{}, *({"contraction": name} for name in CONTRACTIONS)]
        return [
            make_kernel(model, params, method="structured", **way, **options).dense()
            for way in ways
        ]

    return dict(zip(("auto", *CONTRACTIONS), kernels(model.params), strict=True))


@pytest.mark.parametrize("name", _slow_but(FAST, MODELS))
def test_every_contraction_equals_brute_force(name):
    model = make_model(name)
    if model.warned:
        pytest.skip("warns; see below")
    assert_each_leaf_matters(model)
    expected = expected_dense(model)
    by_way = _all_contractions(model)
    assert_close(by_way, dict.fromkeys(by_way, expected), rtol=RTOL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["tied capped", "tied twice", "head called twice"])
def test_logits_may_come_from_anything(name):
    model = make_model(name)
    actual = dense(model, method="structured")
    assert_close(actual, expected_dense(model), rtol=RTOL)


@pytest.mark.parametrize("name", _slow_but(["tied"], ["tied", "tied pair"]))
def test_keeps_the_contract_of_linear_maps(name):
    assert_keeps_the_contract(make_model(name), method="structured")


@pytest.mark.parametrize("name", _slow_but([], ["tied", "convolutions"]))
def test_traces_a_kernel_of_a_batch_with_itself(name):
    model = make_model(name)
    trace = compiled(
        lambda p: make_kernel(model, p, method="structured", probe=model.update).trace()
    )
    squares = (np.sum(leaf**2) for leaf in model.jacobians[1].values())
    assert_close(trace(model.params), sum(squares), rtol=RTOL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["structured", "factored"])
def test_works_uncompiled(method):
    model = make_model("tied")
    v = drawn(model.space(model.update), 1)
    kernel = make_kernel(model, model.params, method=method)
    expected = model.kernel() @ v.ravel()
    assert_close(np.ravel(kernel @ v), expected, rtol=RTOL)
    norm = np.linalg.norm(model.kernel())
    assert_close(kernel.frobenius_norm(), norm, rtol=RTOL)


# What is not structured goes the plain way, exactly, and is named.


@pytest.mark.parametrize(
    "name",
    _slow_but(["head penalised"], ["head penalised", "impostors"]),
)
def test_leaves_that_only_look_structured_are_exact_and_named_once(name):
    model = make_model(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = dense(model, method="structured")
    assert_close(actual, expected_dense(model), rtol=RTOL)
    named = "\n".join(str(warning.message) for warning in caught)
    for path in model.paths:
        assert _mentions(named, path) == (path in model.warned), (path, named)


def _mentions(text, path):
    """How often a leaf is named, whichever way its keys are joined."""
    keys = r"\W+".join(map(re.escape, path.split("/")))
    return len(re.findall(rf"(?<![\w/]){keys}(?![\w/])", text))


# Refusals.


def _wrapped(layer):
    module = Wrapped(layer)
    tokens = vectors(0, 2, 3)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(module.init, keys, tokens.tokens)["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    return linen.logits_fn(module, tokens), params


class _Counter(nn.Module):
    """Remembers how often it was called."""

    @nn.compact
    def __call__(self, x):
        calls = self.variable("memory", "calls", lambda: jnp.zeros(()))
        calls.value += 1
        return x * calls.value


@pytest.mark.parametrize("method", ["structured", "factored"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm(use_running_average=False),
        nn.BatchNorm(use_running_average=True),
        nn.Dropout(0.5, deterministic=False),
        _Counter(),
    ],
    ids=["batch statistics", "running statistics", "dropout", "other collections"],
)
def test_modules_that_are_no_function_of_their_parameters_are_refused(layer, method):
    fn, params = _wrapped(layer)
    with pytest.raises(ValueError, match=r"Wrapped.* not a function of its parameters"):
        empirical_ntk(fn, fn, params, method=method)


@pytest.mark.parametrize("method", ["structured", "factored"])
@pytest.mark.parametrize("plain", [0, 1], ids=["probe", "update"])
def test_functions_of_unknown_origin_are_refused_with_what_remains(method, plain):
    fn, params = _wrapped(nn.Dense(2))
    fns: list[Any] = [fn, fn]
    fns[plain] = lambda p: p["head"]["kernel"]
    with pytest.raises(
        (TypeError, ValueError), match=r"(?s)logits_fn.*(ntk_vp|lazy|jacobian)"
    ):
        empirical_ntk(fns[0], fns[1], params, method=method)


@pytest.mark.parametrize("method", ["structured", "factored"])
def test_examples_that_see_each_other_are_refused(method):
    batch = vectors(0, 2, 3)
    params = random_params(Neighbours(), batch.tokens)
    fn = linen.logits_fn(Neighbours(), batch)
    with pytest.raises(ValueError, match=r"(?i)examples?\b.*\bbatch"):
        compiled(lambda p: empirical_ntk(fn, fn, p, method=method).dense())(params)


@pytest.mark.parametrize("method", ["structured", "factored"])
def test_logits_that_depend_on_the_size_of_the_batch_are_exact_or_refused(method):
    module, probe, update = Counted(), vectors(1, 2, 3), vectors(2, 3, 3)
    params = random_params(module, probe.tokens)
    logits = lambda p, batch: module.apply({"params": p}, batch.tokens)
    jacobians = []
    for batch in (probe, update):
        by_leaf = compiled(jax.jacrev(lambda p, batch=batch: logits(p, batch)))(params)
        rows = len(batch.tokens) * VOCAB
        leaves = jax.tree.leaves(by_leaf)
        jacobians.append(np.hstack([np.reshape(leaf, (rows, -1)) for leaf in leaves]))
    expected = (jacobians[0] @ jacobians[1].T).reshape(2, 1, VOCAB, 3, 1, VOCAB)
    probe_fn, update_fn = (linen.logits_fn(module, batch) for batch in (probe, update))
    exact_or_refused(
        expected,
        params,
        lambda p: empirical_ntk(probe_fn, update_fn, p, method=method),
    )


@pytest.mark.parametrize("method", ["structured", "factored"])
def test_two_modules_with_the_same_parameters_are_exact_or_refused(method):
    model = make_model("scaled")  # its logits are halved
    fns = make_fn(model, model.probe), linen.logits_fn(Scaled(), model.update.sequences)
    exact_or_refused(
        2 * expected_dense(model),
        model.params,
        lambda p: empirical_ntk(*fns, p, method=method),
    )


# The checks themselves.


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["llama pair", "convolutions"])
def test_the_lazy_kernel_passes(name):
    model = make_model(name)
    assert_close(dense(model, method="lazy"), expected_dense(model), rtol=RTOL)


@pytest.mark.exhaustive
def test_the_lazy_kernel_keeps_the_contract():
    assert_keeps_the_contract(make_model("tied"), method="lazy")


def test_a_kernel_that_is_slightly_wrong_fails():
    model = make_model("dense twice")
    expected = expected_dense(model)
    probe, update = model.jacobians
    tampered = model.kernel()
    tampered[7, 11] += 1e-9 * abs(tampered).max()
    once = model.kernel() - probe["shared/kernel"] @ update["shared/kernel"].T
    wrong = {
        "one entry": tampered,
        "no bias": model.kernel([p for p in model.paths if p != "shared/bias"]),
        "one leaf": once,
        "float32": model.kernel().astype(np.float32).astype(float),
    }
    for what, matrix in wrong.items():
        found = expected_dense(model, matrix)
        with pytest.raises(AssertionError, match="entries differ"):
            assert_close({what: found}, {what: expected}, rtol=RTOL)
