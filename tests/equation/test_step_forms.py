"""The step's forms and bounds: pending, chunked, accumulated, masked, in few bytes."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from witnesses.closeness import assert_close
from witnesses.references import exact, exact_parts
from zoo.cases import apply_toy, images, make_case, sentences, toy_params

from ldjax import Sequences, losses, make_pending_step, make_step

CASE = make_case("toy")
MOMENTUM: optax.GradientTransformation = optax.sgd(0.1, momentum=0.9)


def _run(
    optimizer: optax.GradientTransformation = MOMENTUM,
    *,
    case=CASE,
    probe=None,
    num_steps=1,
    **options,
):
    """The last state and the comparison of every step."""
    init, step = make_step(case.apply_fn, case.loss_fn, optimizer, **options)
    state, comparisons = init(case.params), []
    for _ in range(num_steps):
        probe = case.probe if probe is None else probe
        state, comparison = step(state, case.update, probe)
        comparisons.append(comparison)
    return state, comparisons


def test_the_state_counts_steps_and_keeps_the_loss_at_their_start():
    init, step = make_step(CASE.apply_fn, CASE.loss_fn, MOMENTUM)
    start = init(CASE.params)
    assert (int(start.step), bool(jnp.isnan(start.loss))) == (0, True)
    state, _ = step(start, CASE.update, CASE.probe)
    loss = lambda p: losses.sft(apply_toy(p, CASE.update), CASE.update)
    assert_close(state.loss, loss(CASE.params), terms=100)
    assert int(state.step) == 1
    again, _ = step(state, CASE.update, CASE.probe)
    assert_close(again.loss, loss(state.params), terms=100)
    assert again.loss < state.loss


@pytest.mark.parametrize("name", ["toy", pytest.param("pair", marks=pytest.mark.slow)])
def test_the_pending_form_is_the_immediate_form_one_call_later(name):
    case = make_case(name)
    final, expected = _run(case=case, num_steps=3)
    init, step, finish = make_pending_step(case.apply_fn, case.loss_fn, MOMENTUM)
    state = init(case.params, case.update, case.probe)
    found = []
    for _ in range(3):
        state, comparison = step(state, case.update)
        found.append(comparison)
    unknown = found[0]._replace(floor=None)  # which is zero where nothing is scored
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(unknown))
    # measured is a difference of log-probs of order one
    for now, later in zip(expected, [*found[1:], finish(state)], strict=True):
        assert_close(later, now, terms=100, scale=1.0)
        assert_close(later.predicted, now.predicted, rtol=1e-12)
        assert_close(exact_parts(later), exact_parts(now), rtol=1e-12)
    assert_close(state.now, final, rtol=1e-12)


@functools.cache
def _chunked(parts, size):
    return _run(probe=sentences(11, 5, 4), parts=parts, probe_batch_size=size)


@pytest.mark.parametrize(
    ("parts", "size"),
    [("side", 2), ("example", 3)]
    + [pytest.param("example", size, marks=pytest.mark.slow) for size in (1, 7)],
)
def test_the_size_of_the_probe_batches_changes_nothing(parts, size):
    _, expected = _chunked(parts, None)
    _, found = _chunked(parts, size)
    for one, other in zip(found, expected, strict=True):
        assert_close(exact(one), exact(other), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["side", "example"])
def test_the_size_of_the_probe_batches_changes_nothing_for_pairs(parts):
    case = make_case("pair")
    probe = {"chosen": sentences(12, 5, 4), "rejected": sentences(13, 2, 3)}
    options = {"case": case, "probe": probe, "parts": parts}
    _, [expected] = _run(**options)
    _, [found] = _run(**options, probe_batch_size=3)
    assert_close(exact(found), exact(expected), rtol=1e-12)


def test_a_dict_of_probes_is_each_of_them():
    probes = {"a": sentences(20, 2, 4), "b": [sentences(21, 3, 3)]}
    _, [together] = _run(probe=probes)
    _, [alone] = _run(probe=probes["b"][0])
    take = lambda field: field["b"][0]
    for name in ("predicted", "measured", "remainder", "floor"):
        field = take(getattr(together, name))
        assert_close(field, getattr(alone, name), rtol=1e-12)
    parts = {name: take(part) for name, part in exact_parts(together).items()}
    assert_close(parts, exact_parts(alone), rtol=1e-12)


def test_the_full_vocabulary_holds_the_targets():
    _, [targets] = _run(parts=None)
    _, [labels] = _run(parts=None, full_vocab=True)
    mask, ids = np.asarray(CASE.probe.mask), np.asarray(CASE.probe.targets)
    pick = lambda leaf: np.where(
        mask,
        np.take_along_axis(np.asarray(leaf), np.where(mask, ids, 0)[..., None], -1)[
            ..., 0
        ],
        0,
    )
    assert_close(pick(labels.predicted), targets.predicted, rtol=1e-12)
    # The noise is that of all that is watched.
    assert (targets.floor <= pick(labels.floor)).all()


@pytest.mark.slow
def test_images_watch_every_class_by_default():
    case = make_case("tanh_mlp")
    _, [by_class] = _run(case=case, parts=None)
    assert by_class.predicted.shape == (3, 1, 10)
    _, [by_label] = _run(case=case, parts=None, full_vocab=False)
    assert by_label.predicted.shape == (3, 1)
    at_label = np.take_along_axis(
        np.asarray(by_class.predicted), np.asarray(case.probe.targets)[..., None], -1
    )
    assert_close(by_label.predicted, at_label[..., 0], rtol=1e-12)


def test_inner_steps_of_an_accumulation_change_nothing():
    optimizer = optax.MultiSteps(MOMENTUM, 3).gradient_transformation()
    _, comparisons = _run(optimizer, num_steps=6)
    for index, comparison in enumerate(comparisons):
        parts = exact_parts(comparison)
        if index == 2:  # the first update has no history
            assert not parts.pop("history").any()
        moved = [comparison.predicted, comparison.measured, *parts.values()]
        assert all(bool(x.any()) == (index % 3 == 2) for x in moved), index
        total = sum(parts.values(), jnp.zeros_like(comparison.predicted))
        assert_close(total, comparison.predicted, rtol=1e-12)


def test_masked_updates_are_predicted():
    frozen = {"embed": False, "kernel": True, "bias": True, "readout": False}
    optimizer = optax.chain(
        optax.masked(optax.adam(1e-5), frozen),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda x: not x, frozen)),
    )
    state, [first, second] = _run(optimizer, num_steps=2)
    for name, moves in frozen.items():
        assert (state.params[name] != CASE.params[name]).any() == moves
    for comparison in (first, second):
        assert_close(comparison.measured, comparison.predicted, rtol=1e-3)


def test_everything_masked_everywhere_is_zero():
    nothing = CASE.probe._replace(mask=jnp.zeros_like(CASE.probe.mask))
    _, [comparison] = _run(probe=nothing)
    assert not any(leaf.any() for leaf in jax.tree.leaves(comparison))


def test_one_trace_for_each_shape():
    loss_fn: Any = chex.assert_max_traces(losses.sft, n=1)
    chex.clear_trace_counter()
    init, step = make_step(apply_toy, loss_fn, optax.adam(0.1), parts=None)
    state = init(toy_params())
    for seed in range(4):
        state, _ = step(state, sentences(seed, 3, 4), sentences(seed + 9, 2, 5))
    with pytest.raises(AssertionError):
        step(state, sentences(0, 2, 4), sentences(9, 2, 5))


def _counting(traces):
    def loss_fn(logits, batch):
        traces.append(logits.shape)
        return losses.sft(logits, batch)

    return loss_fn


def test_one_trace_for_each_shape_of_the_pending_form():
    traces = []
    init, step, _ = make_pending_step(apply_toy, _counting(traces), MOMENTUM)
    pending = init(toy_params(), CASE.update, CASE.probe)
    traces.clear()
    for _ in range(3):
        pending, _ = step(pending, CASE.update)
    assert len(traces) == 1


def test_one_trace_for_weakly_typed_params():
    traces = []
    init, step = make_step(apply_toy, _counting(traces), MOMENTUM, parts=None)
    weak = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), toy_params())
    state = init(weak)
    for _ in range(3):
        state, _ = step(state, CASE.update, CASE.probe)
    assert len(traces) == 1


def _compiled_bytes(num, *, form, name="tanh_mlp", size: int | None = 16):
    case, probe = make_case(name), images(0, num)
    problem = (case.apply_fn, case.loss_fn, MOMENTUM)
    options = {"probe_batch_size": size, "full_vocab": False}
    if form == "immediate":
        init, step = make_step(*problem, **options)
        lowered = jax.jit(step).lower(init(case.params), case.update, probe)
    else:
        init, step, _ = make_pending_step(*problem, **options)
        state = init(case.params, case.update, probe)
        lowered = jax.jit(step).lower(state, case.update)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize(
    ("form", "num"),
    [
        ("immediate", 32),
        pytest.param("pending", 32, marks=pytest.mark.slow),
        pytest.param("immediate", 40, marks=pytest.mark.slow),  # 16 does not divide 40
    ],
)
def test_peak_memory_does_not_grow_with_the_number_of_probes(form, num):
    few, many = (_compiled_bytes(n, form=form) for n in (num, 8 * num))
    print(f"\n{form} {num}: {few} {many} bytes, ratio {many / few:.4f}")
    assert many <= 1.05 * few


@pytest.mark.slow
def test_peak_memory_of_lenet_does_not_grow_with_the_number_of_probes():
    few, many = (_compiled_bytes(n, form="immediate", name="lenet") for n in (32, 256))
    print(f"\nlenet: {few} {many} bytes, ratio {many / few:.4f}")
    assert many <= 1.05 * few


@pytest.mark.slow
def test_peak_memory_grows_when_probes_are_not_batched():
    few, many = (_compiled_bytes(n, form="immediate", size=None) for n in (32, 1024))
    assert many > 2 * few


@pytest.mark.parametrize(
    "name", ["tanh_mlp", pytest.param("lenet", marks=pytest.mark.slow)]
)
def test_rounding_stays_below_the_floor_in_float32(name):
    case = make_case(name)
    cast = lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x
    params, update = jax.tree.map(cast, (case.params, case.update))
    probe = jax.tree.map(cast, images(30, 64))

    # a step too small to see, and large enough that the program cannot skip it
    init, step = make_step(case.apply_fn, case.loss_fn, optax.sgd(1e-9), parts=None)
    jitter, _ = step(init(params), update, probe)
    _, comparison = step(jitter, update, probe)
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), (params, probe))
    log_probs = lambda p, s: jax.nn.log_softmax(case.apply_fn(p, s))
    error = np.abs(log_probs(params, probe) - np.asarray(log_probs(*exact)))
    ratio = np.asarray(comparison.floor) / np.maximum(error, 1e-12)
    moved = float(np.abs(comparison.measured / comparison.floor).max())
    print(
        f"\n{name}: measured/floor {moved:.3g}, floor/error min {ratio.min():.3g}, "
        f"median {np.median(ratio):.3g}"
    )
    assert comparison.floor.dtype == jnp.float32
    assert moved < 1
    assert (error < comparison.floor).all()
    assert np.median(ratio) < 1000


def test_a_saturated_log_prob_has_a_floor_too():
    apply_fn = lambda w, s: s.tokens[:, None] * w
    certain = Sequences(
        jnp.array([[100.0, 0.0]]), jnp.array([[0]]), jnp.array([[True]])
    )
    init, step = make_step(apply_fn, losses.sft, optax.sgd(0.1), parts=None)
    _, comparison = step(init(jnp.float64(1.0)), certain, certain)
    assert (comparison.floor > 0).all()


# What is refused.


def _first_call(
    apply_fn=apply_toy,
    optimizer: optax.GradientTransformation = MOMENTUM,
    update=None,
    params=None,
    **options,
):
    init, step = make_step(apply_fn, losses.sft, optimizer, **options)
    params = toy_params() if params is None else params
    update = CASE.update if update is None else update
    return step(init(params), update, CASE.probe)


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 7\).*\(3, 4\).*\[batch, pos, vocab\]"):
        _first_call(lambda p, s: apply_toy(p, s)[:, 0])


def test_a_mask_of_the_wrong_shape_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong = CASE.update._replace(mask=CASE.update.mask[:, :2])
    with pytest.raises(ValueError, match=r"to go with a mask of \(3, 2\)"):
        _first_call(update=wrong)


def test_narrow_logits_are_refused():
    with pytest.raises(TypeError, match=r"bfloat16 logits.*astype\(jnp.float32\)"):
        _first_call(lambda p, s: apply_toy(p, s).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "update", [(jnp.ones((3, 4)),), {"chosen": jnp.ones(3)}], ids=str
)
def test_a_batch_that_is_not_made_of_sequences_is_refused(update):
    with pytest.raises(TypeError, match=r"A batch is a `Sequences.*got "):
        _first_call(update=update)


def test_an_optimizer_that_cannot_be_split_is_refused_unless_no_parts_are_asked():
    def squares(updates, params):
        del params
        return jax.tree.map(lambda g: -1e-6 * g**2, updates)

    optimizer = optax.stateless(squares)
    with pytest.raises(ValueError, match=r"`integer_pow`.*parts=None"):
        _first_call(optimizer=optimizer)
    _, comparison = _first_call(optimizer=optimizer, parts=None)
    assert_close(comparison.predicted, comparison.measured, rtol=1e-4)
    assert comparison.parts == {}


def test_an_unknown_kind_of_parts_is_refused():
    with pytest.raises(ValueError, match="parts"):
        _first_call(parts="token")


def test_integer_parameters_are_refused():
    params = toy_params() | {"count": jnp.array(3)}
    with pytest.raises(TypeError, match="int"):
        _first_call(params=params)


@pytest.mark.parametrize("size", [0, -1])
def test_a_probe_batch_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="probe_batch_size"):
        _first_call(probe_batch_size=size)


@pytest.mark.parametrize("name", ["history", "weight_decay"])
def test_a_side_named_like_a_part_is_refused(name):
    update = {"chosen": CASE.update, name: CASE.update}
    with pytest.raises(ValueError, match=rf"cannot be called \['{name}'\]"):
        _first_call(update=update)


def test_works_under_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), toy_params())
        apply_fn = lambda p, s: p["readout"][None, :4] * p["bias"][0]  # no cumsum count
        update = sentences(0, 1, 4)
        init, step = make_step(apply_fn, losses.sft, optax.sgd(0.1), probe_batch_size=1)
        _, comparison = step(init(params), update, update)
        assert comparison.predicted.dtype == comparison.floor.dtype == jnp.float32
