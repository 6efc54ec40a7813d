"""The squeezing effect: Lemma 1 and each claim of the paper, over drawn cases."""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close, rounding

from ldjax import jacobian
from ldjax.theory import squeezing

NUM = 2000
VOCABS = (2, 3, 10, 50)
# Of log alpha, whose terms are at most a hundred nats here; derived from the rounding
# of their sum, a few units in the last place of the largest.
ROUNDING = 1e-13


@functools.cache
def cases(vocab, seed=0):
    """Flat to peaky distributions, likely and unlikely labels, all sizes of steps."""
    rng = np.random.default_rng((seed, vocab))
    scale = 10 ** rng.uniform(-1, 1, (NUM, 1))
    logits = scale * rng.normal(size=(NUM, vocab))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    label = rng.integers(vocab, size=NUM)
    strength = 10 ** rng.uniform(-2, 1.5, NUM)
    return log_probs, label, strength


def call(function, *arrays):
    return np.asarray(function(*map(jnp.asarray, arrays)))


def changes(log_probs, label, strength):
    return call(squeezing.log_ratios, log_probs, label, strength)


def at(array, label):
    return np.take_along_axis(array, label[:, None], axis=-1)[:, 0]


def others(log_probs, label):
    return np.arange(log_probs.shape[-1]) != label[:, None]


def lemma_1(log_probs, label, strength):
    """The paper's printed form, a loop over distributions and labels."""
    ratios = np.empty_like(log_probs)
    for n, (row, y, s) in enumerate(zip(log_probs, label, strength, strict=True)):
        p, eta = np.exp(row), -s
        for i in range(len(p)):
            beta = np.exp(-eta * (p - p[i]))
            if i == y:
                beta = np.exp(-eta * (p - p[y] + 1))
                beta[y] = 1
            else:
                beta[y] = np.exp(-eta * (p[y] - p[i] - 1))
            ratios[n, i] = p.sum() / (beta * p).sum()
    return ratios


@pytest.mark.parametrize("vocab", VOCABS)
def test_log_ratios_are_lemma_1_and_what_a_step_does(vocab):
    log_probs, label, strength = cases(vocab)
    actual = changes(log_probs, label, strength)
    pushed = strength[:, None] * (np.exp(log_probs) - np.eye(vocab)[label])
    after = np.asarray(jax.nn.log_softmax(log_probs + pushed))
    np.testing.assert_allclose(actual, after - log_probs, atol=ROUNDING)
    few = slice(0, 200)
    printed = np.log(lemma_1(log_probs[few], label[few], strength[few]))
    np.testing.assert_allclose(actual[few], printed, atol=1e-11)


def test_the_step_is_gradient_ascent_of_logistic_regression():
    rng = np.random.default_rng(1)
    features, readout = rng.normal(size=4), rng.normal(size=(4, 7))
    label, rate = 3, 0.2
    log_prob = lambda w: jax.nn.log_softmax(features @ w)
    down = jax.grad(lambda w: log_prob(w)[label])(readout)
    actual = squeezing.log_ratios(
        log_prob(readout), jnp.array(label), float(rate * features @ features)
    )
    expected = log_prob(readout - rate * down) - log_prob(readout)
    assert_close(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("vocab", VOCABS)
def test_claims_1_and_2_the_pushed_label_falls_and_the_greedy_one_rises(vocab):
    log_probs, label, strength = cases(vocab)
    moved = changes(log_probs, label, strength)
    greedy = call(squeezing.greedy_label, log_probs, label)
    assert (greedy != label).all()
    # Next to probability one there is nothing to lose or to gain but rounding.
    assert (at(moved, label) < ROUNDING).all()
    assert (at(moved, label)[at(log_probs, label) < np.log(0.999)] < 0).all()
    assert (at(moved, greedy) > -ROUNDING).all()
    clear = at(log_probs, greedy) < np.log(0.999)
    clear &= (strength > 1e-1) & (at(log_probs, label) > -10)
    assert clear.sum() > NUM / 10
    assert (at(moved, greedy)[clear] > 0).all()
    is_most = at(moved, greedy) >= moved.max(axis=1) - ROUNDING
    assert is_most.all()


@pytest.mark.parametrize("vocab", VOCABS)
def test_a_label_rises_if_and_only_if_it_is_above_the_threshold(vocab):
    log_probs, label, strength = cases(vocab)
    moved = changes(log_probs, label, strength)
    border = call(squeezing.threshold, log_probs, label, strength)
    rising = call(squeezing.rising_labels, log_probs, label, strength)
    margin = strength[:, None] * (np.exp(log_probs) - border[:, None])
    clear = others(log_probs, label) & (abs(margin) > ROUNDING)
    assert clear.sum() > NUM / 2
    np.testing.assert_array_equal(moved[clear] > 0, rising[clear])
    assert not at(rising, label).any()
    np.testing.assert_allclose(
        moved[others(log_probs, label)],
        margin[others(log_probs, label)],
        atol=ROUNDING,
    )


def test_the_threshold_of_small_steps_is_its_limit_to_first_order():
    log_probs, label, _ = cases(10)
    limit = call(squeezing.small_step_threshold, log_probs, label)
    p = np.exp(log_probs)
    np.testing.assert_allclose(limit, (p**2).sum(1) - at(p, label), atol=1e-15)
    gaps = [
        call(squeezing.threshold, log_probs, label, step) - limit
        for step in (2e-3, 1e-3)
    ]
    # The next term is s/2 times the variance of p_j - [j = y] under p.
    value = p - np.eye(10)[label]
    variance = (p * value**2).sum(1) - (p * value).sum(1) ** 2
    clear = variance > 1e-6
    assert clear.sum() > 1000
    np.testing.assert_allclose(gaps[0][clear] / gaps[1][clear], 2, atol=0.01)
    np.testing.assert_allclose(gaps[1][clear], variance[clear] / 2e3, rtol=0.01)


def _exact_threshold(*arguments):
    with localcontext(prec=90):
        return _in_decimals(*arguments)


def _in_decimals(log_probs, label, strength):
    """In decimals: `log1p(sum p expm1(s (p - e_y))) / s`, `p` as it is given."""
    p = [Decimal(float(x)).exp() for x in log_probs]
    zero = Decimal(0)
    others = sum((x for i, x in enumerate(p) if i != label), zero)
    slopes = [-others if i == label else x for i, x in enumerate(p)]
    if strength == 0:
        return float(sum(a * b for a, b in zip(p, slopes, strict=True)))
    s = Decimal(float(strength))
    mean = sum((a * (s * b).exp() for a, b in zip(p, slopes, strict=True)), zero)
    return float((mean - (sum(p) - 1)).ln() / s)  # `p` sums to 1 up to its rounding


@pytest.mark.parametrize("lead", [-3.0, 8.0, 25.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_threshold_holds_its_digits_at_every_strength(dtype, lead):
    """A thousand labels; strengths of real steps are 1e-5, the pushed label may be
    certain, and nothing overflows."""
    vocab, label = 1000, 5
    logits = 2 * np.random.default_rng(0).normal(size=vocab)
    logits[label] += lead
    log_probs = jax.nn.log_softmax(jnp.asarray(logits)).astype(dtype)
    wide = np.asarray(log_probs, np.float64)
    strengths = [0.0, 1e-30, 1e-8, 1e-5, 1e-4, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e5]
    # Each log-prob is the exponent of a probability, known to its last place.
    rtol = rounding(dtype) * abs(wide).max()
    for strength in strengths:
        expected = _exact_threshold(wide, label, strength)
        found = squeezing.threshold(log_probs, jnp.asarray(label), strength)
        assert_close(found, np.asarray(expected, dtype), rtol=rtol)
        rising = squeezing.rising_labels(log_probs, jnp.asarray(label), strength)
        margin = np.exp(wide) - expected
        clear = (abs(margin) > rtol * abs(expected)) & (np.arange(vocab) != label)
        assert clear.sum() > vocab - 10
        np.testing.assert_array_equal(np.asarray(rising)[clear], (margin > 0)[clear])


def test_the_share_of_a_small_move_is_that_of_the_log_probs():
    """Where single precision cannot tell the probabilities apart."""
    before = jnp.log(jnp.array([0.5, 0.3, 0.2], jnp.float32))
    after = before + jnp.array([3e-7, -4e-7, 0], jnp.float32)
    moved = np.exp(np.float64(before)) * np.expm1(np.float64(after) - before)
    for label in range(2):
        found = squeezing.mass_share(before, after, jnp.array(label))
        expected = max(moved[label], 0) / np.maximum(-moved, 0).sum()
        assert_close(found, np.float32(expected))


def test_the_rising_labels_of_small_steps_are_those_of_the_slope():
    log_probs, label, _ = cases(10)
    rising = call(squeezing.rising_labels, log_probs, label)
    p = np.exp(log_probs)
    slope = (p - np.eye(10)[label]) - (p * (p - np.eye(10)[label])).sum(1)[:, None]
    clear = abs(slope) > 1e-12
    np.testing.assert_array_equal(rising[clear], slope[clear] > 0)


def test_claim_3a_from_a_flat_distribution_all_others_rise_alike():
    rng = np.random.default_rng(2)
    for vocab in VOCABS:
        label, strength = rng.integers(vocab, size=NUM), 10 ** rng.uniform(-2, 1, NUM)
        flat = np.full((NUM, vocab), -np.log(vocab))
        moved = changes(flat, label, strength)
        rest = moved[others(flat, label)].reshape(NUM, -1)
        assert (rest > 0).all()
        np.testing.assert_allclose(rest - rest[:, :1], 0, atol=ROUNDING)


@pytest.mark.parametrize("vocab", [3, 10, 50])
def test_claims_3b_and_5_fewer_labels_rise_the_larger_the_step(vocab):
    """Concavity: what falls keeps falling, and the peak gains ever more."""
    log_probs, label, _ = cases(vocab)
    steps = np.geomspace(1e-2, 30, 40)
    series = np.stack([changes(log_probs, label, np.full(NUM, s)) for s in steps])
    falls = (series < -ROUNDING) & others(log_probs, label)
    assert not (falls[:-1] & ~falls[1:]).any()
    slopes = np.diff(series, axis=0) / np.diff(steps)[:, None, None]
    assert (np.diff(slopes, axis=0) < 1e-9).all()
    greedy = call(squeezing.greedy_label, log_probs, label)
    rows = np.arange(NUM)
    assert (np.diff(series[:, rows, greedy], axis=0) > -ROUNDING).all()
    assert (np.diff(series[:, rows, label], axis=0) < ROUNDING).all()
    assert (series[-1, rows, label] < series[0, rows, label]).mean() > 0.99
    # The middle case: some rise and fall later.
    assert ((series[0] > ROUNDING) & (series[-1] < -ROUNDING)).sum() > 100


def test_claim_3c_from_a_peaky_distribution_only_the_peak_rises():
    log_probs, label, strength = cases(50)
    p = np.exp(log_probs)
    top_two = np.sort(p, axis=1)[:, -2:]
    # A bound that needs no step: tau(s) >= tau(0) = |p|^2 - p_y > the second label.
    peaky = top_two[:, 1] ** 2 - at(p, label) > top_two[:, 0]
    peaky &= np.argmax(p, axis=1) != label
    assert peaky.sum() > 400
    rising = call(squeezing.rising_labels, log_probs, label, strength)
    assert (rising[peaky].sum(axis=1) <= 1).all()
    assert (rising & ~np.eye(50, dtype=bool)[p.argmax(1)])[peaky].sum() == 0


def test_claim_4_the_less_there_is_to_remove_the_more_all_others_fall():
    """Of two pushed labels the less likely one costs every third label more."""
    log_probs, first, strength = cases(10)
    second = (first + 1 + np.random.default_rng(3).integers(9, size=NUM)) % 10
    p = np.exp(log_probs)
    moved = [changes(log_probs, label, strength) for label in (first, second)]
    third = others(log_probs, first) & others(log_probs, second)
    is_less = (at(p, first) < at(p, second))[:, None]
    gap = np.where(is_less, moved[1] - moved[0], moved[0] - moved[1])
    assert (gap[third] > -ROUNDING).all()
    assert (gap[third] > 1e-6).sum() > NUM


def test_claim_4_the_gain_of_the_peak_shrinks_while_its_share_tends_to_grow():
    log_probs, first, strength = cases(50, seed=1)
    p = np.exp(log_probs)
    second = (first + 1 + np.random.default_rng(4).integers(49, size=NUM)) % 50
    peak = p.argmax(axis=1)
    apart = (first != peak) & (second != peak)
    assert apart.sum() > 1000
    less = np.where(at(p, first) < at(p, second), first, second)[apart]
    more = np.where(at(p, first) < at(p, second), second, first)[apart]
    log_probs, strength, peak = log_probs[apart], strength[apart], peak[apart]
    gains, shares = [], []
    for label in (less, more):
        moved = changes(log_probs, label, strength)
        gains.append(at(moved, peak))
        after = log_probs + moved
        shares.append(call(squeezing.mass_share, log_probs, after, peak))
    assert (gains[0] <= gains[1] + ROUNDING).all()
    clear = gains[0] > 1e-9  # where more moves than is lost to rounding
    assert clear.sum() > 500
    # A tendency of many labels only: in 20 000 draws it failed in 0.2 to 2.5 % of
    # cases with 50 labels, and in half of those with three.
    assert (shares[0] >= shares[1] - 1e-6)[clear].mean() > 0.95


def test_the_share_of_the_peak_can_shrink_with_the_label_that_is_pushed():
    """0.40, 0.35, 0.25: by the slope p_i (p_i - |p|^2 + p_y), 0.58 against 0.72."""
    log_probs = np.log([[0.40, 0.35, 0.25]] * 2)
    pushed = np.array([2, 1])
    moved = changes(log_probs, pushed, np.full(2, 1e-4))
    peak = np.array([0, 0])
    shares = call(squeezing.mass_share, log_probs, log_probs + moved, peak)
    np.testing.assert_allclose(shares, [0.577, 0.718], atol=1e-3)


def test_mass_shares_add_up_to_one():
    log_probs, label, strength = cases(10)
    after = log_probs + changes(log_probs, label, strength)
    each = [
        call(squeezing.mass_share, log_probs, after, np.full(NUM, i)) for i in range(10)
    ]
    shares = np.sum(each, axis=0)
    moved = abs(np.exp(after) - np.exp(log_probs)).sum(axis=1)
    np.testing.assert_allclose(shares[moved > 1e-6], 1, atol=1e-9)


def test_under_a_multiple_of_the_identity_first_order_is_the_slope_at_zero():
    log_probs, label, _ = cases(10)
    for row, y in zip(log_probs[:20], label[:20], strict=True):
        logits = jnp.asarray(row)
        identity = jacobian(lambda z: z, logits)
        down = jax.nn.one_hot(y, 10) - jnp.exp(logits)
        actual = squeezing.first_order_change(2 * identity, logits, down)
        ratios = functools.partial(squeezing.log_ratios, logits, jnp.array(y))
        slope = jax.jacfwd(ratios)(0.0)
        assert_close(actual, 2 * slope, rtol=1e-10)


def test_under_any_kernel_the_rest_of_a_step_falls_four_times():
    """Logits linear in the parameters, so the step itself is the brute force."""
    rng = np.random.default_rng(5)
    to_probe, to_update = rng.normal(size=(2, 7, 9)) / 3
    params, label = rng.normal(size=9), 4
    probe_logits, update_logits = to_probe @ params, to_update @ params
    residual = -(jax.nn.softmax(update_logits) - jax.nn.one_hot(label, 7))
    kernel = jacobian(lambda z: z @ (to_update @ to_probe.T), jnp.zeros(7))
    slope = squeezing.first_order_change(kernel, probe_logits, residual)

    def rest(rate):
        moved = to_probe @ (params - rate * to_update.T @ residual)
        change = jax.nn.log_softmax(moved) - jax.nn.log_softmax(probe_logits)
        return np.linalg.norm(change - rate * slope)

    assert 3.9 < rest(1e-3) / rest(5e-4) < 4.1
