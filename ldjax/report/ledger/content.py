"""A run's ledger as the content of its page.

Of every response: the parts that add up to its measured change, and the training
examples that lifted and that lowered it most, over the run and in windows of its
updates, with their texts. What a page has no room for is left out, and counted.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ldjax.data.tokenizers import load_tokenizer
from ldjax.files.whole import json_object, read_json_object, read_lines
from ldjax.report.damage import Damage
from ldjax.report.ledger.shares import Rows, Shares, extremes, sum_up, when
from ldjax.report.ledger.table import Table, read_table
from ldjax.report.ledger.tokens import token_content
from ldjax.report.packing import packed, small
from ldjax.runs.folder import Run

__all__ = ["ledger_content"]

#: Examples that lifted a response most over the run, and as many that lowered it.
TOP = 10
#: The same in each window of updates.
TOP_OF_WINDOW = 4
#: Numbers of all windows; where they would be more, a window is several updates.
MOST_NUMBERS = 250_000
#: Characters of the texts of examples, and of one of them.
MOST_CHARACTERS = 1_000_000
LONGEST_TEXT = 2_000


def ledger_content(run: Run, damage: Damage) -> dict[str, Any] | None:
    """The ledger's part of a page.

    Args:
      run: A run.
      damage: Takes note of the files that are damaged, which are left out.

    Returns:
      JSON content, arrays as `packed`; None if the run has no ledger.

    Examples:
      >>> import tempfile
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {})
      >>> ledger_content(run, Damage()) is None
      True
    """
    folder = run.path / "ledger"
    table, layers, tokens = (
        folder / name for name in ("ledger.parquet", "layers.parquet", "tokens.npz")
    )
    if not table.is_file():
        return None
    content = damage.instead(None, lambda: _ledger(folder, table), table, "its shares")
    if content is None:
        return None
    names = [(of["probe"], of["type"]) for of in content["responses"]]
    return content | {
        "layers": damage.instead(
            None, lambda: _layers(layers, names), layers, "its shares"
        ),
        "tokens": damage.instead(
            None, lambda: _tokens(run, tokens), tokens, "its shares"
        ),
    }


def _ledger(folder: Path, path: Path) -> dict[str, Any]:
    about = read_json_object(folder / "ledger.json")
    num_steps = int(about["num_steps"])
    responses = [
        {name: of.get(name) for name in ("probe", "type", "measured", "floor")}
        for of in about["probes"]
    ]
    table = read_table(path, [(of["probe"], of["type"]) for of in responses])
    parts, sums = table.balance()
    width = _width(table, num_steps)
    return {
        "nodes": about["nodes"],
        "num_steps": num_steps,
        "width": width,
        "whose": table.whose,
        "sides": table.sides,
        "responses": responses,
        "parts": parts,
        "balance": sums.tolist(),  # exact: they add up to what was measured
        **_examples(
            table, folder, width=width, num_windows=math.ceil(num_steps / width)
        ),
    }


def _width(table: Table, num_steps: int) -> int:
    """Updates of a window."""
    numbers = 2 + 2 * TOP_OF_WINDOW * (1 + len(table.sides))
    most = max(1, MOST_NUMBERS // (numbers * max(1, table.num_responses)))
    return math.ceil(num_steps / most)


def _examples(
    table: Table, folder: Path, *, width: int, num_windows: int
) -> dict[str, Any]:
    """Which examples moved each response, over the run and in each window."""
    rows = table.rows()
    window, num_groups = rows.step // width, table.num_responses * num_windows
    in_run = sum_up(rows, rows.response)
    in_windows = sum_up(rows, rows.response * num_windows + window)
    of_run, of_windows = extremes(in_run, TOP), extremes(in_windows, TOP_OF_WINDOW)
    shown = _by_size(of_run, of_windows)
    place = np.zeros(len(table.examples), np.int64)
    place[shown] = np.arange(len(shown))
    counts = np.bincount(in_windows.group, minlength=num_groups)
    return {
        "top": TOP,
        "top_of_window": TOP_OF_WINDOW,
        # [response x window, own or others]
        "dated": packed(table.dated(width, num_windows).reshape(num_groups, -1)),
        "num_examples": len(table.examples),
        "lifted": _of_sign(in_run, 1, table.num_responses),
        "lowered": _of_sign(in_run, -1, table.num_responses),
        "of_run": _packed(of_run, place, table.num_responses)
        | {"when": _packed_when(rows, of_run, window)},
        "of_windows": _packed(of_windows, place, num_groups)
        | {"counts": packed(counts)},
        "examples": _texts(
            folder / "examples.jsonl", [table.examples[number] for number in shown]
        ),
    }


def _by_size(*shares: Shares) -> np.ndarray:
    """The examples of some shares, each once, in the order of their largest share."""
    found: dict[int, None] = {}
    for of in shares:
        order = np.argsort(-np.abs(of.total), kind="stable")
        found |= dict.fromkeys(of.example[order].tolist())
    return np.array(list(found), np.int64)


def _of_sign(shares: Shares, sign: int, num_responses: int) -> dict[str, Any]:
    """How many examples lifted or lowered each response, and by how much together."""
    is_so = shares.total * sign > 0
    group, total = shares.group[is_so], shares.total[is_so]
    return {
        "counts": np.bincount(group, minlength=num_responses).tolist(),
        "sums": np.bincount(group, total, num_responses).tolist(),
    }


def _packed(shares: Shares, place: np.ndarray, num_groups: int) -> dict[str, Any]:
    """Shares by group: those of group g stand from `starts[g]` to `starts[g + 1]`."""
    return {
        "starts": packed(np.searchsorted(shares.group, np.arange(num_groups + 1))),
        "examples": packed(small(place[shares.example])),
        "sides": packed(shares.sides),  # [share, side]
    }


def _packed_when(rows: Rows, shares: Shares, window: np.ndarray) -> dict[str, Any]:
    of, at, values = when(rows, shares, window)
    starts = np.searchsorted(of, np.arange(len(shares.group) + 1))
    return {"starts": packed(starts), "windows": packed(at), "values": packed(values)}


def _texts(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What examples say, as far as there is room; later ones have a name only."""
    known: dict[str, Mapping[str, Any]] = {}
    if path.is_file():
        lines = (json_object(line.data) for line in read_lines(path) if line.data)
        known = {of["example"]: of for of in lines}
    room = MOST_CHARACTERS
    content = []
    for name in names:
        if name not in known or room <= 0:
            content.append({"name": name})
            continue
        of = known[name]
        prompt = _cut(of["prompt"])
        sides = {side: _cut(text) for side, text in of["sides"].items()}
        room -= len(prompt) + sum(map(len, sides.values()))
        content.append({"name": name, "prompt": prompt, "sides": sides})
    return content


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def _layers(path: Path, responses: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """What came from each layer over the run, `[response, layer]`."""
    if not path.is_file():
        return None
    table = pl.read_parquet(path, glob=False)
    sums = table.group_by("probe", "type", "layer").agg(pl.col("value").sum())
    names = table["layer"].unique(maintain_order=True).to_list()
    known = {(probe, type_, layer): value for probe, type_, layer, value in sums.rows()}
    return {
        "names": names,
        "sums": [[known.get((*of, name), 0.0) for name in names] for of in responses],
    }


def _tokens(run: Run, path: Path) -> dict[str, Any] | None:
    if not (path.is_file() and (run.path / "tokenizer.json").is_file()):
        return None
    model = run.config["settings"].get("model", {})
    tokenizer = load_tokenizer(run.path, vocab_size=model.get("vocab_size"))
    return token_content(path, tokenizer)
