"""Log-probabilities and the adaptation: hand values, closed form, autodiff, loops.

What runs for every draw is compiled once per shape.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses import references
from witnesses.closeness import assert_close

from ldjax import (
    adaptation_matrix,
    jacobian,
    log_softmax,
    sequence_log_probs,
    token_log_probs,
)
from ldjax.equation.log_probs import token_log_odds

draws = st.tuples(st.integers(0, 2**16), st.sampled_from([(1, 1, 2), (2, 3, 5)]))


def _draw(draw, scale=3.0):
    """Logits, targets (-100 where masked) and a mask that is false somewhere."""
    seed, (batch, pos, vocab) = draw
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, pos)) < 0.7
    targets = np.where(mask, rng.integers(vocab, size=(batch, pos)), -100)
    logits = scale * rng.normal(size=(batch, pos, vocab))
    return tuple(map(jnp.asarray, (logits, targets, mask)))


def test_hand_computed_log_probs():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 7
    targets, mask = jnp.array([0, 2]), jnp.array([True, True])
    expected = np.log([0.5, 0.8])
    assert_close(token_log_probs(logits, targets, mask), expected, terms=9)
    assert_close(sequence_log_probs(logits, targets, mask), np.log(0.4), terms=9)
    assert_close(
        sequence_log_probs(logits, targets, jnp.array([False, True])),
        np.log(0.8),
        terms=9,
    )


def test_hand_computed_adaptation():
    A = adaptation_matrix(jnp.log(jnp.array([0.5, 0.3, 0.2])))
    expected = np.array([[0.5, -0.3, -0.2], [-0.5, 0.7, -0.2], [-0.5, -0.3, 0.8]])
    assert_close(A, expected, terms=3)


_log_softmax = jax.jit(log_softmax)
_adaptation_matrix = jax.jit(adaptation_matrix)
_token_log_probs = jax.jit(token_log_probs)
_sequence_log_probs = jax.jit(sequence_log_probs)


@jax.jit
def _lazy_adaptation(logits):
    A = jacobian(log_softmax, logits)
    return {
        "own": A.block((0, -1), (0, -1)),
        "other": A.block((0, 0), (0, -1)),
        "shifted": A @ jnp.ones_like(logits),
        "norm": A.frobenius_norm(),
        "autodiff": jax.vmap(jax.vmap(jax.jacrev(jax.nn.log_softmax)))(logits),
    }


@jax.jit
def _sum_and_gradient(logits, targets, mask):
    scored = lambda z: sequence_log_probs(z, targets, mask).sum()
    return jax.value_and_grad(scored)(logits)


@given(draws)
def test_log_softmax_equals_numpy_on_every_leaf(draw):
    logits, _, _ = _draw(draw)
    tree = {"chosen": logits, "rejected": [2 * logits]}
    expected = jax.tree.map(lambda z: references.log_softmax(np.asarray(z)), tree)
    assert_close(_log_softmax(tree), expected, terms=7)


@given(draws)
def test_adaptation_by_closed_form_autodiff_and_loops(draw):
    logits, _, _ = _draw(draw)
    expected = references.adaptation(np.asarray(logits))
    vocab, lazy = logits.shape[-1], _lazy_adaptation(logits)
    assert_close(_adaptation_matrix(logits), expected, terms=vocab)
    assert_close(lazy["autodiff"], expected, terms=vocab)
    assert_close(lazy["own"], expected[0, -1], terms=vocab)
    if logits.shape[1] > 1:
        assert not lazy["other"].any(), "positions see each other"


@given(draws)
def test_the_rows_of_the_adaptation_sum_to_zero(draw):
    logits, _, _ = _draw(draw)
    rows = np.asarray(_adaptation_matrix(logits)).sum(axis=-1)
    assert_close(rows, np.zeros(rows.shape), terms=7, scale=1.0)
    moved = _lazy_adaptation(logits)["shifted"]
    assert_close(moved, np.zeros(moved.shape), terms=7, scale=1.0)


@given(draws)
def test_the_squared_norm_of_the_adaptation_is_v_minus_2_plus_v_norm_pi_squared(draw):
    logits, _, _ = _draw(draw)
    vocab, probs = logits.shape[-1], references.softmax(np.asarray(logits))
    expected = vocab - 2 + vocab * (probs**2).sum(axis=-1)
    squares = (np.asarray(_adaptation_matrix(logits)) ** 2).sum(axis=(-1, -2))
    assert_close(squares, expected, terms=vocab**2)
    norm = _lazy_adaptation(logits)["norm"]
    assert_close(norm, np.sqrt(expected.sum()), terms=vocab**2)


@given(draws)
def test_token_log_probs_equal_loops_and_are_zero_where_masked(draw):
    logits, targets, mask = _draw(draw)
    by_token = np.asarray(_token_log_probs(logits, targets, mask))
    log_probs = references.log_softmax(np.asarray(logits))
    for b, l in np.ndindex(*mask.shape):
        expected = log_probs[b, l, targets[b, l]] if mask[b, l] else 0.0
        assert_close(by_token[b, l], expected, terms=7, scale=10.0)
    assert not by_token[~np.asarray(mask)].any()
    sums = _sequence_log_probs(logits, targets, mask)
    expected = references.log_prob_sums(
        *(np.asarray(a) for a in (logits, targets, mask))
    )
    assert_close(sums, expected, terms=28, scale=10.0)


@pytest.mark.parametrize("kept", range(4))
def test_a_mask_equals_slicing(kept):
    logits, _, _ = _draw((0, (2, 3, 5)))
    targets = jnp.array([[0, 1, 2], [4, 3, 2]])
    mask = jnp.broadcast_to(jnp.arange(3)[None] < kept, (2, 3))
    arrays = (logits, targets, mask)
    sliced = sequence_log_probs(*(array[:, :kept] for array in arrays))
    assert_close(sequence_log_probs(*arrays), sliced, terms=3, scale=10.0)


@given(draws)
def test_permuting_the_vocabulary_permutes_the_answer(draw):
    logits, targets, mask = (np.asarray(array) for array in _draw(draw))
    order = np.random.default_rng(draw[0]).permutation(logits.shape[-1])
    renamed = np.where(mask, np.argsort(order)[np.where(mask, targets, 0)], -100)
    permuted = jnp.asarray(logits[..., order])
    assert_close(
        _token_log_probs(permuted, jnp.asarray(renamed), jnp.asarray(mask)),
        _token_log_probs(*map(jnp.asarray, (logits, targets, mask))),
        terms=7,
        scale=10.0,
    )
    A = np.asarray(_adaptation_matrix(jnp.asarray(logits)))
    expected = A[..., order, :][..., order]
    assert_close(_adaptation_matrix(permuted), expected, terms=7)


@given(draws)
def test_the_gradient_of_a_masked_sum_is_zero_where_masked_and_finite(draw):
    logits, targets, mask = _draw(draw, scale=100.0)
    _, gradient = _sum_and_gradient(logits, targets, mask)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~np.asarray(mask)].any()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf], ids=str)
def test_a_masked_position_counts_nothing_whatever_its_logits_are(bad):
    logits, targets, mask = (
        jnp.zeros((1, 2, 3)),
        jnp.array([[1, -100]]),
        jnp.array([[True, False]]),
    )
    logits = logits.at[0, 1].set(bad)
    value, gradient = _sum_and_gradient(logits, targets, mask)
    assert_close(value, -np.log(3.0), terms=3)
    expected = np.array([[[-1 / 3, 2 / 3, -1 / 3], [0, 0, 0]]])
    assert_close(gradient, expected, terms=3)


def test_an_impossible_token_has_finite_neighbours():
    logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    scored = token_log_probs(logits, jnp.array([0]), jnp.array([True]))
    assert_close(scored, -np.log(np.array([2.0])), terms=3)


def test_huge_logits_do_not_overflow():
    logits = jnp.array([[1000.0, 0.0], [-1e30, 1e30]])
    scored = token_log_probs(logits, jnp.array([1, 1]), jnp.array([True, True]))
    assert_close(scored, np.array([-1000.0, 0.0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_next_to_certainty_log_prob_odds_and_gradient_keep_their_digits(dtype):
    """A lead of 17.5 nats over seven equal labels, of 20 over 49, of 60 over 3."""
    for lead, others in ((17.5, 7), (20.0, 49), (60.0, 3)):
        logits = jnp.zeros((1, others + 1), dtype).at[0, 2].set(lead)
        target, mask = jnp.array([2]), jnp.array([True])
        rest = others * np.exp(-lead)
        odds = token_log_odds(logits, target, mask)
        assert_close(odds[0], np.asarray(-np.log(rest), dtype))
        value, gradient = _sum_and_gradient(logits, target, mask)
        # The exponential of the lead has an error of the lead's last place.
        assert_close(value, np.asarray(-np.log1p(rest), dtype), terms=9)
        expected = np.full((1, others + 1), -np.exp(-lead) / (1 + rest), dtype)
        expected[0, 2] = rest / (1 + rest)
        assert_close(gradient, expected, terms=9)


def test_log_odds_are_zero_where_masked_and_infinite_without_a_rival():
    logits = jnp.array([[0.0, 2.0], [0.0, -jnp.inf], [-jnp.inf, 0.0], [jnp.nan, 0.0]])
    targets, mask = jnp.array([1, 0, 0, -100]), jnp.array([True, True, True, False])
    odds = token_log_odds(logits, targets, mask)
    np.testing.assert_array_equal(odds, [2.0, np.inf, -np.inf, 0.0])
    found = token_log_probs(logits, targets, mask)
    np.testing.assert_array_equal(found[1:], [0.0, -np.inf, 0.0])
    _, gradient = _sum_and_gradient(logits, targets, mask)
    assert_close(gradient[1:], np.array([[0, 0], [1.0, -1.0], [0, 0]]))
    alone = jnp.zeros((1, 1))  # a vocabulary of one label
    assert token_log_probs(alone, jnp.array([0]), jnp.array([True])) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_in_half_precision_are_scored_in_single(dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(40, 9)), dtype)
    targets, mask = jnp.asarray(rng.integers(9, size=40)), jnp.ones(40, bool)
    found = sequence_log_probs(logits, targets, mask)
    expected = sequence_log_probs(logits.astype(jnp.float32), targets, mask)
    assert found.dtype == jnp.float32
    assert found == expected


@pytest.mark.parametrize("label", [-100, -1, 3, 7])
def test_a_label_that_is_none_is_refused_or_loud(label):
    """It used to be the label counted from the end, or one of NaN with no gradient."""
    logits = jnp.zeros((2, 3))
    targets, mask = jnp.array([1, label]), jnp.array([True, True])
    message = rf"`targets` is {label} at \[1\], where the mask is true; set the mask"
    for function in (token_log_probs, token_log_odds, sequence_log_probs):
        with pytest.raises(ValueError, match=message):
            function(logits, targets, mask)
        with pytest.raises(ValueError, match=message):  # known while it is compiled
            jax.jit(lambda z, f=function: f(z, targets, mask))(logits)
    value, gradient = _sum_and_gradient(logits, targets, mask)
    assert np.isnan(value)
    assert np.isnan(gradient[1]).all()
    assert np.isfinite(gradient[0]).all()


def test_works_under_jit_vmap_grad_and_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        logits = jnp.zeros((2, 3, 4), jnp.float32)
        targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)
        whole = sequence_log_probs(logits, targets, mask)
        assert_close(jax.jit(sequence_log_probs)(logits, targets, mask), whole)
        assert_close(jax.vmap(sequence_log_probs)(logits, targets, mask), whole)
        assert whole.dtype == adaptation_matrix(logits).dtype == jnp.float32
        gradient = jax.grad(lambda z: token_log_probs(z, targets, mask).sum())(logits)
        assert_close(gradient[0, 0], np.array([0.75, -0.25, -0.25, -0.25], np.float32))
