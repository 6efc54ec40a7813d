"""Probes in a training loop of one's own: what each update did to watched responses.

Three lines: make a `Recorder`, call it after every optimizer step, close it. It leaves
a run folder that `python -m ldjax.report` makes a page of.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldjax.files import whole_file
from ldjax.probes import ApplyFn, Probe, ProbeSet, make_change_fn, make_observe_fn
from ldjax.runs import METRIC_COLUMNS, Run, start_run
from ldjax.sinks import SinkName, check_sinks, make_sink

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Recorder"]

#: The table is written again when it has grown by so many updates, or by this share.
WRITE_AFTER, WRITE_AFTER_SHARE = 10, 0.05

_TRAINED = "train/"


class Recorder:
    r"""Records in a run folder what optimizer steps do to probes.

    At each step that is recorded, for every probe:

    * `log_prob` and the other numbers of `ldjax.probes.sequence_quantities`, before
      the update;
    * `predicted_step` and `measured_step`, what first order says the update does to its
      log-prob, and what it does, in nats.

    With `every=1` the same two are also recorded as `predicted` and `measured` of the
    trained prompts, which the page adds up over the run; `floor` is what rounding can
    make of them: :math:`8 \epsilon (T + |\log\pi|)` for :math:`T` tokens. Where an
    update was left out, these sums would not be the change of the run, so there are
    none; all else is exact at the steps where it is recorded. `close` observes the
    parameters behind the last update, too.

    The cost of a recorded step is two forward passes and a jvp of all probes.

    Attributes:
      run: The run folder: `config.json`, `probes.jsonl`, `metrics.parquet`,
        `summary.json`. The table is written again whenever it has grown by a twentieth,
        so little is lost when the loop is killed.

    Examples:
      >>> import jax, ldjax, optax, tempfile
      >>> from ldjax.batching import Example, to_sequences
      >>> apply_fn = lambda params, s: params[s.tokens]  # a table of bigrams
      >>> params = jax.numpy.zeros((8, 8))
      >>> example = Example(prompt_ids=(1, 2), response_ids=(3, 0))
      >>> batch, optimizer = to_sequences([example]), optax.sgd(0.1)
      >>> loss_fn = lambda params: ldjax.losses.sft(apply_fn(params, batch), batch)
      >>> state, folder = optimizer.init(params), Path(tempfile.mkdtemp()) / "mine"
      >>> probes = [Probe("train/0000", "chosen", example)]
      >>> with ldjax.Recorder(folder, apply_fn, probes) as recorder:
      ...     for step in range(3):
      ...         updates, state = optimizer.update(jax.grad(loss_fn)(params), state)
      ...         new_params = optax.apply_updates(params, updates)
      ...         recorder(step, params, new_params)
      ...         params = new_params
      >>> recorder.run.summary["changes"]["train"]["chosen"]
      {'start': -4.15..., 'end': -3.65..., 'highest': -3.65...}
    """

    def __init__(
        self,
        path: str | Path,
        apply_fn: ApplyFn,
        probes: Sequence[Probe],
        *,
        settings: Mapping[str, Any] | None = None,
        decode: Callable[[Any], str] | None = None,
        every: int = 1,
        examples_per_step: int = 1,
        batch_size: int = 32,
        log: Sequence[SinkName] = (),
        resume: bool = False,
        overwrite: bool = False,
    ):
        """Begin to record.

        Args:
          path: Folder of the run, which is made.
          apply_fn: `(params, sequences) -> logits`; for a model of NNX see the README.
          probes: What is watched. Their names begin with `train/` (prompts that are
            trained on) or `test/`; their types are any words, of which `chosen` and
            `rejected` are known to the page.
          settings: Of the training, for `config.json`; JSON.
          decode: From token ids to text; without it the page shows the ids.
          every: Record the first update of so many. The others cost nothing.
          examples_per_step: Training examples of an update, for the horizontal axis.
          batch_size: Most responses computed at a time; fewer take less memory.
          log: Places that show the run while it goes on (see `ldjax.sinks`).
          resume: Go on with the run that is there. What it recorded from the first step
            on that is called is recorded anew.
          overwrite: Replace a run that is there.

        Raises:
          ValueError: If there are no probes, one occurs twice, or a name is not of a
            set; if the run to resume has other settings; if a sink is not installed.
          FileExistsError: If the folder holds something, and none of `resume` and
            `overwrite` says what to do with it.
        """
        path = Path(path)
        ours = {"every": every, "examples_per_step": examples_per_step}
        _check(probes, {**ours, "batch_size": batch_size})
        check_sinks(log)
        watched = ProbeSet.of(
            probes,
            max_length=max(probe.example.check() for probe in probes),
            batch_size=min(batch_size, len(probes)),  # the rest would be padding
        )
        if (path / "config.json").is_file() and not (resume or overwrite):
            raise FileExistsError(
                f"{path} already holds a run; nothing was written. Choose another "
                "`path`, or pass `resume=True` to go on with it or `overwrite=True` to "
                "replace it."
            )
        self.run = start_run(
            path,
            {**(settings or {}), "recorder": ours},
            resume=resume,
            overwrite=overwrite,
        )
        self._observe = make_observe_fn(apply_fn, watched)
        self._change = make_change_fn(apply_fn, watched)
        self._names = [(probe.prompt_name, probe.type) for probe in probes]
        self._counts = np.array([len(probe.example.response_ids) for probe in probes])
        self._every, self._examples_per_step = every, examples_per_step
        self._is_summed = every == 1
        self._frames: list[pl.DataFrame] = []
        self._num_recorded, self._num_written = 0, 0
        self._first_step: int | None = None
        self._last_step, self._last_params = -1, None
        _write_probes(self.run, probes, decode, is_summed=self._is_summed)
        self._sinks = [make_sink(name, self.run) for name in log]

    def __call__(
        self, step: int, params: Any, new_params: Any, *, loss: Any = None
    ) -> None:
        """Record an optimizer step.

        Args:
          step: Number of updates before this one.
          params: Before it. Must still exist: not donated to a compiled step.
          new_params: After it.
          loss: Of this step, if it shall be in the table; a scalar.

        Raises:
          ValueError: If the steps do not go up.
        """
        if step <= self._last_step:
            raise ValueError(
                f"`step` must go up: got {step} after {self._last_step}. It is the "
                "number of updates before the one that is recorded, from 0 on."
            )
        if self._first_step is None:
            self._first_step = step
            self._go_on_from(step)
        elif step != self._last_step + 1:
            self._is_summed = False
        self._last_step, self._last_params = step, new_params
        if (step - self._first_step) % self._every:
            return
        observed, change = self._observe(params), self._change(params, new_params)
        steps = {f"{name}_step": values for name, values in change.items()}
        self._add(step, self._names, observed | steps)
        if loss is not None:
            self._add(step, [("", "")], {"loss": np.asarray(loss).reshape(1)})
        self._add_summed(step, observed["log_prob"], change)
        self._num_recorded += 1
        unwritten = self._num_recorded - self._num_written
        if unwritten >= max(WRITE_AFTER, WRITE_AFTER_SHARE * self._num_recorded):
            self.write()

    def write(self) -> None:
        """Write the table and the summary of what was recorded so far."""
        import polars as pl

        if not self._frames:
            return
        table = pl.concat(self._frames)
        if not self._is_summed:
            table = table.filter(~pl.col("probe").str.starts_with("tracked/"))
        self._frames, self._num_written = [table], self._num_recorded
        self.run.write_metrics(table)
        self.run.write_summary({"changes": _changes(table)})
        for sink in self._sinks:
            sink.write(table)

    def close(self) -> None:
        """Observe the parameters after the last update, and write everything."""
        if self._last_params is not None:
            observed = self._observe(self._last_params)
            self._add(self._last_step + 1, self._names, observed)
            self._last_params = None
        self.write()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._last_params = None  # what went wrong may be wrong with them
        self.close()

    def _go_on_from(self, step: int) -> None:
        """Take over what an earlier recorder of the run recorded before a step."""
        import polars as pl

        if not (self.run.path / "metrics.parquet").is_file():
            return
        table = self.run.metrics().filter(pl.col("step") < step)
        if not len(table):
            return
        self._frames = [table]
        self._first_step = int(table["step"].min())  # type: ignore[arg-type]
        summed = table.filter(pl.col("probe").str.starts_with("tracked/"))
        self._is_summed &= summed["step"].max() == step - 1

    def _add_summed(
        self, step: int, log_probs: np.ndarray, change: Mapping[str, np.ndarray]
    ) -> None:
        """The numbers that are added up over the run, of the trained prompts."""
        if not self._is_summed:
            return
        is_trained = [name.startswith(_TRAINED) for name, _ in self._names]
        tracked = [
            (_tracked(name), type_)
            for name, type_ in self._names
            if name.startswith(_TRAINED)
        ]
        # At most twice that of `make_step`, which knows the log-prob of each token.
        floor = 8 * np.finfo(log_probs.dtype).eps * (self._counts + np.abs(log_probs))
        numbers = {**change, "floor": floor}
        self._add(step, tracked, {name: of[is_trained] for name, of in numbers.items()})

    def _add(
        self,
        step: int,
        names: Sequence[tuple[str, str]],
        numbers: Mapping[str, np.ndarray],
    ) -> None:
        """Rows of the table: every quantity of every probe, a name and a type."""
        import polars as pl

        rows = [(*name, quantity) for quantity in numbers for name in names]
        values = np.concatenate(list(numbers.values())).astype(np.float64)
        place = (step, step * self._examples_per_step)
        schema: Any = dict.fromkeys(METRIC_COLUMNS[:2], pl.Int64)
        schema |= dict.fromkeys(METRIC_COLUMNS[2:5], pl.String)
        frame = pl.DataFrame([place + row for row in rows], schema, orient="row")
        self._frames.append(frame.with_columns(value=values))


def _check(probes: Sequence[Probe], at_least_one: Mapping[str, int]) -> None:
    """Refuse what cannot be recorded."""
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if not probes:
        raise ValueError("`probes` must hold at least one probe.")
    names = [(probe.prompt_name, probe.type) for probe in probes]
    for name in names:
        if not name[0].startswith((_TRAINED, "test/")):
            raise ValueError(
                f"A probe is named {name[0]!r}, which is of no set. Begin its "
                "`prompt_name` with `train/` (prompts trained on) or `test/`."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"Two probes are {name[1]!r} of {name[0]!r}. Give each prompt a name, "
                "and each of its responses a type."
            )


def _tracked(name: str) -> str:
    """What a trained prompt is called where its updates are added up."""
    return "tracked/" + name.removeprefix(_TRAINED)


def _write_probes(
    run: Run,
    probes: Sequence[Probe],
    decode: Callable[[Any], str] | None,
    *,
    is_summed: bool,
) -> None:
    """`probes.jsonl`: what the probes of the table say."""
    text_of = decode or (lambda ids: " ".join(map(str, ids)))
    lines = [
        {
            "probe": probe.prompt_name,
            "type": probe.type,
            "prompt": text_of(probe.example.prompt_ids),
            "text": text_of(probe.example.response_ids),
            "num_tokens": len(probe.example.response_ids),
        }
        for probe in probes
    ]
    if is_summed:
        lines += [
            {**line, "probe": _tracked(line["probe"])}
            for line in lines
            if line["probe"].startswith(_TRAINED)
        ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with whole_file(run.path / "probes.jsonl") as partial:
        partial.write_text(text, encoding="utf-8")


def _changes(table: "pl.DataFrame") -> dict[str, Any]:
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
    for row in ends.fill_nan(None).sort("probe", "type").to_dicts():
        changes.setdefault(row.pop("probe"), {})[row.pop("type")] = row
    return changes
