"""The token map: brute force, its sum, both sides of a pair, masks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.references import sides
from zoo.cases import make_case

import ldjax
from ldjax.equation import decompose
from ldjax.equation.sequences import is_sequences

pytestmark = pytest.mark.slow

ACCEPTED = 1e-12
RATE = 0.3

both_cases = pytest.mark.parametrize("name", ["toy", "pair"])


def _terms(case, params):
    return decompose(
        case.logits_fn(case.probe),
        case.logits_fn(case.update),
        params,
        loss_fn=lambda logits: case.loss_fn(logits, case.update),
    )


def _field(batch, name):
    return jax.tree.map(lambda side: getattr(side, name), batch, is_leaf=is_sequences)


@functools.cache
def _mapped(name):
    """`(token map, prediction)` of a case, compiled in one piece."""
    case = make_case(name)

    @jax.jit
    def everything(params):
        terms = _terms(case, params)
        targets, mask = (_field(case.probe, field) for field in ("targets", "mask"))
        token_map = terms.token_map(targets, RATE, mask=mask, batch_size=5)
        return token_map, terms.predict(RATE)

    return jax.tree.map(np.asarray, everything(case.params))


def _by_name(token_map):
    """`{(probe side, update side): map}`; a plain batch's side is `update`."""
    if not isinstance(token_map, dict):
        return {("update", "update"): token_map}
    return {
        (probe, update): block
        for probe, row in token_map.items()
        for update, block in row.items()
    }


def _brute_force(name):
    """`-rate A[m] K[m, l] G[l]` at the target of `m`, position by position."""
    case = make_case(name)
    residual = references.residual(case, case.params)
    result = {}
    for (probe, watched), update in itertools.product(
        sides(case.probe).items(), residual
    ):
        K = references.kernel(case, case.params, probe, update)
        logits = references.logits(case, case.params, {probe: watched})[probe]
        A = references.adaptation(logits)
        expected = np.zeros(K.shape[:2] + K.shape[3:5])
        for b, m, c, l in np.ndindex(*expected.shape):
            if watched.mask[b, m]:
                change = -RATE * A[b, m] @ K[b, m, :, c, l] @ residual[update][c, l]
                expected[b, m, c, l] = change[watched.targets[b, m]]
        result[probe, update] = expected
    return result


@both_cases
def test_each_entry_equals_brute_force(name):
    expected = _brute_force(name)
    assert_close(_by_name(_mapped(name)[0]), expected, rtol=ACCEPTED)
    assert all(np.abs(block).max() > 1e-3 for block in expected.values())


@both_cases
def test_the_map_sums_to_the_prediction_at_the_targets(name):
    case = make_case(name)
    token_map, predicted = _mapped(name)
    predicted, by_name = sides(predicted), _by_name(token_map)
    for probe, watched in sides(case.probe).items():
        blocks = [block for (side, _), block in by_name.items() if side == probe]
        total = sum(block.sum(axis=(2, 3)) for block in blocks)
        mask = np.asarray(watched.mask)
        targets = np.where(mask, watched.targets, 0)[..., None]
        picked = np.take_along_axis(predicted[probe], targets, -1)[..., 0]
        largest = max(np.abs(block).max() for block in blocks)
        assert_close(total, np.where(mask, picked, 0), rtol=ACCEPTED, scale=largest)


@pytest.mark.exhaustive
def test_the_sides_of_a_pair_are_their_shares_of_the_prediction():
    """Against `make_step`, which splits the same step another way."""
    case = make_case("pair")
    init, step = ldjax.make_step(case.apply_fn, case.loss_fn, optax.sgd(RATE))
    parts = step(init(case.params), case.update, case.probe)[1].parts
    for (probe, update), block in _by_name(_mapped("pair")[0]).items():
        assert_close(block.sum(axis=(2, 3)), parts[update][probe], rtol=ACCEPTED)


@both_cases
def test_what_is_not_scored_neither_acts_nor_is_acted_on(name):
    case = make_case(name)
    for (probe, update), block in _by_name(_mapped(name)[0]).items():
        watched, trained = sides(case.probe)[probe], sides(case.update)[update]
        assert not block[~np.asarray(watched.mask)].any()
        assert not block[:, :, ~np.asarray(trained.mask)].any()


def _linear_terms(residual, weights):
    """`logits = w * weights`, whose kernel is the outer product of `weights`."""
    return decompose(
        lambda w: w * weights,
        lambda w: w * weights,
        jnp.zeros(()),
        loss_fn=lambda logits: (residual * logits).sum(),
    )


def test_later_update_tokens_reach_earlier_probe_tokens():
    weights = jnp.arange(1.0, 9.0).reshape(2, 2, 2)
    residual = jnp.ones((2, 2, 2)).at[:, 0].set(0)
    token_map = _linear_terms(residual, weights).token_map(jnp.zeros((2, 2), int), 1.0)
    assert not token_map[..., 0].any()  # zero rows of G
    assert token_map[..., 1].all()  # their effect on earlier positions included


def test_without_a_mask_negative_targets_are_not_scored():
    terms = _linear_terms(jnp.ones((2, 2)), jnp.array([[1.0, 3.0], [2.0, 5.0]]))
    found = terms.token_map(jnp.array([-100, 1]), 1.0)
    masked = terms.token_map(
        jnp.array([-100, 1]), 1.0, mask=jnp.array([False, True]), batch_size=1
    )
    assert not found[0].any()
    assert found[1].all()
    assert_close(found, masked)
    beyond = terms.token_map(jnp.array([7, 1]), 1.0, mask=jnp.array([False, True]))
    assert_close(beyond, masked)


def test_a_dense_kernel_gives_the_same_map():
    case = make_case("toy")
    K = references.kernel(case, case.params, "update", "update")
    size = [int(np.prod(K.shape[:3])), int(np.prod(K.shape[3:]))]

    @jax.jit
    def dense(params):
        terms = _terms(case, params)
        matrix = ldjax.DenseMap(
            jnp.asarray(K.reshape(size)),
            terms.kernel.in_struct,
            terms.kernel.out_struct,
        )
        dense = terms._replace(kernel=matrix)
        return dense.token_map(case.probe.targets, RATE, mask=case.probe.mask)

    assert_close(dense(case.params), _mapped("toy")[0], rtol=ACCEPTED)


def test_targets_of_another_shape_are_refused():
    terms = _linear_terms(jnp.ones((2, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`targets` has the shapes \(3,\).*\(2,\)"):
        terms.token_map(jnp.zeros(3, int), 1.0)
    with pytest.raises(ValueError, match="`mask`"):
        terms.token_map(jnp.zeros(2, int), 1.0, mask={"chosen": jnp.ones(2, bool)})


def test_the_map_keeps_float32_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        logits_fn = lambda w: w * jnp.array([[1.0, 2.0]], jnp.float32)
        terms = decompose(
            logits_fn,
            logits_fn,
            jnp.ones((), jnp.float32),
            loss_fn=lambda logits: -jax.nn.log_softmax(logits)[0, 1],
        )
        token_map = terms.token_map(jnp.array([0]), jnp.float32(0.1))
        assert token_map.dtype == jnp.float32
        assert token_map.shape == (1, 1)
