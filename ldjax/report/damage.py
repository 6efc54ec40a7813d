"""What a page leaves out because a file of the run is damaged, and says so."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["Damage"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LONGEST = 200


class Damage:
    """The damage that was met while a page was made.

    Attributes:
      notes: What is left out and why, a sentence for each file.

    Examples:
      >>> damage = Damage()
      >>> damage.instead(3, lambda: int("four"), Path("a.json"), "the numbers")
      3
      >>> damage.notes
      ["a.json is damaged, the numbers are left out: ValueError: invalid literal for
      int() with base 10: 'four'"]
    """

    def __init__(self):
        """None so far."""
        self.notes: list[str] = []

    def instead(self, other: T, read: Callable[[], T], path: Path, what: str) -> T:
        """What is read from a file, or something else where that is damaged.

        Args:
          other: Instead.
          read: Reads the file. Damage shows in as many ways as there are readers, so
            every error of it counts.
          path: The file.
          what: Is left out then; in the plural.
        """
        try:
            return read()
        except Exception as error:
            # Readers' words may fill pages.
            words = " ".join(str(error).removeprefix(f"{path} ").split())[:_LONGEST]
            note = f"{path} is damaged, {what} are left out: "
            self.notes.append(f"{note}{type(error).__name__}: {words}")
            _log.warning("%s", self.notes[-1])
            return other
