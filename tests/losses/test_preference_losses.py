"""The family of losses: hand values, closed-form residuals, and one step of each."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from zoo.cases import VOCAB, sentences

from ldjax import Sequences, losses, make_step

SIDES = ("chosen", "rejected")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Each: the loss with options; its value for a pair, from both log-ratios h, log-probs
# s and lengths n; and what multiplies R on both sides, before the mean over pairs.
# KTO's reference point is of the whole batch, z.
FAMILY = {
    "dpo": (
        losses.dpo(0.3),
        lambda p: -np.log(sigmoid(0.3 * p.h)),
        lambda p: 0.3 * sigmoid(-0.3 * p.h) * np.array([1, -1]),
    ),
    "cdpo": (
        losses.dpo(0.3, 0.2),
        lambda p: -0.8 * np.log(sigmoid(0.3 * p.h)) - 0.2 * np.log(sigmoid(-0.3 * p.h)),
        lambda p: 0.3 * (0.8 - sigmoid(0.3 * p.h)) * np.array([1, -1]),
    ),
    "ipo": (
        losses.ipo(0.4),
        lambda p: (p.h - 1.25) ** 2,
        lambda p: 2 * (1.25 - p.h) * np.array([1, -1]),
    ),
    "hinge": (
        losses.hinge(0.3),
        lambda p: max(0, 1 - 0.3 * p.h),
        lambda p: 0.3 * (0.3 * p.h < 1) * np.array([1, -1]),
    ),
    "slic": (
        losses.slic(2.0, 0.5),
        lambda p: max(0, 2 - p.s[0] + p.s[1]) - 0.5 * p.s[0],
        lambda p: (p.s[0] - p.s[1] < 2) * np.array([1, -1]) + np.array([0.5, 0]),
    ),
    "sppo": (
        losses.sppo(0.5),
        lambda p: (p.ratios[0] - 1) ** 2 + (p.ratios[1] + 1) ** 2,
        lambda p: -2 * np.array([p.ratios[0] - 1, p.ratios[1] + 1]),
    ),
    "simpo": (
        losses.simpo(2.0, 0.7),
        lambda p: -np.log(sigmoid(2 * (p.mean[0] - p.mean[1]) - 0.7)),
        lambda p: (
            2
            * sigmoid(0.7 - 2 * (p.mean[0] - p.mean[1]))
            * np.array([1, -1])
            / p.lengths
        ),
    ),
    "orpo": (
        losses.orpo(0.3),
        lambda p: -p.mean[0] - 0.3 * np.log(sigmoid(odds_ratio(p))),
        lambda p: (
            np.array(
                [
                    1 + 0.3 * sigmoid(-odds_ratio(p)) / (1 - np.exp(p.mean[0])),
                    -0.3 * sigmoid(-odds_ratio(p)) / (1 - np.exp(p.mean[1])),
                ]
            )
            / p.lengths
        ),
    ),
    "rpo": (
        losses.rpo(0.5, 0.3),
        lambda p: -np.log(sigmoid(0.3 * p.h)) - 0.5 * p.mean[0],
        lambda p: (
            0.3 * sigmoid(-0.3 * p.h) * np.array([1, -1])
            + np.array([0.5 / p.lengths[0], 0])
        ),
    ),
    "kto": (
        losses.kto(0.3, desirable=1.5, undesirable=0.5),
        lambda p: (
            1.5 * sigmoid(-0.3 * (p.ratios[0] - p.z))
            + 0.5 * sigmoid(-0.3 * (p.z - p.ratios[1]))
        ),
        lambda p: 0.3 * np.array([1.5, -0.5]) * bell(0.3 * (p.ratios - p.z)),
    ),
    "gated_dpo": (
        losses.gated_dpo(0.3, sharpness=5.0, level=0.2),
        lambda p: -np.log(sigmoid(0.3 * p.h)),
        lambda p: (
            0.3
            * sigmoid(-0.3 * p.h)
            * np.array([1, -sigmoid(5 * (np.exp(p.mean[1]) - 0.2))])
        ),
    ),
}


def bell(x):
    return sigmoid(x) * sigmoid(-x)


def odds_ratio(p):
    odds = np.exp(p.mean) / (1 - np.exp(p.mean))
    return np.log(odds[0] / odds[1])


class Pairs:
    """What the witnesses know of one pair: both sides as arrays of two."""

    def __init__(self, s, reference, lengths, z):
        self.s, self.lengths, self.z = s, lengths, z
        self.ratios = s - reference
        self.mean = s / lengths
        self.h = self.ratios[0] - self.ratios[1]


def drawn(seed, num=3) -> Any:
    """Logits, a batch of pairs, and what the witnesses know of each pair."""
    rng = np.random.default_rng(seed)
    shapes = dict(zip(SIDES, (4, 5), strict=True))
    logits = {
        k: jnp.asarray(2 * rng.normal(size=(num, n, VOCAB))) for k, n in shapes.items()
    }
    batch = {
        k: sentences(seed + n, num, n)._replace(
            reference=jnp.asarray(-6 + rng.normal(size=num))
        )
        for k, n in shapes.items()
    }
    plain = jax.tree.map(np.asarray, (logits, batch))
    s = np.stack(
        [references.log_prob_sums(plain[0][k], *plain[1][k][1:3]) for k in SIDES], 1
    )
    reference = np.stack([plain[1][k].reference for k in SIDES], 1)
    lengths = np.stack([plain[1][k].mask.sum(1) for k in SIDES], 1)
    z = max(0, (s - reference).mean())
    pairs = [Pairs(*row, z) for row in zip(s, reference, lengths, strict=True)]
    return logits, batch, pairs


def residuals(logits, batch):
    """R of each pair and side."""
    plain = jax.tree.map(np.asarray, (logits, batch))
    num = len(plain[1]["chosen"].tokens)
    return {
        k: num * references.sft_residual(plain[0][k], *plain[1][k][1:3]) for k in SIDES
    }


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_residual_are_their_closed_forms(name, seed):
    loss_fn, value, strength = FAMILY[name]
    logits, batch, pairs = drawn(seed)
    found, residual = jax.value_and_grad(loss_fn)(logits, batch)
    assert_close(found, np.mean([value(p) for p in pairs]), rtol=1e-12)
    R = residuals(logits, batch)
    strengths = np.stack([strength(p) for p in pairs]) / len(pairs)
    expected = {k: strengths[:, i][:, None, None] * R[k] for i, k in enumerate(SIDES)}
    assert_close(residual, expected, rtol=1e-12)


def test_hand_computed_values():
    """One token, two labels: 0.8 in chosen, 0.4 in rejected; the reference has 0.5."""
    token, half = jnp.zeros((1, 1), int), jnp.log(jnp.array([0.5]))
    side = Sequences(token, token, jnp.ones((1, 1), bool), half)
    batch: dict[str, Any] = dict.fromkeys(SIDES, side)
    logits = {
        "chosen": jnp.log(jnp.array([[[0.8, 0.2]]])),
        "rejected": jnp.log(jnp.array([[[0.4, 0.6]]])),
    }
    # h+ = log 1.6, h- = log 0.8, h = log 2
    expected = {
        losses.dpo(1.0): np.log(1.5),  # sigmoid(log 2) = 2/3
        losses.dpo(1.0, 0.25): 0.75 * np.log(1.5) + 0.25 * np.log(3),
        losses.ipo(0.5): (np.log(2) - 1) ** 2,
        losses.hinge(1.0): 1 - np.log(2),
        losses.hinge(2.0): 0.0,
        losses.slic(1.0, 0.5): 1 - np.log(2) - 0.5 * np.log(0.8),
        losses.sppo(0.5): (np.log(1.6) - 1) ** 2 + (np.log(0.8) + 1) ** 2,
        losses.simpo(1.0, 0.0): np.log(1.5),
        # odds 4 and 2/3: their ratio 6, sigmoid(log 6) = 6/7
        losses.orpo(2.0): -np.log(0.8) + 2 * np.log(7 / 6),
        losses.rpo(1.0, 1.0): np.log(1.5) - np.log(0.8),
        losses.gated_dpo(1.0): np.log(1.5),
    }
    for loss_fn, value in expected.items():
        assert_close(loss_fn(logits, batch), value, rtol=1e-13)
    # z = log(1.6 * 0.8) / 2, the mean: both sides are half a margin away from it
    a = sigmoid(np.log(2) / 2)
    assert_close(losses.kto(1.0)(logits, batch), 2 * (1 - a), rtol=1e-13)


def test_hand_computed_unlikelihood_and_ascent():
    probs = jnp.array([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.6, 0.4]]])
    batch = Sequences(
        jnp.zeros((2, 2), jnp.int32),
        jnp.array([[0, -100], [1, 0]]),
        jnp.array([[True, False], [True, True]]),
    )
    logits = jnp.log(probs)
    expected = -(np.log(0.5) + np.log(0.2) + np.log(0.4)) / 2
    assert_close(losses.unlikelihood(logits, batch), expected, rtol=1e-13)
    assert_close(losses.gradient_ascent(logits, batch), -losses.sft(logits, batch))
    ascent, sft = (
        jax.grad(loss)(logits, batch) for loss in (losses.gradient_ascent, losses.sft)
    )
    assert_close(ascent, -sft, rtol=1e-13)
    # -pi_y / (1 - pi_y) times (pi - e_y) / 2
    odds = np.array([[1, 0], [4, 1.5]])[:, :, None]
    residual = jax.grad(losses.unlikelihood)(logits, batch)
    assert_close(residual, -odds * np.asarray(sft), rtol=1e-12)


@pytest.mark.parametrize("loss_fn", [losses.ipo(0.4), losses.sppo(0.4)])
def test_beyond_its_target_a_squared_loss_pulls_the_chosen_response_back(loss_fn):
    logits, batch, _ = drawn(0)
    chosen, R = batch["chosen"], residuals(logits, batch)["chosen"]

    def pull(shift):
        moved = chosen._replace(reference=chosen.reference + shift)
        residual = jax.grad(loss_fn)(logits, batch | {"chosen": moved})["chosen"]
        return (np.asarray(residual) * R).sum()

    near, beyond = pull(50.0), pull(-50.0)  # log-ratios far below and above targets
    assert near > 0 > beyond


def test_sppo_pushes_the_rejected_response_down_at_the_reference():
    """Where the paper's printed residual (its equation 22) would lift it."""
    logits, batch, _ = drawn(3)
    at_reference = {
        k: side._replace(
            reference=jnp.asarray(
                references.log_prob_sums(
                    *jax.tree.map(np.asarray, (logits[k], side.targets, side.mask))
                )
            )
        )
        for k, side in batch.items()
    }
    residual = np.asarray(jax.grad(losses.sppo(0.5))(logits, at_reference)["rejected"])
    side = batch["rejected"]
    for b, l in np.argwhere(np.asarray(side.mask)):
        assert residual[b, l, side.targets[b, l]] > 0


def test_slic_has_an_anchor_of_its_own():
    logits, batch, _ = drawn(4)
    batch = batch | {"anchor": batch["rejected"]}
    logits = logits | {"anchor": 2 * logits["rejected"]}
    residual = jax.grad(losses.slic(1.0, 0.5))(logits, batch)
    expected = 0.5 * jax.grad(losses.sft)(logits["anchor"], batch["anchor"].plain)
    assert_close(residual["anchor"], expected, rtol=1e-12)


def test_the_anchor_of_slic_has_a_mean_of_its_own():
    logits, batch, _ = drawn(4)
    few = jax.tree.map(lambda x: x[:2], (logits["rejected"], batch["rejected"]))
    with_anchor = logits | {"anchor": few[0]}, batch | {"anchor": few[1]}
    found = losses.slic(1.0, 0.5)(*with_anchor)
    anchor = losses.sft(few[0], few[1].plain)
    expected = losses.slic(1.0, 0.0)(logits, batch) + 0.5 * anchor
    assert_close(found, expected, rtol=1e-13)


def as_trl_has_them(logits, batch):
    """Log-probs of every token and what TRL masks with, `[row, pos]` of each side."""
    found = {}
    for side, z in jax.tree.map(np.asarray, logits).items():
        targets, mask = np.asarray(batch[side].targets), np.asarray(batch[side].mask)
        labels = np.where(mask, targets, 0)[..., None]
        picked = np.take_along_axis(references.log_softmax(z), labels, -1)[..., 0]
        found[side] = picked, mask
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kto_is_trls_with_its_reduction_and_its_mismatched_responses(seed):
    """`KTOTrainer.kto_loss` and its mean, written down from TRL."""
    logits, batch, _ = drawn(seed)
    logits = logits | {"mismatched": jnp.roll(logits["rejected"], 1, axis=0)}
    batch = batch | {"mismatched": batch["rejected"]}
    ratios = {
        side: (picked * mask).sum(-1) - np.asarray(batch[side].reference)
        for side, (picked, mask) in as_trl_has_them(logits, batch).items()
    }
    for shift in (0.0, 5.0):  # the clamp of the reference point binds or does not
        moved = batch["mismatched"]
        moved = moved._replace(reference=moved.reference - shift)
        kl = max((ratios["mismatched"] + shift).mean(), 0)
        chosen_losses = 1 - sigmoid(0.3 * (ratios["chosen"] - kl))
        rejected_losses = 1 - sigmoid(0.3 * (kl - ratios["rejected"]))
        trl = np.nanmean(np.concatenate([1.5 * chosen_losses, 0.5 * rejected_losses]))
        all_sides = batch | {"mismatched": moved}
        make = functools.partial(losses.kto, 0.3, desirable=1.5, undesirable=0.5)
        found = make(reduction="responses")(logits, all_sides)
        assert_close(found, trl, rtol=1e-12)
        by_pairs = make()
        assert_close(by_pairs(logits, all_sides), 2 * trl, rtol=1e-12)
        gradient = jax.grad(by_pairs)(logits, all_sides)
        assert not np.asarray(gradient["mismatched"]).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_mean_over_all_chosen_tokens_is_trls(seed):
    """RPO and, for rows without a prompt, ORPO: lengths differ, so the means do."""
    logits, batch, _ = drawn(seed)
    tokens = as_trl_has_them(logits, batch)
    picked, mask = tokens["chosen"]
    assert len({int(n) for n in mask.sum(-1)}) > 1
    nll = -picked[mask].mean()
    found = losses.rpo(0.5, 0.3, reduction="tokens")(logits, batch)
    assert_close(found, losses.dpo(0.3)(logits, batch) + 0.5 * nll, rtol=1e-12)
    # `ORPOTrainer.odds_ratio_loss`, log-probs averaged by response
    chosen, rejected = ((p * m).sum(-1) / m.sum(-1) for p, m in tokens.values())
    log_odds = (chosen - rejected) - (
        np.log1p(-np.exp(chosen)) - np.log1p(-np.exp(rejected))
    )
    trl = nll - (0.3 * np.log(sigmoid(log_odds))).mean()
    found = losses.orpo(0.3, reduction="tokens")(logits, batch)
    assert_close(found, trl, rtol=1e-12)
    assert abs(losses.orpo(0.3)(logits, batch) - trl) > 1e-3


@pytest.mark.parametrize("make", [losses.orpo, losses.rpo, losses.kto])
def test_the_words_of_a_reduction(make):
    with pytest.raises(
        ValueError, match=r"`reduction` must be '.*' or '.*', got 'sum'"
    ):
        make(reduction="sum")


IMPOSSIBLE = ["dpo", "hinge", "simpo", "orpo", "kto", "gated_dpo", "slic"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_rejected_response_is_no_reason_for_nan(name):
    """A logit of minus infinity: the margin is infinite and there is nothing to do."""
    _, batch, _ = drawn(0)
    logits, _, _ = drawn(0)
    side = batch["rejected"]
    at = tuple(np.argwhere(np.asarray(side.mask))[0])
    rejected = logits["rejected"].at[(*at, int(side.targets[at]))].set(-jnp.inf)
    found, gradient = jax.value_and_grad(FAMILY[name][0])(
        logits | {"rejected": rejected}, batch
    )
    assert np.isfinite(found)
    assert all(np.isfinite(x).all() for x in gradient.values())
    assert not np.asarray(gradient["rejected"])[at[0]].any()


@pytest.mark.parametrize("name", FAMILY)
def test_a_response_without_a_rival_has_no_gradient(name):
    """All other labels at minus infinity: the chosen response is certain, exactly."""
    logits, batch, _ = drawn(0)
    targets = np.where(batch["chosen"].mask, batch["chosen"].targets, 0)
    is_target = jax.nn.one_hot(targets[0], VOCAB, dtype=bool)
    certain = jnp.where(is_target, logits["chosen"][0], -jnp.inf)
    chosen = logits["chosen"].at[0].set(certain)
    found, gradient = jax.value_and_grad(FAMILY[name][0])(
        logits | {"chosen": chosen}, batch
    )
    assert np.isfinite(found)
    assert all(np.isfinite(x).all() for x in gradient.values())
    assert not np.asarray(gradient["chosen"])[0].any()


def test_a_closed_gate_leaves_the_rejected_response_alone():
    logits, batch, _ = drawn(5)
    shut = jax.grad(losses.gated_dpo(0.3, sharpness=1e3, level=2.0))(logits, batch)
    open_ = jax.grad(losses.gated_dpo(0.3, sharpness=1e3, level=-1.0))(logits, batch)
    plain = jax.grad(losses.dpo(0.3))(logits, batch)
    assert not np.asarray(shut["rejected"]).any()
    assert_close(shut["chosen"], plain["chosen"], rtol=1e-12)
    assert_close(open_, plain, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.ipo(0.0), "`beta` must be positive"),
        (lambda: losses.hinge(-1.0), "`beta` must be positive"),
        (lambda: losses.slic(0.0), "`delta` must be positive"),
        (lambda: losses.slic(beta=-0.1), "`beta` must not be negative"),
        (lambda: losses.sppo(float("nan")), "`beta` must be positive"),
        (lambda: losses.simpo(gamma=-1.0), "`gamma` must not be negative"),
        (lambda: losses.orpo(-1.0), "`weight` must not be negative"),
        (lambda: losses.rpo(-1.0), "`alpha` must not be negative"),
        (lambda: losses.kto(undesirable=-1.0), "`undesirable` must not be negative"),
        (lambda: losses.gated_dpo(sharpness=0.0), "`sharpness` must be positive"),
    ],
)
def test_refuses_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow)
        if n in ("ipo", "orpo", "kto")
        else pytest.param(n, marks=pytest.mark.exhaustive)
        for n in FAMILY
    ],
)
def test_one_step_is_accounted_for(name):
    """The parts sum to the prediction, and the remainder falls four times."""
    loss_fn = FAMILY[name][0]
    _, batch, _ = drawn(6)
    table = jnp.asarray(np.random.default_rng(6).normal(size=(VOCAB, VOCAB)))
    apply_fn = lambda params, s: params["table"][s.tokens] * jnp.tanh(params["scale"])
    params = {"table": table, "scale": jnp.asarray(0.9)}
    remainders = []
    for rate in (1e-3, 5e-4):
        init, step = make_step(apply_fn, loss_fn, optax.sgd(rate))
        _, account = step(init(params), batch, batch)
        assert references.exact_parts(account)  # rounding is next to nothing
        total = jax.tree.map(lambda *parts: sum(parts), *account.parts.values())
        assert_close(total, account.predicted, rtol=1e-10)
        remainders.append(optax.tree.norm(account.remainder))
    assert 3.8 < remainders[0] / remainders[1] < 4.2
