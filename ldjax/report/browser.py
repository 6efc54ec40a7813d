"""What the probe browser of a page shows: texts, their curves, and their tokens.

Every probe has a curve. The tracked ones have tokens: how each moved over the run
(`tokens.npz`), which tokens gained and lost at its place, and which token of an update
moved it (`token_maps/`), as far as that was recorded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ldjax.data.tokenizers import Tokenizer, load_tokenizer
from ldjax.report.damage import Damage
from ldjax.report.measures import part_names
from ldjax.report.packing import packed
from ldjax.runs.folder import Run
from ldjax.watch.record import (
    INTEGRATED,
    MEASURED,
    PREDICTED,
    PROBES_FILE,
    TRACKED,
    in_set,
    observed_name,
    probe_lengths,
    read_probe_lines,
    set_of,
    single_step,
    tracked_name,
)

__all__ = ["browser_content", "token_texts"]

#: Observations and updates of a curve, at most.
MOST_POINTS = 200
#: Tokens of an update are named for each watched token until they are so much of what
#: all of them did to either side, or so many; the others are summed.
MOST_OF_IT = 0.9
MOST_SHARES = 96
#: They are whole numbers of a unit; a unit that is rounded down leaves them room.
_LARGEST = np.iinfo(np.int16).max - 1
#: A character has at most so many bytes, so at most so many tokens.
_LONGEST_CHARACTER = 4

_TRACKED = (PREDICTED, MEASURED, INTEGRATED)
_OBSERVED = ("log_prob", "argmax_log_prob", *map(single_step, _TRACKED))


class _Scored(NamedTuple):
    """The scored tokens of one tracked response.

    Attributes:
      bucket: The arrays it is in.
      row: The row of these arrays.
      at: Where a token of it is predicted.
      ids: Its tokens.
    """

    bucket: int
    row: int
    at: np.ndarray
    ids: np.ndarray


def browser_content(
    run: Run, metrics: pl.DataFrame, damage: Damage
) -> dict[str, Any] | None:
    """The browser's part of a page.

    Args:
      run: A run that watched texts.
      metrics: Its table.
      damage: Takes note of the files that are damaged, which are left out.

    Returns:
      JSON content; None if the run watched no texts.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {})
      >>> run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
      >>> line = '{"probe":"train/0","type":"chosen","prompt":"Why?","text":" So"}'
      >>> _ = (run.path / "probes.jsonl").write_text(line)
      >>> browser_content(run, run.metrics(), Damage())["responses"]
      [{'prompt': 0, 'type': 'chosen', 'text': ' So'}]
    """
    path = run.path / PROBES_FILE
    if not path.is_file():
        return None
    return damage.instead(
        None, lambda: _browser(run, metrics, damage), path, "the responses"
    )


def _browser(run: Run, metrics: pl.DataFrame, damage: Damage) -> dict[str, Any]:
    lines, lengths = read_probe_lines(run.path), probe_lengths(run.path)
    tracked = [_key(line) for line in lines if set_of(line["probe"]) == TRACKED]
    responses = {_key(line): line for line in lines}  # tracked ones are observed too
    places = {key: place for place, key in enumerate(responses)}
    prompts = {observed_name(line["probe"]): line["prompt"] for line in lines}
    numbers = {name: place for place, name in enumerate(prompts)}
    return {
        "prompts": [{"name": name, "text": text} for name, text in prompts.items()],
        "responses": [
            {"prompt": numbers[key[0]], "type": key[1], "text": line["text"]}
            | ({"tokens": lengths[key]} if key in lengths else {})
            for key, line in responses.items()
        ],
        "observed": _observed(metrics, places),
        "tracked": _tracked(metrics, [places[key] for key in tracked], tracked),
        "tokens": damage.instead(
            None,
            lambda: _tokens(
                run, metrics, {key: places[key] for key in tracked}, damage
            ),
            run.path / "tokens.npz",
            "its tokens",
        ),
    }


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    r"""The text of each token, which joined are the text.

    Args:
      tokenizer: That made the tokens.
      ids: The tokens.

    Returns:
      One text for each; where several tokens make one character, it is that of the
      last of them, and the others' are empty.

    Examples:
      >>> from ldjax.data.tokenizers import train_bpe
      >>> tokenizer = train_bpe(["a"], vocab_size=260)
      >>> token_texts(tokenizer, tokenizer.encode("a é"))
      ['a', ' ', '', 'é']
    """
    texts, pending = [], []
    # Behind another token: some tokenizers drop the space before the first one.
    before = [tokenizer.end_id]
    head = len(tokenizer.decode(before))
    for token in ids:
        pending.append(token)
        text = tokenizer.decode([*before, *pending])[head:]
        if text.endswith("\ufffd") and len(pending) < _LONGEST_CHARACTER:
            texts.append("")
        else:
            texts.append(text)
            pending = []
    if pending:
        texts[-1] = tokenizer.decode([*before, *pending])[head:]
    return texts


def _key(line: Mapping[str, str]) -> tuple[str, str]:
    return observed_name(line["probe"]), line["type"]


def _observed(
    metrics: pl.DataFrame, places: Mapping[tuple[str, str], int]
) -> dict[str, Any]:
    """Numbers of every response at every observation, `[observation, response]`."""
    rows = _placed(metrics, places).filter(pl.col("quantity").is_in(_OBSERVED))
    steps = rows["step"].unique().sort().to_numpy()
    tables = {
        quantity: packed(_table(of, steps, len(places)))
        for (quantity,), of in rows.group_by("quantity")
    }
    return {"steps": steps.tolist(), "tables": tables}


def _tracked(
    metrics: pl.DataFrame, places: Sequence[int], keys: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Predicted and measured changes, added up, `[update, tracked response]`."""
    names = {
        (tracked_name(name), type_): column for column, (name, type_) in enumerate(keys)
    }
    rows = _placed(metrics, names).filter(pl.col("quantity").is_in(_TRACKED))
    steps = rows["step"].unique().sort().to_numpy()
    if not len(steps):
        return {}
    at = np.linspace(0, len(steps), min(len(steps) + 1, MOST_POINTS)).round()
    at = np.unique(at.astype(int))
    tables = {}
    for (quantity,), of in rows.group_by("quantity"):
        sums = _table(of, steps, len(names)).astype(np.float64).cumsum(0)
        sums = np.concatenate((np.zeros_like(sums[:1]), sums))
        tables[quantity] = packed(sums[at])
    ends = np.concatenate((steps[:1], steps + 1))
    return {"places": list(places), "steps": ends[at].tolist(), "tables": tables}


def _placed(
    metrics: pl.DataFrame, places: Mapping[tuple[str, str], int]
) -> pl.DataFrame:
    """The rows about some probes, with the place of each."""
    names, types = zip(*places, strict=True) if places else ((), ())
    known = pl.DataFrame(
        {"probe": names, "type": types, "place": list(places.values())},
        schema={"probe": pl.String, "type": pl.String, "place": pl.Int64},
    )
    return metrics.join(known, on=["probe", "type"])


def _table(rows: pl.DataFrame, steps: np.ndarray, count: int) -> np.ndarray:
    table = np.full((len(steps), count), np.nan, np.float32)
    at = np.searchsorted(steps, rows["step"].to_numpy())
    table[at, rows["place"].to_numpy()] = rows["value"].to_numpy()
    return table


def _tokens(
    run: Run,
    metrics: pl.DataFrame,
    tracked: Mapping[tuple[str, str], int],
    damage: Damage,
) -> dict[str, Any] | None:
    """The account of every tracked token, by place of the response."""
    path = run.path / "tokens.npz"
    if not (path.is_file() and (run.path / "tokenizer.json").is_file()):
        return None
    model = run.config["settings"].get("model", {})
    tokenizer = damage.instead(
        None,
        lambda: load_tokenizer(run.path, vocab_size=model.get("vocab_size")),
        run.path / "tokenizer.json",
        "its tokens",
    )
    if tokenizer is None:
        return None
    arrays = _arrays(path)
    scored = _scored(arrays)
    maps, updates = _token_maps(run, scored, damage)
    places = list(tracked.values())
    for update in updates:
        update["balances"] = _balances_at(metrics, update["step"], tracked)
    return {
        "steps": arrays["step"].tolist(),
        "updates": updates,
        "vocabulary": _vocabulary(tokenizer, arrays, updates),
        "responses": {
            places[number]: _response(tokenizer, arrays, of) | maps.get(number, {})
            for number, of in scored.items()
        },
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, which NumPy would leave open where it is damaged."""
    with path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _scored(arrays: Mapping[str, np.ndarray]) -> dict[int, _Scored]:
    """The scored tokens of each tracked response, by its number."""
    found = {}
    for bucket in range(sum(name.startswith("probes_") for name in arrays)):
        for row, number in enumerate(arrays[f"probes_{bucket}"]):
            at = np.flatnonzero(arrays[f"mask_{bucket}"][row])
            ids = arrays[f"targets_{bucket}"][row][at]
            found[int(number)] = _Scored(bucket, row, at, ids)
    return dict(sorted(found.items()))


def _response(
    tokenizer: Tokenizer, arrays: Mapping[str, np.ndarray], of: _Scored
) -> dict[str, Any]:
    bucket, row, at, ids = of
    content: dict[str, Any] = {
        "texts": token_texts(tokenizer, ids.tolist()),
        # [observation, token]
        "log_prob": packed(arrays[f"log_prob_{bucket}"][:, row][:, at]),
        "predicted": packed(arrays[f"predicted_{bucket}"][row][at]),
        "measured": packed(arrays[f"measured_{bucket}"][row][at]),
    }
    if f"moved_ids_{bucket}" in arrays:
        content["moved"] = {
            name: packed(arrays[f"moved_{name}_{bucket}"][row][at])
            for name in ("ids", "before", "after")
        }
    return content


def _token_maps(
    run: Run, scored: Mapping[int, _Scored], damage: Damage
) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """The largest shares of the update's tokens in each watched token's change.

    Returns:
      By response, `maps`: for each recorded update the `places` of these tokens in the
      update and what else `_largest` says of them. And the updates: `step` and the
      `texts` of each side, as token ids.
    """
    updates: list[dict[str, Any]] = []
    maps: dict[int, list[dict[str, Any]]] = {number: [] for number in scored}
    for path in sorted((run.path / "token_maps").glob("*.npz")):
        found = damage.instead(
            None, lambda path=path: _token_map(path, scored), path, "its shares"
        )
        if found is None:
            continue
        update, shares = found
        updates.append(update)
        for number, largest in shares.items():
            maps[number].append(largest)
    if not updates:
        return {}, []
    return {number: {"maps": of} for number, of in maps.items()}, updates


def _token_map(
    path: Path, scored: Mapping[int, _Scored]
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """An update, and the largest shares of its tokens by response."""
    arrays = _arrays(path)
    sides = [
        name.removeprefix("targets_") for name in arrays if name.startswith("targets_")
    ]
    masks = {side: arrays[f"mask_{side}"].astype(bool) for side in sides}
    texts = [
        {"side": side, "row": row, "ids": ids[mask].tolist()}
        for side in sides
        for row, (ids, mask) in enumerate(
            zip(arrays[f"targets_{side}"], masks[side], strict=True)
        )
    ]
    shares = {
        number: [
            arrays[f"map_{bucket}_{side}"][row][at][:, masks[side]] for side in sides
        ]
        for number, (bucket, row, at, _) in scored.items()
    }
    return {"step": int(path.stem), "texts": texts}, {
        number: _largest(np.concatenate(of, axis=1)) for number, of in shares.items()
    }


def _balances_at(
    metrics: pl.DataFrame, step: int, tracked: Mapping[tuple[str, str], int]
) -> dict[int, dict[str, Any]]:
    """What one update changed each tracked response by, and the parts of it."""
    *names, left = part_names(metrics) or [""]
    if not names:
        return {}
    rows = metrics.filter((pl.col("step") == step) & in_set(TRACKED))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for probe, type_, quantity, value in rows[
        "probe", "type", "quantity", "value"
    ].iter_rows():
        found.setdefault((observed_name(probe), type_), {})[quantity] = value
    balances = {}
    for key in found.keys() & tracked.keys():
        numbers = found[key]
        parts = {name: numbers[name] for name in names if name in numbers}
        parts[left] = numbers[MEASURED] - sum(parts.values())
        balances[tracked[key]] = {"measured": numbers[MEASURED], "parts": parts}
    return balances


def _largest(shares: np.ndarray) -> dict[str, Any]:
    """The largest numbers of each row, and where they stand.

    Returns:
      Their `places`, and the `shares` in whole numbers of a `unit` for each row; of the
      others the sum is the `rest`, and that of their sizes is `hidden`.
    """
    sizes = np.abs(shares).astype(np.float64)
    whole = sizes.sum(1)
    order = np.argsort(-sizes, axis=1)
    first = np.take_along_axis(sizes, order, axis=1).cumsum(1)
    needed = (first < MOST_OF_IT * whole[:, None]).sum(1).max(initial=0) + 1
    places = order[:, : min(needed, MOST_SHARES)]
    small = np.uint16 if shares.shape[1] <= 1 << 16 else np.int32
    kept = np.take_along_axis(shares, places, axis=1).astype(np.float64)
    unit = np.maximum(np.abs(kept).max(1, initial=0) / _LARGEST, np.finfo("f4").tiny)
    unit = unit.astype(np.float32)[:, None]
    counts = (kept / unit).round().astype(np.int16)
    kept = counts * unit.astype(np.float64)  # as the page reads them
    return {
        "places": packed(places.astype(small)),
        "shares": packed(counts),
        "unit": packed(unit[:, 0]),
        "rest": packed(shares.sum(1, dtype=np.float64) - kept.sum(1)),
        "hidden": packed(whole - np.abs(kept).sum(1)),
    }


def _vocabulary(
    tokenizer: Tokenizer,
    arrays: Mapping[str, np.ndarray],
    updates: Sequence[Mapping[str, Any]],
) -> dict[int, str]:
    """The text of every token that is shown by its id."""
    ids = {i for update in updates for text in update["texts"] for i in text["ids"]}
    for name, array in arrays.items():
        if name.startswith("moved_ids_"):
            ids |= set(np.unique(array).tolist())
    return {i: tokenizer.decode([i]) for i in sorted(ids)}
