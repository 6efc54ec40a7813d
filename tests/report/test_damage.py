"""A run with a damaged file has a page still, without what that file told."""

import json
import shutil

import numpy as np
import pytest
from zoo.report_runs import make_run

from ldjax.report.__main__ import Config, main
from ldjax.report.content import run_content
from ldjax.runs.folder import Run, open_run

TEXTS = {"a": "one text", "b": "another"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything."""
    run = make_run(tmp_path_factory.mktemp("runs") / "whole", TEXTS)
    run.write_summary(
        {
            "claims": [{"text": "it holds", "holds": True}],
            "signatures": {"train": [{"text": "it rises"}]},
        }
    )
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy that may be damaged."""
    return Run(shutil.copytree(whole.path, tmp_path / "run"))


def _foreign_arrays(path):
    with path.open("wb") as file:
        np.savez(file, something=np.zeros(3))


def _foreign_json(path):
    path.write_text(json.dumps({"claims": 3, "settings": 3, "fidelity": {"all": 1}}))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "half": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
    ),
    "other": lambda path: path.write_bytes(b"\x00\xffsomething else\n"),
    "arrays": _foreign_arrays,
    "json": _foreign_json,
}
FILES = {
    "tokens.npz": "its tokens are left out",
    "token_maps/000000.npz": "its shares are left out",
    "probes.jsonl": "the responses are left out",
    "summary.json": "its numbers are left out",
    "config.json": "the settings are left out",
    "tokenizer.json": "its tokens are left out",
}


def test_a_whole_run_is_shown_whole(run, caplog):
    content = run_content(run)
    assert content["checks"] == [{"text": "it holds", "holds": True}]
    assert content["probes"]["tokens"]["updates"]
    assert not caplog.messages


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_what_a_damaged_file_told_is_left_out_and_said(run, name, damage, caplog):
    before = run_content(run)
    DAMAGE[damage](run.path / name)
    after = run_content(run)
    said = after["notes"][0]
    assert said.startswith(f"{run.path / name} is damaged, {FILES[name]}: ")
    assert "\n" not in said
    assert said in caplog.messages
    for key in ("curves", "tracked", "parts", "remainder"):
        assert after[key] == before[key]
    if name.startswith("token"):
        assert after["probes"]["responses"] == before["probes"]["responses"]


@pytest.mark.parametrize("damage", ["empty", "cut", "half", "other", "arrays"])
def test_without_its_table_nothing_is_shown(run, damage):
    (run.path / "report.html").write_text("the old page")
    DAMAGE[damage](run.path / "metrics.parquet")
    with pytest.raises(SystemExit, match=r"^ldjax\.report: [^\n]*parquet is damaged"):
        main(Config((run.path,)))
    assert (run.path / "report.html").read_text() == "the old page"


def test_the_command_says_it_and_writes_the_page(run, capsys, caplog):
    (run.path / "token_maps" / "000000.npz").write_bytes(b"")
    assert main(Config((run.path,))) == 0
    assert "report.html (" in capsys.readouterr().out
    (said,) = caplog.messages
    assert "000000.npz is damaged, its shares are left out" in said


def test_pages_go_where_a_file_can_be(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(Config((run.path,), out=tmp_path / "new" / "page.html")) == 0
    assert open_run(run.path).path == run.path
    with pytest.raises(SystemExit, match=r"^ldjax\.report: .* is a folder: name a fil"):
        main(Config((run.path,), out=tmp_path))
    with pytest.raises(SystemExit, match=r"page\.html cannot be written: File ex"):
        main(Config((run.path,), out=run.path / "config.json" / "page.html"))
