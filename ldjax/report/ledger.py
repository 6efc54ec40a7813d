"""The ledger of a run in a page."""

from pathlib import Path
from typing import Any

from ldjax.report.damage import Damage

__all__ = ["pack"]


def pack(folder: Path, damage: Damage) -> dict[str, Any] | None:
    """The ledger's part of a page; None where a run has none.

    Args:
      folder: That of the run.
      damage: Takes note of the files that are damaged.
    """
    del folder, damage
    return None
