"""Checkpoints of a run: the state and the table so far, whole or not at all."""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.files.whole import read_json_object, whole_file, writing

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

__all__ = ["Checkpoints", "Progress", "Table"]

_SUMS = "sums.json"
_LONGEST = 200
_log = logging.getLogger(__name__)

Table = dict[str, dict[str, np.ndarray]]


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      step: Number of steps taken.
      state: The state after them, a pytree of arrays.
      table: For each series its `"step"` and its quantities, arrays with one row per
        measurement. The metrics of the steps are the series `"train"`, where row
        `step = s` is measured before update `s + 1`.

    Examples:
      >>> table = {"train": {"step": np.arange(2), "loss": np.array([0.7, 0.6])}}
      >>> Progress(2, {"params": jnp.ones(2)}, table).step
      2
    """

    step: int
    state: Any
    table: Table


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints in orbax's format.

    A checkpoint is written beside its place, in the foreground, and moved there when
    it is whole; what a killed run left half written is never read, and deleted by the
    next `save`. The sums of its files are kept in it, so that one that was damaged
    later is known: the one before it is read instead.

    Attributes:
      folder: Where they are; made when the first one is saved.
      keep: How many are kept, the newest ones.

    Examples:
      >>> import tempfile
      >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints")
      >>> checkpoints.restore() is None
      True
      >>> table = {"train": {"step": np.arange(1), "loss": np.ones(1)}}
      >>> checkpoints.save(Progress(1, {"params": jnp.ones(2)}, table))
      >>> checkpoints.restore().state
      {'params': Array([1., 1.], dtype=...)}
    """

    folder: Path
    keep: int = 2

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, damaged ones too, in order.

        Examples:
          >>> Checkpoints(Path("nowhere")).steps()
          []
        """
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir()]
        return sorted(int(name) for name in names if name.isdigit())

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none.

        Examples:
          >>> Checkpoints(Path("nowhere")).newest_step()
        """
        if not self.folder.is_dir():
            return None
        with self._manager(is_writing=False) as manager:
            return manager.latest_step()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, then delete the oldest one that is too many.

        Args:
          progress: What to write. Checkpoints of its step and of later ones, which were
            damaged where they are there, are deleted.

        Raises:
          WriteError: If the machine refuses; the checkpoints that are there stay.

        Examples:
          >>> import tempfile
          >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()), keep=1)
          >>> table = {"train": {"step": np.arange(1), "loss": np.ones(1)}}
          >>> for step in (1, 2):
          ...     checkpoints.save(Progress(step, jnp.ones(2), table))
          >>> [path.name for path in checkpoints.folder.iterdir()]
          ['2']
        """
        import orbax.checkpoint as ocp

        self.forget(progress.step)
        # Host arrays carry no devices, so a run made on one machine opens on another.
        state = jax.device_get(progress.state)
        place = self.folder / str(progress.step)
        try:
            with writing(place), self._manager(is_writing=True) as manager:
                manager.save(
                    progress.step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        table=ocp.args.StandardSave(progress.table),
                    ),
                )
            with whole_file(place / _SUMS) as partial:
                partial.write_text(json.dumps(_sums(place)))
        except OSError:
            for left in self.folder.glob(f"{progress.step}.*"):
                shutil.rmtree(left, ignore_errors=True)
            raise

    def forget(self, first: int) -> None:
        """Delete the checkpoints of a step and of later ones.

        Examples:
          >>> Checkpoints(Path("nowhere")).forget(0)
        """
        for step in self.steps():
            if step >= first:
                shutil.rmtree(self.folder / str(step))

    def restore(self, like: Any = None) -> Progress | None:
        """Read the newest checkpoint that is not damaged; a warning tells of others.

        Args:
          like: A state of the same structure; where it lies on several devices, so
            does the result. Without it tuples come back as lists and named tuples as
            dicts.

        Returns:
          The checkpoint, bit for bit as it was saved, or None if there is none.

        Raises:
          ValueError: If all checkpoints are damaged, or if the state saved is not like
            that.

        Examples:
          >>> import tempfile
          >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
          >>> table = {"train": {"step": np.arange(1), "loss": np.ones(1)}}
          >>> checkpoints.save(Progress(1, (jnp.ones(2),), table))
          >>> checkpoints.restore(like=(jnp.zeros(2),)).state
          (Array([1., 1.], dtype=...),)
        """
        damage = ""
        for step in reversed(self.steps()):
            try:
                state, table = self._read(step)
            except Exception as error:
                damage = self._damage(step, error)
                _log.warning("%s. The one before it is read, if there is one.", damage)
                continue
            return self._progress(step, state, table, like)
        if damage:
            raise ValueError(
                f"{damage}. No other is left: delete the folder {self.folder} to train "
                "from the start."
            )
        return None

    def read(self, step: int, like: Any = None) -> Progress:
        """Read the checkpoint of a step, which is one of `steps`.

        Args:
          step: Number of steps taken.
          like: As in `restore`.

        Raises:
          ValueError: If it is damaged, or if the state saved is not like that.

        Examples:
          >>> import tempfile
          >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
          >>> checkpoints.save(Progress(1, (jnp.ones(2),), {"train": {}}))
          >>> checkpoints.read(1, like=(jnp.zeros(2),)).state
          (Array([1., 1.], dtype=...),)
        """
        try:
            state, table = self._read(step)
        except Exception as error:
            raise ValueError(f"{self._damage(step, error)}.") from error
        return self._progress(step, state, table, like)

    def _damage(self, step: int, error: Exception) -> str:
        """Whatever the storage library met, in a line; its words fill pages."""
        line = " ".join(str(error).split())[:_LONGEST].rstrip(".")
        return f"The checkpoint {self.folder / str(step)} is damaged: {line}"

    def _read(self, step: int) -> tuple[Any, Table]:
        """State and table as they were saved.

        Raises:
          ValueError: If they are not: a file has other bits.
          Exception: Any other, if the files are damaged, and have no sums.
        """
        import orbax.checkpoint as ocp

        place = self.folder / str(step)
        if (place / _SUMS).is_file():
            saved, found = read_json_object(place / _SUMS), _sums(place)
            for name in {**saved, **found}:
                if saved.get(name) != found.get(name):
                    raise ValueError(f"{name} is not as it was written")
        # Without a target: orbax would cast to the dtypes of one.
        with self._manager(is_writing=False) as manager:
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(),
                    table=ocp.args.StandardRestore(),
                ),
            )
        return restored["state"], restored["table"]

    def _progress(self, step: int, state: Any, table: Table, like: Any) -> Progress:
        """A checkpoint in the structure of a state, and where that lies."""
        if like is not None:
            try:
                state = _arranged(state, like)
            except ValueError as error:
                raise ValueError(
                    f"The checkpoint of step {step} in {self.folder} is of another "
                    f"model, optimizer or precision: {error}"
                ) from error
        state = jax.tree.map(jnp.array, state)
        if like is not None:
            state = jax.tree.map(_placed_like, state, like)
        return Progress(step, state, table)

    @contextmanager
    def _manager(self, *, is_writing: bool) -> Iterator["ocp.CheckpointManager"]:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            enable_async_checkpointing=False,
            create=is_writing,
            cleanup_tmp_directories=is_writing,
        )
        # It logs what it then raises, with pages of its own.
        its_log = logging.getLogger("absl")
        level = its_log.level
        its_log.setLevel(logging.CRITICAL)
        try:
            manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
            try:
                yield manager
            finally:
                manager.close()
        finally:
            its_log.setLevel(level)


def _placed_like(array: jax.Array, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return array
    return jax.device_put(array, sharding)


def _arranged(tree: Any, like: Any) -> Any:
    """Leaves in the structure of `like`, found by their names."""
    found, wanted = _by_name(tree), _by_name(like)
    # What was not kept when the checkpoint was written, and is still to be measured.
    found |= {k: v for k, v in wanted.items() if k not in found and _is_unknown(v)}
    for name in {**wanted, **found}:
        there, here = (
            f"{leaves[name].dtype}{list(leaves[name].shape)}"
            if name in leaves
            else "nothing"
            for leaves in (found, wanted)
        )
        if there != here:
            raise ValueError(f"{name or 'the state'} is {there} there and {here} here.")
    return jax.tree.structure(like).unflatten(found[name] for name in wanted)


def _is_unknown(leaf: Any) -> bool:
    return np.ndim(leaf) == 0 and bool(np.isnan(leaf))


def _sums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in a folder, by name."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _SUMS and path.suffix != ".partial":
            data = path.read_bytes()
            sums[path.relative_to(folder).as_posix()] = [len(data), zlib.crc32(data)]
    return sums


def _by_name(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
