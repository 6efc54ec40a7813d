"""The settings of the squeezing effect in one softmax."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from ldjax.command.options import SEED, Range
from ldjax.studies.study import Settings

__all__ = ["NOTEBOOKS_SEED", "Config"]

# The notebook's, whose draws are those of NumPy's global generator.
NOTEBOOKS_SEED = 10086


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The squeezing effect in one softmax."""

    out: Path = Path("runs/squeezing")
    """Run folder to write."""
    seed: int = NOTEBOOKS_SEED
    """Of the input and the readouts; the default is that of the paper's notebook."""
    points: int = 41
    """Points of each sweep."""
    smoke: bool = False
    """Few points."""

    ranges: ClassVar = {
        "points": Range(2, 100_000, "at least 2 and at most 100000"),
        "seed": SEED,
    }

    def tiny(self) -> dict[str, Any]:
        """Few points."""
        return {"points": 5}
