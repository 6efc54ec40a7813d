"""Other places that show a run while it goes on: TensorBoard and Weights & Biases.

The run folder stays the truth. A sink copies from its table what it has not copied yet,
and finds out by itself what that is, so a run that is killed and resumed goes on there
without a number twice.
"""

import importlib
import importlib.util
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ldjax.files.whole import read_json_object, whole_file
from ldjax.runs.folder import Run

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Sink", "SinkName", "check_sinks", "make_sink", "scalars"]

SinkName = Literal["tensorboard", "wandb"]
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


@runtime_checkable
class Sink(Protocol):
    """A place that numbers are copied to.

    Examples:
      >>> class Printer:
      ...     def write(self, metrics):
      ...         print(scalars(metrics).rows())
      ...
      ...     def close(self):
      ...         pass
      >>> sink: Sink = Printer()
    """

    def write(self, metrics: "pl.DataFrame") -> None:
        """Copy what is new in a run's table, the whole of which is given."""
        ...

    def close(self) -> None:
        """Finish what was begun; nothing can be written any more."""
        ...


def check_sinks(names: Sequence[str]) -> None:
    """Refuse sinks that cannot be used, before a run begins.

    Args:
      names: The sinks.

    Raises:
      ValueError: If there is no such sink, or if its package is not installed.

    Examples:
      >>> check_sinks(["carrier_pigeon"])
      Traceback (most recent call last):
        ...
      ValueError: `log`: there is no carrier_pigeon, only tensorboard, wandb.
    """
    for name in names:
        if name not in _PACKAGES:
            raise ValueError(f"`log`: there is no {name}, only {', '.join(_PACKAGES)}.")
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"`log={name}` needs the package {package}, which is not installed: "
                f"pip install {package}"
            )


def make_sink(name: SinkName, run: Run) -> Sink:
    """Begin to copy a run, or go on where an earlier sink of it stopped.

    Args:
      name: `tensorboard` writes events to `tensorboard/` in the run folder (look with
        `tensorboard --logdir`); `wandb` a run of Weights & Biases, its files in
        `wandb/`. That is offline unless `WANDB_MODE` says otherwise or one is logged
        in, and nobody is asked to log in; `wandb sync` uploads it later.
      run: The run folder. Its settings become the configuration shown.

    Returns:
      The sink.

    Raises:
      ValueError: If `check_sinks` refuses it, or W&B does.

    Examples:
      >>> import tempfile
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {"seed": 0})
      >>> run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
      >>> sink = make_sink("tensorboard", run)
      >>> sink.write(run.metrics())
      >>> sink.close()
      >>> len(list((run.path / "tensorboard").iterdir()))
      1
    """
    check_sinks([name])
    return {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}[name](run)


def scalars(metrics: "pl.DataFrame") -> "pl.DataFrame":
    """A run's table as named curves: the mean over the probes of a set.

    Args:
      metrics: With the columns `METRIC_COLUMNS`.

    Returns:
      Columns `step`, `name` and `value`, in the order of steps. Names are
      `train/chosen/log_prob` for the probes of the set `train`, `kernel_norm/4/9` for
      the cell of a table, and that of the quantity where there is no probe.

    Examples:
      >>> import polars as pl
      >>> from ldjax.runs.folder import METRIC_COLUMNS
      >>> rows = [
      ...     (0, 0, "train/0", "chosen", "log_prob", -8.0),
      ...     (0, 0, "train/1", "chosen", "log_prob", -9.0),
      ...     (0, 0, "", "", "loss", 0.5),
      ... ]
      >>> scalars(pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")).rows()
      [(0, 'loss', 0.5), (0, 'train/chosen/log_prob', -8.5)]
    """
    import polars as pl

    probe = pl.col("probe")
    joined = lambda *parts: pl.concat_str(*parts, separator="/")
    name = (
        pl.when(probe == "")
        .then(pl.col("quantity"))
        .when(probe.str.contains("/"))
        .then(joined(probe.str.extract("^([^/]*)/"), "type", "quantity"))
        .otherwise(joined("quantity", "probe", "type"))
    )
    return (
        metrics.group_by("step", name.alias("name"))
        .agg(pl.col("value").mean())
        .sort("step", "name")
    )


def _unwritten(
    metrics: "pl.DataFrame", written: Mapping[str, int]
) -> Iterator[tuple[int, dict[str, float]]]:
    """The numbers of each step that are new, by name.

    Args:
      metrics: The table of the run.
      written: Last step that was written of each name. A step of its own for each: an
        observation after an update comes before the loss of the next one.
    """
    import polars as pl

    last = pl.DataFrame(
        {"name": list(written), "last": list(written.values())},
        schema={"name": pl.String, "last": pl.Int64},
    )
    new = (
        scalars(metrics)
        .join(last, on="name", how="left", maintain_order="left")
        .filter(pl.col("last").is_null() | (pl.col("step") > pl.col("last")))
    )
    for (step,), rows in new.group_by("step", maintain_order=True):
        yield step, dict(zip(rows["name"], rows["value"], strict=True))


class _TensorBoard:
    """Event files, one for each start of the run; they are read to go on."""

    def __init__(self, run: Run):
        from tensorboardX.event_file_writer import EventsWriter

        folder = run.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        files = sorted(folder.glob("events.*"))
        self._written: dict[str, int] = {}
        for file in files:
            self._written |= _steps_in(file)
        # Numbered: the time in their names is in seconds. Not the package's usual
        # writer, which leaves numbers in a queue that a killed run takes with it.
        self._writer = EventsWriter(str(folder / "events"), f".{len(files)}")
        self._writer.flush()

    def write(self, metrics: "pl.DataFrame") -> None:
        for step, numbers in _unwritten(metrics, self._written):
            event = _event_type()(wall_time=time.time(), step=step)
            for name, value in numbers.items():
                event.summary.value.add(tag=name, simple_value=value)
            self._writer.write_event(event)
            self._written |= dict.fromkeys(numbers, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _steps_in(path: Path) -> dict[str, int]:
    """The last step of every curve of a file."""
    written: dict[str, int] = {}
    try:
        for event in _events(path):
            tags = (value.tag for value in event.summary.value)
            written |= dict.fromkeys(tags, event.step)
    except Exception as error:  # the package's own
        raise ValueError(
            f"`log=tensorboard`: {path} is damaged ({error}). Delete the folder "
            f"{path.parent}: it is made anew from the table of the run."
        ) from error
    return written


def _event_type() -> Any:
    """The class of an event, which its module makes when it is imported."""
    return importlib.import_module("tensorboardX.proto.event_pb2").Event


def _events(path: Path) -> Iterator[Any]:
    """The events of a file: length, checksum, event, checksum; up to a torn one."""
    data, start = path.read_bytes(), 12
    while start <= len(data):
        (length,) = struct.unpack_from("<Q", data, start - 12)
        if start + length + 4 > len(data):
            return
        yield _event_type().FromString(data[start : start + length])
        start += length + 16


class _WeightsAndBiases:
    """A run of Weights & Biases; what it has is noted beside its files."""

    def __init__(self, run: Run):
        # No connection that nobody asked for; the package reads this when imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._notes = run.path / "wandb" / "ldjax.json"
        known: dict[str, Any] = {"id": None, "written": {}}
        if self._notes.is_file():
            known |= read_json_object(self._notes)
        self._written: dict[str, int] = known["written"]
        self._notes.parent.mkdir(exist_ok=True)
        try:
            self._run = wandb.init(
                dir=run.path,
                project=os.environ.get("WANDB_PROJECT", "ldjax"),
                name=run.path.resolve().name,
                id=known["id"],
                resume="allow" if known["id"] else None,
                mode=_wandb_mode(),
                config=run.config["settings"],
                # The run folder says which code ran; W&B would copy its changes.
                settings=wandb.Settings(console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f"`log=wandb`: {error} With WANDB_MODE=offline it needs no connection."
            ) from error
        # Its own count of steps only goes up; ours starts anew for each series.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, metrics: "pl.DataFrame") -> None:
        for step, numbers in _unwritten(metrics, self._written):
            self._run.log({"step": step, **numbers})
            self._written |= dict.fromkeys(numbers, step)
        notes = {"id": self._run.id, "written": self._written}
        with whole_file(self._notes) as partial:
            partial.write_text(json.dumps(notes))

    def close(self) -> None:
        self._run.finish()


def _wandb_mode() -> Literal["online", "offline"] | None:
    """None for what `WANDB_MODE` says; a login is used where there is one."""
    import wandb

    if "WANDB_MODE" in os.environ:
        return None
    return "online" if wandb.login(prompt=False, verify=False) else "offline"
