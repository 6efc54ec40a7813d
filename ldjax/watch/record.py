"""The record of a watched run: what stands in its table, written and read through here.

A row of the table is one number (see `ldjax.runs.folder.METRIC_COLUMNS`). Its probe is
named by a set and a prompt, as `train/0017`, and what is measured depends on the set:

* `train/` and `test/`: probes that are observed on a schedule, before an update. The
  numbers of `ldjax.theory.quantities.sequence_quantities`; and `predicted_step` and
  `measured_step`, the change by the update that follows.
* `tracked/`: trained prompts whose changes are recorded at every update, so that they
  add up to that of the run: `predicted`, `integrated`, `measured`, the rounding
  `floor`, and `part:...` for each part of the update. Parts sum to `integrated`, and in
  runs that recorded none to `predicted`.
* `all-train/` and `all-test/`: every row of the data, at both ends of the run.

What the probes say stands beside the table, in `probes.jsonl`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldjax.data.text import text_field
from ldjax.files.whole import json_object, read_lines, whole_file
from ldjax.runs.folder import METRIC_COLUMNS
from ldjax.watch.probes import Probe

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "FLOOR",
    "INTEGRATED",
    "MEASURED",
    "PREDICTED",
    "PROBES_FILE",
    "QUADRATURE",
    "REMAINDER",
    "TEST",
    "TRACKED",
    "TRAIN",
    "change_by_type",
    "everything_name",
    "in_set",
    "is_part",
    "last_floor",
    "observed_name",
    "part",
    "part_name",
    "probe_lengths",
    "probe_line",
    "probe_name",
    "prompt_of",
    "read_probe_lines",
    "row_name",
    "series_rows",
    "set_of",
    "single_step",
    "table_rows",
    "tracked_name",
    "write_probe_lines",
]

TRAIN, TEST, TRACKED = "train", "test", "tracked"
#: The change that first order predicts, the one that happened, and what rounding can
#: make of it; in nats.
PREDICTED, MEASURED, FLOOR = "predicted", "measured", "floor"
#: The change by the derivative at nodes along each update, which its parts sum to.
INTEGRATED = "integrated"
#: Measured - predicted, and measured - integrated: what lies between the nodes. They
#: are not in the table, but derived by its readers.
REMAINDER, QUADRATURE = "remainder", "quadrature"
PROBES_FILE = "probes.jsonl"

_PART = "part:"


def probe_name(set_name: str, prompt: str) -> str:
    """The name of a prompt in a set.

    Examples:
      >>> probe_name(TRAIN, "why")
      'train/why'
    """
    return f"{set_name}/{prompt}"


def row_name(set_name: str, place: int) -> str:
    """The name of a prompt that is a row of a file.

    Examples:
      >>> row_name(TEST, 17)
      'test/0017'
    """
    return probe_name(set_name, f"{place:04d}")


def set_of(name: str) -> str:
    """The set of a probe by its name; empty where that names none."""
    set_name, slash, _ = name.partition("/")
    return set_name if slash else ""


def prompt_of(name: str) -> str:
    """The name of a probe's prompt, without that of the set."""
    return name.partition("/")[2]


def tracked_name(name: str) -> str:
    """The name under which the changes of a trained prompt are added up.

    Examples:
      >>> tracked_name("train/0017"), observed_name("tracked/0017")
      ('tracked/0017', 'train/0017')
    """
    return probe_name(TRACKED, prompt_of(name))


def observed_name(name: str) -> str:
    """The name under which a probe is observed; tracked ones are trained prompts."""
    return probe_name(TRAIN, prompt_of(name)) if set_of(name) == TRACKED else name


def everything_name(name: str) -> str:
    """The name of a probe among all rows of the data, watched otherwise or not."""
    return f"all-{name}"


def in_set(set_name: str) -> "pl.Expr":
    """A filter of the table: the rows about a set of probes."""
    import polars as pl

    return pl.col("probe").str.starts_with(probe_name(set_name, ""))


def single_step(quantity: str) -> str:
    """The quantity of one update's change, where not every update is recorded.

    Examples:
      >>> single_step(PREDICTED)
      'predicted_step'
    """
    return f"{quantity}_step"


def part(name: str) -> str:
    """The quantity of a part of an update's change.

    Examples:
      >>> part("history"), part_name("part:history")
      ('part:history', 'history')
    """
    return f"{_PART}{name}"


def is_part(quantity: str) -> bool:
    """Whether a quantity is a part of an update's change."""
    return quantity.startswith(_PART)


def part_name(quantity: str) -> str:
    """The name of the part that a quantity is."""
    return quantity.removeprefix(_PART)


def table_rows(
    steps: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    probes: Sequence[Probe],
    *,
    examples_per_step: int,
) -> "pl.DataFrame":
    """Rows of the table: every quantity at every step, of every probe.

    Args:
      steps: Numbers of updates before each observation, `[step]`.
      numbers: By quantity, `[step, probe]`; `[step]` for one that is of no probe, such
        as the loss.
      probes: The probes that were measured.
      examples_per_step: Training examples of an update.

    Returns:
      A table with the columns `METRIC_COLUMNS`.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> probe = Probe("train/0", "chosen", Example((5, 3), (7, 0)))
      >>> numbers = {"loss": np.array([0.5]), "log_prob": np.array([[-8.0]])}
      >>> table_rows(np.array([3]), numbers, [probe], examples_per_step=4).rows()
      [(3, 12, '', '', 'loss', 0.5), (3, 12, 'train/0', 'chosen', 'log_prob', -8.0)]
    """
    import polars as pl

    named = [(probe.prompt_name, probe.type) for probe in probes]
    frames = [
        _rows_of(steps, values, named if values.ndim == 2 else [("", "")], quantity)
        for quantity, values in numbers.items()
    ]
    examples = (pl.col("step") * examples_per_step).alias("examples")
    return pl.concat(frames).with_columns(examples).select(METRIC_COLUMNS)


def series_rows(
    series: Mapping[str, Mapping[str, np.ndarray]],
    probes: Mapping[str, Sequence[Probe]],
    *,
    examples_per_step: int,
) -> "pl.DataFrame":
    """Rows of the table, from the series of a training loop.

    Args:
      series: The loop's table: by series, its quantities and their `step`.
      probes: The probes of each series that is to be in it; others are left out.
      examples_per_step: Training examples of an update.
    """
    import polars as pl

    return pl.concat(
        table_rows(
            numbers["step"],
            {name: values for name, values in numbers.items() if name != "step"},
            probes[name],
            examples_per_step=examples_per_step,
        )
        for name, numbers in series.items()
        if name in probes
    )


def _rows_of(
    steps: np.ndarray, values: np.ndarray, of: Sequence[tuple[str, str]], quantity: str
) -> "pl.DataFrame":
    """One row for each step and thing measured, a prompt's name and a type."""
    import polars as pl

    names, types = zip(*of, strict=True)
    # Texts are copied inside of polars: a long run is written at every observation.
    place = np.tile(np.arange(len(of)), len(steps))
    return pl.DataFrame(
        {
            "step": np.repeat(steps.astype(np.int64), len(of)),
            "probe": pl.Series(names, dtype=pl.String).gather(place),
            "type": pl.Series(types, dtype=pl.String).gather(place),
            "quantity": pl.repeat(quantity, values.size, dtype=pl.String, eager=True),
            "value": values.astype(np.float64).ravel(),
        }
    )


def last_floor(table: "pl.DataFrame", probes: Sequence[Probe]) -> np.ndarray | None:
    """The rounding floor that was measured last, `[probe]`; None where none was."""
    import polars as pl

    found = table.filter(pl.col("quantity") == FLOOR)
    found = found.filter(pl.col("step") == pl.col("step").max())
    if not len(found):
        return None
    known = {
        (name, type_): value
        for name, type_, value in found["probe", "type", "value"].iter_rows()
    }
    names = [(tracked_name(probe.prompt_name), probe.type) for probe in probes]
    return np.array([known.get(name, np.nan) for name in names])


def change_by_type(table: "pl.DataFrame") -> dict[str, Any]:
    """Start, end and highest point of the mean log-prob, by set and type, in nats."""
    import polars as pl

    value = pl.col("value")
    means = (
        table.filter(pl.col("quantity") == "log_prob")
        .group_by(pl.col("probe").str.extract("^([^/]*)/"), "type", "step")
        .agg(value.mean())
        .sort("step")
    )
    ends = means.group_by("probe", "type").agg(
        start=value.first(), end=value.last(), highest=value.max()
    )
    changes: dict[str, Any] = {}
    # JSON has no number for a training that diverged.
    number = pl.col("start", "end", "highest")
    ends = ends.with_columns(pl.when(number.is_finite()).then(number))
    for row in ends.sort("probe", "type").to_dicts():
        changes.setdefault(row.pop("probe"), {})[row.pop("type")] = row
    return changes


def probe_line(probe: Probe, prompt: str, text: str, **more: str) -> str:
    """The line of `probes.jsonl` that tells what a probe says.

    Args:
      probe: The probe.
      prompt: The text of its prompt.
      text: The text of its response.
      more: What else there is to tell, such as its source.
    """
    content = {
        "probe": probe.prompt_name,
        "type": probe.type,
        "prompt": prompt,
        "text": text,
        "num_tokens": probe.example.num_scored,
    }
    return json.dumps(content | more, ensure_ascii=False) + "\n"


def write_probe_lines(folder: Path, lines: Iterable[str]) -> None:
    """Write `probes.jsonl`.

    Args:
      folder: That of the run.
      lines: Those of `probe_line`, in the order of the table.

    Raises:
      WriteError: If the machine refuses; a file that was there stays.
    """
    with whole_file(folder / PROBES_FILE) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def read_probe_lines(folder: Path) -> list[dict[str, str]]:
    """The `probe`, `type`, `prompt` and `text` of every line of `probes.jsonl`.

    Args:
      folder: That of the run.

    Raises:
      ValueError: If the file is empty or damaged.
    """
    names = ("probe", "type", "prompt", "text")
    lines = read_lines(folder / PROBES_FILE)
    contents = [json_object(line.data) for line in lines if line.data]
    if not contents:
        raise ValueError("it is empty")
    return [{name: text_field(of, name) for name in names} for of in contents]


def probe_lengths(folder: Path) -> dict[tuple[str, str], int]:
    """The number of tokens of every probe, by its name and type; none if unsaid.

    Args:
      folder: That of a run with `probes.jsonl`.
    """
    lines = read_lines(folder / PROBES_FILE)
    contents = [json_object(line.data) for line in lines if line.data]
    return {
        (of["probe"], of["type"]): of["num_tokens"]
        for of in contents
        if isinstance(of.get("num_tokens"), int) and of["num_tokens"] > 0
    }
