"""The example of a loop of one's own, as a reader runs it."""

import ast

import numpy as np
import polars as pl
import pytest
from shell.scripts import EXPERIMENTS, run_script

from ldjax.runs.folder import open_run

SCRIPT = EXPERIMENTS / "own_loop.py"


def lines_of(node):
    return set(range(node.lineno, node.end_lineno + 1))


def code_lines(source):
    """Lines that do something: no imports, docstrings, comments or blank lines."""
    tree, spared = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node):
                spared |= lines_of(node.body[0])
        elif isinstance(node, ast.Import | ast.ImportFrom):
            spared |= lines_of(node)
    return [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and line.strip()[0] != "#" and number not in spared
    ]


def test_it_is_a_short_script():
    assert len(code_lines(SCRIPT.read_text())) <= 30


@pytest.mark.slow
def test_a_readers_loop_records_probes_and_makes_a_report(tmp_path):
    out = tmp_path / "run"
    done = run_script(SCRIPT, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"the report, for a browser: {out / 'report.html'}\n"
    assert "Content-Security-Policy" in (out / "report.html").read_text()
    run = open_run(out)
    changes = run.summary["changes"]
    assert changes["train"]["chosen"]["end"] > -0.1  # it learned its answers
    assert changes["train"]["rejected"]["end"] < -5
    metrics = run.metrics()
    for type_ in ("chosen", "rejected"):
        of_type = metrics.filter(pl.col("type") == type_)
        sums = {
            quantity: of_type.filter(
                (pl.col("quantity") == quantity)
                & pl.col("probe").str.starts_with("tracked/")
            )["value"]
            for quantity in ("measured", "predicted", "floor")
        }
        move = changes["train"][type_]["end"] - changes["train"][type_]["start"]
        # Four prompts; float32, whose rounding every update has once.
        assert sums["measured"].sum() == pytest.approx(
            4 * move, abs=float(sums["floor"].sum())
        )
        assert sums["predicted"].sum() == pytest.approx(4 * move, rel=0.1)
        missed = np.linalg.norm(sums["measured"] - sums["predicted"])
        assert missed < 0.1 * np.linalg.norm(sums["measured"])
