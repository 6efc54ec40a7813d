"""The run folder: what an experiment leaves behind, written and read through here.

A run is a folder with `config.json` (settings, seed, versions, state of the code),
`metrics.parquet` (one long table), `summary.json` (claims and their numbers) and
`figures/`. A finetuning run has more: the texts it watches (`probes.jsonl`), the
account of single tokens (`tokens.npz`, `token_maps/`) and a page (`report.html`). Every
file is written beside its place and moved there, so a run that is killed leaves whole
files only.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldjax.files import whole_file

if TYPE_CHECKING:
    import polars as pl

__all__ = ["METRIC_COLUMNS", "Run", "create_run", "open_run", "start_run"]

# One row per number. `step` counts updates, `examples` training examples seen, `probe`
# names what was observed, `type` its kind (a response type, a label), `quantity` what
# was measured.
METRIC_COLUMNS = ("step", "examples", "probe", "type", "quantity", "value")

_CONFIG, _METRICS, _SUMMARY = "config.json", "metrics.parquet", "summary.json"
_PACKAGES = ("ldjax", "jax", "jaxlib", "flax", "optax", "numpy", "neural-tangents")
_NUMERIC_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
      path: The folder.

    Examples:
      >>> import tempfile
      >>> run = create_run(Path(tempfile.mkdtemp()) / "run", {"seed": 0})
      >>> run.write_metrics([(1, 64, "4", "9", "measured", 0.25)])
      >>> run.metrics()["value"].to_list()
      [0.25]
      >>> open_run(run.path).config["settings"]
      {'seed': 0}
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked to do, and by which code."""
        return json.loads((self.path / _CONFIG).read_text())

    @property
    def summary(self) -> dict[str, Any]:
        """What came out: claims with their numbers."""
        return json.loads((self.path / _SUMMARY).read_text())

    def metrics(self) -> "pl.DataFrame":
        """The long table, with the columns `METRIC_COLUMNS`."""
        import polars as pl

        return pl.read_parquet(self.path / _METRICS)

    def write_metrics(self, rows: "Sequence[tuple[Any, ...]] | pl.DataFrame") -> None:
        """Write the long table.

        Args:
          rows: One tuple in the order of `METRIC_COLUMNS` for each number, or a table
            with these columns (for many numbers).
        """
        import polars as pl

        types = (pl.Int64, pl.Int64, pl.String, pl.String, pl.String, pl.Float64)
        schema: Any = dict(zip(METRIC_COLUMNS, types, strict=True))
        if isinstance(rows, pl.DataFrame):
            table = rows.select(METRIC_COLUMNS).cast(pl.Schema(schema))
        else:
            table = pl.DataFrame(list(rows), schema=schema, orient="row")
        with whole_file(self.path / _METRICS) as partial:
            table.write_parquet(partial)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what came out."""
        _write_json(self.path / _SUMMARY, summary)

    def figure_path(self, name: str) -> Path:
        """Where the figure of this name goes."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.png"


def create_run(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Run:
    """Make a run folder and write its `config.json`.

    Args:
      path: The folder; made with its parents.
      settings: What the run is asked to do, its seed among them; written as JSON,
        "inf" and "nan" for numbers that it does not know.
      overwrite: Replace a run that is already there.

    Returns:
      The run.

    Raises:
      FileExistsError: If the folder holds something; it is left as it is. With
        `overwrite`, only if that is not a run.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "a" / "b"
      >>> sorted(create_run(folder, {"seed": 3}).config)
      ['code', 'platform', 'python', 'settings', 'versions']
    """
    if path.exists() and (not path.is_dir() or _holds_something(path)):
        is_run = (path / _CONFIG).is_file()
        if not (overwrite and is_run):
            kind = "a run" if is_run else "something that is not a run"
            fix = " or pass `--overwrite` to replace it" if is_run else ""
            raise FileExistsError(
                f"{path} already holds {kind}; nothing was written. Choose another "
                f"`--out`{fix}."
            )
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "settings": _as_read_back(settings),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.machine(),
        "code": _code_state(),
    }
    _write_json(path / _CONFIG, config)
    return Run(path)


def open_run(path: Path) -> Run:
    """A run folder that exists.

    Raises:
      FileNotFoundError: If the folder is not a run.

    Examples:
      >>> open_run(Path("/nowhere"))
      Traceback (most recent call last):
      FileNotFoundError: /nowhere is not a run folder: it has no config.json.
    """
    if not (path / _CONFIG).is_file():
        raise FileNotFoundError(f"{path} is not a run folder: it has no {_CONFIG}.")
    return Run(path)


def start_run(
    path: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    free: Collection[str] = (),
) -> Run:
    """A new run folder, or with `resume` the one that is there if it fits.

    Args:
      path: The folder.
      settings: As in `create_run`.
      resume: Go on with the run that is there; where there is none, start.
      overwrite: As in `create_run`.
      free: Names of settings that may differ from those of the run.

    Returns:
      The run.

    Raises:
      ValueError: If the run that is there has other settings, or was made with other
        versions of what its numbers depend on; naming them.
      FileExistsError: As `create_run`.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "run"
      >>> _ = start_run(path, {"seed": 0}, resume=True, overwrite=False)
      >>> start_run(path, {"seed": 1}, resume=True, overwrite=False)
      Traceback (most recent call last):
        ...
      ValueError: cannot resume ...run: seed was 0, now 1.
    """
    if not (resume and (path / _CONFIG).is_file()):
        return create_run(path, settings, overwrite=overwrite)
    run = Run(path)
    there = run.config["settings"] | _numerics(run.config["versions"])
    here = _as_read_back(settings)
    here |= _numerics({name: _version(name) for name in _PACKAGES})
    changes = [
        f"{name} was {there.get(name)}, now {here.get(name)}"
        for name in {**there, **here}
        if name not in free and there.get(name) != here.get(name)
    ]
    if changes:
        raise ValueError(f"cannot resume {path}: {'; '.join(changes)}.")
    return run


def _numerics(versions: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of the packages that a run's numbers depend on."""
    return {f"version of {name}": versions.get(name) for name in _NUMERIC_PACKAGES}


def _holds_something(folder: Path) -> bool:
    """Whether there is more in it than what a killed `create_run` may leave."""
    return any(path.name != f".{_CONFIG}.partial" for path in folder.iterdir())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code_state() -> dict[str, Any]:
    """The commit that ran, and whether the tree had changes; empty outside git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ("git", *args),
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "modified": bool(changes)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    # Text first: a value JSON does not know must not leave an empty file.
    text = json.dumps(content, indent=2, allow_nan=False, default=_plain) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text)


def _as_read_back(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them; "inf" and "nan" for what it does not know."""

    def legible(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: legible(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [legible(item) for item in value]
        if isinstance(value, np.ndarray | np.generic):
            return legible(value.tolist())
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return json.loads(json.dumps(legible(settings), allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """For JSON: Python's number of one of NumPy's, the text of anything else."""
    is_numpy = isinstance(value, np.ndarray | np.generic)
    return value.tolist() if is_numpy else str(value)
