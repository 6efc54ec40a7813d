"""The console command `ldjax`, and the programs that it starts.

    ldjax finetune --loss dpo --out runs/dpo
    ldjax study squeezing
    ldjax --help

A program is a module with `Config`, its settings, and `main`, which takes them and
gives the exit status. It is imported when it is asked for: `ldjax --help` starts no
JAX. `python experiments/finetune.py` is `ldjax finetune`.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldjax.command import frame

__all__ = ["COMMANDS", "STUDIES", "main", "program"]

#: What `ldjax NAME` starts: its module, and what it is for.
COMMANDS = {
    "finetune": (
        "ldjax.finetune.run",
        "SFT, DPO or any other loss, fully accounted for",
    ),
    "pipeline": (
        "ldjax.finetune.pipeline",
        "a base model, SFT, DPO after it and alone",
    ),
    "pretrain": ("ldjax.finetune.pretrain.run", "a small decoder, from plain text"),
    "kernel": ("ldjax.studies.kernel.study", "the exact kernel between two texts"),
    "why": ("ldjax.studies.displacement.study", "why did the chosen answer fall?"),
    "ledger": (
        "ldjax.finetune.ledger.run",
        "what each training example did, over a whole run",
    ),
    "diff": (
        "ldjax.compare.run",
        "what changed between two checkpoints, and where in the model",
    ),
    "next": (
        "ldjax.compare.next",
        "the next update of a Hugging Face Trainer's checkpoint",
    ),
    "report": ("ldjax.report.__main__", "a page about runs, for a browser"),
}
#: What `ldjax study NAME` starts.
STUDIES = {
    "mnist": ("ldjax.studies.mnist.study", "learning dynamics of handwritten digits"),
    "squeezing": ("ldjax.studies.squeezing.study", "the squeezing effect on logits"),
    "stability": ("ldjax.studies.stability.study", "how much the kernel changes"),
    "displacement": ("ldjax.studies.displacement.study", "the same as `ldjax why`"),
    "phenomena": ("ldjax.studies.phenomena.study", "the paper's phenomena, in numbers"),
    "mitigation": (
        "ldjax.studies.mitigation.study",
        "remedies for the squeezing effect",
    ),
    "real": ("ldjax.studies.real.study", "SFT and DPO of a real model, SmolLM2-135M"),
}


def main(words: Sequence[str] | None = None) -> NoReturn:
    """The console command.

    Args:
      words: What follows `ldjax`; by default what was given.

    Examples:
      >>> main(["--version"])
      Traceback (most recent call last):
      SystemExit: 0
    """
    words = list(sys.argv[1:] if words is None else words)
    name = words.pop(0) if words else "--help"
    if name in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if name == "--version":
        from importlib.metadata import version

        print(f"ldjax {version('ldjax')}")
        sys.exit(0)
    if name == "study":
        study = words.pop(0) if words else "--help"
        if study in ("-h", "--help"):
            print(_help())
            sys.exit(0)
        if study not in STUDIES:
            sys.exit(f"ldjax study: {study!r} is none of {', '.join(STUDIES)}")
        program(study, words, called=f"ldjax study {study}")
    if name not in COMMANDS:
        sys.exit(f"ldjax: {name!r} is none of {', '.join([*COMMANDS, 'study'])}")
    program(name, words, called=f"ldjax {name}")


def program(
    name: str, words: Sequence[str] | None = None, *, called: str | None = None
) -> NoReturn:
    """Start a program with the words of a command line.

    Args:
      name: In `COMMANDS` or `STUDIES`.
      words: Its options; by default those given to this process.
      called: What the user typed to start it, for its help.

    Examples:
      >>> program("nothing")
      Traceback (most recent call last):
      KeyError: 'nothing'
    """
    place, _ = (COMMANDS | STUDIES)[name]
    for number in frame.SIGNALS:
        signal.signal(number, _leave)
    module = importlib.import_module(place)
    config = frame.expanded(module.parse(words, called))
    _keep_compiled(config)
    frame.run(module.main, config)


def _keep_compiled(config: Any) -> None:
    """Keep compiled functions beside the other things that are kept.

    Also those that take less than a second, since the next run has a hundred of them.
    A smoke compiles for far longer than it runs, so it spares the optimizations. Here,
    not in the programs: who calls one as a function has settings of JAX of their own.
    """
    if not hasattr(config, "cache"):
        return
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(config.cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)


def _leave(number: int, _: Any) -> NoReturn:
    """While the imports go on."""
    what = frame.SIGNALS[signal.Signals(number)]
    line = f"{Path(sys.argv[0]).stem}: stopped by {what}."
    os.write(2, f"\n{line}\n".encode())
    os._exit(128 + number)


def _help() -> str:
    lines = [
        "usage: ldjax COMMAND [options]      (ldjax COMMAND --help says which)",
        "",
    ]
    lines += [f"  {name:12} {text}" for name, (_, text) in COMMANDS.items()]
    lines += [
        "",
        "  study NAME   a study of the paper's claims, which may refute them:",
    ]
    lines += [f"    {name:12} {text}" for name, (_, text) in STUDIES.items()]
    return "\n".join(lines)
