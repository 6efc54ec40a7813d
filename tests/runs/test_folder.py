"""The run folder: what is written can be found again, and nothing is half-written."""

import contextlib
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from ldjax.files.replacing import set_aside, settle
from ldjax.files.whole import WriteError
from ldjax.runs.folder import METRIC_COLUMNS, create_run, open_run, start_run


class _Untold:
    def __str__(self):
        return str(1 / 0)


ROWS = [(0, 0, "4", "9", "measured", 0.5), (7, 448, "4", "0", "predicted", -1.25)]


def files(folder):
    """What is in the files of a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def an_old_run(path):
    """A run with results, and what is in its files."""
    run = create_run(path, {"seed": 0})
    run.write_metrics(ROWS)
    (path / "checkpoints" / "7").mkdir(parents=True)
    (path / "pairs.jsonl").write_text("a file that somebody put there")
    run.release()
    return files(path)


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
    with pytest.raises(FileExistsError, match=r"already holds a run.*overwrite=True"):
        create_run(tmp_path / "a", {"seed": 1})
    assert open_run(tmp_path / "a").metrics().rows() == ROWS
    run = create_run(tmp_path / "a", {"seed": 1}, overwrite=True)
    assert open_run(tmp_path / "a").config["settings"] == {"seed": 1}
    assert not (tmp_path / "a" / "metrics.parquet").exists()
    run.write_metrics(ROWS[:1])
    run.release()
    assert sorted(files(tmp_path / "a")) == ["config.json", "metrics.parquet"]


def test_a_run_that_can_be_resumed_says_so(tmp_path):
    create_run(tmp_path / "a", {"seed": 0})
    with pytest.raises(FileExistsError, match="`resume=True` to go on with it, or"):
        start_run(tmp_path / "a", {"seed": 0}, resume=False, overwrite=False)


@pytest.mark.parametrize(
    "setting", [{"rate": object.__new__(_Untold)}, {(1, 2): "a key that JSON has not"}]
)
def test_a_setting_that_cannot_be_written_leaves_the_old_run(tmp_path, setting):
    before = an_old_run(tmp_path / "a")
    with pytest.raises((TypeError, ZeroDivisionError)):
        create_run(tmp_path / "a", setting, overwrite=True)
    assert files(tmp_path / "a") == before


def test_settings_that_json_has_no_number_for_are_written(tmp_path):
    settings = {
        "clip": np.inf,
        "betas": (np.float32(0.5), -np.inf),
        "rate": np.float64(np.nan),
        "count": np.int64(3),
        "is_on": np.bool_(True),
        "rows": np.array([1.0, np.inf]),
        "scalar": jnp.ones(()),
        "path": Path("a"),
    }
    told = {
        "clip": "inf",
        "betas": [0.5, "-inf"],
        "rate": "nan",
        "count": 3,
        "is_on": True,
        "rows": [1.0, "inf"],
        "scalar": 1.0,
        "path": "a",
    }
    run = create_run(tmp_path / "a", settings)
    assert open_run(run.path).config["settings"] == told
    run.release()
    start_run(tmp_path / "a", settings, resume=True, overwrite=False)


@pytest.mark.parametrize("writes_first", [False, True])
def test_the_old_run_is_back_where_the_new_one_came_to_nothing(tmp_path, writes_first):
    before = an_old_run(tmp_path / "a")
    run = create_run(tmp_path / "a", {"seed": 1}, overwrite=True)
    if writes_first:
        (run.path / "probes.jsonl").write_text("half of what a run needs")
        (run.path / "token_maps").mkdir()
    run.release()
    assert files(tmp_path / "a") == before


def test_no_room_for_the_new_settings_leaves_the_old_run(tmp_path, monkeypatch):
    def full(self, text, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = an_old_run(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(WriteError, match=r"config\.json cannot be written: No spa"):
            create_run(tmp_path / "a", {"seed": 1}, overwrite=True)
        with pytest.raises(WriteError):
            create_run(tmp_path / "b", {"seed": 1})
    assert files(tmp_path / "a") == before
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("moment", range(12))
def test_a_replacement_that_is_killed_at_any_moment_loses_nothing(
    tmp_path, monkeypatch, moment
):
    """Every renaming and deletion may be the last one; then another process starts."""

    def stop_at(moment):
        left = iter(range(moment))
        for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "rmdir")):
            true = getattr(owner, name)

            def counted(*args, true=true, **options):
                next(left)  # StopIteration when it is over
                return true(*args, **options)

            monkeypatch.setattr(owner, name, counted)

    before = an_old_run(tmp_path / "a")
    with monkeypatch.context() as monkeypatch, contextlib.suppress(StopIteration):
        stop_at(moment)
        set_aside(tmp_path / "a")
        (tmp_path / "a" / "config.json").write_text("{}")
        settle(tmp_path / "a")
    settle(tmp_path / "a")
    assert files(tmp_path / "a") == before


@pytest.mark.parametrize("name", ["model", "model/checkpoints/7", "model/pairs.jsonl"])
def test_a_run_is_not_replaced_by_one_that_needs_it(tmp_path, name):
    before = an_old_run(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for setting in (tmp_path / name, str(tmp_path / name), (tmp_path / name,)):
        for out in ("model", "link"):
            with pytest.raises(FileExistsError, match="holds what `init` names"):
                create_run(tmp_path / out, {"init": setting}, overwrite=True)
    assert files(tmp_path / "model") == before


def test_a_link_to_a_run_is_followed(tmp_path):
    an_old_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    create_run(tmp_path / "link", {"seed": 1}, overwrite=True).write_metrics(ROWS)
    assert (tmp_path / "link").is_symlink()
    assert sorted(files(tmp_path / "a")) == ["config.json", "metrics.parquet"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is a link to .*nowhere: nothing"):
        create_run(tmp_path / "dangling", {})


def test_a_model_of_the_hub_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(FileExistsError, match="something that is not a run"):
        create_run(tmp_path, {}, overwrite=True)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": '])
def test_damaged_settings_are_named(tmp_path, text):
    an_old_run(tmp_path)
    (tmp_path / "config.json").write_text(text)
    before = files(tmp_path)
    for resume, overwrite in ((True, False), (False, True), (False, False)):
        with pytest.raises(ValueError, match=r"config\.json (is not whole|must hold)"):
            start_run(tmp_path, {}, resume=resume, overwrite=overwrite)
    assert files(tmp_path) == before


def test_paths_that_cannot_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert create_run(Path("~/mine"), {}).path == tmp_path / "home" / "mine"
    assert open_run(Path("~/mine")).path == tmp_path / "home" / "mine"
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "in" / "it"):
        with pytest.raises(NotADirectoryError, match=r"file is a file, no folder"):
            create_run(path, {})
    with pytest.raises(ValueError, match="is not UTF-8"):
        create_run(tmp_path / os.fsdecode(b"\xff"), {})
    with pytest.raises(FileExistsError, match="something that is not a run"):
        create_run(Path("/"), {})
    with pytest.raises(OSError, match="File name too long"):
        create_run(tmp_path / ("a" * 300), {})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", r"metrics\.parquet is damaged: [^\n]*$"),
        (lambda data: data[: len(data) // 2], r"metrics\.parquet is damaged: [^\n]*$"),
        (lambda data: data[:-1], r"metrics\.parquet is damaged: [^\n]*$"),
        (lambda data: b"PAR1" + bytes(99) + b"PAR1", "damaged"),
        (lambda data: _parquet({"a": [1]}), r"it has a \(Int64\) and not step \(Int64"),
        (lambda data: _parquet({}), "it has no columns and not step"),
        (
            lambda data: _parquet({name: ["text"] for name in METRIC_COLUMNS}),
            r"it has step \(String\)",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path, damage, message):
    run = create_run(tmp_path / "a", {})
    with pytest.raises(FileNotFoundError, match=r"a has no metrics\.parquet"):
        run.metrics()
    run.write_metrics(ROWS)
    path = run.path / "metrics.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        run.metrics()


def _parquet(columns):
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


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
