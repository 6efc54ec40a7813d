"""Losses of tokens with advantages: hand values, closed-form residuals, one step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close, rounding
from zoo.cases import VOCAB, sentences

from ldjax import Sequences, losses, make_step

HERE = losses.reinforce, losses.grpo(0.2)


def drawn(seed, num=4, length=5) -> Any:
    """Logits, and samples whose probability ratios lie on both sides of the clip."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num, length, VOCAB))
    batch = sentences(seed, num, length)
    plain = jax.tree.map(np.asarray, batch)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(
        log_probs, np.where(plain.mask, plain.targets, 0)[..., None], -1
    )[..., 0]
    old = picked + 0.4 * rng.normal(size=picked.shape)
    advantages = rng.normal(size=picked.shape)
    samples = batch._replace(
        advantages=jnp.asarray(advantages), old_log_probs=jnp.asarray(old)
    )
    return jnp.asarray(logits), samples, np.exp(picked - old)


@pytest.mark.parametrize("seed", range(4))
def test_residuals_are_their_closed_forms(seed):
    logits, batch, ratio = drawn(seed)
    plain = jax.tree.map(np.asarray, batch)
    num = len(plain.tokens)
    R = num * references.sft_residual(np.asarray(logits), *plain[1:3])
    A = plain.advantages
    expected = A[..., None] * R / num
    assert_close(jax.grad(losses.reinforce)(logits, batch), expected, rtol=1e-12)
    binds = ((A > 0) & (ratio > 1.2)) | ((A < 0) & (ratio < 0.8))
    assert binds[plain.mask].any()
    assert not binds[plain.mask].all()
    lengths = plain.mask.sum(-1)[:, None]
    push = np.where(binds, 0, ratio * A) / lengths
    found = jax.grad(losses.grpo(0.2))(logits, batch)
    assert_close(found, push[..., None] * R / num, rtol=1e-12)


def test_hand_computed_values():
    """Two tokens of one response, probabilities 0.5 and 0.8; the second is masked
    in the other response."""
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.2, 0.8]]] * 2))
    mask = jnp.array([[True, True], [True, False]])
    targets = jnp.array([[0, 1], [1, -100]])
    batch = Sequences(
        jnp.zeros((2, 2), int),
        targets,
        mask,
        advantages=jnp.array([[1.0, -2.0], [3.0, jnp.nan]]),
        old_log_probs=jnp.log(jnp.array([[0.25, 0.8], [0.5, 0.0]])),
    )
    expected = -(np.log(0.5) - 2 * np.log(0.8) + 3 * np.log(0.5)) / 2
    assert_close(losses.reinforce(logits, batch), expected, rtol=1e-13)
    # ratios 2 (clipped to 1.2), 1 and 1; means over 2 tokens and 1
    assert_close(losses.grpo(0.2)(logits, batch), -(-0.8 / 2 + 3) / 2, rtol=1e-13)


def test_advantages_of_one_are_sft():
    logits, batch, _ = drawn(0)
    ones = batch._replace(advantages=jnp.ones_like(batch.advantages))
    assert_close(losses.reinforce(logits, ones), losses.sft(logits, batch.plain))


def test_on_its_own_samples_grpo_is_reinforce_by_length():
    logits, batch, _ = drawn(1)
    batch = batch._replace(
        old_log_probs=jnp.where(
            batch.mask,
            jnp.take_along_axis(
                jax.nn.log_softmax(logits),
                jnp.where(batch.mask, batch.targets, 0)[..., None],
                -1,
            )[..., 0],
            0,
        )
    )
    by_length = batch._replace(
        advantages=batch.advantages / batch.mask.sum(-1, keepdims=True)
    )
    found, expected = (
        jax.grad(loss)(logits, samples)
        for loss, samples in ((losses.grpo(), batch), (losses.reinforce, by_length))
    )
    assert_close(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ratios_that_no_float_holds_have_the_gradient_of_the_largest(dtype):
    """A token the drawing policy all but excluded, with each sign of its advantage."""
    # Uniform over four labels, far above what the old policy gave to the token.
    old = jnp.full((3, 1), -1e3, dtype)
    token, advantages = jnp.zeros((3, 1), int), jnp.array([[1.0], [0.0], [-1.0]], dtype)
    batch = Sequences(token, token, token == 0, None, advantages, old)
    logits = jnp.zeros((3, 1, 4), dtype)
    most = float(jnp.finfo(dtype).max) / 1e7
    of_loss = jax.jit(jax.value_and_grad(losses.grpo()))
    for of_row, value, push in ((0, -1.2, 0.0), (1, 0.0, 0.0), (2, most, -most)):
        one = jax.tree.map(lambda x, i=of_row: x[i : i + 1], (logits, batch))
        found, gradient = of_loss(*one)
        # The largest ratio is the exponential of its logarithm.
        rtol = rounding(dtype) * np.log(most)
        assert_close(found, np.asarray(value, dtype), rtol=rtol)
        expected = push * np.array([[[-0.75, 0.25, 0.25, 0.25]]], dtype)
        assert_close(gradient, expected, rtol=rtol)
    excluded = batch._replace(old_log_probs=jnp.full((3, 1), -jnp.inf, dtype))
    found, gradient = of_loss(logits, excluded)
    assert_close(found, np.asarray((most - 1.2) / 3, dtype), rtol=rtol)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("loss_fn", "lacking"),
    [(losses.reinforce, "advantages"), (losses.grpo(), "old_log_probs")],
)
def test_samples_without_what_is_compared_are_refused(loss_fn, lacking):
    logits, batch, _ = drawn(0)
    with pytest.raises(TypeError, match=f"The batch has no `{lacking}`"):
        loss_fn(logits, batch._replace(**{lacking: None}))


def test_an_impossible_clip_is_refused():
    with pytest.raises(ValueError, match="`epsilon` must be positive, got 0"):
        losses.grpo(0.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("loss_fn", HERE, ids=["reinforce", "grpo"])
def test_one_step_is_accounted_for(loss_fn):
    """The parts sum to the prediction, and the remainder falls four times."""
    _, batch, _ = drawn(2)
    table = jnp.asarray(np.random.default_rng(6).normal(size=(VOCAB, VOCAB)))
    apply_fn = lambda params, s: params["table"][s.tokens] * jnp.tanh(params["scale"])
    params = {"table": table, "scale": jnp.asarray(0.9)}
    remainders = []
    for rate in (1e-3, 5e-4):
        init, step = make_step(apply_fn, loss_fn, optax.sgd(rate), parts="example")
        _, account = step(init(params), batch, batch)
        assert_close(account.parts["update"].sum(0), account.predicted, rtol=1e-10)
        remainders.append(optax.tree.norm(account.remainder))
    assert 3.8 < remainders[0] / remainders[1] < 4.2
