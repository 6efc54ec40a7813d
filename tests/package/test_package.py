"""The package as a whole: light to import, documented by example, of one version."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
import time
import tomllib
import types
import typing
from importlib import metadata
from pathlib import Path

import pytest

import ldjax

ROOT = Path(__file__).parents[2]

HEAVY = [
    "tensorflow",
    "matplotlib",
    "neural_tangents",
    "sklearn",
    "pooch",
    "scipy.stats",
    "orbax",
    "tokenizers",
    "tqdm",
    "polars",
    "tensorboardX",
    "wandb",
]


def _run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_nothing_heavy():
    code = "import sys, ldjax; print(*sys.modules)"
    loaded = set(_run(code).split())
    baseline = set(_run("import sys, jax, optax; print(*sys.modules)").split())
    assert not loaded & set(HEAVY)
    top = lambda names: {name.split(".")[0] for name in names}
    added = top(loaded) - top(baseline) - sys.stdlib_module_names
    assert added <= {"ldjax", "jaxtyping"}, added  # so no flax, unless optax needs it


@pytest.mark.slow
def test_import_is_not_much_slower_than_that_of_its_dependencies():
    def seconds(code):
        start = time.perf_counter()
        _run(code)
        return time.perf_counter() - start

    ours, theirs = [], []
    for _ in range(3):  # interleaved: the machine may be busy
        ours.append(seconds("import ldjax"))
        theirs.append(seconds("import jax, flax, optax"))
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"\nimport ldjax takes {ratio:.2f} of jax, flax and optax")
    assert ratio < 1.5


@pytest.mark.slow
def test_lazy_submodules_are_found_and_others_are_not():
    code = "import ldjax; print(ldjax.models.LeNet.__name__, ldjax.data.__name__)"
    assert _run(code).split() == ["LeNet", "ldjax.data"]
    code = "import sys, ldjax.data, ldjax.models; print(*sys.modules)"
    assert not set(_run(code).split()) & {"sklearn", "pooch", "scipy.stats"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ldjax.nothing  # noqa: B018


def _modules():
    found = pkgutil.walk_packages(ldjax.__path__, "ldjax.")
    return ["ldjax", *(module.name for module in found)]


def _documented(module):
    """Public names of a module that are functions or classes, with where they live."""
    for name in module.__all__:
        thing = getattr(module, name)
        is_alias = typing.get_origin(thing) is not None or isinstance(
            thing, types.ModuleType | int | float | str | tuple | dict | types.UnionType
        )
        is_ours = getattr(thing, "__module__", None) == module.__name__
        if is_ours and not is_alias:  # a name is judged where it lives
            yield name, thing


def _is_public_package(name):
    spec = importlib.util.find_spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return is_package and name.split(".")[1:2] != ["command"]


def _api():
    """What packages export to everybody; each has an example."""
    packages = [name for name in _modules() if _is_public_package(name)]
    exported = ((importlib.import_module(name), name) for name in packages)
    return {
        getattr(module, each)
        for module, _ in exported
        for each in module.__all__
        if callable(getattr(module, each))
    }


@pytest.mark.parametrize("module_name", _modules())
def test_every_public_name_has_a_docstring_and_the_api_examples(module_name):
    module = importlib.import_module(module_name)
    assert module.__doc__, f"{module_name} has no docstring"
    if not hasattr(module, "__all__"):
        return
    assert len(set(module.__all__)) == len(module.__all__)
    missing, api = [], _api()
    for name, thing in _documented(module):
        text = inspect.getdoc(thing) or ""
        if not text or (id(thing) in api and ">>>" not in text):
            missing.append(name)
        if inspect.isclass(thing):  # an example of the class covers its methods
            missing += [
                f"{name}.{member}"
                for member, method in vars(thing).items()
                if not member.startswith("_")
                and member not in vars(thing).get("__annotations__", {})
                and (inspect.isfunction(method) or isinstance(method, property))
                and not inspect.getdoc(method)
            ]
    assert not missing, f"{module_name}: without an example {missing}"


def test_every_name_that_the_package_exports_exists():
    for name in ldjax.__all__:
        assert hasattr(ldjax, name)


def test_the_version_is_that_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("ldjax") == project["version"]


def test_names_of_the_library_are_there():
    """In Markdown and in docstrings, wherever a reader may copy them from."""
    files = [ROOT / "README.md", *(ROOT / "experiments").glob("*.md")]
    files += [*(ROOT / "ldjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    named = {
        name: file.name
        for file in files
        for name in re.findall(r"`(ldjax(?:\.\w+)+)", file.read_text("utf-8"))
    }
    assert len(named) > 20
    for name, file in named.items():
        assert pkgutil.resolve_name(name) is not None, (name, file)
