"""Experiments under hostile input: one line, nothing lost, nothing that hangs."""

import json
import subprocess
import sys

import pytest
from hostile.cases import CASES, kept
from hostile.world import check, contents, copy, in_process, make_folder
from shell.scripts import ROOT, environment

SERVER = ROOT / "tests" / "hostile" / "server.py"
FAST = [case for case in CASES if case.is_fast]


class Server:
    """Processes that need not import anything (see `server.py`)."""

    def __init__(self, **variables):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(HF_HUB_OFFLINE="1", **variables),
        )
        assert self._read() == "ready\n"

    def __call__(self, script, args, cwd, **job):
        assert self._process.stdin is not None
        words = [arg.encode(errors="surrogateescape").decode("latin-1") for arg in args]
        job |= {"script": script, "args": words, "cwd": str(cwd)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self):
        self._process.kill()
        self._process.communicate()

    def _read(self):
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a user has who has trained nothing."""
    return make_folder(tmp_path_factory.mktemp("plain") / "folder")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    served = Server(cache=tmp_path_factory.mktemp("compiled"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def trained(plain, server, tmp_path_factory):
    """What a user has who has: a base model, and a finetuned one."""
    folder = copy(plain, tmp_path_factory.mktemp("trained") / "folder")
    for script, args in {
        "pretrain.py": ("--smoke", "--out", "base"),
        "finetune.py": ("--smoke", "--init", "base", "--out", "run"),
    }.items():
        done = server(script, args, folder, limit=300)
        assert done["status"] == 0, done
    return folder


def test_there_are_cases_of_every_kind():
    kinds = {case.kind for case in CASES}
    assert kinds == {
        *("lost", "paths", "numbers", "data", "words", "model files", "damaged"),
        *("no room", "stopped", "memory"),
    }
    assert len(CASES) >= 150


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_it_is_refused_in_one_line(case, plain, tmp_path, monkeypatch):
    folder = copy(plain, tmp_path / "folder")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    if case.change:
        case.change(folder)
    names = kept(case)
    old = {name: contents(folder / name) for name in names}
    done = in_process(case)
    check(case, done, folder, old)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_lost_and_nothing_hangs(case, request, server, tmp_path):
    start = "trained" if case.needs_training else "plain"
    folder = copy(request.getfixturevalue(start), tmp_path / "folder")
    if case.change:
        case.change(folder)
    old = {name: contents(folder / name) for name in kept(case)}
    job = {"HOME": str(folder), "limit": case.limit, **case.job}
    done = server(case.script, case.args, folder, **job)
    assert done["seconds"] < case.limit, case.name
    check(case, done, folder, old)
    if case.then:
        again = server(case.script, case.then, folder, limit=300)
        assert again["status"] == 0, again
