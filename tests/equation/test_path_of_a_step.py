"""Steps with nodes on their way: against brute force, in both forms, of any storage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.numpy_optimizers import Adam, Sgd
from witnesses.references import exact_parts, flat, sides, unflat
from zoo.cases import apply_toy, make_case, sentences, toy_params

from ldjax import losses, make_pending_step, make_step

MOMENTUM = optax.sgd(0.5, momentum=0.9)
ROOT3, ROOT15 = np.sqrt(1 / 12), np.sqrt(3 / 20)

#: `(place, weight)` as textbooks have them.
RULES = {
    None: [(0.0, 1.0)],
    "midpoint": [(0.5, 1.0)],
    "trapezoid": [(0.0, 0.5), (1.0, 0.5)],
    "simpson": [(0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)],
    2: [(0.5 - ROOT3, 0.5), (0.5 + ROOT3, 0.5)],
    3: [(0.5 - ROOT15, 5 / 18), (0.5, 8 / 18), (0.5 + ROOT15, 5 / 18)],
}


def slow(*values):
    return [pytest.param(*v, marks=pytest.mark.slow) for v in values]


def exhaustive(*values):
    return [pytest.param(*v, marks=pytest.mark.exhaustive) for v in values]


@functools.cache
def run(name, nodes, form="immediate", parts: str | None = "side", num_steps=2):
    """The comparisons of some steps, and the parameters before and after each."""
    case = make_case(name)
    options = {"nodes": nodes, "parts": parts}
    problem = (case.apply_fn, case.loss_fn, MOMENTUM)
    found, params = [], [case.params]
    if form == "immediate":
        init, step = make_step(*problem, **options)
        state = init(case.params)
        for _ in range(num_steps):
            state, comparison = step(state, case.update, case.probe)
            found.append(comparison)
            params.append(state.params)
        return found, params
    init, step, finish = make_pending_step(*problem, **options)
    state = init(case.params, case.update, case.probe)
    for _ in range(num_steps):
        state, comparison = step(state, case.update)
        found.append(comparison)
        params.append(state.now.params)
    return [*found[1:], finish(state)], params


def integral(case, old, new, direction, rule):
    """`sum_q w_q A J d` at the nodes, by dense Jacobians."""
    start, way = flat(old), flat(new) - flat(old)
    changes = [
        (
            weight,
            references.log_prob_changes(
                case,
                unflat(start + place * way, old),
                direction,
                full_vocab=case.full_vocab,
            ),
        )
        for place, weight in rule
    ]
    sums = [jax.tree.map(lambda leaf: w * leaf, change) for w, change in changes]  # noqa: B023
    return functools.reduce(lambda *pair: jax.tree.map(np.add, *pair), sums)


def check(name, nodes, *, parts="side", form="immediate"):
    """Two steps of momentum beside a NumPy one."""
    case, witness = make_case(name), Sgd(0.5, momentum=0.9)
    found, params = run(name, nodes, form, parts)
    for comparison, old, new in zip(found, params[:-1], params[1:], strict=True):
        by_side = references.gradients(case, old)
        split = witness.step(sum(by_side.values()), flat(old))
        at = functools.partial(integral, case, old, new, rule=RULES[nodes])
        close = functools.partial(assert_close, rtol=1e-10)
        whole = flat(new) - flat(old)
        close(sides(comparison.integrated), at(direction=whole))
        start = integral(case, old, new, whole, RULES[None])
        close(sides(comparison.predicted), start)
        expected = {n: at(direction=split.scale * g) for n, g in by_side.items()}
        if parts == "example":
            by_example = references.example_gradients(case, old)
            expected = {
                n: jax.tree.map(
                    lambda *leaves: np.stack(leaves),
                    *[at(direction=split.scale * g) for g in of_side],
                )
                for n, of_side in by_example.items()
            }
        if split.history is not None and split.history.any():
            expected["history"] = at(direction=split.history)
        told = {n: sides(part) for n, part in exact_parts(comparison).items()}
        close({n: told[n] for n in expected}, expected)
        check_sums(comparison)


def check_sums(comparison):
    """Parts sum to `integrated`; the two differences are what they say."""
    comparison = jax.tree.map(np.asarray, comparison)
    rank = jax.tree.leaves(comparison.integrated)[0].ndim
    total = jax.tree.map(np.zeros_like, comparison.integrated)
    for part in comparison.parts.values():
        whole = jax.tree.map(lambda x: x if x.ndim == rank else x.sum(axis=0), part)
        total = jax.tree.map(np.add, total, whole)
    assert_close(total, comparison.integrated, rtol=1e-12)
    for rest, explained in (
        (comparison.remainder, comparison.predicted),
        (comparison.quadrature, comparison.integrated),
    ):
        assert_close(rest, jax.tree.map(np.subtract, comparison.measured, explained))


@pytest.mark.parametrize(
    ("name", "nodes", "parts"),
    [
        ("pair", "simpson", "side"),
        # Rules differ in places and weights alone: each is here once by either form.
        *slow(("pair", "trapezoid", "example"), ("tanh_mlp", 3, "example")),
        *exhaustive(
            ("toy", 2, "example"),
            *(("pair", nodes, "side") for nodes in ("midpoint", "trapezoid", 2, 3)),
            ("pair", "simpson", "example"),
            ("tanh_mlp", "simpson", "example"),
        ),
    ],
)
def test_a_step_with_nodes_equals_brute_force(name, nodes, parts):
    check(name, nodes, parts=parts)


@pytest.mark.parametrize(
    ("name", "nodes", "parts"),
    [
        ("toy", "trapezoid", "side"),
        ("toy", "simpson", "example"),
        *slow(("pair", "midpoint", "side"), ("pair", 2, "example")),
        *exhaustive(
            ("pair", "simpson", "side"),
            ("pair", 3, "side"),
            ("pair", "trapezoid", "example"),
        ),
    ],
)
def test_a_pending_step_with_nodes_equals_brute_force(name, nodes, parts):
    check(name, nodes, parts=parts, form="pending")


@pytest.mark.parametrize(
    ("nodes", "parts"),
    [
        *slow(
            ("midpoint", "side"),
            ("trapezoid", None),
            ("simpson", "side"),
            (3, "side"),
            ("simpson", None),
        ),
    ],
)
def test_the_pending_form_is_the_immediate_form_one_call_later(nodes, parts):
    expected, params = run("toy", nodes, "immediate", parts)
    found, others = run("toy", nodes, "pending", parts)
    for now, later in zip(expected, found, strict=True):
        assert_close(later, now, terms=100, scale=1.0)
        assert_close(later.integrated, now.integrated, rtol=1e-12)
        assert_close(exact_parts(later), exact_parts(now), rtol=1e-12)
    assert_close(others, params, rtol=1e-12)


@pytest.mark.slow
def test_before_the_first_step_nothing_is_known():
    case = make_case("toy")
    problem = (case.apply_fn, case.loss_fn, MOMENTUM)
    init, step, _ = make_pending_step(*problem, nodes="trapezoid")
    _, comparison = step(init(case.params, case.update, case.probe), case.update)
    unknown = comparison._replace(floor=None)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(unknown))


def test_without_nodes_the_integrated_change_is_the_predicted_one():
    [first, second], _ = run("toy", None)
    for comparison in (first, second):
        assert (comparison.integrated == comparison.predicted).all()
        assert (comparison.quadrature == comparison.remainder).all()


@pytest.mark.slow
def test_nodes_do_not_change_what_is_predicted_or_measured():
    [_, expected], _ = run("toy", None)
    for nodes in ("midpoint", "trapezoid"):
        [_, found], _ = run("toy", nodes)
        for field in ("predicted", "measured", "floor"):
            assert_close(getattr(found, field), getattr(expected, field), rtol=1e-11)


@pytest.mark.slow
def test_the_parts_are_the_integral_of_many_small_steps():
    """By brute force: 400 derivatives on the way, each in the middle of its stretch."""
    [_, comparison], [_, old, new] = run("toy", 3)
    case, count = make_case("toy"), 400
    way = jax.tree.map(jnp.subtract, new, old)
    by_side = references.gradients(case, old)
    own = unflat(-0.5 * by_side["update"], old)
    history = jax.tree.map(jnp.subtract, way, own)

    def slope(place, direction):
        point = jax.tree.map(lambda p, u: p + place * u, old, way)
        log_probs = lambda p: jax.nn.log_softmax(apply_toy(p, case.probe))
        changes = jax.jvp(log_probs, (point,), (direction,))[1]
        labels = jnp.where(case.probe.mask, case.probe.targets, 0)
        picked = jnp.take_along_axis(changes, labels[..., None], -1)[..., 0]
        return jnp.where(case.probe.mask, picked, 0)

    @jax.jit
    def mean(direction):
        places = (jnp.arange(count) + 0.5) / count
        return jax.lax.map(lambda t: slope(t, direction), places).mean(0)

    # A midpoint rule of 400 stretches errs by 1/24 of its second derivative, over
    # 400 ** 2; and three nodes by what they leave of the whole.
    left = np.abs(comparison.quadrature).max()
    for name, direction in {"update": own, "history": history}.items():
        found, expected = comparison.parts[name], mean(direction)
        allowed = np.abs(expected).max() / count**2 + 10 * left
        assert np.abs(found - expected).max() <= allowed
    assert left < 1e-3 * np.abs(comparison.measured).max()


# How many passes they take.


def _passes(form, nodes, parts):
    """Evaluations of the probe's model in a step's program: each has one `tanh`."""
    case = make_case("toy")
    apply_update = lambda p, s: apply_toy(p, s)
    problem = (
        lambda p, s: jnp.sin(p["readout"])[None, :4] * s.mask[..., None],
        losses.sft,
    )
    options = {"nodes": nodes, "parts": parts, "watch_fn": apply_update}
    if form == "immediate":
        init, step = make_step(*problem, MOMENTUM, **options)
        jaxpr = jax.make_jaxpr(step)(init(case.params), case.update, case.probe)
    else:
        init, step, _ = make_pending_step(*problem, MOMENTUM, **options)
        state = init(case.params, case.update, case.probe)
        jaxpr = jax.make_jaxpr(step)(state, case.update)
    return _count(jaxpr.jaxpr, "tanh")


def _count(jaxpr, name):
    """Of an operation in a program, as often as its loops run; not the noise's."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond":
            continue
        times = eqn.params.get("length", 1)
        total += eqn.primitive.name == name
        for leaf in jax.tree.leaves(list(eqn.params.values())):
            body = getattr(leaf, "jaxpr", leaf)
            if hasattr(body, "eqns"):
                total += times * _count(body, name)
    return total


@pytest.mark.parametrize(
    ("nodes", "immediate", "pending"),
    [
        ("simpson", 3, 2),
        *slow((None, 2, 1), ("midpoint", 3, 2), ("trapezoid", 2, 1), (3, 5, 4)),
    ],
)
@pytest.mark.parametrize("parts", ["side", *slow((None,))])
def test_no_model_is_evaluated_twice_at_the_same_parameters(
    nodes, immediate, pending, parts
):
    assert _passes("immediate", nodes, parts) == immediate
    assert _passes("pending", nodes, parts) == pending


# Other kinds of updates and of parameters.


def test_inner_steps_of_an_accumulation_integrate_to_nothing():
    case = make_case("toy")
    optimizer = optax.MultiSteps(
        optax.sgd(0.05, momentum=0.9), 2
    ).gradient_transformation()
    init, step = make_step(case.apply_fn, case.loss_fn, optimizer, nodes="midpoint")
    state = init(case.params)
    for index in range(4):
        state, comparison = step(state, case.update, case.probe)
        moved = bool(index % 2)
        assert bool(comparison.integrated.any()) == moved
        assert bool(comparison.measured.any()) == moved
        check_sums(comparison)
        if moved:
            left = np.linalg.norm(comparison.quadrature)
            assert left < 0.1 * np.linalg.norm(comparison.remainder)


@pytest.mark.slow
def test_only_what_is_trained_lies_on_the_way():
    case = make_case("toy")
    where = {"embed": False, "kernel": True, "bias": True, "readout": False}
    init, step = make_step(
        case.apply_fn, case.loss_fn, MOMENTUM, nodes="simpson", where=where
    )
    state, comparison = step(init(case.params), case.update, case.probe)
    whole = flat(state.params) - flat(case.params)
    expected = integral(case, case.params, state.params, whole, RULES["simpson"])
    assert_close(sides(comparison.integrated), expected, rtol=1e-10)
    check_sums(comparison)


@pytest.mark.slow
def test_images_are_integrated_for_every_class():
    [_, comparison], _ = run("tanh_mlp", 2)
    assert comparison.integrated.shape == (3, 1, 10)
    check_sums(comparison)
    left, first = comparison.quadrature, comparison.remainder
    assert np.linalg.norm(left) < 0.05 * np.linalg.norm(first)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_size_of_the_probe_batches_changes_nothing(size):
    case, probe = make_case("toy"), sentences(11, 5, 4)
    found = []
    for batch_size in (None, size):
        init, step = make_step(
            case.apply_fn,
            case.loss_fn,
            MOMENTUM,
            nodes=2,
            parts="example",
            probe_batch_size=batch_size,
        )
        _, comparison = step(init(case.params), case.update, probe)
        found.append(comparison)
    expected, chunked = map(references.exact, found)
    assert_close(chunked, expected, rtol=1e-11)


def in_float32(params, batch):
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return apply_toy(wide, batch).astype(jnp.float32)


def in_bfloat16(params, batch):
    return apply_toy(params, batch).astype(jnp.float32)


@pytest.mark.parametrize("form", ["immediate", *slow(("pending",))])
def test_the_way_of_stored_parameters_is_resolved_in_what_is_computed(form):
    """Parameters in bfloat16, watched in float32: the nodes lie between the grid."""
    case = make_case("toy")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toy_params())
    options = {"nodes": "simpson", "watch_fn": in_float32}
    problem = (in_bfloat16, losses.sft, optax.sgd(0.3))
    if form == "immediate":
        init, step = make_step(*problem, **options)
        state, comparison = step(init(params), case.update, case.probe)
        new = state.params
    else:
        init, step, finish = make_pending_step(*problem, **options)
        state, _ = step(init(params, case.update, case.probe), case.update)
        new, comparison = state.now.params, finish(state)
    wide = lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), p)
    old, new = wide(params), wide(new)
    whole = flat(new) - flat(old)
    for field, rule in (("predicted", None), ("integrated", "simpson")):
        expected = integral(case, old, new, whole, RULES[rule])
        # Directions are exact, so that the sums are as good as float32.
        assert_close(sides(getattr(comparison, field)), expected, rtol=1e-5)
    parts = jax.tree.map(np.asarray, comparison.parts)
    largest = max(np.abs(part).max() for part in parts.values())
    gap = np.abs(sum(parts.values()) - comparison.integrated).max()
    assert gap <= 1e-6 * largest
    assert (
        np.abs(comparison.quadrature).max() < 0.02 * np.abs(comparison.remainder).max()
    )


@pytest.mark.slow
def test_a_model_that_computes_in_bfloat16_rounds_its_nodes():
    case = make_case("toy")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toy_params())
    seen = []

    def watch_fn(params, batch):
        seen.append(params["kernel"].dtype)
        return in_bfloat16(params, batch)

    init, step = make_step(
        in_bfloat16, losses.sft, optax.sgd(0.3), nodes=2, watch_fn=watch_fn
    )
    _, comparison = step(init(params), case.update, case.probe)
    assert set(seen[:1]) == {jnp.dtype(jnp.bfloat16)}
    rest = np.abs(comparison.quadrature).max()
    assert rest < 0.1 * np.abs(comparison.measured).max()


@pytest.mark.slow
def test_adam_is_integrated_too():
    case = make_case("toy")
    init, step = make_step(case.apply_fn, case.loss_fn, optax.adam(0.02), nodes=3)
    state = init(case.params)
    witness = Adam(0.02)
    for _ in range(2):
        old = state.params
        state, comparison = step(state, case.update, case.probe)
        split = witness.step(sum(references.gradients(case, old).values()), flat(old))
        whole = flat(state.params) - flat(old)
        assert_close(
            split.update(sum(references.gradients(case, old).values())),
            whole,
            rtol=1e-8,
        )
        expected = integral(case, old, state.params, whole, RULES[3])
        assert_close(sides(comparison.integrated), expected, rtol=1e-10)
        check_sums(comparison)
        left, first = map(np.linalg.norm, (comparison.quadrature, comparison.remainder))
        assert left < 1e-3 * first
