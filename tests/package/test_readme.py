"""Every command of the README is one that its script understands, and runs.

In CI each is read by the script's own command line; `make test-exhaustive` runs them,
at tiny size. (`make test` and `make lint` are what CI is, and the smoke of the scripts
has tests of its own there.)
"""

import gzip
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from shell.commands import understood
from shell.scripts import ROOT, run_script

from ldjax.report import __main__ as report
from ldjax.runs.folder import create_run

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:python|make) [^#\n]*?) *(?:#.*)?$", TEXT, re.MULTILINE)
SCRIPTS = [c for c in COMMANDS if c.startswith("python experiments/")]
MNIST = ROOT.parent / "shared" / "data" / "mnist"


def test_commands_are_found():
    assert len(SCRIPTS) >= 12
    assert {"make demo", "make test", "make lint"} <= set(COMMANDS)
    assert any(c.startswith("python -m ldjax.report ") for c in COMMANDS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(ldjax(?:\.\w+)+)", TEXT))))
def test_every_name_is_there(name):
    module, _, attribute = name.rpartition(".")
    found = importlib.import_module(module)
    assert hasattr(found, attribute) or importlib.util.find_spec(name)


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if "make" in c])
def test_the_makefile_has_what_is_named(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_command_is_understood(capsys, command):
    understood(command)
    with pytest.raises(SystemExit, match="2"):  # so an option can be wrong
        understood(f"{command.removesuffix(' --help')} --no-such-option 1")
    capsys.readouterr()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m ldjax.report" in c])
def test_a_page_is_written(tmp_path, monkeypatch, capsys, command):
    args = shlex.split(command)[3:]
    monkeypatch.chdir(tmp_path)
    for folder in args[: args.index("--out")]:
        run = create_run(Path(folder), {})
        run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
    assert report.main(report.parse(args)) == 0
    assert Path(args[-1]).is_file()
    assert args[-1] in capsys.readouterr().out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", SCRIPTS)
def test_a_command_runs(tmp_path, cache, command):
    _, script, *args = shlex.split(command)
    (tmp_path / "words.txt").write_text("a plain text, and then another one. " * 400)
    places = {"FILE...": str(tmp_path / "words.txt"), "DIR": str(MNIST)}
    if "pairs.jsonl.gz" in args:
        places = {"DIR": "toy", "pairs.jsonl.gz": str(_pairs(tmp_path))}
    elif "DIR" in args and not MNIST.is_dir():
        pytest.skip("needs shared/data/mnist")
    args = [places.get(arg, arg) for arg in args]
    if "--help" not in args:
        if "--out" in args:
            args[args.index("--out") + 1] = str(tmp_path / "run")
        else:
            args += ["--out", str(tmp_path / "run")]
        if "--smoke" not in args and not script.endswith("own_loop.py"):
            args.append("--smoke")
    done = run_script(ROOT / script, *args, cwd=tmp_path, cache=cache)
    if "--preset" in args:  # a model of the hub, which is not to be had here
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "EleutherAI/pythia-410m" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def _pairs(folder):
    """A file of preference pairs."""
    line = '{{"prompt": "Is {0} even?", "chosen": " It is {0}.", "rejected": " No"}}\n'
    lines = [line.format(i) for i in range(40)]
    path = folder / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return path
