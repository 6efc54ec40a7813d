"""The frame of a command: mistakes in one line, Ctrl-C, `~`, numbers in range."""

from ldjax.command.frame import (
    Stopped,
    expanded,
    experiment,
    parse,
    run,
    set_up,
    teller,
    worded,
)

__all__ = [
    "Stopped",
    "expanded",
    "experiment",
    "parse",
    "run",
    "set_up",
    "teller",
    "worded",
]
