"""Which room knows which: imports go down, past no private door, light before heavy.

Every import counts: those inside functions, those for type checkers, and a module that
is imported by its name. `LAYERS` is the order; a module may import from its own room
and from rooms below it.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ldjax"

#: From the ground up. A module of the top level is a room of its own.
LAYERS = (
    "progress",
    "memory",
    "precision",
    "files",
    "command",
    "programs",
    "equation",
    "losses",
    "linen",
    "ntk",
    "data",
    "runs",
    "models",
    "theory",
    "watch",
    "origins",
    "report",
    "finetune",
    "compare",
    "studies",
    "cli",
    "__init__",
)
#: Packages that take long to import or are not everybody's, and who may.
HEAVY = {
    "flax": ("linen", "ntk.layers", "models", "finetune", "studies"),
    "matplotlib": ("report.figures", "report.curves", "studies"),
    "tyro": ("command", "report.__main__", "finetune", "compare", "studies"),
    "neural_tangents": ("ntk.neural_tangents",),
}
RANK = {room: rank for rank, room in enumerate(LAYERS)}


def _imports(source, package):
    """Every import of a module, as its full name and the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            name = _absolute("." * node.level + (node.module or ""), package)
            yield name, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import(node.func):
            match node.args:
                case [ast.Constant(str(name)), *_]:
                    yield _absolute(name, package), []


def _absolute(name, package):
    """A module's name without the dots that it may begin with."""
    module = name.lstrip(".")
    level = len(name) - len(module)
    base = package[: len(package) - level + 1] if level else ()
    return ".".join((*base, *filter(None, [module])))


def _is_import(function):
    """Whether it is `importlib.import_module` or `__import__`, however imported."""
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("import_module", "__import__")


def violations(source, own):
    """What a module imports that it must not, in words.

    Args:
      source: Its text.
      own: Its place in the package, as `("ntk", "plan")`.
    """
    place = ".".join(own)
    for module, names in _imports(source, ("ldjax", *own[:-1])):
        top, *inner = module.split(".")
        if top != "ldjax":
            rooms = HEAVY.get(top)
            if rooms is not None and not place.startswith(rooms):
                yield f"{place}: {module} is heavy"
            continue
        targets = [inner] if inner else [[name] for name in names] or [["__init__"]]
        for target in targets:
            room = target[0]
            if room not in RANK or (room == "__init__" and own[0] != room):
                yield f"{place}: {room} through the facade"
                continue
            if room != own[0] and RANK[room] >= RANK[own[0]]:
                yield f"{place}: {'.'.join(target)} is not below"
            is_study = room == own[0] == "studies" and target[1:2] not in ([], [own[1]])
            if is_study and (PACKAGE / room / target[1]).is_dir():
                yield f"{place}: {'.'.join(target)} is another study"
            for name in (*target, *(names if inner else ())):
                if name.startswith("_") and not name.endswith("__"):
                    yield f"{place}: {name} is private"


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def test_imports_point_down_and_past_no_private_door():
    found = set()
    for path in _modules():
        own = path.relative_to(PACKAGE).with_suffix("").parts
        found |= set(violations(path.read_text("utf-8"), own))
    assert sorted(found) == []


#: Where an import must not be, what it is, and what is said of it.
PLANTED = [
    ("memory", "from ldjax.ntk import plan", "ntk is not below"),
    ("memory", "import ldjax.ntk.plan", "ntk.plan is not below"),
    (
        "memory",
        "def f():\n    from ldjax.ntk.plan import plan",
        "ntk.plan is not below",
    ),
    ("memory", "class A:\n    import ldjax.report as r", "report is not below"),
    ("files", "if TYPE_CHECKING:\n    import ldjax.runs.folder", "runs.folder is not"),
    ("ntk.plan", "from ..report import page", "report is not below"),
    ("ntk.layers.taps", "from ...report import page", "report is not below"),
    ("ntk.layers.__init__", "from ... import report", "report is not below"),
    ("memory", "from . import report", "report is not below"),
    ("ntk.plan", "import_module('ldjax.report')", "report is not below"),
    ("ntk.plan", "importlib.import_module('..report', 'ldjax.ntk')", "report is not"),
    ("ntk.plan", "def f():\n    return __import__('ldjax.report')", "report is not"),
    ("report.page", "from ldjax import make_step", "make_step through the facade"),
    ("report.page", "from .. import make_step", "make_step through the facade"),
    ("report.page", "import ldjax", "__init__ through the facade"),
    ("report.page", "from ldjax.ntk import _secret", "_secret is private"),
    ("report.page", "from ldjax.ntk._rates import rates", "_rates is private"),
    ("report.page", "from ldjax.report._words import told", "_words is private"),
    ("report.page", "import matplotlib.pyplot as plt", "matplotlib.pyplot is heavy"),
    ("equation.step", "def f():\n    import flax.linen as nn", "flax.linen is heavy"),
    ("files.whole", "import_module('tyro')", "tyro is heavy"),
    (
        "studies.kernel.study",
        "from ldjax.studies.mnist import results",
        "studies.mnist",
    ),
    ("studies.policies", "from ldjax.studies.mnist.claims import x", "studies.mnist"),
]


@pytest.mark.parametrize(("place", "source", "said"), PLANTED)
def test_what_must_not_be_is_seen(place, source, said):
    own = tuple(place.split("."))
    (line,) = violations(source, own)
    assert line.startswith(f"{place}: {said}")


def test_what_may_be_is_not_seen():
    downwards = "import numpy\nfrom ldjax.files import x\nfrom . import words"
    by_name = "importlib.import_module(name)\nimport_module('ldjax.ntk.plan')"
    for source in (downwards, by_name):
        assert not list(violations(source, ("report", "page")))


def test_every_room_has_its_place():
    rooms = Counter(LAYERS)
    there = {p.stem for p in PACKAGE.glob("*.py")}
    there |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rooms) == there
    assert set(rooms.values()) == {1}
