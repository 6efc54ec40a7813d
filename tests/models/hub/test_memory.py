"""Loading holds little more than the parameters, at the size of GPT-2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BENCHMARK = "experiments.benchmarks.model"


@pytest.mark.slow
def test_loading_124_million_parameters_takes_little_more_than_they_are(tmp_path):
    # Each in a process of its own: memory that was freed stays with the process.
    draw = f"from {BENCHMARK} import draw; draw({str(tmp_path / 'gpt2')!r})"
    subprocess.run([sys.executable, "-c", draw], check=True, cwd=ROOT)
    options = ("--part", "load", "--model", tmp_path / "gpt2")
    measured = subprocess.run(
        [sys.executable, "-m", BENCHMARK, *map(str, options)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    found = json.loads(measured.stdout.splitlines()[-1])
    assert found["parameters"] == 4 * 124_439_808
    assert found["peak"] <= 1.5 * found["parameters"]
