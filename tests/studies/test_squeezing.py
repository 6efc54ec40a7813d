"""The squeezing experiment as its users run it."""

import pytest
from shell.scripts import run_script

from ldjax.runs.folder import open_run


@pytest.mark.exhaustive  # a notebook runs the same in CI
def test_smoke_has_the_numbers_of_the_notebook(tmp_path):
    out = tmp_path / "run"
    result = run_script("squeezing.py", "--smoke", "--out", out)
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    assert [claim["holds"] for claim in run.summary["claims"]] == 5 * [True]
    valley = run.summary["rows"]["D"]
    assert valley["num_rising"] == 1
    assert valley["target_prob"][0] < 1e-9
    for name in ("rows", "thresholds"):
        assert str(out / "figures" / f"{name}.png") in result.stdout


@pytest.mark.exhaustive
def test_a_bad_option_is_one_clear_line(tmp_path):
    result = run_script("squeezing.py", "--points", "1", "--out", tmp_path / "run")
    assert result.returncode == 1
    assert "--points must be at least 2, got 1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
