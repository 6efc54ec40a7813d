"""Which run goes on from where another one ended, as the stages of a pipeline do."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldjax.runs.folder import Run

__all__ = ["following"]


def following(runs: Sequence[Run]) -> list[int | None]:
    """For each run the place of the one that it started from.

    A run says where it started, and where it was written itself: folders that were
    moved together still follow each other.

    Args:
      runs: Runs of any kind; of damaged settings nothing is said.

    Returns:
      Places in `runs`, None where it started from none of them.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from ldjax.runs.folder import create_run
      >>> folder = Path(tempfile.mkdtemp())
      >>> sft = create_run(folder / "sft", {"out": "runs/sft"})
      >>> dpo = create_run(folder / "dpo", {"out": "runs/dpo", "init": "runs/sft"})
      >>> following([sft, dpo])
      [None, 0]
    """
    settings = [_settings(run) for run in runs]
    places: dict[str, int] = {}
    for place, (run, of) in enumerate(zip(runs, settings, strict=True)):
        names = [run.path.resolve(), *([of["out"]] if of.get("out") else [])]
        places |= dict.fromkeys(map(str, names), place)
    found = [places.get(str(of["init"])) if of.get("init") else None for of in settings]
    return [
        None if _is_circle(found, place) else before
        for place, before in enumerate(found)
    ]


def _settings(run: Run) -> Mapping[str, Any]:
    try:
        settings = run.config["settings"]
    except Exception:
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _is_circle(found: Sequence[int | None], place: int) -> bool:
    """Whether who goes back from a run never ends: a folder was written anew."""
    before: int | None = place
    for _ in range(len(found) + 1):
        if before is None:
            return False
        before = found[before]
    return True
