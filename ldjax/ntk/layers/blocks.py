r"""Blocks of a kernel as low rank plus diagonal, and their exact numbers.

With a linear head `z = h W` every block between a probe position and an update position
is, over the vocabulary,

    K = L B R^T + diag(c),    L = [W^T | E_update],    R = [W^T | E_probe]

where `E` are the one-hot columns of a side's tokens (empty unless the head is tied to
the embedding) and `c` is one number, or with a preconditioner one for each token. `L`
and `R` are never made; their Gram matrices are small.

Derived in docs/theory/kernel.md#numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int


class Factors(NamedTuple):
    """What makes up one block, or several stacked, in a `Frame`.

    Attributes:
      middle: The matrix `B` of the low-rank part, `[..., left, right]`.
      diagonal: The coefficient `c` of the identity, `[...]`; under a preconditioner
        one for each token, `[..., vocab]`.
    """

    middle: Array
    diagonal: Array

    @property
    def is_by_token(self) -> bool:
        """Whether the diagonal has a number for each token."""
        return self.diagonal.ndim == self.middle.ndim - 1


class BlockSummary(NamedTuple):
    r"""Exact numbers of blocks `K[m, l]`, each `[vocab, vocab]`.

    Attributes:
      norm: The Frobenius norm :math:`\|K\|_F`.
      trace: The trace :math:`\mathrm{tr} K`.
      distance: The distance :math:`\|K - (\mathrm{tr} K / V) I\|_F` from acting alike
        on all tokens, as every argument with `k I` assumes.
      body_norm: The norm :math:`\|L B R^\top\|_F` of what flows through the trunk (and
        a tied embedding).
      identity: The coefficient `c` of the identity, what the head's own parameters
        give; under a preconditioner its mean. The norm of that part is |c| sqrt(V).

    Examples:
      The block :math:`W^\top B W + c I = [[5, 0], [0, 2]]` of two tokens:

      >>> W, no_tokens = jnp.array([[1.0, 0.0]]), jnp.zeros(0, int)
      >>> frame = Frame(W, W @ W.T, left=no_tokens, right=no_tokens)
      >>> block = Factors(middle=jnp.array([[[3.0]]]), diagonal=jnp.array([2.0]))
      >>> summary = frame.summary(block)
      >>> summary.trace, summary.distance**2, summary.identity
      (Array([7.], ...), Array([4.5...], ...), Array([2.], ...))
    """

    norm: Array
    trace: Array
    distance: Array
    body_norm: Array
    identity: Array


class SingularValues(NamedTuple):
    """All singular values of a block.

    Attributes:
      values: The singular values that differ from each other in general, descending.
      rest: The one value of all others.
      multiplicity: The number of the others.

    Examples:
      >>> spectrum = SingularValues(jnp.array([3.0, 2.0]), jnp.array(1.0), 4)
      >>> len(spectrum.values) + spectrum.multiplicity
      6
    """

    values: Inexact[Array, " distinct"]
    rest: Float[Array, ""]
    multiplicity: int


class Frame(NamedTuple):
    """What the columns of `L` and `R` are, for one pair of examples.

    Attributes:
      matrix: The head's matrix `W`, `[width, vocab]`.
      matrix_gram: Its Gram matrix `W W^T`.
      left: Tokens of the update, the columns of `E_update`; none where the head is not
        tied to the embedding.
      right: Tokens of the probe, the columns of `E_probe`; none where it is not tied.
    """

    matrix: Float[Array, "width vocab"]
    matrix_gram: Float[Array, "width width"]
    left: Int[Array, " update_tokens"]
    right: Int[Array, " probe_tokens"]

    @property
    def vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.matrix.shape[1]

    def pull(self, tokens: Array, vector: Array) -> Array:
        """`L^T v` or `R^T v` over the last axis."""
        return jnp.concatenate([vector @ self.matrix.T, vector[..., tokens]], axis=-1)

    def push(self, tokens: Array, weights: Array) -> Array:
        """`L x` or `R x` over the last axis."""
        width = self.matrix.shape[0]
        dense = weights[..., :width] @ self.matrix
        return dense.at[..., tokens].add(weights[..., width:])

    def rows(self, tokens: Array, chosen: Array) -> Array:
        """Rows of `L` or `R` for chosen tokens, `[chosen, columns]`."""
        return token_rows(self.matrix, tokens, chosen)

    def gram(self, one: Array, other: Array, weights: Array | None = None) -> Array:
        """`Q_one^T diag(weights) Q_other`, `weights` `[..., vocab]`; None for ones."""
        picked, others = self.matrix[:, one], self.matrix[:, other]
        same = (one[:, None] == other[None, :]).astype(self.matrix.dtype)
        if weights is None:
            blocks = [[self.matrix_gram, others], [picked.T, same]]
            return jnp.block(blocks)
        dense = jnp.einsum("iv,...v,jv->...ij", self.matrix, weights, self.matrix)
        upper = jnp.einsum("is,...s->...is", others, weights[..., other])
        lower = jnp.einsum("is,...s->...si", picked, weights[..., one])
        corner = jnp.einsum("st,...s->...st", same, weights[..., one])
        return jnp.concatenate(
            [
                jnp.concatenate([dense, upper], axis=-1),
                jnp.concatenate([lower, corner], axis=-1),
            ],
            axis=-2,
        )

    def apply(self, factors: Factors, vector: Array) -> Array:
        """`K v`."""
        pulled = self.pull(self.right, vector)
        inner = jnp.einsum("...ij,...j->...i", factors.middle, pulled)
        diagonal = factors.diagonal
        if not factors.is_by_token:
            diagonal = diagonal[..., None]
        dense = self.push(self.left, inner)
        return dense + diagonal * jnp.broadcast_to(vector, dense.shape)

    def entries(self, factors: Factors, rows: Array, columns: Array) -> Array:
        """`K[rows, columns]`, `[..., rows, columns]`."""
        left, right = self.rows(self.left, rows), self.rows(self.right, columns)
        low_rank = jnp.einsum("vi,...ij,wj->...vw", left, factors.middle, right)
        diagonal = factors.diagonal
        diagonal = diagonal[..., rows] if factors.is_by_token else diagonal[..., None]
        diagonal = jnp.broadcast_to(diagonal, low_rank.shape[:-1])
        same = (rows[:, None] == columns[None, :]).astype(low_rank.dtype)
        return low_rank + jnp.einsum("...v,vw->...vw", diagonal, same)

    def summary(self, factors: Factors) -> BlockSummary:
        """The numbers of blocks stacked along one axis."""
        middle, diagonal = factors
        left, right = self.gram(self.left, self.left), self.gram(self.right, self.right)
        across = self.gram(self.left, self.right)
        body_trace = jnp.einsum("bij,ij->b", middle, across)
        body_square = jnp.einsum("bij,bij->b", left @ middle @ right, middle)

        def square(diagonal: Array) -> Array:
            """The square of the norm with this diagonal."""
            if diagonal.ndim == 1:
                crossed = diagonal * body_trace
                own = self.vocab * diagonal**2
            else:
                weighted = self.gram(self.left, self.right, diagonal)
                crossed = jnp.einsum("bij,bij->b", middle, weighted)
                own = jnp.sum(diagonal**2, axis=-1)
            return jnp.maximum(body_square + 2 * crossed + own, 0)

        mean = diagonal if diagonal.ndim == 1 else diagonal.mean(axis=-1)
        # Taken off the diagonal, not off the squared norm: that difference of large
        # numbers has no digits left in float32 where a block is close to k I.
        level = mean + body_trace / self.vocab
        off = diagonal - (level if diagonal.ndim == 1 else level[:, None])
        return BlockSummary(
            norm=jnp.sqrt(square(diagonal)),
            trace=self.vocab * level,
            distance=jnp.sqrt(square(off)),
            body_norm=jnp.sqrt(jnp.maximum(body_square, 0)),
            identity=mean,
        )

    def core(self, factors: Factors) -> Array:
        """One block in an orthonormal basis of all columns, `[n, n]`.

        Outside the span of that basis the block is `c` times the identity. For `n <=
        vocab`, and one `c`.
        """
        tokens = jnp.concatenate([self.right, self.left])
        columns = self.push(tokens, jnp.eye(self.matrix.shape[0] + len(tokens)))
        # A token that occurs twice makes the columns dependent: QR, not Cholesky.
        _, triangle = jnp.linalg.qr(columns.T)
        split = self.matrix.shape[0], self.matrix.shape[0] + len(self.right)
        dense, right, left = jnp.split(triangle, split, axis=1)
        one, other = (jnp.concatenate([dense, x], axis=1) for x in (left, right))
        identity = jnp.eye(triangle.shape[0], dtype=triangle.dtype)
        return one @ factors.middle @ other.T + factors.diagonal * identity


def token_ids(tokens: Any, vocab: int) -> Array:
    """Ids as tables count them: from 0 up, negative ones from the end.

    Args:
      tokens: Token ids of any shape.
      vocab: The number of tokens in the table.

    Raises:
      ValueError: If one is out of range, unless they are being traced.
    """
    if not isinstance(tokens, jax.core.Tracer):
        known = np.asarray(tokens)
        if known.size and not (-vocab <= known.min() and known.max() < vocab):
            raise ValueError(
                f"Token ids must lie in {-vocab} to {vocab - 1}; got {known.min()} to "
                f"{known.max()}."
            )
    return jnp.mod(jnp.asarray(tokens), vocab)


def token_rows(matrix: Array, tokens: Array, chosen: Array) -> Array:
    """Rows of `[W^T | E]` for chosen tokens, `E` the one-hot columns of `tokens`."""
    same = chosen[:, None] == tokens[None, :]
    dense = matrix.T[chosen]
    return jnp.concatenate([dense, same.astype(dense.dtype)], axis=1)


@runtime_checkable
class Blocks(Protocol):
    """All blocks between one `Sequences` of the probe and one of the update."""

    @property
    def matrix(self) -> Array:
        """The head's `W`, `[width, vocab]`."""
        ...

    def map_blocks(self, finish: Callable[[Frame, Factors], Any]) -> Any:
        """`finish` of the blocks of each pair of examples and update position.

        Args:
          finish: A function of the factors of all probe positions, `[probe_pos, ...]`,
            for one pair of examples and one update position at a time.

        Returns:
          The results of `finish`, `[update, update_pos, probe, probe_pos, ...]`.
        """
        ...

    def blocks_at(self, update: int, position: int) -> tuple[Frame, Factors]:
        """The blocks of one update position; `right` and factors `[probe, ...]`."""
        ...
