"""The run folder: what an experiment leaves behind, written and read through here.

A run is a folder with `config.json` (settings, seed, versions, state of the code),
`metrics.parquet` (one long table), `summary.json` (claims and their numbers) and
`figures/`. A finetuning run has more: the texts it watches (`probes.jsonl`), the
account of single tokens (`tokens.npz`, `token_maps/`) and a page (`report.html`). Every
file is written beside its place and moved there, so a run that is killed leaves whole
files only.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import numbers
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldjax.files.locks import LOCK, FolderLock, lock_folder
from ldjax.files.replacing import forget_replaced, is_replacing, set_aside, settle
from ldjax.files.whole import read_json_object, whole_file, writing

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
      lock: The lock of the process that writes it; None for one that reads.

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
    lock: FolderLock | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked to do, and by which code.

        Raises:
          ValueError: If the file is damaged, or not that of a run.
        """
        content = read_json_object(self.path / _CONFIG)
        if not isinstance(content.get("settings"), dict):
            raise ValueError(f"{self.path / _CONFIG} is not that of a run.")
        return content

    @property
    def summary(self) -> dict[str, Any]:
        """What came out: claims with their numbers.

        Raises:
          ValueError: If the file is damaged.
        """
        return read_json_object(self.path / _SUMMARY)

    def metrics(self) -> "pl.DataFrame":
        """The long table, with the columns `METRIC_COLUMNS`.

        Raises:
          FileNotFoundError: If it has not been written yet.
          ValueError: If the file is damaged, or another table.
        """
        import polars as pl

        path = self.path / _METRICS
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} has no {_METRICS}: the run has not come to its first one."
            )
        try:
            table = pl.read_parquet(path, glob=False)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
        if table.schema != _metric_schema():
            raise ValueError(
                f"{path} is not the table of a run: it has {_told(table.schema)} and "
                f"not {_told(_metric_schema())}."
            )
        return table

    def write_metrics(self, rows: "Sequence[tuple[Any, ...]] | pl.DataFrame") -> None:
        """Write the long table.

        Args:
          rows: One tuple in the order of `METRIC_COLUMNS` for each number, or a table
            with these columns (for many numbers).

        Raises:
          WriteError: If the machine refuses; a table that was there stays.
        """
        import polars as pl

        schema = _metric_schema()
        if isinstance(rows, pl.DataFrame):
            table = rows.select(METRIC_COLUMNS).cast(schema)
        else:
            table = pl.DataFrame(list(rows), schema=schema, orient="row")
        with whole_file(self.path / _METRICS) as partial:
            table.write_parquet(partial)
        forget_replaced(self.path)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what came out.

        Raises:
          ValueError: If a number is not finite: JSON has none for it.
          WriteError: If the machine refuses; a summary that was there stays.
        """
        # Text first: a value JSON does not know must not leave an empty file.
        text = json.dumps(summary, indent=2, allow_nan=False, default=_plain)
        with whole_file(self.path / _SUMMARY) as partial:
            partial.write_text(f"{text}\n")
        forget_replaced(self.path)

    def figure_path(self, name: str) -> Path:
        """Where the figure of this name goes."""
        folder = self.path / "figures"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder / f"{name}.png"

    def release(self) -> None:
        """Let other processes write the folder; without it, when the run is dropped."""
        if self.lock is not None:
            self.lock.release()


def create_run(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Run:
    """Make a run folder and write its `config.json`.

    The folder is locked until the run is released, or the process has ended.

    Args:
      path: The folder; made with its parents. A link to one is followed.
      settings: What the run is asked to do, its seed among them; written as JSON,
        "inf" and "nan" for numbers that it does not know.
      overwrite: Replace a run that is already there. It is kept in the folder until the
        new one has its first numbers, and is back in its place if that never happens.

    Returns:
      The run.

    Raises:
      FileExistsError: If the folder holds something; it is left as it is. With
        `overwrite`, only if that is not a run.
      BlockingIOError: If another process writes it.
      ValueError: If a run that shall be replaced holds what one of the settings names.
      WriteError: If the machine refuses.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "a" / "b"
      >>> sorted(create_run(folder, {"seed": 3}).config)
      ['code', 'platform', 'python', 'settings', 'versions']
    """
    return _started(path, settings, overwrite=overwrite, is_resumable=False)


def open_run(path: Path) -> Run:
    """A run folder that exists.

    Raises:
      FileNotFoundError: If the folder is not a run.

    Examples:
      >>> open_run(Path("/nowhere"))
      Traceback (most recent call last):
      FileNotFoundError: /nowhere is not a run folder: it has no config.json.
    """
    path = Path(path).expanduser()
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
      settings: What the run is asked to do; written as JSON.
      resume: Go on with the run that is there; where there is none, start.
      overwrite: Replace a run that is there (see `create_run`).
      free: Names of settings that may differ from those of the run.

    Returns:
      The run.

    Raises:
      ValueError: If the run that is there has other settings, or was made with other
        versions of what its numbers depend on; naming them.
      FileExistsError: If the folder holds something, as in `create_run`.
      BlockingIOError: If another process writes it.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "run"
      >>> _ = start_run(path, {"seed": 0}, resume=True, overwrite=False)
      >>> start_run(path, {"seed": 1}, resume=True, overwrite=False)
      Traceback (most recent call last):
        ...
      ValueError: cannot resume ...run: seed was 0, now 1. ...
    """
    if not resume:
        return _started(path, settings, overwrite=overwrite, is_resumable=True)
    path = _usable(path)
    if _kind(path) != "run":
        return _started(path, settings, overwrite=overwrite, is_resumable=True)
    run = Run(path, lock_folder(path, at_end=settle))
    settle(path)
    config = run.config
    there = config["settings"] | _numerics(config.get("versions") or {})
    here = json.loads(_json(settings))
    here |= _numerics({name: _version(name) for name in _PACKAGES})
    changes = [
        f"{name} was {there.get(name)}, now {here.get(name)}"
        for name in {**there, **here}
        if name not in free and there.get(name) != here.get(name)
    ]
    if changes:
        raise ValueError(
            f"cannot resume {path}: {'; '.join(changes)}. Ask for what it was begun "
            "with, or choose another folder."
        )
    return run


def _started(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool, is_resumable: bool
) -> Run:
    """A new run; one that is there is only replaced when asked."""
    path = _usable(path)
    config = {
        "settings": settings,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.machine(),
        "code": _code_state(),
    }
    text = _json(config) + "\n"  # first, since a setting may have no text
    if _kind(path) == "something":
        raise FileExistsError(
            f"{path} already holds something that is not a run; nothing was written. "
            "Choose another folder."
        )
    run = Run(path, lock_folder(path, at_end=settle))
    try:
        settle(path)
        if _kind(path) == "run":
            if not overwrite:
                resume = "`resume=True` to go on with it, or " if is_resumable else ""
                raise FileExistsError(
                    f"{path} already holds a run; nothing was written. Choose another "
                    f"folder, or pass {resume}`overwrite=True` to replace it."
                )
            _refuse_what_is_needed(path, settings)
            set_aside(path)
        with whole_file(path / _CONFIG) as partial:
            partial.write_text(text)
    except BaseException:
        run.release()
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()
        raise
    return run


def _usable(path: Path) -> Path:
    """The path of a run, as a shell and JSON know it."""
    path = Path(path).expanduser()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{str(path)!a} is not UTF-8, which the names of run folders are. "
            "Choose another folder."
        ) from error
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}: nothing.")
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(
                f"{place} is a file, no folder; nothing was written. Choose another "
                "folder."
            )
    return path


def _kind(path: Path) -> Literal["nothing", "run", "something"]:
    """What is at the path of a run.

    Raises:
      ValueError: If it has a damaged `config.json`.
    """
    if not path.is_dir():
        return "nothing"
    if is_replacing(path):
        return "run"
    # What a start that was killed may leave.
    names = {item.name for item in path.iterdir()} - {LOCK, f".{_CONFIG}.partial"}
    if _CONFIG in names:
        return "run" if "settings" in read_json_object(path / _CONFIG) else "something"
    return "something" if names else "nothing"


def _refuse_what_is_needed(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to replace a run that holds the model or the data of the new one."""
    folder = path.resolve()
    for name, value in settings.items():
        if name == "out":
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if (there := _existing(item)) and folder in (there, *there.parents):
                raise FileExistsError(
                    f"{path} holds what `{name}` names ({item}), and would be "
                    "replaced. Choose another folder for the new run."
                )


def _existing(item: Any) -> Path | None:
    """What a setting names, if it is the path of something."""
    if not isinstance(item, str | Path) or not str(item):
        return None
    try:
        return Path(item).expanduser().resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None


def _numerics(versions: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of the packages that a run's numbers depend on."""
    return {f"version of {name}": versions.get(name) for name in _NUMERIC_PACKAGES}


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


def _metric_schema() -> "pl.Schema":
    import polars as pl

    types = (pl.Int64, pl.Int64, pl.String, pl.String, pl.String, pl.Float64)
    return pl.Schema(dict(zip(METRIC_COLUMNS, types, strict=True)))


def _told(schema: "pl.Schema") -> str:
    """Columns and their types in a line."""
    columns = ", ".join(f"{name} ({type_})" for name, type_ in schema.items())
    return columns or "no columns"


def _json(settings: Mapping[str, Any]) -> str:
    """Settings as JSON, where numbers that are not finite are words."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(item) for key, item in value.items()}
        value = value if isinstance(value, list | tuple) else _plain(value)
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return json.dumps(finite(settings), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """A value as JSON knows it: numbers of NumPy and JAX as numbers, others as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
