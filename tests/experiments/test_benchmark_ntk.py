"""The kernels' benchmark as its users run it, and how it judges what it measures."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from shell.scripts import ROOT, run_script

from experiments.benchmarks.ntk import cases, measure, peers, process, study, targets
from ldjax.runs.folder import METRIC_COLUMNS, open_run

pytestmark = pytest.mark.slow


@pytest.mark.exhaustive
def test_smoke_compares_the_numbers_of_every_method(tmp_path):
    out = tmp_path / "run"
    result = run_script("experiments.benchmarks.ntk.study", "--smoke", "--out", out)
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    assert tuple(run.metrics().columns) == METRIC_COLUMNS
    rows = run.summary["rows"]
    assert {row["case"] for row in rows} == {"A", "B", "D", "F", "I"}
    compared = [row for row in rows if row["note"] != "torch is not installed"]
    assert all(row["difference"] < 1e-5 for row in compared)
    table = (out / "ntk.md").read_text()
    assert all(f"| {row['method']} | {row['output']} |" in table for row in rows)


def test_unknown_case_is_refused_in_one_line(capsys):
    assert study.main(study.Config(cases="A,Z")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'Z' is none of A, B" in error


def toy_case():
    sides = jnp.ones((2, 1)), jnp.ones((3, 1))
    params = {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}
    return cases.Case("toy", "", cases.FullyConnected((1,)), params, sides)


def toy_method(name, value):
    def fn(params, probe, update):
        return probe @ params["Dense_0"]["kernel"] @ (value * update.T)

    return peers.Method(name, "kernel", fn, np.asarray)


def test_numbers_that_differ_are_a_fault():
    methods = [
        toy_method("ldjax lazy", 1.0),
        toy_method("ldjax structured", 1.0),
        toy_method("ldjax factored", 1.001),
    ]
    rows = measure.measure(toy_case(), methods, repeats=3, limit=1e9)
    assert [row.repeats for row in rows] == [3, 3, 3]
    assert [row.difference for row in rows] == [0, 0, pytest.approx(1e-3)]
    (fault,) = study.faults(rows)
    assert "ldjax factored: numbers differ by 1.0e-03" in fault


# Just above the limit XLA knows; far above it the plan does, and nothing is compiled.
@pytest.mark.parametrize(("limit", "is_compiled"), [(799, True), (100, False)])
def test_what_does_not_fit_is_not_run_but_said(limit, is_compiled):
    method = peers.Method(
        "ldjax lazy",
        "kernel",
        lambda params, *_: jnp.broadcast_to(params["Dense_0"]["bias"], (100,)),
        as_array=lambda _: pytest.fail("was run"),
    )
    (row,) = measure.measure(toy_case(), [method], repeats=1, limit=limit)
    assert "out of memory (needs 8" in row.note  # a hundred float64
    assert (row.compile_seconds is not None) == is_compiled
    assert row.seconds is None
    assert study.faults([row]) == []


def test_a_method_that_fails_is_a_fault_and_the_others_go_on():
    def fail(*_):
        raise ValueError("no such layer")

    failing = peers.Method("ldjax structured", "kernel", fail, np.asarray)
    methods = [failing, toy_method("ldjax lazy", 1.0)]
    rows = measure.measure(toy_case(), methods, repeats=1, limit=1e9)
    assert rows[1].seconds is not None
    (fault,) = study.faults(rows)
    assert "no such layer" in fault


def test_a_method_runs_in_a_process_of_its_own():
    """Its case is made again there, and what does not fit is said from there."""
    case = cases.make_case("C", small=False, seed=3)
    ours, *_ = study.methods_of(case)
    (apart,) = measure.measure(case, [ours], repeats=1, limit=1e9, seed=3)
    assert apart.note == ""
    assert apart.repeats == 1
    assert (apart.resident_bytes or 0) > (apart.bytes or 0) > 0
    (refused,) = measure.measure(case, [ours], repeats=1, limit=1e3, seed=3)
    assert "out of memory (needs" in refused.note


def test_an_answer_of_another_process_is_what_it_raised(tmp_path, monkeypatch):
    script = tmp_path / "asked.py"
    script.write_text(
        "import sys\nfrom experiments.benchmarks.ntk.process import serve\n"
        "serve(lambda x: (print('not an answer'), 1 / x)[1] if x < 9 else sys.exit(3))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    other = process.Process(script.stem)
    assert other.ask(2) == 0.5
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        other.ask(0)
    with pytest.raises(RuntimeError, match="its process ended with status 3"):
        other.ask(9)
    other.close()


def test_a_slow_method_has_fewer_repeats():
    counts = [measure.num_repeats(seconds, 5) for seconds in (0.1, 5.0, 10.0, 60.0)]
    assert counts == [5, 5, 2, 0]


def row(method, seconds, **numbers):
    return measure.Row("D", method, "kernel", seconds=seconds, **numbers)


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [(0.1, 0.81, True), (0.1, 0.79, False), (None, 0.8, None), (0.1, None, None)],
)
def test_a_ratio_is_held_against_its_target(ours, theirs, holds):
    rows = [
        row("ldjax factored", ours),
        row("ldjax lazy", 1e-9),  # a peer, if anything
        row("neural-tangents 2", theirs),
    ]
    (checked,) = targets.check_targets(rows)
    assert checked.holds is holds
    assert "D: seconds over that of neural-tangents 2 at most 0.125" in str(checked)


def test_the_fastest_of_ours_counts_with_its_own_memory():
    rows = [
        row("ldjax structured", 2.0, bytes=1),
        row("ldjax factored", 1.0, bytes=100),
    ]
    target = targets.Target("bytes", 50)
    assert targets.measured(rows, target) == 100


def test_a_missed_target_is_the_exit_status(monkeypatch, tmp_path):
    rows = [
        row("ldjax factored", 1.0),
        row("neural-tangents 2", 1.0),
    ]
    monkeypatch.setattr(study, "make_case", lambda *_, **__: toy_case())
    monkeypatch.setattr(study, "measure_case", lambda *_: rows)
    assert study.main(study.Config(cases="D", out=tmp_path / "run")) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (failure,) = summary["failures"]
    assert failure.startswith("missed: D: seconds over that of neural-tangents 2")
