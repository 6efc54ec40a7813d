"""The run folder: what is written can be found again, and nothing is half-written."""

import json
from typing import Any

import numpy as np
import pytest

from ldjax.runs import METRIC_COLUMNS, create_run, open_run, start_run

ROWS = [(0, 0, "4", "9", "measured", 0.5), (7, 448, "4", "0", "predicted", -1.25)]


def test_a_run_reads_back_what_was_written(tmp_path):
    run = create_run(tmp_path / "runs" / "a", {"seed": 3, "data": "digits"})
    run.write_metrics(ROWS)
    run.write_summary({"claims": [{"holds": True, "value": 0.5}]})
    found = open_run(run.path)
    assert found.config["settings"] == {"seed": 3, "data": "digits"}
    assert found.config["versions"]["jax"]
    assert found.summary["claims"] == [{"holds": True, "value": 0.5}]
    assert tuple(found.metrics().columns) == METRIC_COLUMNS
    assert found.metrics().rows() == ROWS
    assert found.figure_path("f").parent.is_dir()


def test_an_empty_folder_is_used_as_it_is(tmp_path):
    assert create_run(tmp_path, {}).path == tmp_path


def test_a_run_is_not_replaced_unless_asked(tmp_path):
    create_run(tmp_path / "a", {"seed": 0}).write_metrics(ROWS)
    with pytest.raises(FileExistsError, match=r"already holds a run.*--overwrite"):
        create_run(tmp_path / "a", {"seed": 1})
    assert open_run(tmp_path / "a").metrics().rows() == ROWS
    create_run(tmp_path / "a", {"seed": 1}, overwrite=True)
    assert open_run(tmp_path / "a").config["settings"] == {"seed": 1}
    assert not (tmp_path / "a" / "metrics.parquet").exists()


def test_what_is_not_a_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something that is not a run"):
        create_run(tmp_path, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_opening_what_is_not_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_run(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    run = create_run(tmp_path / "a", {})
    run.write_summary({"value": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        run.write_summary({"value": np.nan})
    assert run.summary == {"value": 1.0}
    run.write_metrics(ROWS)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever polars raises)
        run.write_metrics([("not a step", 0, "", "", "", 0.0)])
    assert run.metrics().rows() == ROWS
    assert not list(run.path.glob(".*.partial"))


SETTINGS = {
    "clip": np.inf,
    "rates": (np.float32(0.5), float("nan"), -np.inf),
    "steps": np.int64(3),
    "places": np.arange(2),
    "of": {"share": np.float64(0.25), "on": np.bool_(True)},
}


def test_settings_that_json_does_not_know_are_read_back_and_resumed(tmp_path):
    start: dict[str, Any] = {"resume": True, "overwrite": False}
    run = start_run(tmp_path / "a", SETTINGS, **start)
    assert run.config["settings"] == {
        "clip": "inf",
        "rates": [0.5, "nan", "-inf"],
        "steps": 3,
        "places": [0, 1],
        "of": {"share": 0.25, "on": True},
    }
    assert start_run(tmp_path / "a", SETTINGS, **start) == run
    with pytest.raises(ValueError, match=r"clip was inf, now 1\.0\."):
        start_run(tmp_path / "a", SETTINGS | {"clip": 1.0}, **start)


def test_a_summary_has_numpys_numbers_as_numbers(tmp_path):
    run = create_run(tmp_path / "a", {})
    run.write_summary({"holds": np.bool_(False), "value": np.float32(0.5)})
    assert run.summary == {"holds": False, "value": 0.5}


def test_the_code_state_names_a_commit_or_nothing(tmp_path):
    code = json.loads((create_run(tmp_path / "a", {}).path / "config.json").read_text())
    assert set(code["code"]) in (set(), {"commit", "modified"})
