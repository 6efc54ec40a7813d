"""The notebooks as their readers run them, and as the repository keeps them.

`make test` executes all five without neural-tangents, as on a JAX that it cannot be
loaded on, and the one that uses it with it as well, on two devices; `make
test-exhaustive` executes all five with it.
"""

import ast
import base64
import importlib.metadata
import json
import re

import pytest
from shell.scripts import EXPERIMENTS, run_script

from experiments.notebooks import run

SOURCES = sorted((EXPERIMENTS / "notebooks").glob("[0-9]*.py"))
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


def test_the_first_cell_installs_and_does_nothing_else():
    (setup,) = {setup_cell(path) for path in SOURCES}
    (command,) = [line for line in setup.splitlines() if not line.startswith("# ")]
    assert re.fullmatch(r"%pip install [\w -]*ldjax", command)


# Executed


def installed():
    return {distribution.name for distribution in importlib.metadata.distributions()}


def execute(*names, out, **settings):
    """In fresh kernels at tiny size; what each cell said, by notebook."""
    before = installed()
    result = run_script(
        "experiments.notebooks.run", *names, "--smoke", "--out", out, **settings
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert installed() == before  # the first cell adds nothing to this environment
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
    with pytest.raises(SystemExit, match=message):
        run.main(run.Config(**settings))
