"""Rooms are small: folders of few modules, modules of few lines."""

from shell.scripts import ROOT

MOST_MODULES = 14
MOST_LINES = 450


def crowded(sizes):
    """Folders of too many modules, given those of every folder."""
    return {folder: n for folder, n in sizes.items() if n > MOST_MODULES}


def too_long(lines):
    """Modules of too many lines, given those of every module."""
    return {name: n for name, n in lines.items() if n > MOST_LINES}


def test_no_folder_is_crowded():
    sizes = {}
    places = ("ldjax", "experiments", "tests")
    for path in (path for place in places for path in ROOT.glob(f"{place}/**/*.py")):
        folder = str(path.parent.relative_to(ROOT))
        sizes[folder] = sizes.get(folder, 0) + 1
    assert len(sizes) > 30
    assert crowded(sizes) == {}


def test_no_module_is_long():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in ROOT.glob("ldjax/**/*.py")
    }
    assert too_long(lines) == {}


def test_what_is_too_large_is_seen():
    assert crowded({"ldjax/a": 14, "ldjax/b": 15}) == {"ldjax/b": 15}
    assert too_long({"a.py": 450, "b.py": 451}) == {"b.py": 451}
