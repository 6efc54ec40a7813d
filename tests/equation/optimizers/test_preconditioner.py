"""The diagonal of a step: closed forms, the optimizer's own split, and its kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.numpy_optimizers import Adam, Lion, RmsProp, Sgd
from witnesses.references import flat, sides
from zoo.cases import make_case

import ldjax
from ldjax.equation.preconditioner import preconditioner
from ldjax.equation.update_parts import frozen_update

pytestmark = pytest.mark.slow

ACCEPTED = 1e-12

PARAMS = {
    "kernel": jnp.array([[0.5, -1.0], [2.0, 0.3]]),
    "bias": jnp.array([0.1, -0.4]),
}


def gradient(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), PARAMS)


# Powers of two: optax evaluates schedules in float32.
SCHEDULE = optax.linear_schedule(0.125, 0.0625, 2)


def clipped_adamw(learning_rate):
    return optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(learning_rate, weight_decay=0.1)
    )


# name: (optimizer, the NumPy one, learning rate of each step over that of the latter)
WITNESSED = {
    "sgd": (optax.sgd(0.1), Sgd(0.1), (1, 1, 1)),
    "nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        Sgd(0.1, 0.9, nesterov=True),
        (1, 1, 1),
    ),
    "rmsprop": (optax.rmsprop(0.1), RmsProp(0.1), (1, 1, 1)),
    "adam": (optax.adam(0.1), Adam(0.1), (1, 1, 1)),
    "clip, adamw": (clipped_adamw(0.1), Adam(0.1, max_norm=0.5), (1, 1, 1)),
    "sign_sgd": (optax.sign_sgd(0.1), Lion(0.1), (1, 1, 1)),
    "lion": (
        optax.lion(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        Lion(0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        (1, 1, 1),
    ),
    "clip by value, adam": (
        optax.chain(optax.clip(0.3), optax.adam(0.1)),
        Adam(0.1, max_entry=0.3),
        (1, 1, 1),
    ),
    "scheduled adam": (optax.adam(SCHEDULE), Adam(0.125), (1, 0.75, 0.5)),
    "injected": (
        optax.inject_hyperparams(clipped_adamw)(learning_rate=SCHEDULE),
        Adam(0.125, max_norm=0.5),
        (1, 0.75, 0.5),
    ),
}


@pytest.mark.parametrize("name", WITNESSED)
def test_the_diagonal_is_that_of_the_numpy_optimizers(name):
    optimizer, witness, rates = WITNESSED[name]

    @jax.jit
    def step(gradient, state, params):
        P = preconditioner(optimizer, gradient, state, params)
        return P, *optimizer.update(gradient, state, params)

    params, state = PARAMS, optimizer.init(PARAMS)
    for i, rate in enumerate(rates):
        P, updates, state = step(gradient(i), state, params)
        split = witness.step(flat(gradient(i)), flat(params))
        expected = -rate * split.scale * np.ones(6)
        assert_close(flat(P), expected, rtol=ACCEPTED)
        params = optax.apply_updates(params, updates)
    if isinstance(witness, Adam) and witness.max_norm:
        assert witness.clip < 1, "the clip factor was at work"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lamb(0.1, weight_decay=0.01),
        optax.novograd(0.1),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
        optax.masked(optax.adam(0.1), {"kernel": True, "bias": False}),
        optax.partition(
            {"a": optax.adam(0.1), "b": optax.set_to_zero()},
            {"kernel": "a", "bias": "b"},
        ),
        optax.MultiSteps(optax.adam(0.1), 2),
    ],
    ids=["lamb", "novograd", "adafactor", "masked", "partition", "accumulated"],
)
def test_the_diagonal_times_the_gradient_is_its_share_of_the_update(optimizer):
    transformation = optax.with_extra_args_support(
        optimizer.gradient_transformation()
        if isinstance(optimizer, optax.MultiSteps)
        else optimizer
    )

    @jax.jit
    def both(gradient, state):
        P = preconditioner(optimizer, gradient, state, PARAMS)
        own, _ = frozen_update(transformation, gradient, state, PARAMS)
        _, state = transformation.update(gradient, state, PARAMS)
        return P, own(gradient), state

    state = transformation.init(PARAMS)
    diagonals = []
    for i in range(2):
        P, own, state = both(gradient(i), state)
        assert_close(-flat(P) * flat(gradient(i)), flat(own), rtol=ACCEPTED, scale=0.1)
        diagonals.append(flat(P))
    assert diagonals[-1].any()


def test_an_inner_step_of_an_accumulation_has_none():
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    P = preconditioner(optimizer, gradient(0), optimizer.init(PARAMS), PARAMS)
    assert not flat(P).any()


def _stateless(fn):
    return optax.stateless(lambda updates, _: fn(updates))


def _map(fn):
    return _stateless(lambda updates: jax.tree.map(fn, updates))


SQUARE = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (optax.centralize(), "`reduce_sum`"),
        (_map(jnp.transpose), "`transpose`"),
        (_map(lambda g: jnp.array([[1.0, 2.0], [0.0, 1.0]]) @ g), "`dot_general`"),
        (_map(lambda g: g[::-1]), "`rev`"),
        (_map(lambda g: jnp.concatenate([g[1:], g[:1]])), "`(slice|concatenate)`"),
        (_map(lambda g: jnp.broadcast_to(g[:1], (2, 2))), "`slice`"),
        (_map(lambda g: jax.lax.reshape(g, (2, 2), (1, 0))), "`reshape`"),
        (
            _stateless(lambda g: {"a": g["a"] + g["b"], "b": g["b"]}),
            "`add",
        ),
        (_stateless(lambda g: {"a": g["b"], "b": g["a"]}), "another parameter"),
    ],
    ids=[
        *("mean", "transpose", "matrix", "reversed", "rolled", "broadcast", "order"),
        *("sum of two", "swapped"),
    ],
)
def test_what_mixes_the_gradients_entries_is_refused_by_name(optimizer, why):
    with pytest.raises(ValueError, match=f"not diagonal.*{why}"):
        preconditioner(optimizer, SQUARE, optimizer.init(SQUARE), SQUARE)


def test_a_reshape_there_and_back_is_still_a_diagonal():
    there_and_back = _map(lambda g: (0.5 * g.reshape(-1, 1)).reshape(g.shape))
    P = preconditioner(there_and_back, SQUARE, there_and_back.init(SQUARE), SQUARE)
    assert_close(P, jax.tree.map(lambda leaf: -0.5 * jnp.ones_like(leaf), SQUARE))


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (_map(lambda g: (g / 0.05).astype(int).astype(g.dtype)), "`convert_element"),
        (_map(lambda g: g.astype(bool).astype(g.dtype)), "`convert_element"),
        (_map(jnp.abs), "`abs`"),
        (optax.contrib.muon(0.1), "`(transpose|dot_general)`"),
        (optax.flatten(optax.adam(0.1)), "`concatenate`"),
    ],
    ids=["quantised", "bool", "size", "muon", "flattened"],
)
def test_what_has_no_diagonal_is_refused_by_name(optimizer, why):
    with pytest.raises(ValueError, match=why):
        preconditioner(optimizer, SQUARE, optimizer.init(SQUARE), SQUARE)


def test_the_sign_of_nothing_has_no_rate():
    theta, gradient = jnp.ones(3), jnp.array([2.0, 0.0, -0.5])
    optimizer = optax.sign_sgd(0.5)
    P = preconditioner(optimizer, gradient, optimizer.init(theta), theta)
    assert_close(P, jnp.array([0.25, 0.0, 1.0]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["toy", "pair"])
def test_the_preconditioned_kernel_predicts_the_steps_own_part(name):
    """`-A J_o P J_u^T G` by brute force, and by `make_step`; at the second step."""
    case = make_case(name)
    optimizer = clipped_adamw(0.01)
    init, step = ldjax.make_step(case.apply_fn, case.loss_fn, optimizer)
    state, _ = step(init(case.params), case.update, case.probe)
    parts = step(state, case.update, case.probe)[1].parts

    by_side = references.gradients(case, state.params)
    whole = references.unflat(sum(by_side.values()), case.params)
    P = preconditioner(optimizer, whole, state.opt_state, state.params)
    for side in sides(case.update):
        expected = references.log_prob_changes(
            case, state.params, -flat(P) * by_side[side], full_vocab=False
        )
        assert_close(sides(parts[side]), expected, rtol=ACCEPTED)


@pytest.mark.exhaustive
def test_the_kernel_with_this_preconditioner_predicts_the_step():
    """RMSprop has no history: `-A K_P G` is the whole prediction, token by token."""
    case, optimizer = make_case("toy"), optax.rmsprop(0.01)
    init, step = ldjax.make_step(case.apply_fn, case.loss_fn, optimizer)
    state, _ = step(init(case.params), case.update, case.probe)
    predicted = step(state, case.update, case.probe)[1].predicted
    whole = references.gradients(case, state.params)["update"]
    P = preconditioner(
        optimizer,
        references.unflat(whole, case.params),
        state.opt_state,
        state.params,
    )

    @jax.jit
    def explain(params):
        fns = case.logits_fn(case.probe), case.logits_fn(case.update)
        loss_fn = lambda logits: case.loss_fn(logits, case.update)
        terms = ldjax.decompose(*fns, params, loss_fn=loss_fn)
        kernel = ldjax.empirical_ntk(*fns, params, method="lazy", preconditioner=P)
        return terms._replace(kernel=kernel).token_map(
            case.probe.targets, 1.0, mask=case.probe.mask
        )

    token_map = np.asarray(explain(state.params))
    assert_close(token_map.sum(axis=(2, 3)), predicted, rtol=ACCEPTED)
