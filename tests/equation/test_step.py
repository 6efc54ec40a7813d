"""The step: predicted against brute force, and the order of what is left over."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.numpy_optimizers import Adam, RmsProp, Sgd
from witnesses.references import exact_parts, flat, sides, unflat
from zoo.cases import make_case

from ldjax import losses, make_step
from ldjax.equation.account import training

CLIP = 0.05  # below every gradient norm of the cases

# name: (optimizer of a learning rate, the same in NumPy)
OPTIMIZERS = {
    "sgd": (optax.sgd, Sgd),
    "momentum": (
        functools.partial(optax.sgd, momentum=0.9),
        functools.partial(Sgd, momentum=0.9),
    ),
    "rmsprop": (optax.rmsprop, RmsProp),
    "adam": (optax.adam, Adam),
    "clip, adamw": (
        lambda learning_rate: optax.chain(
            optax.clip_by_global_norm(CLIP),
            optax.adamw(learning_rate, weight_decay=0.1),
        ),
        functools.partial(Adam, weight_decay=0.1, max_norm=CLIP),
    ),
}
RATES = {
    "sgd": 0.1,
    "momentum": 0.1,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "clip, adamw": 1e-3,
}


def _brute_force(case, params, split, new_params):
    """What a comparison should be; `parts="example"`."""
    change = functools.partial(
        references.log_prob_changes, case, params, full_vocab=case.full_vocab
    )
    by_side = references.gradients(case, params)
    gradient = sum(by_side.values())
    parts = {
        name: [change(split.scale * share) for share in shares]
        for name, shares in references.example_gradients(case, params).items()
    }
    by_side = {name: change(split.scale * part) for name, part in by_side.items()}
    rest = {"history": split.history, "weight_decay": split.decay}
    rest = {name: change(part) for name, part in rest.items() if part is not None}
    return {
        "predicted": change(split.update(gradient)),
        "measured": references.measured_changes(
            case, params, new_params, full_vocab=case.full_vocab
        ),
        "sides": by_side | rest,
        "examples": {
            name: jax.tree.map(lambda *leaves: np.stack(leaves), *shares)
            for name, shares in parts.items()
        }
        | rest,
    }


def check_against_brute_force(case_name, name, *, parts="side", num_steps=3):
    """A few steps beside a NumPy optimizer that computes its own trajectory."""
    case, (make, make_witness) = make_case(case_name), OPTIMIZERS[name]
    witness, theta = make_witness(RATES[name]), flat(case.params)
    init, step = make_step(case.apply_fn, case.loss_fn, make(RATES[name]), parts=parts)
    state = init(case.params)
    close = functools.partial(assert_close, rtol=1e-10)
    for _ in range(num_steps):
        state, comparison = step(state, case.update, case.probe)
        params = unflat(theta, case.params)
        gradient = sum(references.gradients(case, params).values())
        split = witness.step(gradient, theta)
        theta = theta + split.update(gradient)
        new_params = unflat(theta, case.params)
        expected = _brute_force(case, params, split, new_params)
        close(sides(comparison.predicted), expected["predicted"])
        close(sides(comparison.measured), expected["measured"])
        found = {name: sides(part) for name, part in exact_parts(comparison).items()}
        close(found, expected["sides" if parts == "side" else "examples"])
        check_sums(comparison, case)
    close(flat(state.params), theta)


def check_sums(comparison, case):
    """`parts` sum to the prediction, `remainder` is the difference, masks are zero."""
    comparison = jax.tree.map(np.asarray, comparison)
    rank = jax.tree.leaves(comparison.predicted)[0].ndim
    total = jax.tree.map(np.zeros_like, comparison.predicted)
    for part in exact_parts(comparison).values():
        whole = jax.tree.map(lambda x: x if x.ndim == rank else x.sum(axis=0), part)
        total = jax.tree.map(np.add, total, whole)
    assert_close(total, comparison.predicted, rtol=1e-12)
    differences = jax.tree.map(np.subtract, comparison.measured, comparison.predicted)
    assert_close(comparison.remainder, differences)
    for side, change in sides(comparison.measured).items():
        masked = ~np.asarray(sides(case.probe)[side].mask)
        for leaf in (change, sides(comparison.predicted)[side]):
            assert not np.asarray(leaf)[masked].any()


def _optimizers(*fast, slow=()):
    """These run in the fast suite, those in the slow one."""
    return pytest.mark.parametrize(
        "name", [*fast, *(pytest.param(n, marks=pytest.mark.slow) for n in slow)]
    )


@_optimizers("momentum", slow=["rmsprop"])
def test_sides_equal_brute_force_on_pairs(name):
    check_against_brute_force("pair", name)


@_optimizers(slow=["clip, adamw", "sgd", "momentum", "adam"])
def test_examples_equal_brute_force_on_pairs(name):
    check_against_brute_force("pair", name, parts="example")


@_optimizers("rmsprop")
def test_examples_equal_brute_force_on_images(name):
    check_against_brute_force("tanh_mlp", name, parts="example", num_steps=2)


@pytest.mark.slow
def test_examples_equal_brute_force_on_lenet():
    check_against_brute_force("lenet", "clip, adamw", parts="example", num_steps=2)


@pytest.mark.parametrize("case_name", ["lenet", "tanh_mlp", "toy"])
def test_the_prediction_under_sgd_is_minus_rate_a_k_g(case_name):
    case = make_case(case_name)
    residual = references.residual(case, case.params)["update"]
    kernel = references.kernel(case, case.params, "update", "update")
    logits = references.logits(case, case.params, {"update": case.probe})["update"]
    moved = np.einsum("blvckw,ckw->blv", kernel, residual)
    expected = -0.1 * np.einsum("blvw,blw->blv", references.adaptation(logits), moved)
    init, step = make_step(case.apply_fn, case.loss_fn, optax.sgd(0.1), full_vocab=True)
    _, comparison = step(init(case.params), case.update, case.probe)
    mask = np.asarray(case.probe.mask)[..., None]
    assert_close(comparison.predicted, expected * mask, rtol=1e-12)
    assert_close(comparison.parts["update"], expected * mask, rtol=1e-12)


# The order of the remainder.


@functools.cache
def _injected_step(case_name, name):
    """A compiled step whose learning rate is a number of its state, warmed up."""
    case, (make, _) = make_case(case_name), OPTIMIZERS[name]
    optimizer = optax.inject_hyperparams(make)(learning_rate=1e-4)
    init, step = make_step(case.apply_fn, case.loss_fn, optimizer, parts=None)
    state = init(case.params)
    for _ in range(2):
        state, _ = step(state, case.update, case.probe)
    return step, state


def _step_at(case_name, name, learning_rate):
    step, state = _injected_step(case_name, name)
    case = make_case(case_name)
    hyperparams = state.opt_state.hyperparams
    hyperparams = hyperparams | {"learning_rate": jnp.asarray(learning_rate)}
    opt_state = state.opt_state._replace(hyperparams=hyperparams)
    return step(state._replace(opt_state=opt_state), case.update, case.probe)


def check_order(case_name, name, learning_rate):
    """Halving the rate divides the remainder by four, twice."""
    norms = []
    for halvings in range(3):
        _, comparison = _step_at(case_name, name, learning_rate / 2**halvings)
        assert not comparison.parts
        floor = np.linalg.norm(flat(comparison.floor))
        norms.append(np.linalg.norm(flat(comparison.remainder)))
        assert norms[-1] > 10 * floor, "the remainder drowns in rounding"
    ratios = np.array(norms[:-1]) / norms[1:]
    print(f"\n{case_name}, {name}: ratios {ratios}")
    assert ((ratios > 3.8) & (ratios < 4.2)).all(), f"ratios {ratios}"


ORDER_RATES = {
    "sgd": 1e-3,
    "momentum": 1e-3,
    "rmsprop": 1e-5,
    "adam": 1e-5,
    "clip, adamw": 1e-5,
}


@_optimizers("sgd", "clip, adamw", slow=["momentum", "rmsprop", "adam"])
def test_the_remainder_of_a_smooth_mlp_is_of_second_order(name):
    check_order("tanh_mlp", name, ORDER_RATES[name])


@_optimizers("sgd", slow=["clip, adamw"])
def test_the_remainder_of_lenet_is_of_second_order(name):
    check_order("lenet", name, ORDER_RATES[name])


@_optimizers(slow=["sgd", "clip, adamw"])
def test_the_remainder_on_pairs_is_of_second_order(name):
    check_order("pair", name, ORDER_RATES[name])


def _signs(params, images):
    """Which units are on, by hand."""
    on, hidden = [], np.asarray(images).reshape(len(images), -1)
    layers = [params["params"][key] for key in sorted(params["params"])]
    for layer in layers[:-1]:
        before = hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        on.append(before > 0)
        hidden = np.maximum(before, 0)
    return np.concatenate(on, axis=1)


@_optimizers("sgd", slow=["momentum", "rmsprop", "adam", "clip, adamw"])
def test_the_remainder_of_a_relu_network_is_of_second_order_between_kinks(name):
    case, rate = make_case("relu_mlp"), ORDER_RATES[name] / 10
    _, state = _injected_step("relu_mlp", name)
    before = _signs(state.params, case.probe.tokens)
    assert 0.2 < before.mean() < 0.8, "units of both kinds"
    for halvings in range(3):
        after, _ = _step_at("relu_mlp", name, rate / 2**halvings)
        assert (_signs(after.params, case.probe.tokens) == before).all(), "a kink"
    check_order("relu_mlp", name, rate)


def test_the_order_fails_across_kinks():
    case = make_case("relu_mlp")
    _, state = _injected_step("relu_mlp", "sgd")
    after, _ = _step_at("relu_mlp", "sgd", 1.0)
    tokens = case.probe.tokens
    assert (_signs(state.params, tokens) != _signs(after.params, tokens)).any()
    with pytest.raises(AssertionError, match="ratios"):
        check_order("relu_mlp", "sgd", 1.0)


def test_logits_linear_in_the_parameters_are_predicted_at_any_rate():
    model = nn.Dense(10)
    case = make_case("tanh_mlp")

    def apply_fn(params, batch):
        pixels = batch.tokens.reshape(len(batch.tokens), 784)
        return jnp.asarray(model.apply(params, pixels))[:, None]

    params = model.init(jax.random.key(0), jnp.ones((1, 784)))
    init, step = make_step(apply_fn, losses.sft, optax.sgd(50.0))
    before = init(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params))
    after, comparison = step(before, case.update, case.probe)
    old, new = (np.asarray(apply_fn(s.params, case.probe)) for s in (before, after))
    A = references.adaptation(old)
    assert_close(
        comparison.predicted, np.einsum("blvw,blw->blv", A, new - old), terms=784
    )


# Mutations: each check above fails on a library that is wrong in one way.


def _mutate(monkeypatch, change):
    original = training.Trainer.train

    def train(self, state, update):
        new_state, reasons = original(self, state, update)
        return new_state, change(reasons)

    monkeypatch.setattr(training.Trainer, "train", train)
    _injected_step.cache_clear()


def _flip(reasons):
    total = jax.tree.map(jnp.negative, reasons.total)
    return reasons._replace(
        total=total, parts=jax.tree.map(jnp.negative, reasons.parts)
    )


def _drop_bias(reasons):
    drop = functools.partial(
        jax.tree_util.tree_map_with_path,
        lambda path, x: jnp.zeros_like(x) if "bias" in str(path[-1]) else x,
    )
    return reasons._replace(
        total=drop(reasons.total),
        parts={name: drop(part) for name, part in reasons.parts.items()},
    )


def _drop_history(reasons):
    return reasons._replace(
        parts=reasons.parts | {"history": jax.tree.map(jnp.zeros_like, reasons.total)}
    )


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(_drop_bias, marks=pytest.mark.slow),
        *(
            pytest.param(m, marks=pytest.mark.exhaustive)
            for m in (_flip, _drop_history)
        ),
    ],
)
def test_brute_force_catches(mutation, monkeypatch):
    _mutate(monkeypatch, mutation)
    with pytest.raises(AssertionError):
        check_against_brute_force("pair", "clip, adamw")


def test_brute_force_and_sums_catch_a_missing_clip_factor(monkeypatch):
    case, (make, _) = make_case("pair"), OPTIMIZERS["clip, adamw"]
    original = training.frozen_update

    def without_clip(optimizer, gradient, state, params, **extra):
        del optimizer
        adamw = optax.with_extra_args_support(optax.adamw(1e-3, weight_decay=0.1))
        return original(adamw, gradient, state[1], params, **extra)

    monkeypatch.setattr(training, "frozen_update", without_clip)
    init, step = make_step(case.apply_fn, case.loss_fn, make(1e-3))
    state, _ = step(init(case.params), case.update, case.probe)
    _, comparison = step(state, case.update, case.probe)
    with pytest.raises(AssertionError):
        check_sums(comparison, case)
    with pytest.raises(AssertionError):
        check_against_brute_force("pair", "clip, adamw")


@pytest.mark.parametrize(
    "mutation", [_flip, pytest.param(_drop_bias, marks=pytest.mark.slow)]
)
def test_the_order_catches(mutation, monkeypatch):
    _mutate(monkeypatch, mutation)
    with pytest.raises(AssertionError, match="ratios"):
        check_order("pair", "sgd", ORDER_RATES["sgd"])
    _injected_step.cache_clear()
