"""Experiments as their users start them, at tiny size."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def environment(cache=None, *, xla_flags="", **variables):
    """In which a script that compiles for longer than it runs compiles with less care.

    Compiled functions are kept: by all tests together where a place for them is set, as
    in CI, else in `cache` if there is one.
    """
    settings = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if cache is not None:
        settings["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    flags = (os.environ.get(name, "") for name in ("XLA_FLAGS", "FAST_XLA_FLAGS"))
    variables["XLA_FLAGS"] = " ".join(filter(None, (*flags, xla_flags)))
    settings["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return settings | os.environ | variables


def command(script, *args):
    """That starts an experiment: a script, or a module by its name."""
    is_file = str(script).endswith(".py")
    place = [str(EXPERIMENTS / script)] if is_file else ["-m", script]
    return [sys.executable, *place, *map(str, args)]


def run_script(script, *args, cwd: Path = ROOT, **settings: Any):
    """An experiment from beginning to end, in an `environment` with `settings`."""
    return subprocess.run(
        command(script, *args),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(**settings),
    )
