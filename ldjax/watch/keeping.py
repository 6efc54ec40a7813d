"""What the ledger of a loop of one's own needs: its batches, and a state now and then.

Beside the table of a `Recorder`, in the folder `kept`: every batch, with the names of
its rows and where it lay on devices, the state before the first update and after every
so many, the watched responses as ids, and what the examples say. A file is whole or not
there, so a loop that is killed loses what came after its last state at most.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldjax.data.batches import Example
from ldjax.equation.doors import was_donated
from ldjax.equation.sequences import Sequences, is_sequences
from ldjax.files.whole import json_object, read_lines, whole_file
from ldjax.runs.checkpoints import Checkpoints, Progress
from ldjax.runs.devices import laid_out, layout_of
from ldjax.watch.probes import Probe

__all__ = ["Keeping", "KeptLoop"]

_ALL = 2**31 - 1
_PROBES, _EXAMPLES = "probes.jsonl", "examples.jsonl"
# What a file of a batch holds besides its leaves.
_NAMES, _LAYOUTS = "names", "layouts"


class KeptLoop:
    """What was kept of a loop, to be read.

    Args:
      folder: That of the run.

    Attributes:
      states: States of the loop, by the number of updates before them.

    Raises:
      FileNotFoundError: If nothing was kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "kept"
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"{folder} has no folder `kept`: its recorder was not asked to keep "
                "what a ledger needs. Record the loop anew, with `keep_every=`."
            )
        self.states = Checkpoints(self._folder / "states", keep=_ALL)

    @property
    def num_steps(self) -> int:
        """How many updates were kept, from the first one on."""
        steps = {int(path.stem) for path in self._folder.glob("batches/*.npz")}
        return next(step for step in range(len(steps) + 1) if step not in steps)

    def batch(self, step: int) -> Any:
        """The batch of an update, and its sides if it has some, as it lay on devices.

        Raises:
          ValueError: If it is damaged, or if it lay on devices that are not here.
        """
        arrays = self._arrays(step)
        # What was kept before its places were lay on one device.
        layouts = json.loads(str(arrays.pop(_LAYOUTS, "{}")))
        del arrays[_NAMES]
        sides: dict[str, dict[str, Any]] = {}
        for name, leaf in arrays.items():
            side, _, field = name.rpartition("/")
            sides.setdefault(side, {})[field] = self._placed(leaf, layouts.get(name))
        batch = {side: Sequences(**fields) for side, fields in sides.items()}
        return batch.get("", batch)

    def names(self, step: int) -> list[str]:
        """The names of its rows."""
        return self._arrays(step)[_NAMES].tolist()

    def probes(self) -> list[Probe]:
        """The watched responses."""
        return [
            Probe(of["probe"], of["type"], _example(of))
            for of in _lines(self._folder / _PROBES)
        ]

    def examples(self) -> dict[str, dict[str, Any]]:
        """By name what is trained on: `prompt`, and under `sides` the texts."""
        lines = _lines(self._folder / _EXAMPLES)
        return {line.pop("example"): line for line in lines}

    def _placed(self, leaf: np.ndarray, layout: dict[str, Any] | None) -> Any:
        try:
            return leaf if layout is None else laid_out(leaf, layout)
        except ValueError as error:
            raise ValueError(
                f"A batch in {self._folder} cannot lie as it lay: {error}. On others "
                "its update would have other bits: start on as many as the loop had."
            ) from error

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        path = _batch_file(self._folder, step)
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged: {error}.") from error


class Keeping:
    """Keeps a loop, update by update.

    Args:
      folder: That of the run.
      every: Updates between two states that are kept.
      probes: The watched responses.
      text_of: Makes text of token ids.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        probes: Sequence[Probe],
        text_of: Callable[[Any], str],
    ):
        self._folder, self._every, self._text_of = folder / "kept", every, text_of
        self._folder.mkdir(exist_ok=True)
        self._states = Checkpoints(self._folder / "states", keep=_ALL)
        self._examples: dict[str, dict[str, Any]] = {}
        if (self._folder / _EXAMPLES).is_file():
            self._examples = KeptLoop(folder).examples()
        self._last: tuple[int, Any] | None = None
        _write_lines(self._folder / _PROBES, [_ids(probe) for probe in probes])

    def __call__(
        self, step: int, state: Any, new_state: Any, batch: Any, names: Sequence[str]
    ) -> None:
        """Keep an update.

        Args:
          step: Number of updates before it.
          state: The state before it; read at the first one only.
          new_state: After it.
          batch: What it was trained on.
          names: Of the batch's rows.

        Raises:
          TypeError: If the batch is no `Sequences`, nor a dict of them, or lies on
            devices otherwise than by a `NamedSharding`.
          ValueError: If the update before was not kept, or names do not fit the rows.
        """
        sides = _sides(batch)
        names = [str(name) for name in names]
        for side in sides.values():
            if len(side.mask) != len(names):
                raise ValueError(
                    f"`names` has {len(names)} names for {len(side.mask)} rows of "
                    "`batch`: give one for each."
                )
        if step and not _batch_file(self._folder, step - 1).is_file():
            raise ValueError(
                f"Update {step} cannot be kept, since update {step - 1} was not: a "
                "ledger needs all of them, from the first one on."
            )
        if self._last is None:  # what a loop left that now goes on from here
            self._states.forget(step + 1)
            for path in self._folder.glob("batches/*.npz"):
                if int(path.stem) >= step:
                    path.unlink()
        if not step:
            self._save(0, state)
        self._note(sides, names)
        self._write_batch(step, sides, names)
        self._last = step + 1, new_state
        if (step + 1) % self._every == 0:
            self._save(*self._last)

    def close(self) -> None:
        """Keep the state after the last update, if it is still there."""
        if self._last is not None and not was_donated(self._last[1]):
            self._save(*self._last)

    def _save(self, step: int, state: Any) -> None:
        if step not in self._states.steps():
            # The storage library writes no empty table.
            table = {"kept": {"step": np.array([step])}}
            self._states.save(Progress(step, state, table))
        lines = [{"example": name} | said for name, said in self._examples.items()]
        _write_lines(self._folder / _EXAMPLES, lines)

    def _write_batch(
        self, step: int, sides: dict[str, Sequences], names: list[str]
    ) -> None:
        leaves = {
            f"{side}/{field}" if side else field: leaf
            for side, rows in sides.items()
            for field, leaf in rows._asdict().items()
            if leaf is not None
        }
        layouts = {name: layout_of(leaf) for name, leaf in leaves.items()}
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        arrays |= {_NAMES: np.array(names), _LAYOUTS: np.array(json.dumps(layouts))}
        path = _batch_file(self._folder, step)
        with whole_file(path) as partial:
            path.parent.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

    def _note(self, sides: dict[str, Sequences], names: list[str]) -> None:
        """What the rows say that were not met before."""
        for i, name in enumerate(names):
            if name in self._examples:
                continue
            said, prompt = {}, ""
            for side, rows in sides.items():
                tokens, targets, mask = (np.asarray(leaf)[i] for leaf in rows.plain[:3])
                # The first token that is scored is predicted by the prompt's last one.
                prompt = self._text_of(tokens[: int(np.argmax(mask)) + 1].tolist())
                said[side or "update"] = self._text_of(targets[mask].tolist())
            self._examples[name] = {"prompt": prompt, "sides": said}


def _sides(batch: Any) -> dict[str, Sequences]:
    """The sides of a batch; without a name that of one that has none."""
    if is_sequences(batch):
        return {"": batch}
    if isinstance(batch, dict) and all(map(is_sequences, batch.values())):
        return batch
    raise TypeError(
        "`batch` must be `ldjax.Sequences`, or a dict of them such as "
        f"{{'chosen': ..., 'rejected': ...}}; got {type(batch).__name__}."
    )


def _batch_file(folder: Path, step: int) -> Path:
    return folder / "batches" / f"{step:08d}.npz"


def _ids(probe: Probe) -> dict[str, Any]:
    prompt, response, scored = (
        None if row is None else [*map(int, row)] for row in probe.example
    )
    content = {"probe": probe.prompt_name, "type": probe.type}
    content |= {"prompt": prompt, "response": response}
    return content if scored is None else content | {"scored": scored}


def _example(content: dict[str, Any]) -> Example:
    scored = content.get("scored")
    scored = None if scored is None else [*map(bool, scored)]
    return Example(content["prompt"], content["response"], scored)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json_object(line.data) for line in read_lines(path) if line.data]


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with whole_file(path) as partial:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        partial.write_text(text, encoding="utf-8")
