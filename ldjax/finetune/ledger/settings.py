"""The settings of a ledger, and those of the run that it is about."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from ldjax.command.options import COUNT, POSITIVE, SIZE, changed, flag, flat, restored
from ldjax.finetune.account import as_begun
from ldjax.finetune.settings.config import HUB_DATA, UNSAID
from ldjax.finetune.settings.config import Config as RunConfig
from ldjax.models import PRESETS as MODELS
from ldjax.runs.folder import Run

__all__ = ["RANGES", "Config", "Nodes", "Places", "settings_of"]

Nodes = int | Literal["midpoint", "trapezoid", "simpson"]

#: What the numbers of the settings may be.
RANGES = {"nodes": COUNT, "by_token": SIZE, "updates": COUNT, "memory": POSITIVE}


@dataclasses.dataclass(frozen=True)
class Places:
    """Where that is now which a run was made of, if it was moved since."""

    init: Path | None = None
    """Run folder that the run started from."""
    model: str | None = None
    """Model that the run started from, a folder."""
    initial_from: str | None = None
    """Model that `chosen_initial` was sampled from."""
    data: str | None = None
    """File of the training rows."""
    test_data: Path | None = None
    """File of the held-out prompts."""
    cache: Path | None = None
    """Where base models and reference log-probs are kept."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Divide what a whole run did among the examples that it was trained on."""

    run: tyro.conf.Positional[Path]
    """Folder of a finetuning run; the ledger is written in it."""
    probes: tuple[str, ...] = ("tracked",)
    """Watched responses to account for, each word some of them: `tracked`, `train` or
    `test`, the name of a prompt in `probes.jsonl` (train/0003) or a type of the tracked
    ones (chosen); behind a colon the type, as in `test:chosen`."""
    nodes: Nodes = 3
    """Places along each update where the derivative is taken: so many of Gauss and
    Legendre, or midpoint, trapezoid, simpson. Each is a backward pass for every
    response and update; what they leave is the origin `quadrature`."""
    by_token: int = 0
    """Responses, the first ones, of which is also kept what each trained token did to
    each of their tokens, in `tokens.npz`; takes a backward and a forward-mode pass for
    every token instead of one of each."""
    updates: int | None = None
    """Account for the first updates only, such as those of a run that was stopped; by
    default for all."""
    memory: float | None = None
    """Most memory to use, in GB (1e9 bytes); by default what is free, nearly. Less
    means fewer responses at a time, and more time."""
    places: Places = dataclasses.field(default_factory=Places)
    overwrite: bool = False
    """Begin anew; by default a ledger that was stopped goes on, and one that is
    complete is only told."""

    goes_on: ClassVar[bool] = True

    @property
    def out(self) -> Path:
        """The folder that is written to."""
        return self.run

    @property
    def cache(self) -> Path:
        """Where compiled functions are kept: where the run kept them."""
        return self.places.cache or Path(self._begun.get("cache") or "runs/cache")

    @property
    def smoke(self) -> bool:
        """Whether functions are compiled with less care, as those of the run were."""
        name = "disable_most_optimizations"
        begun = self._begun
        return bool(begun.get("program", {}).get(name, begun.get("smoke")))

    @property
    def _begun(self) -> Mapping[str, Any]:
        """The settings of the run; a folder that has none is refused elsewhere."""
        try:
            return Run(self.run.expanduser()).config["settings"]
        except (OSError, ValueError):
            return {}


def settings_of(run: Run, places: Places) -> RunConfig:
    """The settings of a finetuning run, from its `config.json`.

    A folder that is not where it was is looked for beside the run, and in the cache.

    Args:
      run: The run, wherever it is now.
      places: Where things are that were moved.

    Raises:
      FileNotFoundError: If something is not there.
      ValueError: If it is no finetuning run.
    """
    kept = run.config["settings"]
    if "fingerprints" not in kept:
        raise ValueError(_no_run(run, kept))
    said = kept | {name: None for name in UNSAID if kept.get(name) == UNSAID[name]}
    said["model"] = kept["base_model"]
    said |= as_begun(run.path)
    said |= {"out": run.path, "resume": False, "overwrite": False, "log": ()}
    said |= {name: value for name, value in flat(places).items() if value is not None}
    settings = restored(RunConfig(), said)
    near = (run.path.resolve().parent, settings.cache)
    found = {
        name: _found(name, value, near)
        for name, value in flat(settings).items()
        if name in _NAMED and value is not None
    }
    return changed(settings, **found).resolved()


#: Options that may name a place, and what of them is none.
_NAMED: dict[str, tuple[str, ...]] = {
    "init": (),
    "model": tuple(MODELS),
    "initial_from": tuple(MODELS),
    "data": ("toy", HUB_DATA),
    "test_data": (),
}


def _found(name: str, value: str | Path, near: tuple[Path, ...]) -> str | Path:
    """A place, or where it is likely to be now; what is no place as it is."""
    place = Path(value).expanduser()
    is_id = name in ("model", "initial_from") and str(value).count("/") == 1
    if value in _NAMED[name] or place.exists():
        return value
    for folder in near:
        if (there := folder / place.name).exists():
            return type(value)(there)
    if is_id and not place.is_absolute():  # of a model on the hub
        return value
    raise FileNotFoundError(
        f"the run was made with {flag(name)} {value}, which is not there. Say "
        f"{flag(name)} and where it is now"
    )


def _no_run(run: Run, kept: Mapping[str, Any]) -> str:
    """Why a folder has no finetuning run, and which has one."""
    stages = sorted(path.parent.name for path in run.path.glob("*/probes.jsonl"))
    if stages:
        return f"{run.path} holds several runs; name one: {', '.join(stages)}"
    if "recorder" in kept:
        return (
            f"{run.path} was recorded in a loop of your own, which only your program "
            "can take again: ldjax.ledger(folder, training=..., step_fn=..., state=...)"
        )
    return f"{run.path} is no run of `ldjax finetune`: there is nothing to account for"
