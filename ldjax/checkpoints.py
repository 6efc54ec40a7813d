"""Checkpoints of a run: the state and the table so far, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

__all__ = ["Checkpoints", "Progress", "Table"]

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
    next `save`.

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
          progress: What to write; its step must be new.

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

        # Host arrays carry no devices, so a run made on one machine opens on another.
        state = jax.device_get(progress.state)
        with self._manager(is_writing=True) as manager:
            manager.save(
                progress.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    table=ocp.args.StandardSave(progress.table),
                ),
            )

    def restore(self, like: Any = None) -> Progress | None:
        """Read the newest checkpoint.

        Args:
          like: A state of the same structure; where it lies on several devices, so
            does the result. Without it tuples come back as lists and named tuples as
            dicts.

        Returns:
          The checkpoint, bit for bit as it was saved, or None if there is none.

        Raises:
          ValueError: If the state saved is not like that.

        Examples:
          >>> import tempfile
          >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
          >>> table = {"train": {"step": np.arange(1), "loss": np.ones(1)}}
          >>> checkpoints.save(Progress(1, (jnp.ones(2),), table))
          >>> checkpoints.restore(like=(jnp.zeros(2),)).state
          (Array([1., 1.], dtype=...),)
        """
        import orbax.checkpoint as ocp

        step = self.newest_step()
        if step is None:
            return None
        # Without a target: orbax would cast to the dtypes of one.
        with self._manager(is_writing=False) as manager:
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(),
                    table=ocp.args.StandardRestore(),
                ),
            )
        state = restored["state"]
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
        return Progress(step, state, restored["table"])

    @contextmanager
    def _manager(self, *, is_writing: bool) -> Iterator["ocp.CheckpointManager"]:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            enable_async_checkpointing=False,
            create=is_writing,
            cleanup_tmp_directories=is_writing,
        )
        manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        try:
            yield manager
        finally:
            manager.close()


def _placed_like(array: jax.Array, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return array
    return jax.device_put(array, sharding)


def _arranged(tree: Any, like: Any) -> Any:
    """The same leaves in the structure of `like`, found by their names."""
    found, wanted = _by_name(tree), _by_name(like)
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


def _by_name(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
