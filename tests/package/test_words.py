"""The library answers in the words of Python; options are the command line's.

`ldjax.command.frame.worded` turns `resume=True` into `--resume` where a program tells
what the library refused.
"""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ldjax"

#: What has a command line: the frame, the console command, and settings of programs.
SPEAKING = re.compile(
    r"command\..*|cli|report\.__main__"
    r"|(finetune|compare|studies)\.(.*\.)?settings(\..*)?|finetune\.pipeline|studies\.study"
)
#: Their modules' docstrings are the help.
PROGRAMS = ("finetune", "compare", "studies")
#: Options of programs that are not ours: git, the hub's, TensorBoard, llama.cpp's, pip.
FOREIGN = {
    *("--porcelain", "--repo-type", "--revision", "--local-dir", "--logdir", "--merge"),
    *("--no-deps", "--only-binary", "--dest", "--no-input", "--quiet"),
    "--disable-pip-version-check",
}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def spoken(source, *, has_help=False):
    """The options of ours that a module's strings name, its docstrings too."""
    tree = ast.parse(source)
    if has_help and ast.get_docstring(tree) is not None:
        del tree.body[0]
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return [name for text in texts for name in _OPTION.findall(text)]


def test_the_library_does_not_speak_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        place = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not SPEAKING.fullmatch(place):
            source, has_help = path.read_text("utf-8"), place.startswith(PROGRAMS)
            assert set(spoken(source, has_help=has_help)) <= FOREIGN, place


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise ValueError("pass `--overwrite`")', 1),
        ('raise ValueError(f"{path}: --log {name} needs it")', 1),
        ('def f():\n    """What `--log` names."""', 1),
        ('"a -- b", "--", "a--b", "`resume=True`"', 0),
    ],
)
def test_options_in_strings_are_seen(source, count):
    assert len(spoken(source)) == count


def test_only_a_programs_help_may_name_options():
    source = '"""With `--log`."""\n\nraise ValueError("pass --overwrite")'
    assert spoken(source, has_help=True) == ["--overwrite"]
