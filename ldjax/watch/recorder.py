"""Probes in a training loop of one's own: what each update did to watched responses.

Three lines: make a `Recorder`, call it after every optimizer step, close it. It leaves
a run folder that `python -m ldjax.report` makes a page of.
"""

import itertools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from ldjax.data.batches import check_count
from ldjax.equation import resolution
from ldjax.equation.doors import was_donated
from ldjax.runs.folder import start_run
from ldjax.runs.sinks import SinkName, check_sinks, make_sink
from ldjax.watch.keeping import Keeping
from ldjax.watch.probes import (
    ApplyFn,
    Probe,
    ProbeSet,
    make_change_fn,
    make_floor_fn,
    make_observe_fn,
)
from ldjax.watch.record import (
    FLOOR,
    TEST,
    TRACKED,
    TRAIN,
    change_by_type,
    in_set,
    last_floor,
    probe_line,
    set_of,
    single_step,
    table_rows,
    tracked_name,
    write_probe_lines,
)

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Recorder"]

#: The table is written again when it has grown by so many updates, or by this share.
WRITE_AFTER, WRITE_AFTER_SHARE = 10, 0.05


class Recorder:
    r"""Records in a run folder what optimizer steps do to probes.

    At each step that is recorded, for every probe:

    * `log_prob` and the other numbers of `ldjax.theory.quantities.sequence_quantities`,
      before the update;
    * `predicted_step` and `measured_step`, what first order says the update does to its
      log-prob, and what it does, in nats.

    With `every=1` the same two are also recorded as `predicted` and `measured` of the
    trained prompts, which the page adds up over the run; `floor` is what rounding can
    make of them (see `ldjax.StepComparison`), measured every 64 steps. Where an update
    was left out, these sums would not be the change of the run, so there are
    none; all else is exact at the steps where it is recorded. `close` observes the
    parameters behind the last update, too.

    The cost of a recorded step is two forward passes and a jvp of all probes.

    Attributes:
      run: The run folder: `config.json`, `probes.jsonl`, `metrics.parquet`,
        `summary.json`. The table is written again whenever it has grown by a twentieth,
        so little is lost when the loop is killed.

    Examples:
      >>> import jax, ldjax, optax, tempfile
      >>> from ldjax.data.batches import Example, to_sequences
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
        keep_every: int | None = None,
        log: Sequence[SinkName] = (),
        resume: bool = False,
        overwrite: bool = False,
    ):
        """Begin to record.

        Args:
          path: Folder of the run, which is made.
          apply_fn: `(params, sequences) -> logits`; for a model of NNX see
            docs/guides/own-model.md.
          probes: The watched responses. Their names begin with `train/` (prompts
            that are trained on) or `test/`; their types are any words, of which
            `chosen` and `rejected` are known to the page.
          settings: Those of the training, for `config.json`; JSON.
          decode: Makes text of token ids; without it the page shows the ids.
          every: Record the first update of so many. The others cost nothing.
          examples_per_step: Training examples of an update, for the horizontal axis.
          batch_size: Most responses computed at a time; fewer take less memory.
          keep_every: Keep what `ldjax.ledger` needs, by `keep`: every batch, and the
            state of the loop after so many updates; by default nothing.
          log: Places that show the run while it goes on (see `ldjax.runs.sinks`).
          resume: Go on with the run that is there. What it recorded from the first step
            on that is called is recorded anew.
          overwrite: Replace a run that is there.

        Raises:
          TypeError: If a probe is no row of token ids, as an image is none.
          ValueError: If there are no probes, one occurs twice, is empty or holds a
            negative id, or a name is not of a set; if the run to resume has other
            settings; if a sink is not installed.
          FileExistsError: If the folder holds something, and none of `resume` and
            `overwrite` says what to do with it.
        """
        path = Path(path).expanduser()
        ours = {"every": every, "examples_per_step": examples_per_step}
        counts = {**ours, "batch_size": batch_size}
        if keep_every is not None:
            counts["keep_every"] = keep_every
        _check(probes, counts)
        check_sinks(log)
        watched = ProbeSet.of(
            probes,
            max_length=max(probe.example.num_tokens for probe in probes),
            batch_size=min(batch_size, len(probes)),  # the rest would be padding
        )
        self._probes = list(probes)
        self._is_tracked = [set_of(probe.prompt_name) == TRAIN for probe in probes]
        self._tracked = [
            probe._replace(prompt_name=tracked_name(probe.prompt_name))
            for probe in itertools.compress(probes, self._is_tracked)
        ]
        self._is_summed = every == 1
        told = [*probes, *self._tracked] if self._is_summed else probes
        text_of = _text_of(decode)
        lines = [probe_line(probe, *map(text_of, probe.example[:2])) for probe in told]
        self.run = start_run(
            path,
            {**(settings or {}), "recorder": ours},
            resume=resume,
            overwrite=overwrite,
        )
        self._observe = make_observe_fn(apply_fn, watched)
        self._change = make_change_fn(apply_fn, watched)
        self._floor_fn = make_floor_fn(apply_fn, watched)
        self._floor: dict[str, np.ndarray] = {}
        self._every, self._examples_per_step = every, examples_per_step
        self._frames: list[pl.DataFrame] = []
        self._num_recorded, self._num_written = 0, 0
        self._first_step: int | None = None
        self._last_step, self._last_params = -1, None
        self._is_closed = False
        write_probe_lines(path, lines)
        self._keeping = None
        if keep_every is not None:
            self._keeping = Keeping(path, keep_every, probes, text_of)
        self._sinks = [make_sink(name, self.run) for name in log]

    def __call__(
        self, step: SupportsIndex, params: Any, new_params: Any, *, loss: Any = None
    ) -> None:
        """Record an optimizer step.

        Nothing of a step is kept if it cannot be recorded as a whole.

        Args:
          step: Number of updates before this one.
          params: Before it. Must still exist: not donated to a compiled step.
          new_params: After it.
          loss: The loss of this step, if it shall be in the table; a scalar.

        Raises:
          RuntimeError: If the recorder is closed.
          TypeError: If the parameters are no floats, or what `apply_fn` returns is no
            array of logits, float32 or wider.
          ValueError: If the steps do not go up, or `loss` is no scalar; if parameters
            were donated, or differ in structure, shapes or types; if the logits are not
            `[batch, pos, vocab]` (those of a classifier are not), or a probe has ids or
            positions that the model does not have.
        """
        self._refuse_closed()
        step = self._checked(step)
        earlier = self._earlier(step) if self._first_step is None else None
        first = step if self._first_step is None else self._first_step
        if earlier is not None:
            first = int(earlier["step"].min())  # type: ignore[arg-type]
        is_summed = self._is_summed and self._goes_on(step, earlier)
        frames = []
        if (step - first) % self._every == 0:
            change = self._change(params, new_params)  # first: it asks more of them
            observed = self._observe(params)
            if is_summed and step % resolution.NOISE_EVERY == 0:
                self._floor = self._floor_fn(params)
            elif is_summed and not self._floor:
                self._floor = self._floor_of(earlier) or self._floor_fn(params)
            frames = self._rows_of(step, observed, change, loss, is_summed=is_summed)
        # From here on nothing fails: a step is kept as a whole or not at all.
        self._frames += frames if earlier is None else [earlier, *frames]
        self._first_step, self._is_summed = first, is_summed
        self._last_step, self._last_params = step, new_params
        self._num_recorded += bool(frames)
        unwritten = self._num_recorded - self._num_written
        if unwritten >= max(WRITE_AFTER, WRITE_AFTER_SHARE * self._num_recorded):
            self.write()

    def keep(
        self,
        step: SupportsIndex,
        state: Any,
        new_state: Any,
        *,
        batch: Any,
        names: Sequence[str],
    ) -> None:
        """Keep an optimizer step for `ldjax.ledger`, with `keep_every`.

        Args:
          step: Number of updates before this one; each is kept, from the first one on.
          state: That of the loop before it, parameters and the optimizer's with
            whatever else its step function takes; a pytree of arrays, which must still
            exist at the first step.
          new_state: After it.
          batch: What it was trained on, `Sequences` or a dict of them.
          names: Of the batch's rows; the name of a prompt that is watched, too, makes
            it the response's own.

        Raises:
          RuntimeError: If the recorder is closed.
          TypeError: If the batch is something else.
          ValueError: If the recorder keeps nothing, if the update before was not kept,
            or if there are not as many names as rows.
        """
        self._refuse_closed()
        if self._keeping is None:
            raise ValueError(
                "This recorder keeps nothing: make it with `keep_every=`, the number "
                "of updates between two states that are kept."
            )
        self._keeping(operator.index(step), state, new_state, batch, names)

    def write(self) -> None:
        """Write the table and the summary of what was recorded so far."""
        import polars as pl

        if not self._frames:
            return
        table = pl.concat(self._frames)
        if not self._is_summed:
            table = table.filter(~in_set(TRACKED))
        self._frames, self._num_written = [table], self._num_recorded
        self.run.write_metrics(table)
        self.run.write_summary({"changes": change_by_type(table)})
        for sink in self._sinks:
            sink.write(table)

    def close(self) -> None:
        """Observe the parameters after the last update, and write everything.

        What was recorded is written first. Parameters that were donated meanwhile
        cannot be observed any more: that is a warning, and the table ends before them.
        """
        if self._is_closed:
            return
        self.write()
        params, self._last_params = self._last_params, None
        try:
            if self._keeping is not None:
                self._keeping.close()
            if params is not None:
                self._observe_end(params)
        finally:
            self._is_closed = True
            for sink in self._sinks:
                sink.close()
            self.run.release()

    def _observe_end(self, params: Any) -> None:
        if was_donated(params):
            warnings.warn(
                f"The parameters after update {self._last_step} were donated to a "
                "compiled function before the recorder was closed, so they are not in "
                f"the table of {self.run.path}; all else is. Close it before, or "
                "give it a copy of them.",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        step = self._last_step + 1
        self._frames.append(self._rows(step, self._probes, self._observe(params)))
        self.write()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._last_params = None  # what went wrong may be wrong with them
        self.close()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                f"The recorder of {self.run.path} is closed. To go on with its run "
                "make a new one, with `resume=True`."
            )

    def _checked(self, step: Any) -> int:
        """The number of the step, if it can be recorded."""
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(f"`step` must be an integer, got {step!r}.") from None
        if step <= self._last_step:
            raise ValueError(
                f"`step` must go up: got {step} after {self._last_step}. It is the "
                "number of updates before the one that is recorded, from 0 on."
            )
        return step

    def _earlier(self, step: int) -> "pl.DataFrame | None":
        """What an earlier recorder of the run recorded before a step."""
        import polars as pl

        if not (self.run.path / "metrics.parquet").is_file():
            return None
        table = self.run.metrics().filter(pl.col("step") < step)
        return table if len(table) else None

    def _floor_of(self, earlier: "pl.DataFrame | None") -> dict[str, np.ndarray]:
        """The floor that an earlier recorder measured last."""
        found = None if earlier is None else last_floor(earlier, self._probes)
        return {} if found is None else {FLOOR: found}

    def _goes_on(self, step: int, earlier: "pl.DataFrame | None") -> bool:
        """Whether the update before a step is recorded too."""
        if earlier is not None:
            return earlier.filter(in_set(TRACKED))["step"].max() == step - 1
        return self._first_step is None or step == self._last_step + 1

    def _rows_of(
        self,
        step: int,
        observed: Mapping[str, np.ndarray],
        change: Mapping[str, np.ndarray],
        loss: Any,
        *,
        is_summed: bool,
    ) -> "list[pl.DataFrame]":
        """All rows of a step."""
        steps = {single_step(name): values for name, values in change.items()}
        frames = [self._rows(step, self._probes, {**observed, **steps})]
        if loss is not None:
            frames.append(self._rows(step, (), {"loss": _scalar(loss)}))
        if is_summed and self._tracked:  # what is added up over the run
            numbers = {**change, **self._floor}
            tracked = {name: of[self._is_tracked] for name, of in numbers.items()}
            frames.append(self._rows(step, self._tracked, tracked))
        return frames

    def _rows(
        self, step: int, probes: Sequence[Probe], numbers: Mapping[str, np.ndarray]
    ) -> "pl.DataFrame":
        """Rows of the table at a step; of no probe where there are none."""
        return table_rows(
            np.array([step]),
            {name: of[None] if probes else of for name, of in numbers.items()},
            probes,
            examples_per_step=self._examples_per_step,
        )


def _scalar(loss: Any) -> np.ndarray:
    value = np.asarray(loss)
    if value.size != 1:
        raise ValueError(
            f"`loss` must be a scalar, that of the step; got shape {value.shape}."
        )
    return value.reshape(1)


def _check(probes: Sequence[Probe], at_least_one: Mapping[str, int]) -> None:
    """Refuse what cannot be recorded."""
    for name, value in at_least_one.items():
        check_count(name, value)
    if not probes:
        raise ValueError("`probes` must hold at least one probe.")
    for probe in probes:
        if not isinstance(probe, Probe) or not all(
            isinstance(name, str) for name in probe[:2]
        ):
            raise TypeError(
                "`probes` must be `ldjax.watch.probes.Probe(prompt_name, type, "
                f"example)`, both names texts; got {probe!r:.80}."
            )
    names = [(probe.prompt_name, probe.type) for probe in probes]
    for name in names:
        if set_of(name[0]) not in (TRAIN, TEST):
            raise ValueError(
                f"A probe is named {name[0]!r}, which is of no set. Begin its "
                "`prompt_name` with `train/` (prompts trained on) or `test/`."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"Two probes are {name[1]!r} of {name[0]!r}. Give each prompt a name, "
                "and each of its responses a type."
            )


def _text_of(decode: Callable[[Any], str] | None) -> Callable[[Any], str]:
    """What makes text of token ids."""
    return decode or (lambda ids: " ".join(map(str, ids)))
