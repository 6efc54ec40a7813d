"""The frame of the experiments: whose mistake it is, and in which words."""

import dataclasses
import errno
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ldjax.command import frame
from ldjax.data.preferences import read_preferences
from ldjax.runs.folder import create_run, start_run


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path = Path("runs/mine")
    data: str = "toy"
    texts: tuple[Path, ...] = ()
    on_bad_row: str = "error"
    resume: bool = False
    overwrite: bool = False


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("pass `resume=True` or `overwrite=True`", "pass --resume or --overwrite"),
        ('leave them out with `on_bad_row="skip"`', "out with --on-bad-row skip"),
        ("`on_bad_row` must be", "--on-bad-row must be"),
        ("pass `overwrite=False`", "pass --no-overwrite"),
        ("`beta` must be positive", "`beta` must be positive"),
        ("repeat with `--resume`", "repeat with `--resume`"),
    ],
)
def test_arguments_become_options(message, told):
    names = {field.name for field in dataclasses.fields(Config)}
    assert told in frame.worded(message, names)


def test_what_a_run_says_of_itself_is_in_the_words_of_the_door(capsys):
    frame.teller(Config())("`on_bad_row=skip`: 3 rows of `beta`")
    assert capsys.readouterr().out == "--on-bad-row skip: 3 rows of `beta`\n"


def _raising(error):
    def main(config):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("two\nlines"), "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), "a.txt: No such"),
        (MemoryError(), "there is not enough memory"),
        (MemoryError("needs 3 GB"), "needs 3 GB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, line):
    with pytest.raises(SystemExit, match=rf"^test_frame: [^\n]*{line}") as end:
        frame.experiment(_raising(error))(Config())
    assert "\n" not in str(end.value)


@pytest.mark.parametrize(
    "error", [TypeError("a"), KeyError("a"), AssertionError(), ZeroDivisionError()]
)
def test_errors_of_the_program_pass(error):
    with pytest.raises(type(error)):
        frame.experiment(_raising(error))(Config())


def test_a_value_error_is_the_users_where_we_found_it(tmp_path):
    def told_by_the_library(config):
        read_preferences(tmp_path / "nothing.jsonl")

    def of_a_library(config):
        np.zeros(3).reshape(2, 2)

    def of_jax(config):
        jnp.zeros(3).reshape(2, 2)

    def looked_at(config):
        with frame.set_up():
            np.zeros(3).reshape(2, 2)

    (tmp_path / "nothing.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(SystemExit, match=r"--on-bad-row skip|no field 'chosen'"):
        frame.experiment(told_by_the_library)(Config())
    script = tmp_path / "experiments" / "mine.py"
    names = {"np": np, "__name__": "mine"}
    exec(compile("def main(_): np.zeros(3).reshape(2, 2)", script, "exec"), names)
    for bug in (of_a_library, of_jax, names["main"]):
        with pytest.raises((ValueError, TypeError), match="reshape"):
            frame.experiment(bug)(Config())
    with pytest.raises(SystemExit, match=r"^test_frame: cannot reshape"):
        frame.experiment(looked_at)(Config())


def test_a_run_that_is_there_is_told_in_the_words_of_the_door(tmp_path):
    def main(config):
        with frame.set_up():
            start_run(config.out, {}, resume=config.resume, overwrite=False)

    create_run(tmp_path / "run", {}).write_metrics([])
    with pytest.raises(SystemExit, match=r"--resume to go on with it, or --overwrite"):
        frame.experiment(main)(Config(out=tmp_path / "run"))


def test_home_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pairs.jsonl").touch()
    config = Config(Path("~/mine"), "~/pairs.jsonl", (Path("~/a"), Path("b")))
    assert frame.expanded(config) == Config(
        tmp_path / "mine", str(tmp_path / "pairs.jsonl"), (tmp_path / "a", Path("b"))
    )
    # A text that only looks like a path, and nobody's home.
    for untouched in (Config(data="~ about"), Config(out=Path("~no-such-user/x"))):
        assert frame.expanded(untouched) is untouched


def test_the_one_who_stops_a_run_is_told_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # not `-m pytest`
    monkeypatch.setattr(sys, "argv", ["x.py", "--overwrite", "--out", "a b"])
    config = Config(out=tmp_path / "run")
    told = lambda: frame._Farewell(config)._how_to_go_on(signal.SIGINT)
    assert told() == f"stopped by Ctrl-C before {config.out} was begun."
    run = create_run(config.out, {})
    assert told().endswith("x.py --out 'a b' --resume")
    assert told().startswith("stopped by Ctrl-C before")  # it has been released
    run = create_run(config.out, {"seed": 1}, overwrite=True)
    assert told().endswith("numbers; the run in " + f"{config.out} is as it was.")
    del run


def test_a_signal_where_nothing_can_be_raised_comes_again(tmp_path):
    """In `__del__`, as in the callbacks of JAX, exceptions are ignored."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, sys, time
from ldjax.command import frame

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

@frame.experiment
def main(config):
    Deleted()
    time.sleep(60)

frame.run(main, None)
"""
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 143
    line = "script: stopped by SIGTERM before anything was begun."
    assert done.stderr.strip() == line


def test_a_program_that_does_not_come_to_it_is_ended(tmp_path):
    """As in a compilation: the interpreter is not there to raise anything."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, sys, threading, time
from ldjax.command import frame
frame.GRACE = 0.5

@frame.experiment
def main(config):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)

frame.run(main, None)
"""
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 130
    assert done.stderr.strip().startswith("script: stopped by Ctrl-C")
