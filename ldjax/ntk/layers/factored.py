r"""The exact kernel at vocabulary scale: low rank plus a multiple of the identity.

A model with a linear head has, between any two positions,

    K[m, l] = L B R^T + c I

with factors of the width of the head's input. Norms, traces, spectra and any entries
follow exactly; nothing of size vocab x vocab is made. Blocks are streamed over the
update's positions.

Derived in docs/theory/kernel.md#head.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ldjax import memory
from ldjax.equation.jacobian import jacobian
from ldjax.equation.linear_map import LinearMap, position_message
from ldjax.equation.log_probs import log_softmax
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.subset import Weights
from ldjax.ntk.layers.blocks import (
    Blocks,
    Factors,
    Frame,
    SingularValues,
    token_ids,
    token_rows,
)
from ldjax.ntk.layers.factors import find_head, make_factories
from ldjax.ntk.layers.model_map import ModelMap
from ldjax.precision import exact_products

__all__ = ["FactoredMap", "LinenFactoredMap"]


class FactoredMap(LinearMap):
    """A kernel of Linen logits with a linear head, in factors; from `empirical_ntk`.

    With a preconditioner the identity becomes a diagonal: `block_summary` then costs
    one product `[width, vocab] x [vocab, width]` more for each block, and a block has
    no spectrum in factors.

    Attributes:
      pairs: The blocks by part of the probe (rows) and part of the update (columns).

    Examples:
      >>> from ldjax import Sequences, empirical_ntk
      >>> from ldjax.linen import logits_fn
      >>> from ldjax.models import MLP
      >>> images = jnp.ones((2, 28, 28))
      >>> batch = Sequences(images, jnp.zeros((2, 1), int), jnp.ones((2, 1), bool))
      >>> params = MLP((8,)).init(jax.random.key(0), images)["params"]
      >>> fn = logits_fn(MLP((8,)), batch)
      >>> kernel = empirical_ntk(fn, fn, params, method="factored")
      >>> kernel.block_summary().norm.shape
      (2, 1, 2, 1)
    """

    pairs: Sequence[Sequence[Blocks]]

    @abc.abstractmethod
    def probe_logits(self) -> Any:
        """The logits of the probe themselves, `[..., vocab]`.

        Raises:
          ValueError: If they are not known, as of a stored kernel's transpose.
        """

    def block_summary(self) -> Any:
        """Norm, trace, distance from `k I` and head/body split of every block.

        Returns:
          A `BlockSummary` of arrays `[probe, probe_pos, update, update_pos]`; for
          pytrees of logits a pytree (of the probe) of pytrees (of the update).
        """
        return self._assemble(lambda frame, factors: frame.summary(factors))

    def entries(self, rows: Any, columns: Any) -> Any:
        """The entries of all blocks for chosen tokens.

        Args:
          rows: Token ids of the probe's logits, `[rows]`; negative ones count from
            the end.
          columns: Token ids of the update's logits, `[columns]`.

        Returns:
          `[probe, probe_pos, rows, update, update_pos, columns]`, for pytrees as
          `block_summary`.

        Raises:
          ValueError: If an id is out of range, unless ids are being traced.
        """
        vocab = jax.tree.leaves(self.out_struct)[0].shape[-1]
        rows, columns = token_ids(rows, vocab), token_ids(columns, vocab)

        def pick(frame: Frame, factors: Factors) -> Array:
            return frame.entries(factors, rows, columns)

        return jax.tree.map(
            lambda entries: jnp.moveaxis(entries, 4, 2), self._assemble(pick)
        )

    def frobenius_norm(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Square root of the sum of all squared entries, from the blocks' norms."""
        del batch_size
        norms = self._assemble(lambda frame, factors: frame.summary(factors).norm)
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(norms)))

    @exact_products()
    def trace(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Sum of the diagonal entries; input and output spaces must be the same."""
        del batch_size
        self.require_square()
        total = jnp.zeros((), jax.tree.leaves(self.out_struct)[0].dtype)
        for i, row in enumerate(self.pairs):
            traces = _by_probe(
                row[i].map_blocks(lambda frame, factors: frame.summary(factors).trace)
            )
            total = total + jnp.einsum("blbl->", traces)
        return total

    @exact_products()
    def singular_values(self, m: Any, l: Any) -> SingularValues:
        """The whole spectrum of one block.

        Args:
          m: Position of the probe, as `block` takes it.
          l: Position of the update.

        Returns:
          All singular values: those of the span of the factors' columns, and `|c|` for
          the rest of the vocabulary.

        Raises:
          ValueError: Under a preconditioner of the head, where the rest is not a
            multiple of the identity: take the singular values of `.block(m, l)`.
        """
        frame, factors = self._block_factors(m, l)
        if factors.diagonal.ndim:
            raise ValueError(
                "Under a preconditioner of the head a block is low rank plus a "
                "diagonal, which has no spectrum in factors; take that of "
                "`.block(m, l)`."
            )
        num_columns = frame.matrix.shape[0] + len(frame.left) + len(frame.right)
        if num_columns >= frame.vocab:
            everything = jnp.arange(frame.vocab)
            block = frame.entries(factors, everything, everything)
            values = jnp.linalg.svd(block, compute_uv=False)
            return SingularValues(values, jnp.abs(factors.diagonal), 0)
        values = jnp.linalg.svd(frame.core(factors), compute_uv=False)
        rest = jnp.abs(factors.diagonal)
        return SingularValues(values, rest, frame.vocab - num_columns)

    def predict(self, residual: Any, learning_rate: float | Float[Array, ""]) -> Any:
        r"""First-order change of every log-prob of the probe, in nats.

        .. math:: -\eta\, A\, K\, G

        Args:
          residual: `G`, in the structure of the update's logits.
          learning_rate: The step size eta of gradient descent; 1 where the kernel's
            preconditioner contains it.

        Returns:
          A pytree like the probe's logits; positive means "went up".
        """
        adaptation = jacobian(log_softmax, self.probe_logits())
        return -learning_rate * adaptation @ self @ residual

    @exact_products()
    def block(
        self, m: Any, l: Any, *, batch_size: int = 32
    ) -> Inexact[Array, "vocab_out vocab_in"]:
        """The entries between probe position `m` and update position `l`."""
        del batch_size
        frame, factors = self._block_factors(m, l)
        everything = jnp.arange(frame.vocab)
        return frame.entries(factors, everything, everything)

    @exact_products()
    def as_matrix(self, batch_size: int = 32) -> Inexact[Array, "rows columns"]:
        """All entries, from the factors, over the ravelled spaces."""
        del batch_size
        return jnp.concatenate(
            [
                jnp.concatenate([_pair_matrix(pair) for pair in row], axis=1)
                for row in self.pairs
            ]
        )

    @exact_products()
    def _assemble(self, finish: Callable[[Frame, Factors], Any]) -> Any:
        """`finish` of all blocks, by part of the probe and of the update."""
        rows = [
            [_by_probe(pair.map_blocks(finish)) for pair in row] for row in self.pairs
        ]
        probes, updates = map(jax.tree.structure, (self.out_struct, self.in_struct))
        return probes.unflatten(updates.unflatten(row) for row in rows)

    def _block_factors(self, m: Any, l: Any) -> tuple[Frame, Factors]:
        row, probe, probe_pos = _locate(self.out_struct, m)
        column, update, update_pos = _locate(self.in_struct, l)
        frame, factors = self.pairs[row][column].blocks_at(update, update_pos)
        at = jax.tree.map(lambda array: array[probe, probe_pos], factors)
        return frame._replace(right=frame.right[probe]), at


class LinenFactoredMap(ModelMap, FactoredMap):
    """A factored kernel of a model: factors are made as they are asked for.

    Args:
      probe_fn: Logits of the watched examples, from `ldjax.linen.logits_fn`.
      update_fn: Logits of the trained examples, of the same module.
      params: The parameters.
      weights: The part of the parameters that takes part, and its preconditioner.
      memory_limit: The bytes that the work may take; None for a fraction of what is
        free.

    Raises:
      TypeError: If a function does not come from `ldjax.linen.logits_fn`.
      ValueError: If the logits are not a fixed multiple of a last linear layer's
        outputs; and as the structured kernel does.
    """

    def __init__(
        self,
        probe_fn: LogitsFn,
        update_fn: LogitsFn,
        params: Any,
        weights: Weights,
        memory_limit: memory.Bytes | None = None,
    ):
        super().__init__(
            probe_fn, update_fn, params, weights, memory_limit, method="factored"
        )
        head = find_head(self._proofs)
        if isinstance(head, str):
            raise ValueError(
                f'`method="factored"` needs a linear head, but {head}. '
                '"structured" takes any Linen model.'
            )
        self.pairs = make_factories(
            *self._arguments, proofs=self._proofs, head=head, limit=self._limit
        )

    @property
    def T(self) -> "LinenFactoredMap":
        """The transpose, in factors too."""
        return LinenFactoredMap(*self._transposed_arguments, self._memory_limit)

    def probe_logits(self) -> Any:
        """The logits of the probe themselves, `[..., vocab]`."""
        probe_fn, _, params, _ = self._arguments
        return probe_fn(params)


def _by_probe(results: Any) -> Any:
    """`[update, update_pos, probe, probe_pos, ...]` with the probe's axes first."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, (2, 3), (0, 1)), results)


def _pair_matrix(pair: Blocks) -> Inexact[Array, "rows columns"]:
    """All entries; each example's are one product, already in the result's order."""
    tokens = jnp.arange(pair.matrix.shape[1])

    def of_update(parts: tuple[Array, Array, Factors]) -> Array:
        left, right, (middle, diagonal) = parts  # stacked over position, probe, ...
        num_positions, num_probes, num_probe_pos, width, _ = middle.shape
        rows = token_rows(pair.matrix, left[0, 0], tokens)
        columns = jax.vmap(lambda t: token_rows(pair.matrix, t, tokens))(right[0])
        # [probe, probe_pos, i, pos, j] and so on: no transpose of what is large.
        half = jnp.einsum("pmilj,pwj->pmilw", jnp.moveaxis(middle, 0, 3), columns)
        half = half.reshape(num_probes * num_probe_pos, width, -1)
        repeated = jnp.broadcast_to(rows, (len(half), *rows.shape))
        entries = (repeated @ half).reshape(-1, half.shape[-1])
        by_token = diagonal if diagonal.ndim == 4 else diagonal[..., None]
        # [probe and its pos, vocab, pos]
        added = jnp.moveaxis(by_token, 0, -1).reshape(len(half), -1, num_positions)
        return _add_to_diagonals(entries, added, len(tokens))

    blocks = pair.map_blocks(lambda frame, f: (frame.left, frame.right, f))
    if len(blocks[0]) == 1:  # what XLA would copy once more to add an axis of one
        return of_update(jax.tree.map(lambda x: x[0], blocks))
    by_update = jax.lax.map(of_update, blocks)
    return jnp.moveaxis(by_update, 0, 1).reshape(by_update.shape[1], -1)


def _add_to_diagonals(entries: Array, added: Array, vocab: int) -> Array:
    """Adds `[probe_pos, vocab or 1, pos]` to the diagonals of all blocks."""
    num_rows, num_columns = entries.shape
    tokens = jnp.arange(vocab)
    rows = jnp.arange(num_rows).reshape(-1, vocab, 1)
    starts = vocab * jnp.arange(num_columns // vocab)
    columns = tokens[:, None] + starts[None]
    rows, columns, added = jnp.broadcast_arrays(rows, columns[None], added)
    kept = entries.shape
    index: tuple[Array, ...] = rows, columns
    if entries.size <= jnp.iinfo(rows.dtype).max:
        # One index instead of two: with two, XLA copies all entries once more.
        entries, index = entries.ravel(), (rows * num_columns + columns,)
    place = entries.at[index]
    added = place.add(added, indices_are_sorted=True, unique_indices=True)
    return added.reshape(kept)


def _locate(struct: Any, position: Any) -> tuple[int, int, int]:
    """Which part of a pytree, which example and which position are named."""
    index = position if isinstance(position, tuple) else (position,)
    for part, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(struct)):
        keys = tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)
        at = index[len(keys) :]
        if (
            index[: len(keys)] == keys
            and len(at) == 2
            and all(-n <= i < n for i, n in zip(at, leaf.shape, strict=False))
        ):
            return part, at[0] % leaf.shape[0], at[1] % leaf.shape[1]
    raise ValueError(position_message(position, struct))
