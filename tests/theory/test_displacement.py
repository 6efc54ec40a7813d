"""Where a change comes from, against brute force: an arm zeroed, an example removed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses.closeness import assert_close
from zoo.cases import VOCAB, sentences

from ldjax import losses, make_step
from ldjax.equation import preconditioner
from ldjax.theory.displacement import pair_products, split_by_origin

SIDES = ("chosen", "rejected")
RATE = 1e-3


def apply_fn(params, sequences):
    hidden = jnp.tanh(params["table"][sequences.tokens] @ params["mix"])
    return jnp.cumsum(hidden, axis=-2) @ params["head"]


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"table": (VOCAB, 5), "mix": (5, 6), "head": (6, VOCAB)}
    return {k: jnp.asarray(rng.normal(size=shape)) for k, shape in shapes.items()}


def pairs(seed=0, num=4):
    return {
        side: sentences(seed + length, num, length)._replace(
            reference=jnp.full(num, -6.0)
        )
        for side, length in zip(SIDES, (4, 5), strict=True)
    }


def account(optimizer, batch, probe):
    """The third update, of whose optimizer there is a history."""
    init, step = make_step(apply_fn, losses.dpo(0.3), optimizer, parts="example")
    state = init(parameters())
    for _ in range(2):
        state, _ = step(state, batch, probe)
    return state, step(state, batch, probe)[1]


def loss_with_weights(params, batch, weights, fixed):
    """DPO whose gradient each arm of each pair enters with a weight; at `fixed`.

    The push of a pair is a number that depends on both arms: it stays what it is.
    """

    def log_prob(p, side):
        logits = apply_fn(p, batch[side])
        picked = jax.nn.log_softmax(logits)[
            jnp.arange(len(logits))[:, None],
            jnp.arange(logits.shape[1]),
            jnp.where(batch[side].mask, batch[side].targets, 0),
        ]
        return jnp.where(batch[side].mask, picked, 0).sum(-1)

    h = {side: log_prob(fixed, side) - batch[side].reference for side in SIDES}
    push = 0.3 * jax.nn.sigmoid(-0.3 * (h["chosen"] - h["rejected"]))
    terms = [
        sign * weights[side] * push * log_prob(params, side)
        for side, sign in zip(SIDES, (1, -1), strict=True)
    ]
    return -(terms[0] + terms[1]).mean()


@pytest.mark.parametrize(
    ("optimizer", "rest"),
    [
        pytest.param(optax.sgd(RATE), set(), marks=pytest.mark.exhaustive),
        pytest.param(
            optax.adamw(RATE, weight_decay=0.1),
            {"history", "weight_decay"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_each_part_is_what_is_lost_without_it(optimizer, rest):
    batch = pairs()
    own = np.array([2, 0])  # the pairs of the two probes
    probe = jax.tree.map(lambda x: x[own], batch["chosen"].plain)
    state, comparison = account(optimizer, batch, probe)
    found = split_by_origin(comparison.parts, jnp.asarray(np.arange(4)[:, None] == own))

    # Scales frozen at what the whole step uses, as a diagonal.
    everything = {side: jnp.ones(4) for side in SIDES}
    gradient = jax.grad(loss_with_weights)
    whole = gradient(state.params, batch, everything, state.params)
    P = preconditioner(optimizer, whole, state.opt_state, state.params)

    def change(weights):
        part = gradient(state.params, batch, weights, state.params)
        move = jax.tree.map(lambda scale, g: -scale * g, P, part)
        log_probs = lambda p: jnp.stack([log_prob(p, probe, i) for i in range(2)])
        return jax.jvp(log_probs, (state.params,), (move,))[1]

    for i, place in enumerate(own):
        removed = {side: everything[side].at[place].set(0.0) for side in SIDES}
        for side in SIDES:
            without = everything | {side: removed[side]}
            lost = change(everything)[i] - change(without)[i]
            assert_close(found[f"own {side}"][i].sum(-1), lost, rtol=1e-10)
        assert_close(found["others"][i].sum(-1), change(removed)[i], rtol=1e-10)
    assert_close(sum(found.values()), comparison.predicted, rtol=1e-10)
    assert found.keys() == {"own chosen", "own rejected", "others", "rounding"} | rest


def log_prob(params, sequences, row):
    one = jax.tree.map(lambda x: x[row : row + 1], sequences)
    return -losses.sft(apply_fn(params, one), one)


def test_products_are_those_of_brute_force_gradients():
    batch, params = pairs(3), parameters(3)
    P = jax.tree.map(lambda x: jnp.abs(x) + 0.1, parameters(4))
    found = pair_products(apply_fn, params, batch, preconditioner=P)
    plain = pair_products(apply_fn, params, batch)
    for row in range(4):
        g = {side: jax.grad(log_prob)(params, batch[side].plain, row) for side in SIDES}
        flat = {k: np.concatenate([*map(np.ravel, v.values())]) for k, v in g.items()}
        scale = np.concatenate([np.ravel(P[k]) for k in g["chosen"]])
        for products, weight in ((found, scale), (plain, 1.0)):
            for name, (a, b) in {
                "chosen": ("chosen", "chosen"),
                "rejected": ("rejected", "rejected"),
                "cross": ("chosen", "rejected"),
            }.items():
                expected = (flat[a] * weight * flat[b]).sum()
                assert_close(getattr(products, name)[row], expected, rtol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_lowers_its_chosen_response_where_the_criterion_says(seed):
    """Measured, with a step so small that its remainder is nothing."""
    batch = pairs(seed, num=1)
    if seed % 2:  # nearly the same response: what lowers one lowers the other
        batch["rejected"] = batch["chosen"]._replace(
            targets=batch["chosen"].targets.at[:, -1].set(0)
        )
    params = parameters(seed)
    init, step = make_step(apply_fn, losses.dpo(0.3), optax.sgd(1e-6))
    _, comparison = step(init(params), batch, batch["chosen"]._replace())
    falls = pair_products(apply_fn, params, batch).chosen_falls
    assert bool(falls[0]) == bool(comparison.measured.sum() < 0)


def test_parts_that_are_not_by_example_are_refused():
    parts = {"chosen": jnp.zeros((2, 3)), "history": jnp.zeros((2, 3))}
    with pytest.raises(ValueError, match=r"'chosen' has shape \(2, 3\); expected \(4,"):
        split_by_origin(parts, jnp.zeros((4, 2), bool))
