"""Every command that a docstring, a comment or a page names is one that is understood.

Those of the README are looked at more closely, and run, by `test_readme`.
"""

import ast

import pytest
from shell.commands import commands_in, is_program, understood
from shell.scripts import ROOT

FOLDERS = ("ldjax", "experiments", "tests", "docs")
SOURCES = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/*.md")]


def _told():
    """All commands, by where they are told."""
    for path in SOURCES:
        source = path.read_text("utf-8")
        text = ast.get_docstring(ast.parse(source), clean=False) or ""
        quoted = [line for line in source.splitlines() if "`" in line]
        yield path, commands_in("\n".join([text, *map(str.strip, quoted)]))
    for path in PAGES:
        yield path, commands_in(path.read_text("utf-8"))


TOLD = {
    command: path.relative_to(ROOT)
    for path, commands in _told()
    if path.name not in ("LOG.md", "test_commands.py")
    for command in commands
    if is_program(command)
}


@pytest.mark.parametrize("command", sorted(TOLD))
def test_a_command_is_understood(command, capsys):
    try:
        understood(command)
    except (SystemExit, LookupError, ImportError, FileNotFoundError) as error:
        told = capsys.readouterr().err
        pytest.fail(f"{TOLD[command]}: {command}: {error!r}\n{told}")


def test_commands_of_every_kind_are_found():
    assert len(TOLD) > 30
    for start in (
        *("python experiments/", "python -m experiments.benchmarks.ntk.study"),
        *("python -m experiments.benchmarks", "python -m experiments.notebooks"),
        *("ldjax finetune", "ldjax study"),
    ):
        assert any(command.startswith(start) for command in TOLD), start


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("A\n    ldjax study squeezing --no-such 1   (~1 min)\n", "study squeezing"),
        ("```sh\nldjax finetune --epochs much  # long\n```\n", "finetune"),
        ("See `python experiments/kernel.py --modle x`.", "kernel.py"),
        ("    python -m experiments.benchmarks.step --no-such \\\n      1", "step"),
        ("    ldjax fintune --smoke", "fintune"),
        ("    python experiments/no_such.py", "no_such"),
    ],
)
def test_a_command_that_is_wrong_is_seen(text, command, capsys):
    (found,) = commands_in(text)
    assert command in found
    with pytest.raises((SystemExit, LookupError, FileNotFoundError)):
        understood(found)
    capsys.readouterr()
