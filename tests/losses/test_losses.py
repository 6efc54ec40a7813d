"""The losses and their residuals: hand values, closed form, autodiff, loops."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses import references
from witnesses.closeness import assert_close, rounding
from zoo.cases import BETA, VOCAB, make_dpo, sentences

from ldjax import (
    Sequences,
    losses,
    sequence_log_probs,
)

draws = st.tuples(st.integers(0, 2**16), st.sampled_from([(1, 2), (3, 4)]))


def _draw(draw):
    seed, (num, length) = draw
    logits = 2 * np.random.default_rng(seed + 1).normal(size=(num, length, VOCAB))
    return jnp.asarray(logits), sentences(seed, num, length)


_loss_and_residual = jax.jit(jax.value_and_grad(losses.sft))


def _in_numpy(*trees):
    return jax.tree.map(np.asarray, trees)


def test_hand_computed_sft():
    probs = jnp.array([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.6, 0.4]]])
    batch = Sequences(
        jnp.zeros((2, 2), jnp.int32),
        jnp.array([[0, -100], [1, 0]]),
        jnp.array([[True, False], [True, True]]),
    )
    # the sum over scored tokens, the mean over two sequences
    expected = -(np.log(0.5) + np.log(0.8) + np.log(0.6)) / 2
    assert_close(losses.sft(jnp.log(probs), batch), expected, terms=4)
    residual = jax.grad(losses.sft)(jnp.log(probs), batch)
    by_hand = np.array(
        [[[-0.25, 0.25], [0, 0]], [[0.1, -0.1], [-0.2, 0.2]]], np.float64
    )
    assert_close(residual, by_hand, terms=4)


def test_one_sequence_without_a_batch_axis():
    batch = Sequences(jnp.zeros(2, jnp.int32), jnp.array([0, 1]), jnp.ones(2, bool))
    assert_close(losses.sft(jnp.zeros((2, 4)), batch), 2 * np.log(4.0), terms=4)


@given(draws)
def test_the_sft_loss_equals_loops(draw):
    logits, batch = _draw(draw)
    sums = references.log_prob_sums(*_in_numpy(logits, *batch[1:3]))
    assert_close(_loss_and_residual(logits, batch)[0], -sums.mean(), terms=24)


@given(draws)
def test_the_sft_residual_is_pi_minus_one_hot(draw):
    logits, batch = _draw(draw)
    _, residual = _loss_and_residual(logits, batch)
    expected = references.sft_residual(*_in_numpy(logits, *batch[1:3]))
    assert_close(residual, expected, terms=7)


@given(draws)
def test_the_residual_sums_to_zero_at_every_position(draw):
    logits, batch = _draw(draw)
    sums = np.asarray(_loss_and_residual(logits, batch)[1]).sum(axis=-1)
    assert_close(sums, np.zeros(sums.shape), terms=7, scale=1.0)


@jax.jit
def _dpo_residual(logits, batch, margin):
    return jax.grad(make_dpo(BETA, margin))(logits, batch)


@given(draws)
def test_the_dpo_residual_has_opposite_signs_on_its_arms(draw):
    seed, shape = draw
    chosen, plus = _draw((seed, shape))
    rejected, minus = _draw((seed + 2, shape))
    logits = {"chosen": chosen, "rejected": rejected}
    batch = {"chosen": plus, "rejected": minus}
    margin = np.linspace(-1, 1, len(chosen))
    residual = _dpo_residual(logits, batch, margin)
    expected = references.dpo_residual(
        *_in_numpy(logits, batch), beta=BETA, margin=margin
    )
    assert_close(residual, expected, terms=7)
    rejected = np.asarray(residual["rejected"])
    for b, l in np.argwhere(minus.mask):
        assert rejected[b, l, minus.targets[b, l]] > 0, "not pushed down"


@given(draws)
def test_padding_changes_nothing(draw):
    logits, batch = _draw(draw)
    widen = lambda leaf, fill: jnp.asarray(
        np.pad(leaf, [(0, 0), (0, 3)], constant_values=fill)
    )
    padded = Sequences(
        widen(batch.tokens, 0), widen(batch.targets, -100), widen(batch.mask, False)
    )
    wide = np.pad(logits, [(0, 0), (0, 3), (0, 0)], constant_values=5.0)
    loss, residual = _loss_and_residual(jnp.asarray(wide), padded)
    expected_loss, expected = _loss_and_residual(logits, batch)
    assert_close(loss, expected_loss, terms=24)
    assert_close(residual[:, : logits.shape[1]], expected, terms=7)
    assert not residual[:, logits.shape[1] :].any()


@given(draws)
def test_permuting_the_batch_permutes_the_residual(draw):
    logits, batch = _draw(draw)
    order = np.random.default_rng(draw[0]).permutation(len(logits))
    permuted = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)[order]), (logits, batch)
    )
    _, residual = _loss_and_residual(logits, batch)
    _, expected = _loss_and_residual(*permuted)
    assert_close(expected, np.asarray(residual)[order], terms=7)


def test_works_under_jit_grad_partial_and_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        batch = sentences(0, 2, 4)
        logits = jnp.ones((2, 4, 7), jnp.float32)
        loss_fn = functools.partial(losses.sft, batch=batch)
        assert jax.jit(loss_fn)(logits).dtype == jnp.float32
        assert jnp.isfinite(jax.grad(loss_fn)(100 * logits)).all()


def test_vmap_of_single_sequences_is_the_batch():
    logits, batch = _draw((0, (3, 4)))
    by_sequence = jax.vmap(losses.sft)(logits, batch)
    assert_close(by_sequence.mean(), losses.sft(logits, batch), terms=24)


NAMES = [n for n in losses.LOSSES if n not in ("sigmoid", "spin")]  # they are DPO


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_a_scored_token_is_an_empty_response(name):
    """It counts in the mean as a row, has no gradient and harms no other."""
    loss, rng = losses.LOSSES[name], np.random.default_rng(0)

    def side(mask):
        answer = Sequences(jnp.zeros((2, 3), int), jnp.ones((2, 3), int), mask)
        if loss.trains_on == "samples":
            advantages, old = jnp.asarray(rng.normal(size=(2, 2, 3)))
            return answer._replace(advantages=advantages, old_log_probs=old)
        if loss.has_reference:
            return answer._replace(reference=jnp.array([-4.0, 0.0]))
        return answer

    masks = jnp.array([[True, True, False], [False] * 3])
    logits, batch = jnp.asarray(rng.normal(size=(2, 3, VOCAB))), side(masks)
    if loss.trains_on == "pairs":
        logits = {"chosen": logits, "rejected": logits[::-1]}
        batch = {"chosen": batch, "rejected": side(masks)}
    loss_fn = losses.make_loss(name)
    value, gradient = jax.value_and_grad(loss_fn)(logits, batch)
    assert np.isfinite(value)
    first, one = jax.tree.map(lambda x: x[:1], (logits, batch))
    expected = jax.grad(loss_fn)(first, one)
    if name == "kto":  # whose reference point is of the whole batch
        expected = jax.tree.map(lambda x: x[:1] * 2, gradient)
    assert_close(jax.tree.map(lambda x: 2 * x[:1], gradient), expected, terms=24)
    assert not any(np.asarray(x)[1].any() for x in jax.tree.leaves(gradient))
    nothing = jax.tree.map(lambda x: x[1:], (logits, batch))
    value, gradient = jax.value_and_grad(loss_fn)(*nothing)
    assert np.isfinite(value)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hand_computed_ends(dtype):
    """Leads over equal labels: one position, in single precision as in double."""
    one = jnp.zeros((1, 1), int)
    answer = Sequences(one, one, jnp.ones((1, 1), bool))

    def ahead(lead, others):
        return jnp.asarray(lead * np.eye(1, others + 1)[None], dtype)

    # 20 nats over 49 labels: -log(1 - p) = log(1 + e^20 / 49)
    value = jax.jit(losses.unlikelihood)(ahead(20.0, 49), answer)
    assert_close(value, np.asarray(np.log1p(np.exp(20.0) / 49), dtype))
    # 17.5 nats over seven: -log p = 7 e^-17.5, and the other side's odds are 1 / 7
    z = {"chosen": ahead(17.5, 7), "rejected": ahead(0.0, 7)}
    pair = {"chosen": answer, "rejected": answer}
    value, gradient = jax.jit(jax.value_and_grad(losses.orpo(1.0)))(z, pair)
    rest = np.exp(-17.5)
    # Left out are the next terms, of the order of 7 e^-17.5, and 18 last places.
    rtol = max(rounding(dtype, terms=9), 20 * rest)
    assert_close(value, np.asarray(8 * rest, dtype), rtol=rtol)
    found = gradient["chosen"][0, 0, 0]
    assert_close(found, np.asarray(-8 * rest, dtype), rtol=rtol)


def _pair(seed, num=3) -> Any:
    """Logits and a pair with reference log-probs, all drawn."""
    rng = np.random.default_rng(seed)
    lengths = {"chosen": 4, "rejected": 5}
    logits = {
        side: jnp.asarray(2 * rng.normal(size=(num, length, VOCAB)))
        for side, length in lengths.items()
    }
    pair = {
        side: sentences(seed + length, num, length)._replace(
            reference=jnp.asarray(rng.normal(size=num))
        )
        for side, length in lengths.items()
    }
    return logits, pair


def _at_the_reference(logits, pair):
    return {
        side: batch._replace(
            reference=sequence_log_probs(logits[side], batch.targets, batch.mask)
        )
        for side, batch in pair.items()
    }


@given(st.integers(0, 2**16), st.floats(0.01, 2.0), st.floats(0.0, 0.4))
def test_the_dpo_loss_equals_loops(seed, beta, smoothing):
    logits, pair = _pair(seed)
    h = 0.0
    for side, sign in (("chosen", 1), ("rejected", -1)):
        _, targets, mask, reference, *_ = _in_numpy(pair[side])[0]
        sums = references.log_prob_sums(np.asarray(logits[side]), targets, mask)
        h = h + sign * (sums - reference)
    agrees, disagrees = -np.logaddexp(0, -beta * h), -np.logaddexp(0, beta * h)
    by_hand = -(1 - smoothing) * agrees - smoothing * disagrees
    assert_close(losses.dpo(beta, smoothing)(logits, pair), by_hand.mean(), terms=24)


@given(st.integers(0, 2**16), st.floats(0.01, 2.0))
def test_the_residuals_of_dpo_are_their_closed_form(seed, beta):
    logits, pair = _pair(seed)
    margin = pair["chosen"].reference - pair["rejected"].reference
    plain = {side: _in_numpy(batch)[0].plain for side, batch in pair.items()}
    expected = references.dpo_residual(
        _in_numpy(logits)[0], plain, beta=beta, margin=np.asarray(margin)
    )
    # The witness has `1 - sigmoid`, whose rounding is that of one.
    found = jax.grad(losses.dpo(beta))(logits, pair)
    assert_close(found, expected, terms=24, scale=beta)


def test_smoothed_labels_weigh_the_residuals_of_both_orders():
    logits, pair = _pair(0)
    both = {"chosen": pair["rejected"], "rejected": pair["chosen"]}
    swapped = {"chosen": logits["rejected"], "rejected": logits["chosen"]}
    loss = losses.dpo(0.5)
    smooth = 0.7 * loss(logits, pair) + 0.3 * loss(swapped, both)
    assert_close(losses.dpo(0.5, 0.3)(logits, pair), smooth, terms=24)


def test_where_the_policy_is_the_reference_the_margin_is_exactly_zero():
    logits, pair = _pair(1)
    pair = _at_the_reference(logits, pair)
    assert (np.asarray(losses.log_ratio_margin(logits, pair)) == 0).all()
    assert_close(losses.dpo(0.1)(logits, pair), np.log(2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "`beta` must be positive, got 0.0"),
        ({"beta": float("nan")}, "`beta` must be positive"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_dpo_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        losses.dpo(**options)


def test_a_pair_without_reference_log_probs_is_refused():
    logits, pair = _pair(2)
    plain = {side: batch.plain for side, batch in pair.items()}
    margin = losses.log_ratio_margin
    with pytest.raises(
        TypeError, match=r"'chosen'\] has no `reference`.*add_reference"
    ):
        margin(logits, plain)
    with pytest.raises(ValueError, match="'rejected' is missing"):
        margin(logits, {"chosen": pair["chosen"]})
