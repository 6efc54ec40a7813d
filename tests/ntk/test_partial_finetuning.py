"""The account of a step that trains a part of the parameters, and of a bfloat16 one."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close, worst_ratio
from witnesses.references import exact_parts, flat
from zoo.cases import apply_toy, make_case, sentences
from zoo.decoders import CONFIGS, STYLES, make_decoder, random_params, random_tokens
from zoo.kernel_models import compiled

import ldjax
from ldjax import make_pending_step, make_step
from ldjax.data.batches import Example, to_sequences
from ldjax.equation.subset import merge, split
from ldjax.models import LowRank, Transformer, is_adapter

EXACT = 1e-12

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


# A step on some parameters is the step of the whole model with the others masked.


def clipped_adamw(learning_rate):
    return optax.chain(
        optax.clip_by_global_norm(0.05),
        optax.adamw(learning_rate, weight_decay=0.1),
    )


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "rmsprop": optax.rmsprop(1e-3),
    "clip, adamw": clipped_adamw(1e-3),
    "accumulated": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
}

TOY = {"embed": False, "kernel": True, "bias": True, "readout": False}


def _kernels(params):
    """The matrices of every layer of a network, by their name."""
    of = lambda path, _: path[-1].key == "kernel"
    return jax.tree_util.tree_map_with_path(of, params)


# name: (case, where, the same leaf by leaf)
PARTS = {
    "toy": ("toy", TOY, TOY),
    "pair": ("pair", lambda params: TOY, TOY),
    "images": ("tanh_mlp", _kernels, _kernels),
}


def run(case, optimizer, *, num_steps=3, **options):
    """The states and the comparisons of some steps."""
    init, step = make_step(case.apply_fn, case.loss_fn, optimizer, **options)
    step, states, comparisons = compiled(step), [init(case.params)], []
    for _ in range(num_steps):
        state, comparison = step(states[-1], case.update, case.probe)
        states.append(state)
        comparisons.append(comparison)
    return states, comparisons


def masked(optimizer, mask):
    """The optimizer on the chosen leaves; the others stay."""
    labels = jax.tree.map(lambda chosen: "train" if chosen else "stay", mask)
    return optax.partition({"train": optimizer, "stay": optax.set_to_zero()}, labels)


@pytest.mark.parametrize(
    ("name", "optimizer", "parts"),
    [
        ("toy", "clip, adamw", "example"),
        slow("pair", "momentum", "side"),
        exhaustive("toy", "rmsprop", "side"),
        exhaustive("toy", "accumulated", "side"),
        exhaustive("pair", "sgd", "example"),
        exhaustive("pair", "clip, adamw", "example"),
        exhaustive("images", "clip, adamw", "side"),
        exhaustive("images", "rmsprop", "example"),
        exhaustive("images", "momentum", "example"),
        exhaustive("pair", "accumulated", "example"),
    ],
)
def test_a_step_of_a_part_is_the_step_of_the_whole_with_the_rest_masked(
    name, optimizer, parts
):
    case_name, where, mask = PARTS[name]
    case, optimizer = make_case(case_name), OPTIMIZERS[optimizer]
    mask = mask(case.params) if callable(mask) else mask
    found, comparisons = run(case, optimizer, where=where, parts=parts)
    expected, others = run(case, masked(optimizer, mask), parts=parts)

    trained, frozen = split(case.params, mask)
    for state, other in zip(found, expected, strict=True):
        assert_close(state.params, other.params, rtol=EXACT)
        assert_close(split(state.params, mask)[1], frozen, rtol=0.0)
        shapes = jax.eval_shape(optimizer.init, trained)
        assert jax.eval_shape(lambda s=state: s.opt_state) == shapes
    last, _ = split(found[-1].params, mask)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), last, trained)
    assert all(jax.tree.leaves(moved)), moved
    for comparison, other in zip(comparisons, others, strict=True):
        for field in ("predicted", "parts"):
            pair = getattr(comparison, field), getattr(other, field)
            assert_close(*pair, rtol=EXACT, scale=_largest(other.predicted))
        # differences of log-probs of order one
        assert_close(comparison.measured, other.measured, rtol=EXACT, scale=1.0)


def _largest(tree):
    return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(tree)) or 1.0


@pytest.mark.exhaustive
def test_all_parameters_are_the_default():
    case = make_case("toy")
    _, expected = run(case, OPTIMIZERS["momentum"])
    _, found = run(case, OPTIMIZERS["momentum"], where=True)
    assert_close(found, expected, rtol=EXACT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["toy", "pair"])
def test_the_pending_form_of_a_part_is_the_immediate_form_one_call_later(name):
    case_name, where, _ = PARTS[name]
    case, optimizer = make_case(case_name), OPTIMIZERS["clip, adamw"]
    states, expected = run(case, optimizer, where=where)
    problem = (case.apply_fn, case.loss_fn, optimizer)
    init, step, finish = make_pending_step(*problem, where=where)
    state = init(case.params, case.update, case.probe)
    found = []
    for _ in expected:
        state, comparison = step(state, case.update)
        found.append(comparison)
    for now, later in zip(expected, [*found[1:], finish(state)], strict=True):
        assert_close(later, now, rtol=EXACT, scale=1.0)
        assert_close(later.predicted, now.predicted, rtol=EXACT)
    assert_close(state.now, states[-1], rtol=EXACT)


@pytest.mark.parametrize(
    ("parts", "size"), [("side", 2), exhaustive("example", 3), exhaustive("example", 1)]
)
def test_the_size_of_the_probe_batches_changes_nothing_for_a_part(parts, size):
    case = make_case("toy")._replace(probe=sentences(11, 5, 4))
    options = {"where": TOY, "parts": parts, "num_steps": 1}
    _, expected = run(case, OPTIMIZERS["momentum"], **options)
    _, found = run(case, OPTIMIZERS["momentum"], **options, probe_batch_size=size)
    assert_close(found, expected, rtol=EXACT, scale=1.0)


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        (False, "`where` chooses no parameter"),
        ({"embed": True}, "`where` must be bools in the structure of `params`"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_at_once(where, complaint):
    case = make_case("toy")
    init, _ = make_step(case.apply_fn, case.loss_fn, optax.sgd(0.1), where=where)
    with pytest.raises(ValueError, match=complaint):
        init(case.params)


def test_parameters_that_are_no_dicts_cannot_be_chosen_from():
    case = make_case("toy")
    init, _ = make_step(case.apply_fn, case.loss_fn, optax.sgd(0.1), where=True)
    with pytest.raises(TypeError, match="`params` must be nested dicts"):
        init([jnp.ones(3)])


# The equation for low-rank adapters.

RATE = 1e-3
UPDATE = to_sequences(
    [
        Example(random_tokens(2, 1), random_tokens(3, 2)),
        Example(random_tokens(3, 5), random_tokens(1, 6)),
    ],
    max_length=5,
)
PROBE = to_sequences([Example(random_tokens(2, 3), random_tokens(2, 4))], max_length=4)


TIED = [style for style in STYLES if CONFIGS[style].tied_head]
assert len(TIED) == 2


class Decoder:
    """A decoder with adapters, all drawn, and its Jacobians by brute force."""

    def __init__(self, style):
        targets: Any = ("qkv", "up") if style in TIED else ("value", "out")
        targets += ("gate",) if CONFIGS[style].gated_mlp else ()
        adapters = LowRank(rank=2, alpha=3.0, targets=targets)
        self.model, self.params = make_decoder(style, num_layers=1, adapters=adapters)
        self.apply_fn = ldjax.linen.apply_fn(self.model)
        self.trained, self.frozen = split(self.params, is_adapter)
        assert len(jax.tree.leaves(self.trained)) == 2 * len(targets)

    def logits(self, batch):
        return np.asarray(compiled(self.apply_fn)(self.params, batch))

    @functools.cached_property
    def jacobians(self):
        """`J[row, p]` of the adapters: of the probe, of the update."""

        def of(trained, batch):
            return self.apply_fn(merge(trained, self.frozen), batch)

        def dense(batch):
            blocks = jax.jacrev(of)(self.trained, batch)
            rows = batch.targets.size * self.model.config.vocab_size
            return [leaf.reshape(rows, -1) for leaf in jax.tree.leaves(blocks)]

        both = compiled(lambda: (dense(PROBE), dense(UPDATE)))()
        return [np.concatenate(blocks, axis=1) for blocks in both]

    def kernel(self, weights):
        """`J_o diag(w) J_u^T` as a matrix."""
        probe, update = self.jacobians
        return (probe * weights) @ update.T

    @functools.cached_property
    def residual(self):
        logits = self.logits(UPDATE)
        return references.sft_residual(logits, *map(np.asarray, UPDATE[1:3]))

    @property
    def gradient(self):
        return self.jacobians[1].T @ self.residual.ravel()

    def change(self, direction):
        """`A J_o d` where the probe is scored: every label's change."""
        logits = self.logits(PROBE)
        moved = (self.jacobians[0] @ direction).reshape(logits.shape)
        change = np.einsum("blvw,blw->blv", references.adaptation(logits), moved)
        return change * np.asarray(PROBE.mask)[..., None]


make_adapted = functools.cache(Decoder)


@functools.cache
def injected_step(style, parts="side"):
    """A step of the adapters by SGD whose rate is a number of its state."""
    decoder = make_adapted(style)
    init, step = make_step(
        *(decoder.apply_fn, ldjax.losses.sft),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.0),
        full_vocab=True,
        parts=parts,
        where=is_adapter,
    )
    run_step = compiled(step)

    def at(learning_rate):
        state = init(decoder.params)
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(learning_rate)
        return run_step(state, UPDATE, PROBE)

    return at


STYLE = pytest.mark.parametrize(
    "style", ["gpt2", *map(exhaustive, ("llama", "neox", "qwen2"))]
)


@pytest.mark.slow
@STYLE
def test_a_step_of_the_adapters_is_minus_rate_a_k_g(style):
    decoder = make_adapted(style)
    state, comparison = injected_step(style)(RATE)
    expected = decoder.change(-RATE * decoder.gradient)
    assert_close(comparison.predicted, expected, rtol=1e-10)
    assert_close(exact_parts(comparison), {"update": expected}, rtol=1e-10)
    trained, frozen = split(state.params, is_adapter)
    assert_close(frozen, decoder.frozen, rtol=0.0)
    moved = flat(trained) - flat(decoder.trained)
    assert_close(moved, -RATE * decoder.gradient, rtol=1e-10)


@pytest.mark.slow
@STYLE
def test_the_remainder_of_the_adapters_falls_fourfold_when_the_rate_halves(style):
    rates = (1e-3, 5e-4, 2.5e-4)
    comparisons = [injected_step(style)(rate)[1] for rate in rates]
    norms = [np.linalg.norm(comparison.remainder) for comparison in comparisons]
    assert norms[-1] > 10 * np.linalg.norm(comparisons[-1].floor)
    for large, small in itertools.pairwise(norms):
        assert 3.8 < large / small < 4.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "method", "weighted"),
    [
        ("gpt2", "factored", True),
        *itertools.starmap(
            exhaustive,
            itertools.product(
                STYLES, ("factored", "structured", "jacobian", "lazy"), (False, True)
            ),
        ),
        *(exhaustive(style, "ntk_vp", False) for style in STYLES),
    ],
)
def test_every_kernel_of_the_adapters_is_that_of_their_jacobians(
    style, method, weighted
):
    decoder = make_adapted(style)
    weights, P = np.ones(decoder.gradient.size), None
    if weighted:
        weights = np.random.default_rng(0).uniform(0.5, 2, decoder.gradient.size)
        P = whole_diagonal(decoder, references.unflat(weights, decoder.trained))
    probe_fn, update_fn = (
        ldjax.linen.logits_fn(decoder.model, batch) for batch in (PROBE, UPDATE)
    )

    @compiled
    def read(params):
        kernel = ldjax.empirical_ntk(
            *(probe_fn, update_fn, params),
            method=method,
            where=is_adapter,
            preconditioner=P,
        )
        moved = kernel @ jnp.asarray(decoder.residual)
        A = ldjax.adaptation_matrix(probe_fn(params))
        return kernel.dense(), -RATE * jnp.einsum("btvw,btw->btv", A, moved)

    dense, predicted = read(decoder.params)
    space = decoder.logits(PROBE).shape + decoder.residual.shape
    assert_close(dense, decoder.kernel(weights).reshape(space), rtol=1e-10)
    mask = np.asarray(PROBE.mask)[..., None]
    expected = decoder.change(-RATE * weights * decoder.gradient)
    assert_close(predicted * mask, expected, rtol=1e-10)


def whole_diagonal(decoder, P):
    """`P` of the adapters as `empirical_ntk` takes it: shaped like all parameters."""
    zeros = jax.tree.map(jnp.zeros_like, decoder.frozen)
    return merge(jax.tree.map(jnp.asarray, P), zeros)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "make", "parts"),
    [
        ("gpt2", optax.adam, "side"),
        exhaustive("gpt2", optax.adam, "example"),
        exhaustive("llama", optax.rmsprop, "side"),
        *(exhaustive(s, optax.adam, "side") for s in ("llama", "qwen2")),
        *(exhaustive(s, optax.rmsprop, "example") for s in ("gpt2", "neox")),
    ],
)
def test_a_preconditioned_step_of_the_adapters_is_minus_a_k_p_g(style, make, parts):
    """At the second step: Adam has a history then, RMSprop has none."""
    decoder, optimizer = make_adapted(style), make(RATE)
    init, step = make_step(
        *(decoder.apply_fn, ldjax.losses.sft, optimizer),
        full_vocab=True,
        parts=parts,
        where=is_adapter,
    )
    earlier = jax.tree.map(
        jnp.asarray,
        references.unflat(
            np.random.default_rng(1).normal(size=decoder.gradient.size), decoder.trained
        ),
    )
    state = init(decoder.params)
    _, opt_state = optimizer.update(earlier, state.opt_state, decoder.trained)
    state = state._replace(opt_state=opt_state)
    after, comparison = compiled(step)(state, UPDATE, PROBE)

    gradient = references.unflat(decoder.gradient, decoder.trained)
    gradient = jax.tree.map(jnp.asarray, gradient)
    P = ldjax.preconditioner(optimizer, gradient, opt_state, decoder.trained)
    own = decoder.change(-flat(P) * decoder.gradient)
    found = comparison.parts["update"]
    if parts == "example":
        assert len(found) == len(UPDATE.tokens)
        assert abs(found).max(axis=(1, 2, 3)).min() > 0
        found = found.sum(axis=0)
    assert_close(found, own, rtol=1e-10)
    history = comparison.parts.get("history", jnp.zeros_like(found))
    assert history.any() == (make is optax.adam)
    assert_close(found + history, comparison.predicted, rtol=EXACT)

    updates, _ = optimizer.update(gradient, opt_state, decoder.trained)
    trained, frozen = split(after.params, is_adapter)
    assert_close(flat(trained), flat(decoder.trained) + flat(updates), rtol=1e-10)
    assert_close(frozen, decoder.frozen, rtol=0.0)
    assert_close(comparison.predicted, decoder.change(flat(updates)), rtol=1e-10)


# Training in bfloat16, watched in full precision.


def strictly(function):
    """Compiled to round where the program says so, whatever is fused."""
    options = {"xla_allow_excess_precision": False, "xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=options)


class Narrow:
    """A decoder that computes in bfloat16, and the same in full precision."""

    def __init__(self, param_dtype, where):
        config = dataclasses.replace(
            CONFIGS["gpt2"],
            num_layers=1,
            dtype="bfloat16",
            param_dtype=param_dtype,
            adapters=LowRank(rank=2, alpha=3.0, targets=("qkv", "up")),
        )
        self.params, self.where = random_params(Transformer(config)), where
        self.apply_fn = ldjax.linen.apply_fn(Transformer(config))
        full = Transformer(dataclasses.replace(config, dtype=None))
        self.full_fn = ldjax.linen.apply_fn(full)

    def log_probs(self, params):
        """In full precision, where the probe is scored."""
        logits = self.full_fn(params, PROBE)
        return jnp.where(PROBE.mask[..., None], ldjax.log_softmax(logits), 0)

    def update_of(self, apply_fn):
        """What SGD applies, by JAX alone."""

        def loss(params):
            return ldjax.losses.sft(apply_fn(params, UPDATE), UPDATE)

        gradient = strictly(jax.grad(loss))(self.params)
        update = jax.tree.map(lambda leaf: -RATE * leaf, gradient)
        if self.where is None:
            return update
        chosen, rest = split(update, self.where)
        return merge(chosen, jax.tree.map(jnp.zeros_like, rest))

    def step(self, **options):
        init, step = make_step(
            *(self.apply_fn, ldjax.losses.sft, optax.sgd(RATE)),
            full_vocab=True,
            where=self.where,
            **options,
        )
        state, comparison = strictly(step)(init(self.params), UPDATE, PROBE)
        return state.params, comparison


def worst(found, expected):
    """The largest error, relative to the largest entry."""
    return worst_ratio(flat(found), flat(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("param_dtype", "where"),
    [
        ("float64", is_adapter),
        exhaustive("float64", None),
        exhaustive("float32", None),
        exhaustive("float32", is_adapter),
    ],
)
def test_a_bfloat16_step_is_watched_in_full_precision(param_dtype, where):
    narrow = Narrow(param_dtype, where)
    rounding = 100 * float(jnp.finfo(param_dtype).eps)
    params, comparison = narrow.step(watch_fn=narrow.full_fn)
    applied = jax.tree.map(jnp.subtract, params, narrow.params)

    # The update is that of bfloat16, not that of full precision.
    same, unwatched = narrow.step()
    assert_close(params, same, rtol=rounding)
    assert worst(applied, narrow.update_of(narrow.full_fn)) > 2e-3

    # What is watched is that of full precision, along this very update.
    @strictly
    def witness(before, after, applied):
        old, predicted = jax.jvp(narrow.log_probs, (before,), (applied,))
        return predicted, narrow.log_probs(after) - old

    predicted, measured = witness(narrow.params, params, applied)
    assert comparison.predicted.dtype == jnp.dtype(param_dtype)
    moved = _largest(measured)
    assert_close(comparison.predicted, predicted, rtol=rounding / moved)
    assert_close(comparison.parts["update"], predicted, rtol=rounding / moved)
    assert_close(comparison.measured, measured, rtol=rounding, scale=1.0)
    assert worst(comparison.measured, comparison.predicted) < 0.02

    # Without it bfloat16's rounding of the log-probs is of the size of the change.
    assert worst(unwatched.measured, measured) > 0.3
    assert worst(unwatched.predicted, predicted) > 3e-3


def _rounded(params, batch):
    """The toy model with parameters in bfloat16."""
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), narrow)
    return apply_toy(wide, batch)


@pytest.mark.slow
def test_the_pending_form_watches_by_the_same_function():
    case = make_case("toy")._replace(apply_fn=_rounded)
    options = {"watch_fn": apply_toy, "where": TOY, "probe_batch_size": 1}
    states, expected = run(case, OPTIMIZERS["momentum"], num_steps=2, **options)
    problem = (case.apply_fn, case.loss_fn, OPTIMIZERS["momentum"])
    init, step, finish = make_pending_step(*problem, **options)
    state = init(case.params, case.update, case.probe)
    state, _ = step(state, case.update)
    state, first = step(state, case.update)
    for found, now in zip((first, finish(state)), expected, strict=True):
        assert_close(found, now, rtol=EXACT, scale=1.0)
    assert_close(state.now.params, states[-1].params, rtol=EXACT)
    old, new = (
        ldjax.token_log_probs(apply_toy(s.params, case.probe), *case.probe[1:3])
        for s in states[-2:]
    )
    assert_close(expected[-1].measured, new - old, rtol=EXACT, scale=1.0)
