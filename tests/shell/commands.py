"""Commands as documents have them, and the settings of the programs that they start."""

import importlib
import re
import shlex

import tyro
from shell.scripts import ROOT

from ldjax.cli import COMMANDS, STUDIES

#: A line of a block, after which there may be a remark, and a text in backquotes.
_LINE = re.compile(
    r"^(?: {4,}|\$ )?((?:python|ldjax|make) \S.*?) *(?:(?: #| {2,}\(|\s\(~).*)?$"
)
_QUOTED = re.compile(r"`((?:python|ldjax) [^`{}\n]+)`")
_FENCE = re.compile(r"^```.*?$(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What stands for something, as in `[--out FILE]`, and what is left out.
_PATTERN = re.compile(r"\[|\.\.\.$|COMMAND|NAME")


def commands_in(text):
    """All commands of a text: of indented and fenced blocks, and in backquotes."""
    text = re.sub(r"\\\n\s*", " ", text)
    lines = [line for line in text.splitlines() if re.match(r" {4,}\S", line)]
    lines += [line for block in _FENCE.findall(text) for line in block.splitlines()]
    found = [match[1] for line in lines if (match := _LINE.match(line))]
    found += _QUOTED.findall(text)
    return [command for command in found if not _PATTERN.search(command)]


def is_program(command):
    """Whether a command starts a program of ours, not make or another package's."""
    return re.match(r"ldjax |python (-m )?(experiments|ldjax)\b", command) is not None


def program_of(command):
    """The module that a command starts, and the words that are for it."""
    match shlex.split(command):
        case ["ldjax", "study", name, *words]:
            return importlib.import_module(STUDIES[name][0]), words
        case ["ldjax", name, *words]:
            return importlib.import_module(COMMANDS[name][0]), words
        case ["python", "-m", "ldjax.report", *words]:
            return importlib.import_module("ldjax.report.__main__"), words
        case ["python", "-m", place, *words]:
            return importlib.import_module(place), words
        case ["python", script, *words]:
            started = re.search(r'program\("(\w+)"\)', (ROOT / script).read_text())
            if started:
                place, _ = (COMMANDS | STUDIES)[started[1]]
                return importlib.import_module(place), words
            name = script.removesuffix(".py").replace("/", ".")
            return importlib.import_module(name), words
    raise ValueError(f"{command} starts no program of ours")


def understood(command):
    """The settings that a program reads from a command; it ends where it has none."""
    if command in ("ldjax --help", "ldjax --version"):
        return None
    module, words = program_of(command)
    if words == ["--help"]:
        return None
    settings = getattr(module, "Config", None) or module.main
    return tyro.cli(settings, args=words, config=(tyro.conf.OmitArgPrefixes,))
