"""How a run is accounted for: nodes by tolerance, and the balance that they give."""

import itertools
import json

import numpy as np
import optax
import pytest
from witnesses.closeness import assert_close
from zoo.cases import apply_toy, sentences, toy_params

import ldjax
from ldjax.data.batches import Example
from ldjax.finetune import account, results
from ldjax.finetune.settings.config import Config
from ldjax.finetune.track.nodes import choose, integral
from ldjax.theory.fidelity import fidelity
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn, make_slope_fn

PROBES = [Probe(f"tracked/{i}", "chosen", Example((i, 2), (3, 1))) for i in (0, 1)]
TRACKED = ProbeSet.of(PROBES, max_length=4, batch_size=None)


def taken(rate, steps):
    """Parameters before and after some updates, by make_step."""
    init, step = ldjax.make_step(apply_toy, ldjax.losses.sft, optax.sgd(rate))
    states, probe = [init(toy_params())], TRACKED.batches[0][1]
    for seed in range(steps):
        states.append(step(states[-1], sentences(seed, 3, 4), probe)[0])
    return [(a.params, b.params) for a, b in itertools.pairwise(states)]


def test_slopes_along_a_move_integrate_to_what_it_changes():
    slope = make_slope_fn(apply_toy, TRACKED)
    change_fn = make_change_fn(apply_toy, TRACKED)
    ((start, end),) = taken(0.3, 1)
    change = change_fn(start, end)
    assert_close(slope(start, end, 0.0), change["predicted"], terms=24)
    errors = [
        np.linalg.norm(
            integral(lambda place: slope(start, end, place), n) - change["measured"]
        )
        for n in (1, 2, 8)
    ]
    assert errors[2] < 1e-9 < 1e-3 * errors[0]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("rate", [1e-3, 0.3, 1.0])
def test_the_nodes_of_a_run_are_those_that_its_first_updates_need(rate):
    tolerance, batches = 1e-3, [sentences(seed, 3, 4) for seed in range(3)]
    found = choose(
        TRACKED,
        params=toy_params(),
        batches=batches,
        tolerance=tolerance,
        apply_fn=apply_toy,
        loss_fn=ldjax.losses.sft,
        optimizer=optax.sgd(rate),
        watch_fn=apply_toy,
        probe_batch_size=1,
    )
    slope = make_slope_fn(apply_toy, TRACKED)
    shares = {n: [] for n in (found.nodes - 1, found.nodes)}
    for n in shares:
        for start, end in taken(rate, 3) if n else ():
            fine, coarse = (
                integral(lambda t, a=start, b=end: slope(a, b, t), m)
                for m in (n + 1, n)
            )
            gap = np.linalg.norm(fine - coarse) / np.linalg.norm(fine)
            shares[n].append(gap)
    assert max(shares[found.nodes]) <= tolerance
    assert min(abs(found.difference - gap) for gap in shares[found.nodes]) < 1e-9
    if found.nodes > 1:
        assert max(shares[found.nodes - 1]) > tolerance
    else:
        assert rate < 1  # a large one needs more


def test_what_was_chosen_is_what_a_run_goes_on_with(tmp_path):
    """And a run made before goes on with first order, whatever is chosen today."""
    config = Config.of(out=tmp_path, resume=True)
    assert account.resumed(config) == config  # there is none
    for kept, nodes, history in (
        ({"nodes": 2, "history": "dated"}, 2, "dated"),
        ({"nodes": None, "history": None}, 0, "whole"),
        ({}, 0, "whole"),
    ):
        text = json.dumps({"settings": {"out": "there"} | kept})
        (tmp_path / "config.json").write_text(text)
        watch = account.resumed(config).watch
        assert (watch.nodes, watch.history) == (nodes, history)
        written = account.as_kept(account.resumed(config))
        assert written == {"nodes": None, "history": None} | kept
        # Another account is refused, the same is not.
        with pytest.raises(ValueError, match=rf"`nodes={nodes}`, not `nodes=3`\. Go"):
            account.resumed(Config.of(out=tmp_path, resume=True, nodes=3))
        said = Config.of(out=tmp_path, resume=True, nodes=nodes, history=history)
        assert account.resumed(said).watch == watch
        begun = Config.of(out=tmp_path, nodes=None)
        assert account.resumed(begun) == begun


def make_series(left=0.0):
    """Parts that leave a share of what was measured."""
    rng = np.random.default_rng(0)
    measured = rng.normal(loc=(3.0, -2.0, 0.5, 1.0), size=(50, 4))
    series = {
        "measured": measured,
        "integrated": (1 - left) * measured,
        "predicted": 0.3 * measured,
        "floor": np.full((50, 4), 1e-6),
    }
    share = rng.random((50, 4))
    return series | {
        "part:update": share * series["integrated"],
        "part:history": (1 - share) * series["integrated"],
    }


@pytest.mark.parametrize(
    ("left", "steady", "holds"),
    [(0, 0, True), (0.009, 0, True), (0.011, 0, False), (0, 1e-7, True)],
)
def test_a_balance_closes_within_tolerance_and_rounding(left, steady, holds):
    series = make_series(left)
    series["part:history"] = series["part:history"] + steady
    for is_claim, kind in ((True, "claim"), (False, "finding")):
        (found,) = results.check_balance(series, tolerance=0.01, is_claim=is_claim)
        assert (found.holds, found.kind) == (holds, kind)
    small = {name: 1e-9 * of for name, of in series.items() if name != "floor"}
    small["floor"] = series["floor"]  # nothing that rounding would not do
    (found,) = results.check_balance(small, tolerance=0.01, is_claim=True)
    assert found.holds


def test_a_part_that_is_lost_opens_the_balance():
    series = make_series()
    del series["part:history"]
    (found,) = results.check_balance(series, tolerance=0.01, is_claim=True)
    assert not found.holds
    del series["integrated"]  # a run of first order closes no balance
    assert results.check_balance(series, tolerance=0.01, is_claim=True) == []


def test_parts_are_those_of_the_integrated_change():
    series = make_series()
    assert results.gap_of_parts(series) <= 1
    assert results.gap_of_parts(series | {"integrated": series["predicted"]}) > 1
    del series["integrated"]
    assert results.gap_of_parts(series) > 1
    assert results.gap_of_parts(series | {"predicted": series["measured"]}) <= 1


def test_first_order_is_compared_with_the_account_that_closes():
    series, prompts, types = make_series(1e-6), list("abcd"), ["chosen"] * 4
    first = fidelity(series, prompts, types)["all"]
    closed = fidelity(series, prompts, types, by="integrated")["all"]
    assert first.predicted_change == pytest.approx(0.3 * first.change)
    assert closed.predicted_change == pytest.approx(closed.change)
    trust = [{"step": 0, "multiple": 0.5, "learning_rate": 2e-4}]
    found = results.check_first_order(first, closed, trust)
    assert not found.holds
    assert found.kind == "finding"
    assert "at rates of 2.0e-04" in found.text
    assert results.check_first_order(closed, closed, []).holds
