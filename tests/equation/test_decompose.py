"""A, K and G of one step: three witnesses, and the laws of paper and style guide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.references import sides
from zoo.cases import VOCAB, apply_toy, make_case, sentences, toy_params

from ldjax import Sequences, empirical_ntk, jacobian, losses
from ldjax.equation import decompose

ACCEPTED = 1e-12
RATE = 0.3

every_case = pytest.mark.parametrize("name", ["lenet", "tanh_mlp", "toy", "pair"])
two_cases = pytest.mark.parametrize("name", ["tanh_mlp", "pair"])


def _terms(case, params):
    return decompose(
        case.logits_fn(case.probe),
        case.logits_fn(case.update),
        params,
        loss_fn=lambda logits: case.loss_fn(logits, case.update),
    )


@functools.cache
def _decomposed(name):
    """What the library says of a case, compiled in one piece."""
    case = make_case(name)

    @jax.jit
    def everything(params):
        terms = _terms(case, params)
        return {
            "residual": terms.residual,
            "predicted": terms.predict(RATE),
            "lazy": terms.kernel.dense(),
        }

    return jax.tree.map(np.asarray, everything(case.params))


@functools.cache
def _dense_kernel(name, probe_side, update_side):
    case = make_case(name)
    return references.kernel(case, case.params, probe_side, update_side)


def _predicted(name):
    """`-rate A K G` with A, K and G all from brute force."""
    case = make_case(name)
    residual = references.residual(case, case.params)
    result = {}
    for probe_side, probe in sides(case.probe).items():
        moved = sum(
            np.einsum("blvckw,ckw->blv", _dense_kernel(name, probe_side, side), part)
            for side, part in residual.items()
        )
        logits = references.logits(case, case.params, {probe_side: probe})
        A = references.adaptation(logits[probe_side])
        result[probe_side] = -RATE * np.einsum("blvw,blw->blv", A, moved)
    return result


@every_case
def test_the_residual_equals_its_closed_form(name):
    case = make_case(name)
    residual = sides(_decomposed(name)["residual"])
    assert_close(residual, references.residual(case, case.params), rtol=ACCEPTED)


def _check_lazy_kernel(name, dense):
    case = make_case(name)
    plain = not isinstance(case.probe, dict)
    blocks = {"update": {"update": dense}} if plain else dense
    for probe_side, row in blocks.items():
        for update_side, block in row.items():
            expected = _dense_kernel(name, probe_side, update_side)
            assert_close(block, expected, rtol=ACCEPTED)


@every_case
def test_the_lazy_kernel_equals_brute_force(name):
    _check_lazy_kernel(name, _decomposed(name)["lazy"])


@pytest.mark.parametrize(
    "name", [pytest.param("lenet", marks=pytest.mark.exhaustive), "tanh_mlp"]
)
@pytest.mark.parametrize("method", ["jacobian", "ntk_vp"])
def test_the_prediction_is_that_of_each_dense_kernel(name, method):
    case = make_case(name)

    @jax.jit
    def predict(params):
        probe_fn, update_fn = map(case.logits_fn, (case.probe, case.update))
        kernel = empirical_ntk(probe_fn, update_fn, params, method=method)
        dense = _terms(case, params)._replace(kernel=kernel)
        return kernel.dense(), dense.predict(RATE)

    dense, predicted = predict(case.params)
    _check_lazy_kernel(name, dense)
    assert_close(sides(predicted), _predicted(name), rtol=ACCEPTED)


@every_case
def test_the_prediction_equals_brute_force(name):
    assert_close(sides(_decomposed(name)["predicted"]), _predicted(name), rtol=ACCEPTED)


def test_a_network_differentiated_by_hand_gives_the_same_kernel():
    case = make_case("tanh_mlp")
    probe, update = (
        references.mlp_jacobian(case.params, side.tokens)
        for side in (case.probe, case.update)
    )
    by_hand = np.einsum("blvp,ckwp->blvckw", probe, update)
    assert_close(_decomposed("tanh_mlp")["lazy"], by_hand, rtol=ACCEPTED)


@pytest.mark.slow
@every_case
def test_a_wrong_sign_of_the_residual_is_caught(name):
    flipped = jax.tree.map(np.negative, _decomposed(name)["predicted"])
    with pytest.raises(AssertionError):
        assert_close(sides(flipped), _predicted(name), rtol=ACCEPTED)


def test_a_kernel_without_a_bias_is_caught():
    case = make_case("lenet")
    bias = case.params["params"]["Dense_2"].pop("bias")
    try:
        without = lambda batch: (
            lambda p: case.apply_fn(
                {
                    "params": p["params"]
                    | {"Dense_2": p["params"]["Dense_2"] | {"bias": bias}}
                },
                batch,
            )
        )
        kernel = jax.jit(
            lambda p: (
                jacobian(without(case.probe), p) @ jacobian(without(case.update), p).T
            ).dense()
        )(case.params)
    finally:
        case.params["params"]["Dense_2"]["bias"] = bias
    with pytest.raises(AssertionError):
        _check_lazy_kernel("lenet", kernel)


@two_cases
def test_the_transposed_kernel_swaps_probe_and_update(name):
    case = make_case(name)
    probe_fn, update_fn = map(case.logits_fn, (case.probe, case.update))

    @jax.jit
    def both(params):
        kernel = jacobian(probe_fn, params) @ jacobian(update_fn, params).T
        swapped = jacobian(update_fn, params) @ jacobian(probe_fn, params).T
        return kernel.T.dense(), swapped.dense()

    assert_close(*both(case.params), rtol=ACCEPTED)


@two_cases
def test_the_kernel_of_a_batch_with_itself_is_symmetric_and_semidefinite(name):
    case = make_case(name)
    fn = case.logits_fn(next(iter(sides(case.probe).values())))
    kernel = jax.jit(lambda p: (jacobian(fn, p) @ jacobian(fn, p).T).dense())
    dense = np.asarray(kernel(case.params))
    matrix = dense.reshape(np.prod(dense.shape[:3]), -1)
    assert_close(matrix, matrix.T, terms=100)
    values = np.linalg.eigvalsh(matrix)
    assert values.min() > -1e-12 * values.max()


@pytest.mark.parametrize(
    "name", [pytest.param("lenet", marks=pytest.mark.exhaustive), "toy"]
)
def test_the_kernel_is_a_sum_over_parameter_leaves(name):
    case = make_case(name)
    leaves, treedef = jax.tree.flatten(case.params)

    @jax.jit
    def sum_of_kernels(leaves):
        total = 0.0
        for i in range(len(leaves)):
            only = lambda batch, i=i: (
                lambda leaf: case.apply_fn(
                    treedef.unflatten([*leaves[:i], leaf, *leaves[i + 1 :]]), batch
                )
            )
            J_probe = jacobian(only(case.probe), leaves[i])
            J_update = jacobian(only(case.update), leaves[i])
            total = total + (J_probe @ J_update.T).dense()
        return total

    assert_close(sum_of_kernels(leaves), _decomposed(name)["lazy"], rtol=ACCEPTED)


@every_case
def test_predicted_changes_average_to_zero_under_the_model(name):
    case = make_case(name)
    predicted = sides(_decomposed(name)["predicted"])
    logits = references.logits(case, case.params, case.probe)
    for side, change in predicted.items():
        average = (references.softmax(logits[side]) * change).sum(axis=-1)
        scale = np.abs(change).max()
        assert_close(average, np.zeros(average.shape), terms=1000, scale=scale)


@jax.jit
def _toy_prediction(params, probe, update, rate):
    terms = decompose(
        lambda p: apply_toy(p, probe),
        lambda p: apply_toy(p, update),
        params,
        loss_fn=lambda logits: losses.sft(logits, update),
    )
    return terms.predict(rate)


seeds = st.integers(0, 2**16)


@given(seeds)
def test_permuting_the_batches_permutes_the_prediction(seed):
    probe, update, params = (
        sentences(seed, 3, 4),
        sentences(seed + 1, 3, 4),
        toy_params(),
    )
    order = np.random.default_rng(seed).permutation(3)
    permute = lambda batch: jax.tree.map(lambda leaf: leaf[order], batch)
    predicted = _toy_prediction(params, probe, update, RATE)
    permuted = _toy_prediction(params, permute(probe), permute(update), RATE)
    assert_close(permuted, np.asarray(predicted)[order], rtol=ACCEPTED)


@given(seeds)
def test_permuting_the_vocabulary_permutes_the_prediction(seed):
    probe, update, params = (
        sentences(seed, 3, 4),
        sentences(seed + 1, 3, 4),
        toy_params(),
    )
    order = np.random.default_rng(seed).permutation(VOCAB)
    new_id = jnp.asarray(np.argsort(order))
    rename = lambda s: Sequences(
        new_id[s.tokens], jnp.where(s.mask, new_id[s.targets], -100), s.mask
    )
    renamed = params | {
        "embed": params["embed"][order],
        "readout": params["readout"][:, order],
    }
    predicted = _toy_prediction(params, probe, update, RATE)
    permuted = _toy_prediction(renamed, rename(probe), rename(update), RATE)
    assert_close(permuted, np.asarray(predicted)[..., order], rtol=ACCEPTED)


@given(seeds)
def test_padding_the_update_changes_nothing(seed):
    probe, update, params = (
        sentences(seed, 3, 4),
        sentences(seed + 1, 3, 4),
        toy_params(),
    )
    pad = lambda leaf: jnp.pad(leaf, [(0, 0), (0, 2)])
    predicted = _toy_prediction(params, probe, update, RATE)
    padded = _toy_prediction(params, probe, jax.tree.map(pad, update), RATE)
    assert_close(padded, predicted, rtol=ACCEPTED)


def test_what_is_masked_everywhere_teaches_nothing():
    update = sentences(1, 3, 4)._replace(mask=jnp.zeros((3, 4), bool))
    predicted = _toy_prediction(toy_params(), sentences(0, 3, 4), update, RATE)
    assert not predicted.any()


def test_no_learning_rate_no_change():
    batches = sentences(0, 3, 4), sentences(1, 3, 4)
    assert not _toy_prediction(toy_params(), *batches, 0.0).any()


def test_future_tokens_do_not_move_earlier_predictions():
    probe, update, params = sentences(0, 3, 4), sentences(1, 3, 4), toy_params()
    changed = probe._replace(tokens=probe.tokens.at[:, 2:].add(1) % VOCAB)
    before, after = (_toy_prediction(params, p, update, RATE) for p in (probe, changed))
    assert_close(after[:, :2], np.asarray(before)[:, :2])
    assert np.abs(after - before)[:, 2:].max() > 1e-3


def test_logits_linear_in_the_parameters_move_as_predicted_at_any_rate():
    probe, update, params = sentences(0, 3, 4), sentences(1, 2, 4), toy_params()
    fn = lambda batch: lambda w: apply_toy(params | {"readout": w}, batch)
    loss_fn = functools.partial(losses.sft, batch=update)
    readout = params["readout"]
    terms = decompose(fn(probe), fn(update), readout, loss_fn=loss_fn)
    gradient = jax.grad(lambda w: loss_fn(fn(update)(w)))(readout)
    for rate in (0.1, 100.0):
        measured = fn(probe)(readout - rate * gradient) - fn(probe)(readout)
        assert_close(-rate * terms.kernel @ terms.residual, measured, terms=1000)


def test_predict_takes_numbers_of_every_kind_and_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        params = jnp.ones(2, jnp.float32)
        fn = lambda w: w * jnp.array([1.0, 2.0], jnp.float32)
        loss_fn = lambda z: -jax.nn.log_softmax(z)[0]
        terms = decompose(fn, fn, params, loss_fn=loss_fn)
        expected = terms.predict(0.5)
        assert expected.dtype == jnp.float32
        for rate in (jnp.float32(0.5), jnp.array(0.5)):
            assert_close(terms.predict(rate), expected)
        assert_close(jax.jit(terms.predict)(jnp.float32(0.5)), expected)
