"""Which trained tokens moved a token of a response, over the run.

For each watched token: the examples that lifted and lowered it most, each with the
trained tokens in it that did, and the sums of all that is not shown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldjax.data.tokenizers import Tokenizer
from ldjax.report.browser import token_texts
from ldjax.report.packing import packed, small

__all__ = ["token_content"]

#: Examples that lifted a token most, and as many that lowered it.
TOP = 3
#: Numbers of all watched tokens, and the trained tokens that are named of an example.
MOST_NUMBERS = 200_000
FEWEST_TOKENS, MOST_TOKENS = 2, 12


def token_content(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The page's content about trained tokens.

    Args:
      path: The `tokens.npz` of a ledger: `rows` and `sides` name what was trained on,
        `targets` and `mask` `[row, side, pos]` are its tokens, and for each response K
        there are `mask_K` `[response pos]` and `map_K` `[response pos, row, side,
        pos]`, in nats.
      tokenizer: That of the run.

    Returns:
      JSON content, arrays as `packed`. By response: the `rows` that moved each of its
      tokens, `[token, 2 TOP]`, by how much (`totals`), and their `tokens` that did
      most, `[token, 2 TOP x named]`, by `shares` in whole numbers of a `unit`,
      `[token]`, and what their other tokens gave, `rests`; `sums`, what all rows that
      lifted the token gave, and all that lowered it.
    """
    # NumPy would leave a file open that is damaged.
    with path.open("rb") as file, np.load(file) as arrays:
        mask = arrays["mask"].astype(bool)
        numbers = sorted(
            int(name.removeprefix("map_")) for name in arrays if name.startswith("map_")
        )
        num_tokens = sum(int(arrays[f"mask_{k}"].sum()) for k in numbers)
        room = MOST_NUMBERS // max(1, 2 * TOP * 2 * num_tokens)
        named = int(np.clip(room, FEWEST_TOKENS, MOST_TOKENS))
        found = {
            k: _largest(
                arrays[f"map_{k}"][arrays[f"mask_{k}"].astype(bool)], mask, named
            )
            for k in numbers
        }
        shown = sorted({int(row) for of in found.values() for row in of["rows"].flat})
        names, sides = arrays["rows"].tolist(), arrays["sides"].tolist()
        targets = arrays["targets"]
    place = {row: i for i, row in enumerate(shown)}
    number = np.vectorize(place.__getitem__, otypes=[np.int64])
    return {
        "examples": [
            {
                "name": str(names[row]),
                "sides": {
                    str(side): token_texts(tokenizer, targets[row, s][of].tolist())
                    for s, side in enumerate(sides)
                    if (of := mask[row, s]).any()
                },
            }
            for row in shown
        ],
        "responses": {
            k: {name: packed(array) for name, array in of.items()}
            | {"rows": packed(small(number(of["rows"])))}
            for k, of in found.items()
        },
    }


def _largest(map_: np.ndarray, mask: np.ndarray, named: int) -> Mapping[str, Any]:
    """What of a map `[token, row, side, pos]` is shown."""
    shares = map_.reshape(*map_.shape[:2], -1)
    totals = shares.sum(2, dtype=np.float64)  # [token, row]
    order = np.argsort(-totals, axis=1, kind="stable")
    count = min(TOP, totals.shape[1])
    rows = np.concatenate((order[:, :count], order[:, ::-1][:, :count]), axis=1)
    of_rows = np.take_along_axis(shares, rows[..., None], axis=1)
    named = min(named, of_rows.shape[2])
    tokens = np.argsort(-np.abs(of_rows), axis=2, kind="stable")[..., :named]
    # Their places among the scored tokens of the row, side after side; others behind.
    flat_mask = mask.reshape(len(mask), -1)
    scored = np.where(flat_mask, flat_mask.cumsum(1) - 1, flat_mask.shape[1])
    flat = lambda array: array.reshape(len(array), -1)
    kept = np.take_along_axis(of_rows, tokens, axis=2).astype(np.float64)
    shown = flat(kept)
    unit = np.abs(shown).max(1, initial=np.finfo("f4").tiny) / np.iinfo(np.int16).max
    return {
        "rows": rows,
        "totals": np.take_along_axis(totals, rows, axis=1),
        "tokens": small(flat(np.take_along_axis(scored[rows], tokens, axis=2))),
        "shares": (shown / unit[:, None]).round().astype(np.int16),
        "unit": unit,
        "rests": np.take_along_axis(totals, rows, axis=1) - kept.sum(2),
        "sums": np.stack([totals.clip(0).sum(1), totals.clip(max=0).sum(1)], axis=1),
    }
