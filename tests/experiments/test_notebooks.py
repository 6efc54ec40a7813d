"""The notebooks as their readers run them, and as the repository keeps them.

`make test` executes all five without neural-tangents, as on a JAX that it cannot be
loaded on, and the one that uses it with it as well, on two devices; `make
test-exhaustive` executes all five with it.
"""

import ast
import base64
import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from scripts import EXPERIMENTS, run_script

SOURCES = sorted((EXPERIMENTS / "notebooks").glob("*.py"))
NAMES = [path.stem for path in SOURCES]
HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "neural_tangents":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
each_notebook = pytest.mark.parametrize("path", SOURCES, ids=NAMES)


def cells_of(path):
    """What the two forms of a notebook share: kinds, tags and sources of its cells."""
    import jupytext

    return [
        (cell.cell_type, cell.metadata.get("tags", []), cell.source)
        for cell in jupytext.read(path).cells
    ]


def saved(path):
    return json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))


def setup_cell(path):
    return next(source for kind, _, source in cells_of(path) if kind == "code")


# As they are kept


def test_there_are_five():
    assert len(NAMES) == 5
    assert [name[0] for name in NAMES] == ["1", "2", "3", "4", "5"]


@each_notebook
def test_both_forms_hold_the_same_cells(path):
    assert cells_of(path) == cells_of(path.with_suffix(".ipynb"))


@each_notebook
def test_the_only_output_is_the_reference_figure(path):
    code = [cell for cell in saved(path)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] is None for cell in code)
    tagged = [cell for cell in code if cell["metadata"].get("tags") == ["reference"]]
    (cell,), others = tagged, [cell for cell in code if cell not in tagged]
    assert not any(other["outputs"] for other in others)
    (output,) = cell["outputs"]
    # With this text it holds no path, no host and no time.
    assert output["data"].pop("text/plain") == ["<IPython.core.display.Image object>"]
    figure = base64.b64decode(output["data"].pop("image/png"))
    assert figure.startswith(b"\x89PNG")
    assert len(figure) < 500_000
    assert not output["data"]


@each_notebook
def test_functions_are_short_and_say_what_they_do(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 15, node.name
            assert ast.get_docstring(node), node.name


def test_all_begin_with_the_same_cell():
    assert len({setup_cell(path) for path in SOURCES}) == 1


# The first cell where there is no checkout


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The functions of the first cell, in a folder that is nobody's checkout."""
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(setup_cell(SOURCES[0]))
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    before = next(i for i, n in enumerate(tree.body) if isinstance(n, ast.FunctionDef))
    tree.body = [
        node
        for i, node in enumerate(tree.body)
        if isinstance(node, ast.FunctionDef) or (i < before and isinstance(node, kept))
    ]
    names = {}
    exec(compile(tree, "setup", "exec"), names)
    return names


def archive(folder, *, name):
    """An archive of what `find` looks for, in a folder of its own as git makes them."""
    source = folder / "packed" / "ldjax-main" / "experiments"
    source.mkdir(parents=True)
    (source / "notebook_start.py").write_text("")
    shutil.make_archive(str(folder / "ldjax"), name, folder / "packed")
    shutil.rmtree(folder / "packed")


@pytest.mark.parametrize(("name", "suffix"), [("zip", "zip"), ("gztar", "tar.gz")])
def test_an_archive_is_unpacked_once(setup, tmp_path, name, suffix):
    archive(tmp_path, name=name)
    assert setup["find"]() is None
    fetched = setup["fetch"](f"ldjax.{suffix}")
    assert fetched == Path("ldjax-source/ldjax-main/experiments")
    assert setup["find"]() == fetched


def test_a_git_repository_is_cloned(setup, tmp_path):
    origin = tmp_path / "origin"
    (origin / "experiments").mkdir(parents=True)
    (origin / "experiments" / "notebook_start.py").write_text("")
    for command in ("init --quiet", "add .", "commit --quiet --message=first"):
        git = ["git", "-c", "user.name=me", "-c", "user.email=me", *command.split()]
        subprocess.run(git, cwd=origin, check=True)
    origin.rename(tmp_path / "moved")  # not what `find` finds
    assert setup["fetch"](f"file://{tmp_path}/moved").name == "experiments"


def test_what_is_not_there_is_one_clear_line(setup, tmp_path):
    with pytest.raises(SystemExit, match=r"There is no ldjax\.zip here: upload"):
        setup["fetch"]("ldjax.zip")
    (tmp_path / "other").mkdir()
    shutil.make_archive("other", "zip", "other")
    with pytest.raises(SystemExit, match=r"other\.zip is no copy of the repository"):
        setup["fetch"]("other.zip")


def test_the_checkout_around_a_notebook_is_found(setup, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS / "notebooks")
    assert setup["find"]() == EXPERIMENTS


# Executed


def execute(*names, out, **settings):
    """In fresh kernels at tiny size; what each cell said, by notebook."""
    result = run_script("notebook_run.py", *names, "--smoke", "--out", out, **settings)
    assert result.returncode == 0, result.stdout + result.stderr
    return {name: said(out / f"{name}.ipynb") for name in names}


def said(path):
    """All text of an executed notebook, every cell of which has run."""
    code = [cell for cell in saved(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    reference = [c for c in code if c["metadata"].get("tags") == ["reference"]]
    assert "image/png" in reference[0]["outputs"][-1]["data"]
    outputs = [output for cell in code for output in cell["outputs"]]
    return "".join("".join(output.get("text", ())) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("names", [NAMES[:2], NAMES[2:4], NAMES[4:]])
def test_all_run_from_a_clean_kernel_without_neural_tangents(tmp_path, names):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    told = execute(*names, out=tmp_path / "out", PYTHONPATH=str(tmp_path))
    for text in told.values():
        assert "kernel methods: lazy, structured, factored\n" in text
        assert text.count("neural-tangents 0.6.5 cannot be imported") >= 2
        assert "FAILS" not in text


@pytest.mark.slow
def test_the_equation_runs_with_neural_tangents_and_on_two_devices(tmp_path):
    told = execute(
        NAMES[0],
        out=tmp_path / "out",
        xla_flags="--xla_force_host_platform_device_count=2",
    )[NAMES[0]]
    assert "CPU: 2 x cpu\n" in told
    assert "kernel methods: jacobian, ntk_vp, lazy, structured, factored\n" in told
    norms = [line.split("|K| = ")[1] for line in told.splitlines() if "|K| =" in line]
    assert len(norms) == 5
    assert len(set(norms)) == 1


@pytest.mark.exhaustive
def test_all_run_from_a_clean_kernel(tmp_path):
    for text in execute(*NAMES, out=tmp_path).values():
        assert "kernel methods: jacobian, ntk_vp, lazy, structured, factored\n" in text
        assert "FAILS" not in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoke": True}, "--smoke needs --out"),
        ({"names": ("6_more",)}, "no notebook 6_more; there are 1_equation, 2_mnist"),
    ],
)
def test_a_mistake_is_one_clear_line(settings, message):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        notebook_run = importlib.import_module("notebook_run")
    with pytest.raises(SystemExit, match=message):
        notebook_run.main(notebook_run.Config(**settings))
