"""The one frame of a study: settings, a run folder, numbers, claims, figures, status.

Every study is a folder of the same shape. Its docstring says what is claimed, how it is
run and what came out; `study` has its settings and its sentence, `measure` makes the
numbers, `results` makes claims of them, and `figures` draws from the run folder.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from ldjax import command
from ldjax.command.options import Range, check_numbers
from ldjax.runs.folder import Run, create_run
from ldjax.theory.claims import Claim, failures, told

__all__ = ["Findings", "ModelSettings", "Settings", "conduct"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every study is asked."""

    out: Path
    """Run folder to write."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claims."""

    #: What the numbers among the options may be, by the name of the field.
    ranges: ClassVar[Mapping[str, Range]] = {}

    def tiny(self) -> dict[str, Any]:
        """What is otherwise in a smoke test, by the name of the field."""
        return {}

    def resolved(self) -> Any:
        """The same settings at the size at which they are run.

        Raises:
          ValueError: If a number is none that it may be.
        """
        check_numbers(self, self.ranges)  # those that a smoke test does not take, too
        return dataclasses.replace(self, **self.tiny()) if self.smoke else self

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number, a sentence each, and whether it is."""
        return {}

    def check(self) -> None:
        """Refuse what cannot run, before anything is written.

        Raises:
          ValueError: Of one line, which says everything that is wrong.
        """
        wrong = [problem for problem, applies in self.problems().items() if applies]
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclasses.dataclass(frozen=True)
class ModelSettings(Settings):
    """What a study of language models is asked besides."""

    world: str = "demo"
    """Preset of the toy world: demo, small or paper."""
    model: str | None = None
    """What to start from: the size of a base model, a folder or an id on the hub (see
    `finetune.py`); by default toy for the toy world, 0.4M for a file."""
    cache: Path = Path("runs/cache")
    """Where base models and compiled functions are kept."""


class Findings(NamedTuple):
    """What a study found; its long table is in the run folder already.

    Attributes:
      claims: Identities, claims and findings, in the order in which they are told.
      summary: The content of `summary.json`, the claims among it.
      draw: A function from the run to its figures.
      text: What is told before the claims.
    """

    claims: Sequence[Claim]
    summary: Mapping[str, Any]
    draw: Callable[[Run], Sequence[Path]]
    text: str = ""


Asked = TypeVar("Asked", bound=Settings)
Subject = TypeVar("Subject")


def _as_asked(config: Settings, subject: Any) -> dict[str, Any]:
    del subject
    return dataclasses.asdict(config)


def conduct(
    config: Asked,
    *,
    measure: Callable[[Asked, Subject, Run], Findings],
    prepare: Callable[[Asked], Subject] = lambda config: None,
    describe: Callable[[Asked, Subject], Mapping[str, Any]] = _as_asked,
) -> int:
    """Conduct a study, from its settings to its exit status.

    Args:
      config: The settings.
      measure: Makes the numbers and writes the long table.
      prepare: Looks at what was asked for and finds it, before anything is written;
        its mistakes are the user's.
      describe: What `config.json` says; by default the settings.

    Returns:
      0, or 1 if an identity or a claim does not hold.
    """
    with command.set_up():
        config = config.resolved()
        config.check()
        subject = prepare(config)
        run = create_run(
            config.out, describe(config, subject), overwrite=config.overwrite
        )
    found = measure(config, subject, run)
    run.write_summary(found.summary)
    figures = found.draw(run)
    footer = ["figures:", *map(str, figures), f"run folder: {run.path}"]
    print(*filter(None, (found.text, told(found.claims))), "", *footer, sep="\n")
    return 1 if failures(found.claims) else 0
