"""Derivatives along an update: rules, orders, and what is made of them."""

import functools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from witnesses.closeness import assert_close
from zoo.cases import make_case
from zoo.decoders import make_decoder, random_tokens

import ldjax
from ldjax import jacobian, losses, path_integral
from ldjax.data.batches import Example, to_sequences
from ldjax.equation import path
from ldjax.equation.path import averaged, enough_nodes, path_of, trust_radius

#: By rule: the first degree that is not exact, and the constant of docs/theory.
RULES = {
    None: (1, 1 / 2),
    "midpoint": (2, 1 / 24),
    "trapezoid": (2, -1 / 12),
    "simpson": (4, -1 / 2880),
    1: (2, 1 / 24),
    2: (4, 1 / 4320),
    3: (6, 1 / 2_016_000),
}


@pytest.mark.parametrize("nodes", RULES)
def test_a_rule_is_exact_to_its_degree_and_errs_by_its_constant_beyond(nodes):
    first, constant = RULES[nodes]
    rule = path_of(nodes)
    places, weights = map(np.array, rule)
    assert_close(weights.sum(), 1.0)
    for degree in range(1, first + 1):
        error = 1 / (degree + 1) - weights @ places**degree
        expected = constant * math.factorial(first) if degree == first else 0.0
        assert_close(error, expected, scale=1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_gauss_legendre_has_the_constant_of_any_number_of_nodes(count):
    places, weights = map(np.array, path_of(count))
    factorial = math.factorial
    for degree in range(2 * count):
        assert_close(weights @ places**degree, 1 / (degree + 1))
    error = 1 / (2 * count + 1) - weights @ places ** (2 * count)
    of_derivative = factorial(count) ** 4 / (
        (2 * count + 1) * factorial(2 * count) ** 3
    )
    assert_close(error, of_derivative * factorial(2 * count), scale=1.0)


def test_a_midpoint_is_one_node():
    assert path_of("midpoint") == path_of(1)


@pytest.mark.parametrize("nodes", [0, -1, "gauss", True])
def test_an_unknown_rule_is_refused(nodes, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`nodes` must be \"midpoint\".*got"):
        path_of(nodes)


@pytest.mark.parametrize("nodes", RULES)
def test_the_averaged_jacobian_is_exact_for_polynomials_of_its_degree(nodes):
    degree = RULES[nodes][0]  # the derivative has one less
    rng = np.random.default_rng(0)
    A, old, update = (jnp.asarray(rng.normal(size=s)) for s in ((3, 4), 4, 4))
    fn = lambda w: jnp.sum((A * w[None]) ** degree, axis=1)
    found = jacobian(averaged(fn, update, nodes), old) @ update
    assert_close(found, fn(old + update) - fn(old), terms=100)
    beyond = lambda w: jnp.sum((A * w[None]) ** (degree + 1), axis=1)
    missed = jacobian(averaged(beyond, update, nodes), old) @ update
    constant = RULES[nodes][1]
    expected = (
        constant * math.factorial(degree + 1) * (A * update[None]) ** (degree + 1)
    )
    change = beyond(old + update) - beyond(old)
    assert_close(change - missed, expected.sum(1), rtol=1e-11, scale=abs(change).max())


def test_the_transposed_average_is_the_average_of_gradients():
    fn = lambda w: jnp.stack([jnp.sin(w).sum(), (w**3).prod()])
    old, update = jnp.array([0.3, -0.4]), jnp.array([0.2, 0.5])
    for nodes in (None, 2):
        rows = jax.jacrev(averaged(fn, update, nodes))(old)
        each = path_of(nodes).mean(jax.jacrev(fn), old, update)
        assert_close(rows, each)
        assert_close(jacobian(averaged(fn, update, nodes), old).dense(), each)


# The order of what is left, on the models of the library.


def _decoder(style):
    model, params = make_decoder(style, num_layers=2)
    examples = [
        Example(random_tokens(2, seed), random_tokens(3, seed + 9)) for seed in (1, 2)
    ]
    apply_fn = ldjax.linen.apply_fn(model)
    return apply_fn, params, *(to_sequences([e], max_length=5) for e in examples)


def _case(name):
    case = make_case(name)
    return case.apply_fn, case.params, case.update, case.probe


@functools.cache
def left(name, rate):
    """By rule, the norm of what it leaves of changes by halved updates; and sizes.

    The update is one of gradient descent of such a length, times 1, 1/2 and 1/4.
    """
    apply_fn, params, update, probe = (
        _case(name)
        if name in ("toy", "tanh_mlp", "lenet", "relu_mlp")
        else _decoder(name)
    )

    def log_probs(p):
        return ldjax.token_log_probs(apply_fn(p, probe), probe.targets, probe.mask)

    @jax.jit
    def gradient_of(p):
        return jax.grad(lambda p: losses.sft(apply_fn(p, update), update))(p)

    @jax.jit
    def errors(move):
        end = jax.tree.map(jnp.add, params, move)
        measured = log_probs(end) - log_probs(params)
        rules = {n: path_of(n) for n in RULES}
        places = sorted({place for rule in rules.values() for place in rule.places})

        def derivative(place):
            at = path.moved(params, move, place)
            return jax.jvp(log_probs, (at,), (move,))[1]

        slopes = dict(
            zip(places, jax.lax.map(derivative, jnp.array(places)), strict=True)
        )
        lefts = [
            measured - sum(w * slopes[place] for place, w in zip(*rule, strict=True))
            for rule in rules.values()
        ]
        return jnp.linalg.norm(measured), [*map(jnp.linalg.norm, lefts)]

    gradient = gradient_of(params)
    scaled = lambda size: jax.tree.map(lambda g: -size * g, gradient)
    by_halving = [errors(scaled(rate / 2**k)) for k in range(3)]
    sizes, errors_of = zip(*by_halving, strict=True)
    return np.array(sizes), dict(zip(RULES, np.array(errors_of).T, strict=True))


def check_orders(name, rate):
    sizes, by_rule = left(name, rate)
    print(f"\n{name}: changes {sizes}")
    for nodes, errors in by_rule.items():
        expected = 1 + RULES[nodes][0]
        orders = np.log2(errors[:-1] / errors[1:])
        print(f"{nodes}: orders {orders}, errors {errors}")
        resolved = errors[1:] > 1e-14  # log-probs of some nats round to 1e-15
        assert resolved[0], "drowned in rounding"
        assert abs(orders[resolved][-1] - expected) < 0.3, (nodes, orders)


SMOOTH = {"gpt2": 1e-3, "toy": 0.1, "llama": 5e-3, "neox": 7e-3, "qwen2": 3e-3}
SMOOTH |= {"tanh_mlp": 1e-2, "lenet": 0.14}
FAST = ("toy", "llama")


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SMOOTH],
)
def test_what_is_left_falls_with_the_order_of_the_rule(name):
    check_orders(name, SMOOTH[name])


@pytest.mark.parametrize("wrong", ["simpson", 2])
def test_the_order_catches_a_wrong_weight(wrong, monkeypatch):
    true = path_of

    def heavier(nodes):
        rule = true(nodes)
        weights = (rule.weights[0] * 1.001, *rule.weights[1:])
        return rule._replace(weights=weights) if nodes == wrong else rule

    left.cache_clear()
    monkeypatch.setitem(globals(), "path_of", heavier)
    with pytest.raises(AssertionError, match=r"array\(|drowned"):
        check_orders("toy", SMOOTH["toy"])
    left.cache_clear()


# At kinks.


@pytest.mark.parametrize("nodes", ["midpoint", "trapezoid", "simpson", 2, 3])
def test_a_rule_misplaces_a_kink_by_part_of_the_distance_of_its_nodes(nodes):
    """The slope of a unit that comes on is a step: a rule sums the weights beyond."""
    rule, update = path_of(nodes), jnp.array(0.5)
    for kink in (0.1, 0.3, 0.6, 0.9):
        old = -kink * update
        found = rule.mean(jax.grad(jax.nn.relu), old, update) * update
        on = sum(w for place, w in zip(*rule, strict=True) if place > kink)
        assert_close(found, on * update)
        assert_close(jax.nn.relu(old + update), (1 - kink) * update)


@pytest.mark.slow
def test_at_kinks_any_rule_is_of_second_order_and_more_nodes_still_help():
    """Means over many probes: as many kinks as the update is long, each as high."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    inputs, first, last, move = draw(20_000, 6), draw(6, 40), draw(40), draw(6, 40)
    fn = lambda w: jax.nn.log_sigmoid(jax.nn.relu(inputs @ w) @ last)

    @functools.partial(jax.jit, static_argnums=1)
    def left(size, nodes):
        update = size * move
        measured = fn(first + update) - fn(first)
        slope = lambda w: jax.jvp(fn, (w,), (update,))[1]
        return jnp.abs(measured - path_of(nodes).mean(slope, first, update)).mean()

    sizes = 0.08 / 2.0 ** np.arange(3)
    by_nodes = {n: np.array([left(size, n) for size in sizes]) for n in (1, 2, 4, 8)}
    for nodes, lefts in by_nodes.items():
        orders = np.log2(lefts[:-1] / lefts[1:])
        print(f"{nodes}: orders {orders}, {lefts}")
        assert (abs(orders - 2) < 0.25).all()
    of_nodes = np.array([lefts[-1] for lefts in by_nodes.values()])
    ratios = of_nodes[:-1] / of_nodes[1:]
    print(f"by doubled nodes {ratios}")
    assert ((ratios > 1.5) & (ratios < 2.7)).all()


# What is made of it.


def _layers():
    """A network of two layers and LoRA-like adapters, at two checkpoints."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    old = {
        "first": {"kernel": draw(3, 4), "adapter": {"a": draw(3, 2), "b": draw(2, 4)}},
        "last": {"kernel": draw(4, 2)},
    }
    new = jax.tree.map(lambda leaf: leaf + 0.3 * draw(*leaf.shape), old)

    def fn(p):
        first = (
            p["first"]["kernel"]
            + p["first"]["adapter"]["a"] @ p["first"]["adapter"]["b"]
        )
        return jnp.tanh(jnp.ones(3) @ first) @ p["last"]["kernel"]

    return fn, old, new


def _by_name(names):
    return "adapters" if "adapter" in names else names[0]


def test_a_path_integral_divides_the_change_among_groups():
    fn, old, new = _layers()
    shares = path_integral(fn, old, new, nodes=8, group_of=_by_name)
    assert list(shares) == ["adapters", "first", "last"]
    change = fn(new) - fn(old)
    assert_close(sum(shares.values()), change, rtol=1e-12)
    update = jax.tree.map(jnp.subtract, new, old)
    # Brute force: many small steps along the line, each in its middle.
    count = 400
    for name, share in shares.items():
        alone = jax.tree_util.tree_map_with_path(
            lambda at, leaf: leaf * (_by_name([key.key for key in at]) == name),  # noqa: B023
            update,
        )
        point = lambda t: jax.tree.map(lambda p, u: p + t * u, old, update)
        slope = lambda t: jax.jvp(fn, (point(t),), (alone,))[1]  # noqa: B023
        steps = jax.vmap(slope)((jnp.arange(count) + 0.5) / count)
        assert_close(share, steps.mean(0), rtol=1.0 / count**2)


def test_a_path_integral_is_by_parameter_if_nothing_is_said():
    fn, old, new = _layers()
    shares = path_integral(fn, old, new, nodes="midpoint")
    assert list(shares) == [
        *("first/adapter/a", "first/adapter/b", "first/kernel", "last/kernel")
    ]
    groups = path_integral(fn, old, new, nodes="midpoint", group_of=_by_name)
    both = shares["first/adapter/a"] + shares["first/adapter/b"]
    assert_close(both, groups["adapters"], terms=10)


def test_what_did_not_move_has_no_share():
    fn, old, new = _layers()
    shares = path_integral(fn, old, new | {"last": old["last"]}, group_of=_by_name)
    assert not shares["last"].any()


@pytest.mark.slow
def test_the_way_between_stored_parameters_is_finer_than_what_can_be_stored():
    fn, old, new = _layers()
    old, new = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), p) for p in (old, new))
    wide = lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
    in_float32 = lambda p: fn(wide(p)).astype(jnp.float32)
    shares = path_integral(in_float32, old, new, nodes=4)
    change = in_float32(new) - in_float32(old)
    assert_close(sum(shares.values()), change, rtol=1e-5)
    expected = path_integral(in_float32, wide(old), wide(new), nodes=4)
    assert_close(shares, expected, rtol=1e-5)


def test_enough_nodes_are_those_that_one_more_does_not_change():
    asked = []
    change = 1.0 - np.array([0.3, 0.02, 1e-3, 1e-5, 1e-9, 1e-9])

    def integrated_of(count):
        asked.append(count)
        return {"a": change[count - 1]}

    for tolerance, expected in ((0.3, 1), (0.1, 2), (1e-2, 3), (1e-4, 4)):
        asked.clear()
        count, gap = enough_nodes(integrated_of, tolerance)
        assert count == expected
        assert asked == [*range(1, expected + 2)], "each is asked for once"
        assert_close(gap, abs(change[count] - change[count - 1]) / change[count])
    assert enough_nodes(lambda count: np.zeros(2), 1e-9) == (1, 0.0)


def test_too_few_nodes_are_told_by_the_difference():
    count, gap = enough_nodes(lambda count: np.array(1.0 / count), 1e-3, most=4)
    assert count == 4
    assert_close(gap, 0.25)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, np.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        enough_nodes(lambda count: np.ones(1), tolerance)


def test_at_the_trust_radius_first_order_is_off_by_the_share():
    slope, curve = np.array([1.0, -2.0]), np.array([0.4, 0.3])
    change = lambda m: m * slope + m**2 * curve
    for share in (0.1, 0.01):
        radius = trust_radius(slope, change(1.0), share=share)
        predicted, measured = radius * slope, change(radius)
        off = np.linalg.norm(measured - predicted) / np.linalg.norm(predicted)
        assert_close(off, share)


def test_the_trust_radius_of_a_halved_update_is_twice_as_large():
    fn = lambda w: jnp.tanh(w).sum()
    radii = []
    for size in (1e-2, 5e-3, 2.5e-3):
        old, update = jnp.array([0.5, -1.0]), size * jnp.array([1.0, 2.0])
        _, predicted = jax.jvp(fn, (old,), (update,))
        radii.append(trust_radius(predicted, fn(old + update) - fn(old)))
    ratios = np.array(radii[1:]) / radii[:-1]
    assert (abs(ratios - 2) < 0.02).all()
    # and there it holds: of the smallest update the tenth is 10 %, nearly
    old, update = jnp.array([0.5, -1.0]), 2.5e-3 * jnp.array([1.0, 2.0]) * radii[-1]
    _, predicted = jax.jvp(fn, (old,), (update,))
    assert abs((fn(old + update) - fn(old)) / predicted - 1) == pytest.approx(
        0.1, abs=0.03
    )


def test_the_trust_radius_without_a_remainder_has_no_end():
    assert trust_radius(np.ones(2), np.ones(2)) == np.inf
    assert np.isnan(trust_radius(np.zeros(2), np.zeros(2)))
