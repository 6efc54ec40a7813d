"""The paper's proxies: their bound by brute force, and the published numbers."""

import csv
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses import references
from zoo.cases import VOCAB, sentences

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.theory.proxies import (
    accumulated_influence,
    adaptation_norm,
    lower_bound_kernel,
    published_adaptation_norm,
    published_lower_bound_kernel,
    published_residual_norm,
    published_sign_delta,
    sign_delta,
)
from ldjax.theory.quantities import sequence_quantities, token_quantities

pytestmark = pytest.mark.slow

PER_EXAMPLE = (
    Path(__file__).resolve().parents[3] / "shared" / "reference" / "perexample"
)
SCALES = st.sampled_from([0.1, 2.0, 8.0])
ETA = 0.3


def draw(seed, scale=2.0):
    batch = sentences(seed, 3, 4)
    logits = np.random.default_rng(seed).normal(size=(3, 4, VOCAB)) * scale
    logits[~np.asarray(batch.mask)] = np.nan  # must not be read
    return jnp.asarray(logits), batch


@given(st.integers(0, 2**16), SCALES)
def test_the_adaptation_norm_is_that_of_the_dense_matrices(seed, scale):
    logits, batch = draw(seed, scale)
    found = adaptation_norm(logits, batch.mask)
    for b, mask in enumerate(np.asarray(batch.mask)):
        matrices = references.adaptation(np.asarray(logits)[b, mask])
        expected = np.linalg.norm(matrices.ravel())
        assert float(found[b]) == pytest.approx(expected, rel=1e-12)


def first_order(rng, scale, probe_tokens, update_tokens, rank=None):
    """`-eta A K G` with a drawn kernel, the dumbest way, and what it is made of."""
    logits = rng.normal(size=(probe_tokens, VOCAB)) * scale
    shape = (probe_tokens, VOCAB, update_tokens, VOCAB)
    if rank is None:
        kernel = rng.normal(size=shape)
    else:  # low rank comes closer to the bound
        left = rng.normal(size=(*shape[:2], rank))
        kernel = np.einsum("mvr,lwr->mvlw", left, rng.normal(size=(*shape[2:], rank)))
    residual = rng.normal(size=(update_tokens, VOCAB))
    adaptation = references.adaptation(logits)
    change = -ETA * np.einsum("mvi,miwj,wj->mv", adaptation, kernel, residual)
    return logits, kernel, residual, change


@given(st.integers(0, 2**16), SCALES, st.sampled_from([None, 1, 3]))
def test_lbk_is_a_lower_bound_of_the_squared_kernel_norm(seed, scale, rank):
    rng = np.random.default_rng(seed)
    logits, kernel, residual, change = first_order(rng, scale, 3, 2, rank)
    mask = jnp.ones((1, 3), bool)
    found = lower_bound_kernel(
        jnp.asarray(change[None]),
        jnp.asarray(logits[None]),
        mask,
        residual={"chosen": jnp.asarray(residual[:1]), "rejected": residual[1:]},
    )
    blocks = references.adaptation(logits)
    by_hand = (change**2).sum() / ((blocks**2).sum() * (residual**2).sum())
    assert float(found[0]) == pytest.approx(by_hand, rel=1e-12)
    assert float(found[0]) <= ETA**2 * (kernel**2).sum() * (1 + 1e-12)


def test_the_bound_is_reached_where_all_three_terms_point_the_same_way():
    """Two labels, one token: `A` has rank one, so `K` and `G` can be aligned to it."""
    p = 0.2
    logits = jnp.log(jnp.array([[[p, 1 - p]]]))
    direction, residual = np.array([1.0, -1.0]), np.array([3.0, 4.0])
    kernel = 0.7 * np.outer(direction, residual)
    change = -ETA * references.adaptation(np.asarray(logits[0, 0])) @ kernel @ residual
    found = lower_bound_kernel(
        jnp.asarray(change[None, None]),
        logits,
        jnp.ones((1, 1), bool),
        residual=jnp.asarray(residual),
    )
    assert float(found[0]) == pytest.approx(ETA**2 * (kernel**2).sum(), rel=1e-12)


def test_masked_positions_count_for_nothing():
    logits, batch = draw(5)
    change = 0.1 * logits  # not a number where masked
    lbk = lower_bound_kernel(change, logits, batch.mask, residual=jnp.ones(3))
    sign = sign_delta(change, batch.mask)
    for b, mask in enumerate(np.asarray(batch.mask)):
        assert not mask.all()
        scored = np.asarray(change)[b, mask]
        square = (references.adaptation(10 * scored) ** 2).sum()
        by_hand = (scored**2).sum() / (3 * square)
        assert float(lbk[b]) == pytest.approx(by_hand, rel=1e-12)
        assert float(sign[b]) == pytest.approx(scored.mean(), rel=1e-12)


def test_a_response_without_a_scored_token_bounds_nothing():
    logits, batch = draw(5)
    nothing = jnp.zeros_like(batch.mask)
    change = 0.1 * jnp.where(jnp.isfinite(logits), logits, 0)
    assert not lower_bound_kernel(change, logits, nothing, residual=jnp.ones(3)).any()
    assert not sign_delta(change, nothing).any()
    assert np.isfinite(published_adaptation_norm(logits, nothing)).all()
    assert not published_residual_norm(logits, batch.targets, nothing).any()
    # Nor does one that nothing was learned from.
    lbk = lower_bound_kernel(0 * change, logits, batch.mask, residual=jnp.zeros(3))
    assert not lbk.any()


def test_the_published_norms_are_means_of_norms():
    logits, batch = draw(3)
    a_norm = published_adaptation_norm(logits, batch.mask)
    p_e = published_residual_norm(logits, batch.targets, batch.mask)
    for b, mask in enumerate(np.asarray(batch.mask)):
        probs = references.softmax(np.asarray(logits)[b, mask])
        norms = np.linalg.norm(probs, axis=-1)
        expected = np.sqrt(VOCAB * norms.mean() ** 2 + VOCAB - 2)
        assert float(a_norm[b]) == pytest.approx(expected, rel=1e-12)
        residual = probs - np.eye(VOCAB)[np.asarray(batch.targets)[b, mask]]
        expected = np.linalg.norm(residual, axis=-1).mean()
        assert float(p_e[b]) == pytest.approx(expected, rel=1e-12)


def test_the_published_norm_of_a_is_that_of_the_watched_curves():
    logits, batch = draw(4)
    tokens = token_quantities(logits, batch.targets, batch.mask)
    watched = sequence_quantities(tokens, batch.mask, vocab_size=VOCAB)
    found = published_adaptation_norm(logits, batch.mask)
    np.testing.assert_allclose(found, watched["adaptation_norm_published"], rtol=1e-12)
    exact = adaptation_norm(logits, batch.mask) / jnp.sqrt(batch.mask.sum(-1))
    assert (found <= exact * (1 + 1e-12)).all()


def test_the_published_metrics_keep_a_single_series():
    log_probs = np.array([[0.0, 0.0], [3.0, -4.0]])
    norms = np.array([[np.nan, np.nan], [3.0, 5.0]])  # before the interval: not read
    ones = np.ones((2, 2))
    lbk = published_lower_bound_kernel(log_probs, norms, ones)
    assert lbk == pytest.approx([5 / 2])
    assert published_sign_delta(log_probs, norms, ones) == pytest.approx([-0.5 / 2])


# The published numbers


@pytest.fixture(scope="module")
def published():
    """Per-example data of a published run."""
    if not PER_EXAMPLE.is_dir():
        message = "no folder shared/reference/perexample next to the repository: LBK"
        if os.environ.get("CI"):
            pytest.fail(f"{message} was not tested, and CI has to")
        pytest.skip(f"{message} not compared with the published numbers")
    data = np.load(PER_EXAMPLE / "prob_pythia410m_dpo.npz")
    return {name: data[name].astype(float) for name in ("logp", "A_o", "p_e")}


def expected(name, quantity):
    with (PER_EXAMPLE / f"prob_pythia410m_dpo.{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_type = {
        type_: [float(row[quantity]) for row in rows if row["response_type"] == type_]
        for type_ in RESPONSE_TYPES
    }
    return np.stack(list(by_type.values()), axis=-1)


def test_lbk_and_sign_delta_are_those_of_the_published_run(published):
    arrays = (published["logp"], published["A_o"], published["p_e"])
    lbk, sign = published_lower_bound_kernel(*arrays), published_sign_delta(*arrays)
    assert lbk.shape == (49, 12)
    np.testing.assert_allclose(lbk, expected("lbk", "lbk"), rtol=1e-4)
    np.testing.assert_allclose(sign, expected("lbk", "signdelta"), rtol=1e-4, atol=1e-6)
    for values, name in ((lbk, "sum_ema_lbk"), (sign, "sum_ema_signdelta")):
        np.testing.assert_allclose(
            accumulated_influence(values),
            expected("lbk_accumulated", name)[0],
            rtol=1e-4,
        )
