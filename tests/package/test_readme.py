"""What the README and the documentation tell a reader to type and to open is there.

That every command is understood is `test_commands`; here `make test-exhaustive` runs
those of the README and of the guides, at tiny size. Every link opens, and so does every
page that a docstring cites.
"""

import gzip
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from shell.commands import commands_in, is_program
from shell.scripts import ROOT, run_script

from ldjax.report import __main__ as report
from ldjax.runs.folder import create_run

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "experiments").glob("*.md"),
    *DOCS,
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}
MNIST = ROOT.parent / "shared" / "data" / "mnist"

#: Each once, with the first page that has it.
COMMANDS = {c: name for name in reversed(TEXTS) for c in commands_in(TEXTS[name])}
LONG = ("experiments/", "docs/results/")
TO_RUN = [
    command
    for command, name in COMMANDS.items()
    if is_program(command) and not name.startswith(LONG) and " -m " not in command
]


def test_commands_are_found():
    readme = commands_in(TEXTS["README.md"])
    assert len(set(filter(is_program, readme))) >= 5
    assert len(commands_in(TEXTS["experiments/README.md"])) >= 20
    assert len(TO_RUN) >= 15
    assert {"make install", "make test", "make lint", "make demo"} <= set(COMMANDS)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 110


@pytest.mark.parametrize("page", TEXTS)
def test_every_name_is_there(page):
    if page == "CHANGELOG.md":  # knows names that were
        return
    for name in set(re.findall(r"`(ldjax(?:\.\w+)+)", TEXTS[page])):
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.util.find_spec(name), name


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_path_is_there(page):
    text = TEXTS[page].partition("| was | is |")[0]
    paths = re.findall(r"`((?:ldjax|tests|docs|experiments)/[\w./]*)`", text)
    assert paths or page == "CHANGELOG.md"
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_what_has_moved_is_where_the_changelog_says():
    rows = re.findall(r"^\| `.* \| (.*) \|$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        last = ""
        for name in re.findall(r"`((?:ldjax)?\.[\w.]+)`", row):
            last = name if name[0] == "l" else last.rpartition(".")[0] + name
            assert importlib.util.find_spec(last), (row, last)


def _anchors(path):
    """The identifiers that headings of a page are given."""
    return set(re.findall(r"^#.*\{ #([\w-]+) \}$", path.read_text("utf-8"), re.M))


def missing_links(text, folder):
    """Links of a Markdown text that open nothing; those to the web are not tried."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        if not place:  # of the page itself
            if anchor not in re.findall(r"\{ #([\w-]+) \}", text):
                yield target
            continue
        path = folder / place
        generated = path.suffix == ".ipynb" and path.parent == ROOT / "docs/learn"
        if generated:  # the build puts them there
            path = ROOT / "experiments/notebooks" / path.name
        if not path.is_file() or (anchor and anchor not in _anchors(path)):
            yield target


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_opens(page):
    assert list(missing_links(TEXTS[page], (ROOT / page).parent)) == []


def test_a_link_that_opens_nothing_is_seen():
    there, absent = (
        "[a](start.md) [b](theory/kernel.md#head)",
        ["no.md", "start.md#c", "#d"],
    )
    text = there + "".join(f"[e]({target})" for target in absent)
    assert list(missing_links(text, ROOT / "docs")) == absent


def missing_citations(text):
    """Pages of the documentation, or headings of one, that are cited and not there."""
    for page, anchor in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
        path = ROOT / page
        if not path.is_file() or (anchor and anchor not in _anchors(path)):
            yield page, anchor


def test_every_page_that_the_code_cites_opens():
    sources = [p for d in ("ldjax", "experiments") for p in (ROOT / d).rglob("*.py")]
    texts = {path: path.read_text("utf-8") for path in sources}
    cited = {path for path, text in texts.items() if "docs/theory/" in text}
    assert len(cited) >= 10
    assert not [m for text in texts.values() for m in missing_citations(text)]
    assert list(missing_citations("see docs/theory/kernel.md#nowhere"))


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(listed) == [p.relative_to(ROOT / "docs").as_posix() for p in DOCS]


def test_the_reference_names_modules_that_are_there():
    named = re.findall(r"^::: ([\w.]+)$", "\n".join(TEXTS.values()), re.MULTILINE)
    assert len(named) > 40
    assert not [name for name in named if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_the_makefile_has_what_is_named(command):
    makefile = (ROOT / "Makefile").read_text()
    for target in [word for word in command.split()[1:] if not word.startswith("-")]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_extras_that_are_named_are_there(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"pip install .*?\[(\w+)\]", TEXTS[page])
    assert set(extras) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("ldjax report ")]
)
def test_a_page_is_written(tmp_path, monkeypatch, capsys, command):
    args = shlex.split(command)[2:]
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
@pytest.mark.parametrize("command", TO_RUN)
def test_a_command_runs(tmp_path, cache, command):
    script, args = _script_of(command)
    if script is None:
        return
    places = {"DIR": str(MNIST)}
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
        if "--smoke" not in args and script != "own_loop":
            args.append("--smoke")
    script = ROOT / "experiments" / f"{script}.py"
    done = run_script(script, *args, cwd=tmp_path, cache=cache)
    if "--preset" in args:  # a model of the hub, which is not to be had here
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Anthropic/hh-rlhf" in done.stderr  # its data are read first
    else:
        assert done.returncode == 0, done.stderr


def _script_of(command):
    """The script that is a command, and its options; None if it has none."""
    program, name, *args = shlex.split(command)
    if program == "python":
        return Path(name).stem, args
    if name == "study":
        name, *args = args
    name = {"why": "displacement", "stability": "kernel_stability"}.get(name, name)
    return (name if (ROOT / "experiments" / f"{name}.py").is_file() else None), args


def _pairs(folder):
    """A file of preference pairs."""
    line = '{{"prompt": "Is {0} even?", "chosen": " It is {0}.", "rejected": " No"}}\n'
    lines = [line.format(i) for i in range(40)]
    path = folder / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return path
