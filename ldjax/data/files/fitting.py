"""Which losses can be trained on which type of rows."""

from collections.abc import Sequence
from pathlib import Path

from ldjax.data.files.types import TYPES, UNPAIRED, DataType
from ldjax.losses import LOSSES

__all__ = ["check_type", "fits", "fitting_losses"]


def fits(data_type: DataType, loss: str, target: Sequence[str] = ("chosen",)) -> bool:
    """Whether rows have what a loss is trained on.

    A loss of responses takes those of its target, one on pairs both sides of each row.
    The loss `kto` judges each response by itself and takes either side alone.

    Args:
      data_type: Of the rows.
      loss: One of `ldjax.losses.LOSSES`.
      target: Types of responses that a loss of responses trains on.

    Examples:
      >>> from ldjax.data.files.types import PROMPT_COMPLETION
      >>> fits(PROMPT_COMPLETION, "sft"), fits(PROMPT_COMPLETION, "dpo")
      (True, False)
    """
    named = LOSSES[loss]
    if data_type is UNPAIRED:
        return named.takes_unpaired
    if named.trains_on == "responses":
        others = set(target) - {"chosen"}
        return "chosen" in data_type.gives and (
            not others or "rejected" in data_type.gives
        )
    return "rejected" in data_type.gives


def fitting_losses(data_type: DataType) -> list[str]:
    """The losses that can be trained on rows of a type."""
    return [loss for loss in LOSSES if fits(data_type, loss)]


def check_type(
    data_type: DataType, loss: str, target: Sequence[str], path: Path
) -> None:
    """Refuses rows that a loss cannot be trained on.

    Args:
      data_type: Of the rows.
      loss: One of `ldjax.losses.LOSSES`.
      target: Types of responses that a loss of responses trains on.
      path: Where the rows are.

    Raises:
      ValueError: With what the rows are, what the loss needs, and what they fit.

    Examples:
      >>> check_type(UNPAIRED, "sft", ["chosen"], Path("a.csv"))
      Traceback (most recent call last):
        ...
      ValueError: a.csv holds rows of the type unpaired preference (`prompt`,
      `completion`, `label`); the loss sft takes preference, ...
    """
    if fits(data_type, loss, target):
        return
    takes = [each.name for each in TYPES if fits(each, loss, target)]
    of = f"the loss {loss}"
    if LOSSES[loss].trains_on == "responses" and tuple(target) != ("chosen",):
        of += f" of the target {' '.join(target)}"
    known = fitting_losses(data_type)
    known_text = f"They fit the losses {', '.join(known)}"
    if len(known) == 1:
        known_text = f"They fit the loss {known[0]}"
    if not known:
        known_text = (
            "Nothing in them says what to answer, so they fit no loss; they can be "
            "watched, as `test_data`"
        )
    raise ValueError(
        f"{path} holds rows of the type {data_type.name} ({data_type.columns}); {of} "
        f"takes {', '.join(takes)}. {known_text}."
    )
