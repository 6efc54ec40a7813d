"""Rooms are small, and the library does not speak the command line."""

import ast
import dataclasses
import importlib
import re

import pytest
from shell.scripts import ROOT

from ldjax.cli import COMMANDS, STUDIES
from ldjax.command.options import flag

MOST_MODULES = 14
MOST_LINES = 450
#: Modules that may be longer, each with its reason.
LONGER: dict[str, str] = {
    "ldjax/equation/linear_map.py": "to be split: the map, and Jacobians",
    "ldjax/watch/recorder.py": "to be split: the loop's side and the folder's",
}
#: Where options are named: programs, their settings, and what speaks for them.
SPEAKERS = re.compile(
    r"ldjax/(cli|command/\w+|report/__main__|finetune/.*|studies/.*)\.py"
)


def crowded(sizes):
    """Folders of too many modules, given those of every folder."""
    return {folder: n for folder, n in sizes.items() if n > MOST_MODULES}


def too_long(lines):
    """Modules of too many lines, given those of every module."""
    return {name: n for name, n in lines.items() if n > MOST_LINES}


def test_no_folder_is_crowded():
    sizes = {}
    for path in (*ROOT.glob("ldjax/**/*.py"), *ROOT.glob("experiments/**/*.py")):
        folder = str(path.parent.relative_to(ROOT))
        sizes[folder] = sizes.get(folder, 0) + 1
    assert len(sizes) > 30
    assert crowded(sizes) == {}


def test_no_module_is_long():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in ROOT.glob("ldjax/**/*.py")
    }
    assert set(too_long(lines)) - set(LONGER) == set()
    assert set(LONGER) - set(lines) == set()


def test_what_is_too_large_is_seen():
    assert crowded({"ldjax/a": 14, "ldjax/b": 15}) == {"ldjax/b": 15}
    assert too_long({"a.py": 450, "b.py": 451}) == {"b.py": 451}


def _options():
    """What programs are asked on their command lines."""
    for place, _ in (COMMANDS | STUDIES).values():
        yield from _options_of(importlib.import_module(place).Config)


def _options_of(settings):
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(field.default_factory):  # a record of options
            yield from _options_of(field.default_factory)
        else:
            yield flag(field.name)


def spoken(source, options):
    """The options that texts of a module name."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(texts))) & options


def test_the_library_does_not_speak_the_command_line():
    options, found = set(_options()), {}
    for path in ROOT.glob("ldjax/**/*.py"):
        name = str(path.relative_to(ROOT))
        if not SPEAKERS.fullmatch(name):
            found[name] = spoken(path.read_text("utf-8"), options)
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "source", ['"pass --resume"', 'f"{x}: `--resume` goes on"', '"""As --resume."""']
)
def test_an_option_in_a_text_is_seen(source):
    assert spoken(source, {"--resume", "--log"}) == {"--resume"}
    assert not spoken("'a --resume-not and --other'  # --resume", {"--resume"})
