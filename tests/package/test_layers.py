"""Which room knows which: imports go down, past no private door, light before heavy.

Every import counts, those inside functions and those for type checkers too. `LAYERS` is
the order; a module may import from its own room and from rooms below it.
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
    "report",
    "finetune",
    "studies",
    "cli",
    "__init__",
)
#: Packages that take long to import or are not everybody's, and who may.
HEAVY = {
    "flax": ("linen", "ntk.layers", "models", "finetune", "studies"),
    "matplotlib": ("report.figures", "report.curves", "studies"),
    "tyro": ("command", "report.__main__", "finetune", "studies"),
    "neural_tangents": ("ntk.neural_tangents",),
}
#: What is there that must not be, as `importer: name`. It may only get shorter.
KNOWN: set[str] = set()

RANK = {room: rank for rank, room in enumerate(LAYERS)}


def _imports(source, package):
    """Every import of a module, as its full name and the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                name = ".".join((*base, *filter(None, [node.module])))
            else:
                name = node.module or ""
            yield name, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


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
            if room not in RANK:
                yield f"{place}: {room} through the facade"
                continue
            if room != own[0] and RANK[room] >= RANK[own[0]]:
                yield f"{place}: {'.'.join(target)} is not below"
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
    assert sorted(found - KNOWN) == []
    assert sorted(KNOWN - found) == [], "mended: take it off the list"


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from ldjax.ntk import plan", ("memory",)),
        ("def f():\n    from ldjax.ntk.plan import plan", ("memory",)),
        ("if TYPE_CHECKING:\n    import ldjax.runs.folder", ("files",)),
        ("from ..report import page", ("ntk", "plan")),
        ("from . import report", ("memory",)),
        ("from ldjax import make_step", ("report", "page")),
        ("import ldjax", ("report", "page")),
        ("from ldjax.ntk import _secret", ("report", "page")),
        ("from ldjax.ntk._rates import machine_rates", ("report", "page")),
        ("import matplotlib.pyplot as plt", ("report", "page")),
        ("def f():\n    import flax.linen as nn", ("equation", "step")),
    ],
)
def test_what_must_not_be_is_seen(source, own):
    assert len(list(violations(source, own))) == 1
    assert not list(violations("import numpy\nfrom ldjax.memory import x", own))


def test_every_room_has_its_place():
    rooms = Counter(LAYERS)
    there = {p.stem for p in PACKAGE.glob("*.py")}
    there |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rooms) == there
    assert set(rooms.values()) == {1}
