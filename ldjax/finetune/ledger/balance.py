"""What a ledger adds up to, in a table for a terminal, and whether it closes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldjax.origins import Ledger
from ldjax.theory.claims import Claim

if TYPE_CHECKING:
    import polars as pl

__all__ = ["balance", "check_balance"]

#: Columns of `Ledger.sum`, where they are not named as they are told.
_HEADS = {
    "own": "own pair",
    "others": "other pairs",
    "weight_decay": "decay",
    "measured": "= measured",
}


def balance(ledger: Ledger) -> list[str]:
    """Where the change of the responses of each type came from, as lines.

    Pairs before sides: those of other pairs nearly cancel.

    Args:
      ledger: The ledger of a run.
    """
    names = [n for n in ledger.sum().columns if n not in ("probe", "type", "gradient")]
    sides = [name.removeprefix("own ") for name in names if name.startswith("own ")]
    by_side = [f"{whose} {side}" for whose in ("own", "others") for side in sides]
    whole = [name for name in names if name not in (*sides, *by_side)]
    told = "Where the change of the run came from, mean nats per response:"
    lines = ["", told, *_means(ledger, whole)]
    return (
        [*lines, "", "Of these by side:", *_means(ledger, by_side)] if sides else lines
    )


def _means(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """A table of means over the responses of each type."""
    import polars as pl

    sums = ledger.sum().group_by("type", maintain_order=True)
    means = sums.agg(pl.len().alias("n"), pl.col(names).mean())
    # What no response has, such as a decay of weights, has no column.
    names = [name for name in names if means[name].fill_null(0).abs().max()]
    heads = [_HEADS.get(name, name) for name in names]
    widths = [max(9, len(head)) for head in heads]
    lines = [" ".join([f"{'type':20} {'n':>3}", *map(str.rjust, heads, widths)])]
    for row in means.to_dicts():
        numbers = [
            f"{row[name]:+{width}.2f}" if row[name] is not None else "-".rjust(width)
            for name, width in zip(names, widths, strict=True)
        ]
        lines.append(" ".join([f"{row['type']:20} {row['n']:3}", *numbers]))
    return lines


def check_balance(ledger: Ledger) -> list[Claim]:
    """What holds of every run: the balance closes, up to rounding.

    What the nodes along the updates leave, `quadrature`, is within what rounding can
    make of a sum of measured changes (`ldjax.equation.resolution.rounding_of_sum`), and
    what the optimizer's recurrence leaves, `rounding`, within
    `Ledger.rounding_bounds`.

    Args:
      ledger: The ledger of a run.
    """
    sums = ledger.sum()
    allowed = {
        "quadrature": [of["floor"] for of in ledger.about["probes"]],
        "rounding": ledger.rounding_bounds().tolist(),
    }
    return [_within(sums, origin, allowed[origin]) for origin in allowed]


def _within(sums: "pl.DataFrame", origin: str, allowed: Sequence[float]) -> Claim:
    """That an origin of no response is larger than rounding allows."""
    shares = (sums[origin].abs() / np.maximum(allowed, 1e-250)).to_list()
    worst = int(np.argmax(shares))
    name = f"{sums['type'][worst]} of {sums['probe'][worst]}"
    advice = (
        "" if shares[worst] <= 1 or origin == "rounding" else "; more nodes leave less"
    )
    return Claim(
        f"the balance closes: {origin} of every response is within rounding, "
        f"{abs(sums[origin][worst]):.1e} of {allowed[worst]:.1e} nats ({name}){advice}",
        shares[worst] <= 1,
        "identity",
        numbers={"value": shares[worst], "bound": 1},
    )
