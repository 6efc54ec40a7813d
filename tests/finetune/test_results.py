"""What a finetuning run checks of itself notices a defect that is planted."""

import numpy as np
import optax
import pytest
from zoo.cases import apply_toy, sentences, toy_params
from zoo.watched import watched_only

import ldjax
from ldjax.data.batches import Example
from ldjax.finetune import results
from ldjax.finetune.track.observers import make_observers
from ldjax.finetune.track.step import make_tracked_step
from ldjax.watch.probes import Probe, ProbeSet

PROBES = [Probe(f"tracked/{i}", "chosen", Example((i, 2), (3, 1))) for i in (0, 1)]


@pytest.mark.parametrize("nodes", [None, 2])
@pytest.mark.parametrize(
    ("rate", "planted", "expected"),
    [(1e-3, 1.0, 0.0), (1e-8, 1.0, 0.0), (1e-3, 0.9, 0.1), (0.0, 1.0, 0.0)],
)
def test_the_account_of_a_step_is_tied_to_what_it_moved(rate, planted, expected, nodes):
    """An order of the remainder alone holds for any direction."""
    tracked = ProbeSet.of(PROBES, max_length=4, batch_size=None)
    init, step = make_tracked_step(
        apply_toy, ldjax.losses.sft, optax.sgd(rate), tracked, nodes=nodes
    )
    whole = "predicted" if nodes is None else "integrated"

    def step_fn(state, batch):
        state, told = step(state, batch)
        changed = (whole, "part:update")  # their sum still holds
        return state, told | {name: planted * told[name] for name in changed}

    observers = make_observers(
        apply_toy,
        watched_only(tracked),
        num_steps=2,
        evaluations=1,
        probe_batch_size=8,
        is_explained=False,
        nodes=nodes,
    )
    state = init(toy_params())
    gap = observers["tied"].observe(state, *step_fn(state, sentences(6, 3, 4)))["gap"]
    # At 1e-8 a parameter moves by some thousand units in the last place.
    assert gap == pytest.approx(expected / planted, abs=1e-6)


def make_table(steps=400):
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(steps, 2))
    series = {
        "predicted": measured,
        "part:update": measured,
        "measured": measured,
        "floor": np.full((steps, 2), 1e-6),
    }
    return {"train": series, "tied": {"gap": np.array([1e-6, 1e-5])}}


def test_a_defect_below_the_floor_of_every_step_is_seen_in_their_sum():
    """As of a step that measures other parameters than it hands on."""
    check = results.check_identities
    table = make_table()
    whole = table["train"]["measured"].sum(0)
    for lost, holds in ((0.0, True), (0.5e-6, False)):
        ends = np.stack([np.zeros(2), whole + 400 * lost])
        found = check(table, {"log_prob": ends})
        assert [each.holds for each in found] == [True, True, holds]
    table["tied"]["gap"][1] = 0.1
    found = check(table, {"log_prob": np.stack([np.zeros(2), whole])})
    assert [each.holds for each in found] == [True, False, True]


@pytest.mark.parametrize(
    ("share", "steady", "holds"),
    [(1.0, 0.0, True), (0.99, 0.0, False), (1.0, 1e-6, False), (1.0, 1e-8, True)],
)
def test_a_part_that_is_counted_as_rounding_is_seen(share, steady, holds):
    """With the part `rounding` the others sum to any prediction."""
    series = make_table()["train"]
    for name in ("predicted", "part:update"):
        series[name] = 1e-6 * series[name]
    series["part:update"] = share * series["predicted"] + steady
    series["part:rounding"] = series["predicted"] - series["part:update"]
    series["floor"] = series["floor"] if steady else 1e-12 * np.ones((400, 2))
    gap = results.gap_of_parts(series)
    assert (gap <= 1) == holds
