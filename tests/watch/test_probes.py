"""What is measured on a probe: loops in NumPy, limits, and the step it explains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses import references
from witnesses.closeness import assert_close
from zoo.cases import VOCAB, apply_toy, sentences, toy_params

import ldjax
from ldjax.data.batches import Example
from ldjax.theory.quantities import sequence_quantities, token_quantities
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn, make_observe_fn

jitted = jax.jit(token_quantities)


def draw(seed, scale=2.0):
    batch = sentences(seed, 3, 4)
    logits = np.random.default_rng(seed).normal(size=(3, 4, VOCAB)) * scale
    return jnp.asarray(logits), batch


@given(st.integers(0, 2**16), st.sampled_from([0.1, 2.0, 8.0]))
def test_the_quantities_of_a_token_equal_loops(seed, scale):
    logits, batch = draw(seed, scale)
    found = jitted(logits, batch.targets, batch.mask)
    probs = references.softmax(np.asarray(logits))
    adaptation = references.adaptation(np.asarray(logits))
    for b, l in np.ndindex(*batch.mask.shape):
        if not batch.mask[b, l]:
            assert all(leaf[b, l] == 0 for leaf in found)
            continue
        p, y = probs[b, l], int(batch.targets[b, l])
        residual = p - np.eye(VOCAB)[y]
        by_hand = {
            "log_prob": np.log(p[y]),
            "argmax_log_prob": np.log(p.max()),
            "argmax_complement": np.log(np.delete(p, p.argmax()).sum()),
            "adaptation_square": (adaptation[b, l] ** 2).sum(),
            "prob_norm": np.sqrt((p**2).sum()),
            "residual_square": (residual**2).sum(),
            "energy": 1 - p[y],
            "entropy": -(p * np.log(p)).sum(),
        }
        for name, expected in by_hand.items():
            # A sum of `VOCAB` rounded terms, some of them near one.
            value = float(getattr(found, name)[b, l])
            assert value == pytest.approx(expected, rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_near_certainty_everything_is_finite_and_right(dtype):
    gap = 150.0  # exp(-150) is far below float32's rounding of one
    logits = jnp.zeros((1, 2, VOCAB), dtype).at[:, :, 1].set(gap)
    targets = jnp.array([[1, 0]])
    found = token_quantities(logits, targets, jnp.ones((1, 2), bool))
    assert all(np.isfinite(leaf).all() for leaf in found)
    expected = -gap + np.log(VOCAB - 1)
    np.testing.assert_allclose(found.argmax_complement, [[expected] * 2], rtol=1e-6)
    assert 0 <= found.energy[0, 0] < 1e-30
    np.testing.assert_allclose(found.residual_square, [[0, 2]], atol=1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_squeezing_threshold_of_a_certain_token_is_not_a_difference_of_ones(dtype):
    """With `q` left to the other labels it is `(1 + 1 / (V - 1)) q^2 - q`."""
    mask = jnp.ones((1, 1), bool)
    for target, lead in ((1, 25.0), (1, 3.0), (0, 25.0)):
        logits = jnp.zeros((1, 1, VOCAB), dtype).at[0, 0, 1].set(lead)
        tokens = token_quantities(logits, jnp.full((1, 1), target), mask)
        found = sequence_quantities(tokens, mask, vocab_size=VOCAB)
        wide = np.eye(VOCAB)[1] * lead
        p = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
        q = np.delete(p, target).sum()
        others = (np.delete(p, target) ** 2).sum()
        expected = others - (1 - q) * q if target else (p**2).sum() - p[0]
        # The exponential of the lead has an error of the lead's last place.
        rtol = 8 * lead * float(jnp.finfo(dtype).eps)
        assert float(found["squeezing_threshold"][0]) == pytest.approx(
            expected, rel=rtol, abs=0
        )


def test_a_small_residual_is_not_lost_in_a_difference_of_ones():
    logits = jnp.zeros((1, 1, 3), "float32").at[..., 0].set(12.0)
    mask = jnp.ones((1, 1), bool)
    found = token_quantities(logits, jnp.zeros((1, 1), int), mask)
    p = 1 / (np.exp(12.0) + 2)
    exact = (2 * p) ** 2 + 2 * p**2
    np.testing.assert_allclose(found.residual_square, [[exact]], rtol=1e-5)


def test_a_masked_nan_stays_out():
    logits, batch = draw(3)
    spoilt = jnp.where(batch.mask[..., None], logits, jnp.nan)
    found = jitted(spoilt, batch.targets, batch.mask)
    assert_close(found, jitted(logits, batch.targets, batch.mask))


def test_the_norms_of_a_sequence_are_frobenius_norms():
    logits, batch = draw(4)
    tokens = jitted(logits, batch.targets, batch.mask)
    found = sequence_quantities(tokens, batch.mask, vocab_size=VOCAB)
    adaptation = references.adaptation(np.asarray(logits))
    residual = 3 * references.sft_residual(*map(np.asarray, (logits, *batch[1:3])))
    probs = np.linalg.norm(references.softmax(np.asarray(logits)), axis=-1)
    for b, mask in enumerate(np.asarray(batch.mask)):
        count = mask.sum()
        norms = {
            "adaptation_norm": np.linalg.norm(adaptation[b, mask]),
            "residual_norm": np.linalg.norm(residual[b, mask]),
        }
        for name, expected in norms.items():
            assert found[name][b] * np.sqrt(count) == pytest.approx(expected, rel=1e-12)
        published = np.sqrt(VOCAB * probs[b, mask].mean() ** 2 + VOCAB - 2)
        assert found["adaptation_norm_published"][b] == pytest.approx(published)


def make_probes(count=4):
    rng = np.random.default_rng(0)
    return [
        Probe(
            f"train/{i}",
            "chosen",
            Example(
                rng.integers(VOCAB, size=1 + i % 3).tolist(),
                rng.integers(VOCAB, size=1 + (7 * i) % 23).tolist(),
            ),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_results_come_in_the_order_of_the_probes(batch_size):
    probes = make_probes()
    watched = ProbeSet.of(probes, max_length=32, batch_size=batch_size)
    observed = make_observe_fn(apply_toy, watched)(toy_params())
    for i, probe in enumerate(probes):
        alone = ProbeSet.of([probe], max_length=32, batch_size=1)
        expected = make_observe_fn(apply_toy, alone)(toy_params())
        found = {name: values[i : i + 1] for name, values in observed.items()}
        assert_close(found, expected, terms=24)


def test_a_change_is_what_the_step_predicted_and_measured():
    params, update = toy_params(), sentences(6, 3, 4)
    probes = ProbeSet.of(make_probes(), max_length=32, batch_size=None)
    init, step = ldjax.make_step(apply_toy, ldjax.losses.sft, optax.adam(1e-2))
    state, comparison = step(init(params), update, tuple(b for _, b in probes.batches))
    found = make_change_fn(apply_toy, probes)(params, state.params)
    for name in ("predicted", "measured"):
        parts = [np.asarray(leaf).sum(-1) for leaf in getattr(comparison, name)]
        # The update is recovered from parameters: a rounding of them, per parameter.
        assert_close(found[name], probes.gather(parts), rtol=1e-9)
