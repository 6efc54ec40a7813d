"""The MNIST experiment as its users run it."""

import os

import numpy as np
import pytest
from shell.scripts import ROOT, run_script

from ldjax import StepComparison
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.mnist.claims import check_claims, check_identities
from ldjax.studies.mnist.results import Results

FIGURES = ["accumulated", "four_panels", "kernel", "one_step"]


@pytest.mark.parametrize(
    "model",
    [
        # A notebook runs the same in CI.
        pytest.param("lenet", marks=pytest.mark.exhaustive),
        pytest.param("mlp", marks=pytest.mark.exhaustive),
    ],
)
def test_smoke_leaves_a_whole_run_whose_identities_hold(tmp_path, model):
    out = tmp_path / "run"
    result = run_script("mnist.py", "--smoke", "--model", model, "--out", out)
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    assert run.config["settings"]["seed"] == 0
    assert tuple(run.metrics().columns) == METRIC_COLUMNS
    assert all(check["holds"] for check in run.summary["identities"])
    assert sorted(path.stem for path in (out / "figures").glob("*.png")) == FIGURES
    for name in FIGURES:
        assert str(out / "figures" / f"{name}.png") in result.stdout
    again = run_script("mnist.py", "--smoke", "--model", model, "--out", out)
    assert again.returncode == 1
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_numbers(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for out in (first, second):
        assert (
            run_script("mnist.py", "--smoke", "--model", "mlp", "--out", out).returncode
            == 0
        )
    assert open_run(first).metrics().equals(open_run(second).metrics())


@pytest.mark.exhaustive
def test_help_shows_defaults():
    result = run_script("mnist.py", "--help")
    assert result.returncode == 0
    assert "--mnist-dir" in result.stdout
    assert "0.001" in result.stdout


@pytest.mark.slow
def test_a_missing_data_folder_is_one_clear_line(tmp_path):
    result = run_script(
        "mnist.py", "--mnist-dir", tmp_path / "nowhere", "--out", tmp_path / "run"
    )
    assert result.returncode == 1
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_the_real_images_run_too(tmp_path):
    folder = ROOT.parent / "shared" / "data" / "mnist"
    if not folder.is_dir():
        assert not os.environ.get("CI"), f"{folder} must be there in CI"
        pytest.skip(f"needs the MNIST files in {folder}")
    out = tmp_path / "run"
    result = run_script("mnist.py", "--smoke", "--mnist-dir", folder, "--out", out)
    assert result.returncode == 0, result.stderr
    assert open_run(out).config["settings"]["data"] == "MNIST"


def drawn_results(*, lost=0.0, effect=1.0, parts=("update", "weight_decay")):
    """What a run of 40 steps might collect.

    Args:
      lost: What the change of the whole run has more than its steps, in nats.
      effect: Of what the claims are about; 0 or less for none.
      parts: Those that are told.
    """
    rng = np.random.default_rng(0)
    results = Results(steps_per_epoch=10, batch_size=4)
    shape = (10, 30, 1, 10)  # [step, class * probe, pos, label]
    for epoch in range(1, 5):
        told = {
            "update": rng.normal(size=shape),
            "weight_decay": 1e-2 * rng.normal(size=shape),
        }
        predicted = told["update"] + told["weight_decay"]
        measured = predicted + 0.01 * rng.normal(size=shape)
        told = {name: told[name] for name in parts}
        # As of any step.
        told["rounding"] = predicted - np.sum(list(told.values()), axis=0)
        rest, floor = measured - predicted, np.full(shape, 1e-6)
        results.add_steps(
            epoch,
            StepComparison(predicted, measured, rest, told, floor, predicted),
        )
    results.change = results.totals["measured"] + lost
    labels, table = np.repeat(np.arange(10), 12), rng.normal(size=(10, 10))
    start = 5 * (1 - effect) * rng.normal(size=(10, 10))[labels]
    results.add_test(0, start, labels)
    results.add_test(4, table[labels] + 0.1 * rng.normal(size=(120, 10)), labels)
    results.pull_ups = rng.normal(size=(10, 4, 10, 3))
    results.pull_ups[np.arange(10), :, np.arange(10)] += 2 * effect
    norms = 1 + rng.random((40, 40)), 1 + rng.random((40, 40))
    shared = np.kron(1 + rng.random((10, 10)), np.ones((4, 4)))
    results.pair_norms = {
        epoch: 0.01 * norm + effect * shared
        for epoch, norm in zip((3, 4), norms, strict=True)
    }
    return results


def test_claims_hold_where_there_is_an_effect_and_not_without():
    claims = check_claims(drawn_results())
    assert [claim.holds for claim in claims] == [True] * 4
    for claim in claims:
        low, high = claim.numbers["interval"]
        assert low <= claim.numbers["value"] <= high
    holds = [claim.holds for claim in check_claims(drawn_results(effect=0.0))]
    assert holds == [False, False, False, True]  # of first order's there still is one


@pytest.mark.parametrize(
    ("planted", "place"),
    [
        ({"parts": ("update",)}, 0),  # a hundredth of the update is not told
        ({"lost": 3e-3}, 1),
    ],
)
def test_identities_that_do_not_hold_are_seen(planted, place):
    good = check_identities(drawn_results())
    bad = check_identities(drawn_results(**planted))
    assert [each.holds for each in good] == [True] * 3
    assert [each.holds for each in bad] == [i != place for i in range(3)]
