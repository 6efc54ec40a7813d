"""What a ledger keeps while it is made: arrays by name, in memory or in a folder."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.files.whole import whole_file

__all__ = ["Kept", "difference", "on_device", "on_host"]

Arrays = dict[str, np.ndarray]


class Kept:
    """Arrays under names, each entry whole or not there.

    Args:
      folder: Where they are, for what is to be gone on with after a kill; None for
        memory.

    Examples:
      >>> kept = Kept(None)
      >>> kept.put("state 3", {"0": np.ones(2)})
      >>> "state 3" in kept, kept.get("state 3")["0"]
      (True, array([1., 1.]))
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._here: dict[str, Arrays] = {}

    @property
    def lasts(self) -> bool:
        """Whether what is kept outlives the process."""
        return self._folder is not None

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays, in place of what had the name."""
        if self._folder is None:
            self._here[name] = dict(arrays)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._file(name)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def get(self, name: str) -> Arrays:
        """The arrays of a name."""
        if self._folder is None:
            return self._here[name]
        with np.load(self._file(name), allow_pickle=False) as arrays:
            return dict(arrays)

    def __contains__(self, name: str) -> bool:
        if self._folder is None:
            return name in self._here
        return zipfile.is_zipfile(self._file(name))

    def clear(self) -> None:
        """Forget everything."""
        self._here.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.npz"


def on_host(tree: Any) -> Arrays:
    """Copies of a tree's leaves, by their places.

    Args:
      tree: A pytree of arrays, whose memory may be taken afterwards.
    """
    # `device_get` may give a view of memory that the next step takes.
    leaves = map(_numbers, jax.tree.leaves(tree))
    return {str(i): np.array(leaf) for i, leaf in enumerate(leaves)}


def on_device(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tree again, with memory of its own.

    Args:
      arrays: From `on_host`.
      like: A tree of the same structure and types, that lies where this shall.
    """

    def placed(array: np.ndarray, leaf: Any) -> Any:
        if _is_key(leaf):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.array(array), impl=impl)
        # A file knows no types but NumPy's own: bfloat16 comes back as bytes.
        new = jnp.array(array.view(jnp.result_type(leaf)))
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            return jax.device_put(new, sharding)
        return new

    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten(
        placed(arrays[str(i)], leaf) for i, leaf in enumerate(leaves)
    )


def difference(arrays: Arrays, others: Arrays, like: Any) -> str | None:
    """The first leaf that has other bits, in words, or None.

    Args:
      arrays: From `on_host`.
      others: Likewise.
      like: A tree of the same structure, whose names are told.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    for i, path in enumerate(paths):
        one, other = arrays[str(i)], others[str(i)]
        if one.tobytes() != other.tobytes():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
