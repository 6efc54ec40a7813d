"""A step with a dated history: whose momentum moves the probes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.numpy_replays import AdamW, Mean, Momentum
from witnesses.references import exact_parts, flat, sides, unflat
from zoo.cases import make_case, sentences

from ldjax import make_pending_step, make_step
from ldjax.equation.update_parts.dated import is_side

NUM_STEPS, CLIP = 4, 0.05  # the clip factor is at work
REPLAYED = {
    "momentum, decay before": (
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
        lambda: Momentum([0.1] * NUM_STEPS, 0.9, decay=0.1),
    ),
    "clip, adamw": (
        optax.chain(
            optax.clip_by_global_norm(CLIP), optax.adamw(1e-3, weight_decay=0.1)
        ),
        lambda: AdamW([1e-3] * NUM_STEPS, weight_decay=0.1, max_norm=CLIP),
    ),
    "accumulated adam": (
        optax.MultiSteps(optax.adam(1e-3), 2, accumulator_dtype=jnp.float64),
        lambda: Mean(AdamW([1e-3] * NUM_STEPS), 2),
    ),
}


def _gradients(case, thetas):
    """Of each side at each step, `{side: [vector of step]}`."""
    found = [references.gradients(case, unflat(t, case.params)) for t in thetas]
    return {side: [one[side] for one in found] for side in found[0]}


class _Trained:
    """A NumPy optimizer's own run on a case, and what is missing without somebody."""

    def __init__(self, case, replay):
        self.replay, self.thetas = replay, []
        theta = flat(case.params)
        for _ in range(NUM_STEPS):
            self.thetas.append(theta)
            by_side = references.gradients(case, unflat(theta, case.params))
            theta = theta + replay.step(sum(by_side.values()), theta)
        self.by_side = _gradients(case, self.thetas)
        self.whole = self._updates(self.by_side, self.thetas)

    def _updates(self, by_side, thetas):
        gradients = [sum(each) for each in zip(*by_side.values(), strict=True)]
        return self.replay.updates(gradients, thetas)

    def part(self, time, side, steps):
        """Of the update at `time`, what this side did at these steps."""
        zeroed = [g * (t not in steps) for t, g in enumerate(self.by_side[side])]
        without = self._updates(self.by_side | {side: zeroed}, self.thetas)
        return self.whole[time] - without[time]

    def decay(self, time):
        without = self._updates(self.by_side, [0 * theta for theta in self.thetas])
        return self.whole[time] - without[time]


def _expected(trained, time, every):
    """The parts by name, as far as there may be any; micro-batches are `every` long."""
    first = time - time % every  # of the micro-batches of this very update
    parts = {"weight_decay": trained.decay(time), "accumulated": 0.0}
    for side in trained.by_side:
        parts[side] = trained.part(time, side, [time])
        parts[f"history of {side}"] = trained.part(time, side, range(first))
        parts["accumulated"] += trained.part(time, side, range(first, time))
    return parts


@pytest.mark.parametrize(
    "name",
    [
        name if name == "clip, adamw" else pytest.param(name, marks=pytest.mark.slow)
        for name in REPLAYED
    ],
)
def test_the_history_of_a_side_is_what_is_missing_without_its_past(name):
    case, (optimizer, make_replay) = make_case("pair"), REPLAYED[name]
    trained = _Trained(case, make_replay())
    every = 2 if name.startswith("accumulated") else 1
    init, step = make_step(case.apply_fn, case.loss_fn, optimizer, dated=True)
    state = init(case.params, case.update)
    for time in range(NUM_STEPS):
        params = unflat(trained.thetas[time], case.params)
        state, comparison = step(state, case.update, case.probe)
        parts = exact_parts(comparison)
        scale = abs(flat(comparison.predicted)).max() or 1.0
        assert abs(flat(parts.pop("before"))).max() <= 1e-12 * scale
        expected = _expected(trained, time, every)
        assert parts.keys() <= expected.keys()
        for part, direction in expected.items():
            change = references.log_prob_changes(
                case,
                params,
                np.zeros_like(trained.thetas[0]) + direction,
                full_vocab=False,
            )
            if part in parts:
                assert_close(sides(parts[part]), change, rtol=1e-10, scale=scale)
            else:
                assert not flat(change).any()
        assert_close(
            jax.tree.map(lambda *leaves: sum(leaves), *comparison.parts.values()),
            comparison.predicted,
            rtol=1e-12,
            scale=scale,
        )


ADAM = optax.adam(1e-2)


def _steps(
    optimizer=ADAM, *, case=None, num_steps=3, start=None, with_shapes=True, **options
):
    case = case or make_case("pair")
    init, step = make_step(
        case.apply_fn, case.loss_fn, optimizer, **{"dated": True, **options}
    )
    state = init(case.params, *[case.update] * with_shapes)
    if start is not None:
        state = start(state)
    comparisons = []
    for _ in range(num_steps):
        state, comparison = step(state, case.update, case.probe)
        comparisons.append(comparison)
    return state, comparisons


def _known_parts(comparison, *names):
    return sum(flat(comparison.parts[name]) for name in names)


@pytest.mark.slow
def test_dates_change_nothing_else():
    dated, with_dates = _steps()
    plain, without = _steps(dated=False)
    assert plain.origins is None
    assert_close(dated._replace(origins=None), plain, rtol=1e-12)
    for one, other in zip(with_dates, without, strict=True):
        history = _known_parts(
            one, "history of chosen", "history of rejected", "before"
        )
        scale = abs(flat(other.predicted)).max()
        assert_close(history, flat(other.parts["history"]), rtol=1e-12, scale=scale)
        assert "history" not in one.parts
        assert_close(one.parts["chosen"], other.parts["chosen"], rtol=1e-12)


@pytest.mark.slow
def test_what_the_state_held_is_from_before():
    """A run that goes on from a state without dates: all of its history, and so on."""
    plain, _ = _steps(dated=False)
    onward = lambda state: plain._replace(origins=state.origins)
    _, known = _steps(start=onward, num_steps=2)
    _, unknown = _steps(start=lambda _: plain, num_steps=2)
    _, undated = _steps(start=lambda _: plain, num_steps=2, dated=False)
    for one, other in zip(known, unknown, strict=True):
        assert_close(one.parts, other.parts, rtol=1e-12)
    first, second = known
    assert_close(first.parts["before"], undated[0].parts["history"], rtol=1e-12)
    for side in ("chosen", "rejected"):
        assert not flat(first.parts[f"history of {side}"]).any()
        assert flat(second.parts[f"history of {side}"]).any()


@pytest.mark.slow
def test_the_pending_form_is_the_immediate_form():
    case = make_case("pair")
    options = {"dated": True, "nodes": "trapezoid"}
    final, expected = _steps(**options)
    init, step, finish = make_pending_step(case.apply_fn, case.loss_fn, ADAM, **options)
    state = init(case.params, case.update, case.probe)
    for _ in range(3):
        state, _ = step(state, case.update)
    found = finish(state)
    scale = abs(flat(found.integrated)).max()
    assert_close(found.parts, expected[-1].parts, rtol=1e-12, scale=scale)
    total = jax.tree.map(lambda *leaves: sum(leaves), *found.parts.values())
    assert_close(total, found.integrated, rtol=1e-12, scale=scale)
    assert_close(state.now, final, rtol=1e-12)


@pytest.mark.slow
def test_a_state_made_for_an_update_keeps_its_form():
    case = make_case("pair")
    traces = []

    def loss_fn(logits, batch):
        traces.append(1)
        return case.loss_fn(logits, batch)

    init, step = make_step(case.apply_fn, loss_fn, ADAM, dated=True)
    state = init(case.params, case.update)
    traces.clear()
    for _ in range(3):
        state, _ = step(state, case.update, case.probe)
    once = len(traces)
    traces.clear()
    state = init(case.params)
    for _ in range(3):
        state, _ = step(state, case.update, case.probe)
    assert len(traces) == once, "compiled for a state without dates only"


@pytest.mark.slow
def test_only_what_is_trained_has_moments():
    case = make_case("pair")
    where = {name: name in ("kernel", "readout") for name in case.params}
    state, comparisons = _steps(case=case, where=where)
    sizes = sum(case.params[name].size for name in ("kernel", "readout"))
    assert {side: flat(m).size for side, m in state.origins.items()} == {
        "chosen": sizes,
        "rejected": sizes,
    }
    frozen = optax.partition({True: ADAM, False: optax.set_to_zero()}, where)
    _, others = _steps(frozen, case=case)
    for one, other in zip(comparisons, others, strict=True):
        assert_close(one.parts, other.parts, rtol=1e-10, scale=1e-2)


@pytest.mark.slow
def test_updates_of_several_kinds_have_a_history_each():
    """A loop that takes turns between pairs and texts."""
    case = make_case("pair")
    texts = make_case("toy")

    def loss_fn(logits, batch):
        kind = case if isinstance(batch, dict) else texts
        return kind.loss_fn(logits, batch)

    init, step = make_step(case.apply_fn, loss_fn, ADAM, dated=True)
    state = init(case.params)
    for update in (texts.update, case.update, texts.update):
        state, comparison = step(state, update, case.probe)
    names = ("chosen", "rejected", "update")
    assert {*state.origins} == {*names}
    assert {*comparison.parts} == {
        "update",
        *(f"history of {name}" for name in names),
        "before",
        "rounding",
    }
    scale = abs(flat(comparison.predicted)).max()
    assert abs(flat(comparison.parts["before"])).max() <= 1e-12 * scale


def test_plain_descent_has_no_past():
    state, comparisons = _steps(optax.sgd(0.1), num_steps=1)
    assert state.origins == {}
    assert {*comparisons[0].parts} == {"chosen", "rejected", "rounding"}


@pytest.mark.slow
def test_shares_of_bfloat16_parameters_are_in_float32():
    case = make_case("pair")
    narrow = case._replace(
        params=jax.tree.map(lambda p: p.astype(jnp.bfloat16), case.params),
        apply_fn=lambda p, s: case.apply_fn(p, s).astype(jnp.float32),
    )
    state, comparisons = _steps(case=narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.origins)} == {
        np.dtype(np.float32)
    }
    for comparison in comparisons:
        total = jax.tree.map(lambda *leaves: sum(leaves), *comparison.parts.values())
        scale = abs(flat(comparison.predicted)).max()
        assert_close(total, comparison.predicted, rtol=1e-5, scale=scale)


@pytest.mark.parametrize("parts", ["example", None])
def test_dates_are_by_side(parts):
    case = make_case("pair")
    with pytest.raises(ValueError, match=r'`dated=True`.*parts="side"'):
        make_step(case.apply_fn, case.loss_fn, ADAM, parts=parts, dated=True)


@pytest.mark.parametrize("name", ["before", "history of chosen", "noise"])
def test_no_side_is_called_like_another_part(name):
    assert not is_side(name)
    case = make_case("toy")
    init, step = make_step(
        case.apply_fn, lambda z, batch: case.loss_fn(z[name], batch[name]), ADAM
    )
    with pytest.raises(ValueError, match=rf"side cannot be called.*{name}.*Rename"):
        step(init(case.params), {name: sentences(4, 3, 4)}, case.probe)


def test_a_refused_optimizer_is_refused_by_name():
    case = make_case("toy")
    size = optax.stateless(lambda g, _: jax.tree.map(jnp.abs, g))
    init, step = make_step(case.apply_fn, case.loss_fn, size, dated=True)
    with pytest.raises(ValueError, match=r"cannot be split.*`abs`.*parts=None"):
        step(init(case.params), case.update, case.probe)
