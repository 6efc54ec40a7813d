"""Factored kernels on disk, with what they were made of."""

import importlib.metadata
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax import memory
from ldjax.equation.spaces import conform
from ldjax.files.whole import whole_file
from ldjax.ntk.layers.blocks import Blocks, Factors, Frame
from ldjax.ntk.layers.factored import FactoredMap
from ldjax.precision import exact_products

__all__ = ["StoredFactoredMap", "load_kernel", "save_kernel"]

_FORMAT = 1
# The names of a pair's arrays in the file.
_NAMES = ("matrix", "left", "right", "middle", "diagonal")
_PACKAGES = ("ldjax", "jax", "flax")


class StoredBlocks(NamedTuple):
    """Blocks in memory; axes of the factors `[update, update_pos, probe, probe_pos]`.

    Attributes:
      matrix: The head's `W`, `[width, vocab]`.
      left: Tokens of the updates, `[update, tokens]`.
      right: Tokens of the probes, `[probe, tokens]`.
      factors: The factors of all blocks.
    """

    matrix: Array
    left: Array
    right: Array
    factors: Factors

    def map_blocks(self, finish: Callable[[Frame, Factors], Any]) -> Any:
        """`finish` of all blocks, as `Blocks.map_blocks`."""
        ignored = jnp.zeros(self.factors.diagonal.shape[:2])
        return self._map(lambda frame, factors, _: finish(frame, factors), ignored)

    def blocks_at(self, update: int, position: int) -> tuple[Frame, Factors]:
        """The blocks of one update position, as `Blocks.blocks_at`."""
        frame = Frame(self.matrix, self._gram, self.left[update], self.right)
        return frame, jax.tree.map(lambda x: x[update, position], self.factors)

    def mv(self, vector: Array) -> Array:
        """The image of a vector `[update, update_pos, vocab]`."""
        images = self._map(lambda frame, f, v: frame.apply(f, v), vector)
        return images.sum((0, 1))

    @property
    def T(self) -> "StoredBlocks":
        """The transposed blocks."""
        middle, diagonal = (jnp.moveaxis(x, (2, 3), (0, 1)) for x in self.factors)
        return StoredBlocks(
            self.matrix,
            self.right,
            self.left,
            Factors(jnp.swapaxes(middle, -1, -2), diagonal),
        )

    @property
    def _gram(self) -> Array:
        with exact_products():
            return self.matrix @ self.matrix.T

    def _map(self, fn: Callable[[Frame, Factors, Array], Any], values: Array) -> Any:
        """Over updates and their positions (the first axes of `values`), and probes."""
        gram = self._gram

        def of_update(update: Any) -> Any:
            left, *rest = update

            def of_position(one: Any) -> Any:
                factors, value = one

                def of_probe(right: Array, block: Factors) -> Any:
                    return fn(Frame(self.matrix, gram, left, right), block, value)

                return jax.vmap(of_probe)(self.right, factors)

            return jax.lax.map(of_position, tuple(rest))

        return jax.lax.map(of_update, (self.left, self.factors, values))


class StoredFactoredMap(FactoredMap):
    r"""A kernel loaded from disk: the same contract, without the model.

    Args:
      pairs: Blocks by part of the probe (rows) and part of the update (columns).
      in_struct: Shapes and dtypes of the update's logits.
      out_struct: Shapes and dtypes of the probe's logits.
      probe_logits: The probe's logits themselves, for `predict`; None if not known.
      provenance: What `save_kernel` was told, and the versions it ran under.

    Examples:
      The block :math:`W^\top B W + c I = [[5, 0], [0, 2]]` of two tokens:

      >>> W, no_tokens = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 0), int)
      >>> factors = Factors(jnp.full((1, 1, 1, 1, 1, 1), 3.0), jnp.full((1,) * 4, 2.0))
      >>> pairs = [[StoredBlocks(W, no_tokens, no_tokens, factors)]]
      >>> space = jax.ShapeDtypeStruct((1, 1, 2), W.dtype)
      >>> kernel = StoredFactoredMap(
      ...     pairs, space, space, probe_logits=None, provenance={"of": "a sketch"}
      ... )
      >>> kernel.block((0, 0), (0, 0))
      Array([[5., 0.],
             [0., 2.]], dtype=...)
    """

    def __init__(
        self,
        pairs: list[list[StoredBlocks]],
        in_struct: Any,
        out_struct: Any,
        *,
        probe_logits: Any,
        provenance: Mapping[str, Any],
    ):
        self.pairs = self._stored = pairs
        self.in_struct, self.out_struct = in_struct, out_struct
        self._logits = probe_logits
        self.provenance = provenance

    def mv(self, vector: Any) -> Any:
        """The image of `vector`, through the factors."""
        parts = jax.tree.leaves(conform(vector, self.in_struct))
        with exact_products():
            images = [
                sum(pair.mv(part) for pair, part in zip(row, parts, strict=True))
                for row in self._stored
            ]
        return jax.tree.structure(self.out_struct).unflatten(images)

    def rmv(self, covector: Any) -> Any:
        """The image of `covector` under the transpose, through the factors."""
        return self.T.mv(covector)

    @property
    def T(self) -> "StoredFactoredMap":
        """The transpose. It has no logits of its probe, so it cannot `predict`."""
        return StoredFactoredMap(
            [[pair.T for pair in column] for column in zip(*self._stored, strict=True)],
            self.out_struct,
            self.in_struct,
            probe_logits=None,
            provenance=self.provenance,
        )

    def probe_logits(self) -> Any:
        """The logits of the probe themselves, as they were saved."""
        if self._logits is None:
            raise ValueError(
                "The transpose of a stored kernel has no logits of its probe; save the "
                "kernel of the other direction to predict in it."
            )
        return self._logits


def save_kernel(
    path: Path | str,
    kernel: FactoredMap,
    *,
    provenance: Mapping[str, Any],
    memory_limit: memory.Bytes | None = None,
) -> None:
    """Writes all factors of a kernel to one file, whole or not at all.

    Args:
      path: The file; `.npz` is its format, whatever its name.
      kernel: A kernel from `empirical_ntk(..., method="factored")`, outside of
        `jax.jit`.
      provenance: A record of what the kernel is of, in JSON terms: run folder and
        checkpoint, prompts and responses, `where`, `preconditioner`. Versions are
        added.
      memory_limit: The bytes that the factors may take; by default a fraction of the
        free memory.

    Raises:
      MemoryError: If the factors of all pairs of positions do not fit.
      TypeError: If `provenance` is not JSON.

    Examples:
      >>> import tempfile
      >>> from ldjax import Sequences, empirical_ntk
      >>> from ldjax.linen import logits_fn
      >>> from ldjax.models import MLP
      >>> images = jnp.ones((1, 28, 28))
      >>> batch = Sequences(images, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool))
      >>> params = MLP((8,)).init(jax.random.key(0), images)["params"]
      >>> fn = logits_fn(MLP((8,)), batch)
      >>> kernel = empirical_ntk(fn, fn, params, method="factored")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "kernel.npz"
      ...     save_kernel(path, kernel, provenance={"of": "ones"})
      ...     loaded = load_kernel(path)
      >>> loaded.provenance["of"], loaded.frobenius_norm() == kernel.frobenius_norm()
      ('ones', Array(True, dtype=bool))
    """
    record = dict(provenance) | {
        "format": _FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "probe": _describe(kernel.out_struct),
        "update": _describe(kernel.in_struct),
    }
    text = json.dumps(record)
    parts = jax.tree.leaves(kernel.probe_logits())
    arrays = {f"logits_{i}": part for i, part in enumerate(parts)}
    _refuse_large(kernel, memory_limit)
    for i, row in enumerate(kernel.pairs):
        for j, pair in enumerate(row):
            *fixed, factors = _stored(pair)
            values = zip(_NAMES, (*fixed, *factors), strict=True)
            arrays |= {f"{name}_{i}_{j}": value for name, value in values}
    with whole_file(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, record=np.array(text), **jax.tree.map(np.asarray, arrays))


def load_kernel(path: Path | str) -> StoredFactoredMap:
    """Reads a kernel that `save_kernel` wrote.

    Args:
      path: The file.

    Returns:
      The kernel; `provenance` says what it is of.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not a kernel, or damaged.

    Examples:
      >>> load_kernel("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: There is no file nowhere.npz.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with np.load(path) as file:
            arrays = dict(file)
        record = json.loads(str(arrays["record"]))
        known = record["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no kernel that `save_kernel` wrote, or it is damaged: {error}"
        ) from error
    if not known:
        raise ValueError(
            f"{path} is a kernel of format {record['format']}; this version of ldjax "
            f"reads {_FORMAT}."
        )
    out_struct, in_struct = (_undescribe(record[n]) for n in ("probe", "update"))
    rows, columns = (len(record[name]) for name in ("probe", "update"))
    logits = [jnp.asarray(arrays[f"logits_{i}"]) for i in range(rows)]

    def blocks(i: int, j: int) -> StoredBlocks:
        matrix, left, right, *factors = (
            jnp.asarray(arrays[f"{name}_{i}_{j}"]) for name in _NAMES
        )
        # Older files hold ids as they were given, negative ones too.
        left, right = (jnp.mod(ids, matrix.shape[1]) for ids in (left, right))
        return StoredBlocks(matrix, left, right, Factors(*factors))

    return StoredFactoredMap(
        [[blocks(i, j) for j in range(columns)] for i in range(rows)],
        in_struct,
        out_struct,
        probe_logits=jax.tree.structure(out_struct).unflatten(logits),
        provenance=record,
    )


def _stored(pair: Blocks) -> StoredBlocks:
    left, right, factors = jax.jit(
        lambda: pair.map_blocks(lambda frame, f: (frame.left, frame.right, f))
    )()
    return StoredBlocks(pair.matrix, left[:, 0, 0], right[0, 0], factors)


def _refuse_large(kernel: FactoredMap, limit: memory.Bytes | None) -> None:
    one_pair = jax.eval_shape(lambda: kernel.pairs[0][0].blocks_at(0, 0))[1]
    sides = (kernel.out_struct, kernel.in_struct)
    probes, updates = (
        sum(leaf.shape[0] * leaf.shape[1] for leaf in jax.tree.leaves(side))
        for side in sides
    )
    size = sum(math.prod(x.shape[2:]) * x.dtype.itemsize for x in one_pair)
    memory.refuse_above(
        limit,
        probes * updates * size,
        what=f"the factors of {probes} x {updates} blocks",
        instead="save a kernel of fewer positions or examples",
    )


def _describe(struct: Any) -> list[Any]:
    """The parts of a space in JSON terms: the keys, shape and dtype of each."""
    flat = jax.tree_util.tree_leaves_with_path(struct)
    for path, _ in flat:
        if not all(isinstance(k, jax.tree_util.DictKey) for k in path):
            raise TypeError(
                "A kernel can be saved if its logits are an array or nested dicts of "
                f"arrays, got {struct}."
            )
    return [
        [[key.key for key in path], list(leaf.shape), str(leaf.dtype)]
        for path, leaf in flat
    ]


def _undescribe(parts: list[Any]) -> Any:
    tree: Any = {}
    for keys, shape, dtype in parts:
        leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        if not keys:
            return leaf
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree
