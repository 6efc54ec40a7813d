r"""The factors of a kernel's blocks, from the trunk's kernel and the head's inputs.

With `z = s (h W + b)`, `C` the kernel of `h` by the trunk's parameters and, for a head
tied to the embedding (`W = E^T`), with what flows through the embedded tokens,

    B = s^2 [[C, R_probe], [R_update, 0]],      c = s^2 (<h_probe, h_update> + 1)

    R_update[s, j] = sum_k h_probe[k] dh_update[j] / de_update[s, k]
    R_probe[i, t]  = sum_k h_update[k] dh_probe[i] / de_probe[t, k]

so `width` basis vectors replace `vocab` at each position.

Derived in docs/theory/kernel.md#head and docs/theory/kernel.md#tied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax import memory
from ldjax.equation.subset import Weights, leaf_paths
from ldjax.linen import LinenLogits
from ldjax.ntk.layers.blocks import Factors, Frame
from ldjax.ntk.layers.contract import (
    Carrier,
    batch_size,
    map_chunks,
    map_examples,
)
from ldjax.ntk.layers.pairing import Proofs, make_sides
from ldjax.ntk.layers.proof.certificate import HeadLayer
from ldjax.ntk.layers.side import Side, Signal
from ldjax.precision import exact_products


class HeadWeights(NamedTuple):
    """The head with the weights of its leaves in the kernel.

    Attributes:
      layer: The layer that is the head.
      matrix: The head's matrix `W`, `[width, vocab]`.
      kernel: The weights of `W` in the kernel, `[width, vocab]`; True for the
        identity, False where it is frozen.
      bias: The weights of the bias in the kernel, `[vocab]`; True for the identity,
        False where it is frozen or there is none.
    """

    layer: HeadLayer
    matrix: Array
    kernel: Array | bool
    bias: Array | bool

    @property
    def is_tied(self) -> bool:
        """Whether the embedded tokens carry cross terms."""
        return self.layer.is_attend and self.kernel is not False

    def diagonal(self, probe: Array, update: Array) -> Array:
        """`c`: `[...]` for hidden states `[..., width]` and `[width]`, or by token."""
        square = self.layer.scale**2
        if isinstance(self.kernel, bool) and isinstance(self.bias, bool):
            inner = probe @ update if self.kernel else jnp.zeros_like(probe[..., 0])
            return square * (inner + float(self.bias))
        vocab = self.matrix.shape[1]
        total = jnp.zeros((*probe.shape[:-1], vocab), probe.dtype)
        if self.kernel is not False:
            total += jnp.einsum("...k,k,kv->...v", probe, update, self.kernel)
        if self.bias is not False:
            total += jnp.broadcast_to(self.bias, total.shape)
        return square * total

    def weigh_tokens(self, rows: Array, tokens: Array) -> Array:
        """Embedding rows `[..., width]` of tokens, times their weights."""
        if isinstance(self.kernel, bool):
            return rows
        return rows * jnp.broadcast_to(self.kernel.T[tokens], rows.shape)


def find_head(proofs: Proofs) -> HeadLayer | str:
    """The head that all parts agree on; or, in words, why there is none."""
    heads = [certified.head for side in proofs for certified in side]
    for head in heads:
        if isinstance(head, str):
            return head
    if any(head[:2] != heads[0][:2] for head in heads):
        return "its last layer is another one for other examples"
    return heads[0]


def make_factories(
    probe_fn: LinenLogits,
    update_fn: LinenLogits,
    params: Any,
    weights: Weights,
    *,
    proofs: Proofs,
    head: HeadLayer,
    limit: memory.Bytes,
) -> list[list["PairFactory"]]:
    """One factory for each `Sequences` of the probe (rows) and update (columns).

    Args:
      probe_fn: Logits of the watched examples.
      update_fn: Logits of the trained examples.
      params: The parameters.
      weights: The part of the parameters that takes part, and its preconditioner.
      proofs: The certificates of both sides, from `prove`.
      head: The layer that is the head, from `find_head`.
      limit: The bytes that the work may take.
    """
    indices = {path: i for i, path in enumerate(leaf_paths(params))}
    (site,) = filter(head.is_of, proofs[0][0].sites)
    name = site.layer.leaves[0]
    kernel = weights.of(indices[*site.path, name])
    if not isinstance(kernel, bool):
        kernel = site.layer.kernel_rows(kernel)[0]
    bias = "bias" in site.layer.leaves and weights.of(indices[*site.path, "bias"])
    matrix = site.layer.kernel_rows(site.leaf(params, name))[0]
    own = HeadWeights(head, matrix, kernel, bias)
    probes, updates = make_sides(
        probe_fn, update_fn, params, weights, proofs=proofs, head=head
    )
    return [
        [PairFactory(probe, update, own, limit) for update in updates]
        for probe in probes
    ]


class PairFactory(NamedTuple):
    """Makes the blocks between one `Sequences` of the probe and one of the update.

    Attributes:
      probe: The watched examples, with the head's inputs as outputs.
      update: The trained examples, with the head's inputs as outputs.
      weights: The head and the weights of its leaves.
      limit: The bytes that the work may take.
    """

    probe: Side
    update: Side
    weights: HeadWeights
    limit: memory.Bytes

    @property
    def matrix(self) -> Array:
        """The head's `W`, `[width, vocab]`."""
        return self.weights.matrix

    def map_blocks(self, finish: Callable[[Frame, Factors], Any]) -> Any:
        """`finish` of all blocks, as `Blocks.map_blocks`."""
        at = self._start()
        num_positions, width = self.update.out_struct.shape
        # Neither the features of one position (in a narrow trunk) nor the tokens that
        # each position adds fill a pass; so both are taken for several positions.
        together = self._batch(num_positions, width)
        group = together * self._batch(num_positions // together, self._num_tokens())

        def of_example(example: Any) -> Any:
            frame, upper_at, factors_at = at(example)

            def of_pair(right: Array, factors: Factors) -> Any:
                return finish(frame._replace(right=right), factors)

            def of_group(group: Array) -> Any:
                upper = upper_at(group)

                def of_positions(index: Array) -> Any:
                    of_probes = jax.vmap(of_pair)
                    return jax.vmap(lambda f: of_probes(frame.right, f))(
                        factors_at(group[index], upper[index])
                    )

                return map_chunks(of_positions, len(group), together)

            return map_chunks(of_group, num_positions, group)

        return map_examples(of_example, self.update.examples)

    def blocks_at(self, update: int, position: int) -> tuple[Frame, Factors]:
        """The blocks of one update position, as `Blocks.blocks_at`."""
        example = jax.tree.map(lambda array: array[update], self.update.examples)
        frame, upper_at, factors_at = self._start()(example)
        positions = jnp.asarray([position])
        factors = factors_at(positions, upper_at(positions))
        return frame, jax.tree.map(lambda array: array[0], factors)

    def _batch(self, num_positions: int, signals_of_each: int) -> int:
        """The number of positions that fill a pass, a divisor: all passes are alike."""
        num_signals = num_positions * signals_of_each
        signals = batch_size(self.probe, self.update, num_signals, self.limit)
        fitting = range(1, max(1, signals // max(1, signals_of_each)) + 1)
        return max(n for n in fitting if num_positions % n == 0)

    def _num_tokens(self) -> int:
        """The number of probe tokens that a tied embedding makes columns of."""
        embed = self._embed_index()
        return 0 if embed is None else self.probe.row_shapes[embed][0][0]

    def _start(
        self,
    ) -> Callable[
        [Any],
        tuple[Frame, Callable[[Array], Array], Callable[[Array, Array], Factors]],
    ]:
        """What all update examples share; then what one is, as functions."""
        carrier = Carrier(self.probe)
        matrix = self.weights.matrix
        with exact_products():
            gram = matrix @ matrix.T
        embed = self._embed_index()
        none = jnp.zeros((self.probe.num_examples, 0), int)
        right = none if embed is None else carrier.inputs[embed]

        def of_example(example: Any) -> Any:
            hidden, pull, update_in = self.update.vjp(example)
            left = none[0] if embed is None else update_in[embed]
            carry = carrier.from_example(update_in)

            @exact_products()
            def upper_at(positions: Array) -> Array:
                return self._upper(carrier, hidden[positions], right)

            @exact_products()
            def factors_at(positions: Array, upper: Array) -> Factors:
                core, lower = self._columns(
                    carrier, carry, pull, hidden, positions, left
                )
                diagonal = jax.vmap(
                    lambda one: self.weights.diagonal(carrier.outputs, one)
                )(hidden[positions])
                corner = jnp.zeros((*lower.shape[:-1], upper.shape[-1]), core.dtype)
                rows = [
                    jnp.concatenate([core, upper], axis=-1),
                    jnp.concatenate([lower, corner], axis=-1),
                ]
                middle = jnp.concatenate(rows, axis=-2)
                return Factors(self.weights.layer.scale**2 * middle, diagonal)

            return Frame(matrix, gram, left, right), upper_at, factors_at

        return of_example

    def _columns(
        self,
        carrier: Carrier,
        carry: Callable[[Signal, int], Array],
        pull: Callable[[Array], Signal],
        hidden: Array,
        positions: Array,
        left: Array,
    ) -> tuple[Array, Array]:
        """`C` and `R_update`, `[position, probe, probe_pos, rows, width]`."""
        width, embed = hidden.shape[-1], self._embed_index()

        def of_features(indices: Array) -> tuple[Array, Array]:
            signals = jax.vmap(
                lambda i: pull(
                    jnp.zeros_like(hidden).at[positions[i // width], i % width].set(1)
                )
            )(indices)
            lower = jnp.zeros((len(indices), *carrier.outputs.shape[:-1], 0))
            if embed is not None:
                rows = self.weights.weigh_tokens(signals.rows[embed][:, :, 0], left)
                lower = jnp.einsum("epk,csk->ceps", carrier.outputs, rows)
            return carry(signals, len(indices)), lower.astype(hidden.dtype)

        num_signals = len(positions) * width
        batch = batch_size(self.probe, self.update, num_signals, self.limit)
        columns = map_chunks(of_features, num_signals, batch)
        return jax.tree.map(lambda x: _last(x, len(positions)), columns)

    def _upper(self, carrier: Carrier, hidden: Array, right: Array) -> Array:
        """`R_probe`, `[position, probe, probe_pos, width, tokens]`."""
        embed, num_tokens = self._embed_index(), right.shape[1]
        if embed is None:
            return jnp.zeros((len(hidden), *carrier.outputs.shape, 0), hidden.dtype)
        still = carrier.still()

        def of_token(index: Array) -> Array:
            token = index % num_tokens
            tangent = jnp.broadcast_to(
                hidden[index // num_tokens], (len(right), hidden.shape[-1])
            )
            tangent = self.weights.weigh_tokens(tangent, right[:, token])
            rows = list(still.rows)
            rows[embed] = rows[embed].at[:, token, 0].set(tangent)
            return carrier.push(Signal(tuple(rows), still.plain))

        num_signals = len(hidden) * num_tokens
        batch = batch_size(self.probe, self.update, num_signals, self.limit)
        columns = map_chunks(jax.vmap(of_token), num_signals, batch)
        return _last(columns, len(hidden))

    def _embed_index(self) -> int | None:
        if not self.weights.is_tied:
            return None
        for i, layer in enumerate(self.probe.layers):
            if layer.site.path == self.weights.layer.path:
                return i
        return None


def _last(columns: Array, num_positions: int) -> Array:
    """Columns of all positions, one after the other, as a last axis of each."""
    each = columns.shape[0] // num_positions
    split = columns.reshape(num_positions, each, *columns.shape[1:])
    return jnp.moveaxis(split, 1, -1)
