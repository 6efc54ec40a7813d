"""The MNIST experiment as its users run it."""

import os

import pytest
from scripts import ROOT, run_script

from ldjax.runs import METRIC_COLUMNS, open_run

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
