r"""A tapped layer's share of a kernel, from its inputs and its signals.

With `a` the rows a layer reads and `g` the cotangents of the rows it gives,

    K_layer = sum_ts  <a_probe[t], a_update[s]>  <g_probe[t], g_update[s]>

(+ 1 in the first factor with a bias). `spread` is this with the probe's cotangents left
out: what the update's cotangents become as tangents of the probe's taps. With weights
`w` (a preconditioner) the first factor is `sum_i a[t, i] w[i, j] a[s, i]`, one number
for each output `j`. In the einsums: `e`, `u` examples, `i`, `j` outputs, `t`, `s`
positions, `g` groups, `k` the layer's inputs, `d` its outputs.

Derived in docs/theory/kernel.md#layers; with weights, in
docs/theory/kernel.md#preconditioned.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ldjax.ntk.layers.products import Embed
from ldjax.ntk.layers.side import TappedLayer


class Size(NamedTuple):
    """The size of one side of a kernel.

    Attributes:
      examples: The number of examples.
      outputs: The number of outputs of each example.
    """

    examples: int
    outputs: int


def spread(
    layer: TappedLayer, probe_in: Array, update_in: Array
) -> Callable[[Array], Array]:
    """The linear map from an update's row cotangents to the probes' row tangents.

    Two orders give the same numbers: through the similarities of positions, `(a a') g`,
    and through the layer's own gradient, `a (a' g)`; the cheaper one is taken. What
    does not depend on `g` is computed here, once.

    Args:
      layer: The layer.
      probe_in: The rows that it reads of the probes, `[probe, pos, groups, fan_in]`
        (ids `[probe, pos]`).
      update_in: The rows that it reads of one update example, without the first axis.

    Returns:
      The map of several signals at once, `[signal, pos, groups, fan_out]` to
      `[signal, probe, pos, groups, fan_out]`.
    """
    if isinstance(layer.site.layer, Embed):
        return _through_table(layer, probe_in, update_in)
    if layer.kernel is False:
        return _through_bias(layer, probe_in)
    if _prefers_gradient(probe_in, update_in):
        return _through_gradient(layer, probe_in, update_in)
    # The bias is an input that is always one.
    if isinstance(layer.kernel, bool) and isinstance(layer.bias, bool):
        similarity = jnp.einsum("etgk,sgk->egts", probe_in, update_in)
        return functools.partial(_through_similarity, similarity + float(layer.bias))
    weight = jnp.asarray(layer.kernel, probe_in.dtype)
    by_output = jnp.einsum("etgk,gkd,sgk->egtsd", probe_in, weight, update_in)
    if not isinstance(layer.bias, bool):
        by_output += jnp.broadcast_to(layer.bias[:, None, None], by_output.shape)
    return lambda rows: jnp.einsum("egtsd,csgd->cetgd", by_output, rows)


def _through_table(
    layer: TappedLayer, probe_in: Array, update_in: Array
) -> Callable[[Array], Array]:
    same = probe_in[:, None, :, None] == update_in[None, None, None, :]

    def carry(rows: Array) -> Array:
        if not isinstance(layer.kernel, bool):
            weight = layer.kernel[0][update_in][None, :, None]
            rows = rows * jnp.broadcast_to(weight, rows.shape)
        return _through_similarity(same.astype(rows.dtype), rows)

    return carry


def _through_bias(layer: TappedLayer, probe_in: Array) -> Callable[[Array], Array]:
    def carry(rows: Array) -> Array:
        total = rows.sum(1)
        if not isinstance(layer.bias, bool):
            total = total * jnp.broadcast_to(layer.bias, total.shape)
        shape = (len(rows), *probe_in.shape[:2], *total.shape[1:])
        return jnp.broadcast_to(total[:, None, None], shape)

    return carry


def _through_gradient(
    layer: TappedLayer, probe_in: Array, update_in: Array
) -> Callable[[Array], Array]:
    def carry(rows: Array) -> Array:
        gradient = jnp.einsum("sgk,csgd->cgkd", update_in, rows)
        if not isinstance(layer.kernel, bool):
            gradient = gradient * jnp.broadcast_to(layer.kernel, gradient.shape)
        moved = jnp.einsum("etgk,cgkd->cetgd", probe_in, gradient)
        if layer.bias is False:
            return moved
        return moved + _through_bias(layer, probe_in)(rows)

    return carry


def _through_similarity(similarity: Array, rows: Array) -> Array:
    """`[probe, groups, pos, update_pos]` applied to signals."""
    similarity = similarity.astype(rows.dtype)
    if similarity.size > rows[0].size:
        return jnp.einsum("egts,csgd->cetgd", similarity, rows)
    # One small product per signal instead of a large one, for which XLA would first
    # bring the positions of all signals to the front: faster on the CPU.
    num_probes, groups, num_probe, num_update = similarity.shape
    by_group = jnp.moveaxis(similarity, 1, 0).reshape(groups, -1, num_update)
    repeated = jnp.broadcast_to(by_group, (len(rows), *by_group.shape))
    moved = jax.lax.dot_general(
        repeated, jnp.moveaxis(rows, 2, 1), (((3,), (2,)), ((0, 1), (0, 1)))
    )  # [signal, groups, probe pos, fan_out]
    split = moved.reshape(*moved.shape[:2], num_probes, num_probe, -1)
    return jnp.moveaxis(split, 1, 3)


def _prefers_gradient(probe_in: Array, update_in: Array) -> bool:
    num_probe, num_update = math.prod(probe_in.shape[:2]), update_in.shape[0]
    return num_probe * num_update > probe_in.shape[-1] * (num_probe + num_update)


def spread_cost(layer: TappedLayer, num_probes: int) -> int:
    """Multiplications of one spread to so many probe examples."""
    pos, (groups, fan_in, fan_out) = layer.site.num_rows, layer.site.matrix_shape
    if isinstance(layer.site.layer, Embed):
        return num_probes * pos**2 * fan_out
    through_gradient = (1 + num_probes) * pos * fan_in
    return groups * fan_out * min(num_probes * pos**2, through_gradient)


def gram(
    layer: TappedLayer, probe: tuple[Array, Array], update: tuple[Array, Array]
) -> Inexact[Array, "probes probe_out updates update_out"]:
    """The share of all pairs, by similarities of positions.

    Args:
      layer: The layer.
      probe: The rows that it reads, `[example, pos, groups, fan_in]` (ids
        `[example, pos]`), and the cotangents of those that it gives, `[example, output,
        pos, groups, fan_out]`.
      update: The same two of the update.
    """
    (probe_in, probe_rows), (update_in, update_rows) = probe, update
    if _is_outer(layer, probe_rows, update_rows):
        pairs = probe_rows.shape[0], update_rows.shape[0]
        similarity = jnp.full(pairs, float(layer.bias), probe_rows.dtype)
        if layer.kernel is not False:
            similarity = similarity + _similarity(layer, probe_in, update_in)
        inner = jnp.einsum("eitgd,ujtgd->eiuj", probe_rows, update_rows)
        return similarity.astype(inner.dtype)[..., None, :, None] * inner

    def of_pair(one_in: Array, one: Array, other_in: Array, other: Array) -> Array:
        moved = spread(layer, one_in[None], other_in)(other)[:, 0]
        return jnp.einsum("itgd,jtgd->ij", one, moved)

    def of_probe(one: tuple[Array, Array]) -> Array:
        return jax.vmap(lambda *other: of_pair(*one, *other))(update_in, update_rows)

    # [probe, update, probe output, update output]
    return jnp.moveaxis(jax.lax.map(of_probe, (probe_in, probe_rows)), 1, 2)


def _is_outer(layer: TappedLayer, probe_rows: Array, update_rows: Array) -> bool:
    """Whether the share is a product of similarities of inputs and of cotangents."""
    is_unweighted = isinstance(layer.kernel, bool) and isinstance(layer.bias, bool)
    # Positions on either side, and groups.
    is_one_row = probe_rows.shape[2:4] == update_rows.shape[2:4] == (1, 1)
    return is_unweighted and is_one_row


def _similarity(layer: TappedLayer, probe_in: Array, update_in: Array) -> Array:
    if isinstance(layer.site.layer, Embed):
        return (probe_in == update_in.T).astype(jnp.float32)
    return jnp.einsum("etgk,utgk->eu", probe_in, update_in)


def gram_cost(layer: TappedLayer, probe: Size, update: Size) -> int:
    """Multiplications of `gram` for all pairs."""
    pos, (groups, fan_in, fan_out) = layer.site.num_rows, layer.site.matrix_shape
    pairs = probe.examples * update.examples
    outputs = pairs * probe.outputs * update.outputs
    if pos == 1:
        return pairs * fan_in + outputs * groups * fan_out
    on_pair = groups * pos**2 * fan_in + update.outputs * spread_cost(layer, 1)
    return pairs * on_pair + outputs * pos * groups * fan_out


def instantiated(
    layer: TappedLayer,
    probe: tuple[Array, Array],
    update: tuple[Array, Array],
    *,
    max_bytes: float,
) -> Inexact[Array, "probes probe_out updates update_out"]:
    """The share of all pairs, by gradients of the matrix, some inputs at a time.

    Args:
      layer: The layer, which is not an embedding.
      probe: The rows that it reads and the cotangents of those that it gives, as in
        `gram`.
      update: The same two of the update.
      max_bytes: The bytes that the gradients held at a time may take.
    """
    (probe_in, probe_rows), (update_in, update_rows) = probe, update
    total = jnp.zeros((*probe_rows.shape[:2], *update_rows.shape[:2]), probe_rows.dtype)
    if layer.bias is not False:
        one, other = _over_positions(probe_rows), _over_positions(update_rows)
        if not isinstance(layer.bias, bool):
            other = other * jnp.broadcast_to(layer.bias, other.shape)
        total = total + jnp.einsum("eigd,ujgd->eiuj", one, other)
    if layer.kernel is False:
        return total

    def add_chunk(total: Array, chunk: tuple[Array, Array, Array | None]) -> Array:
        one_in, other_in, weight = chunk
        one = jnp.einsum("etgk,eitgd->eigkd", one_in, probe_rows)
        other = jnp.einsum("utgk,ujtgd->ujgkd", other_in, update_rows)
        if weight is not None:
            other = other * jnp.broadcast_to(weight, other.shape)
        return total + jnp.einsum("eigkd,ujgkd->eiuj", one, other)

    fan_in = probe_in.shape[-1]
    num_outputs = sum(math.prod(rows.shape[:2]) for rows in (probe_rows, update_rows))
    row_bytes = math.prod(probe_rows.shape[3:]) * probe_rows.dtype.itemsize
    width = max(1, min(fan_in, int(max_bytes / (num_outputs * row_bytes))))
    num_chunks = -(-fan_in // width)
    weight = None if isinstance(layer.kernel, bool) else layer.kernel
    if num_chunks == 1:
        return add_chunk(total, (probe_in, update_in, weight))
    chunks = (
        _chunks(probe_in, 3, num_chunks),
        _chunks(update_in, 3, num_chunks),
        None if weight is None else _chunks(weight, 1, num_chunks),
    )
    return jax.lax.scan(lambda sofar, c: (add_chunk(sofar, c), None), total, chunks)[0]


def _over_positions(rows: Array) -> Array:
    """The sum over positions; as a product, for XLA's sum is ten times slower here."""
    return jnp.einsum("eitgd,t->eigd", rows, jnp.ones(rows.shape[2], rows.dtype))


def _chunks(array: Array, axis: int, num: int) -> Array:
    """Equal pieces of an axis, stacked; zeros at the end of the last change nothing."""
    size = array.shape[axis]
    width = -(-size // num)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, num * width - size)
    padded = jnp.pad(array, padding)
    split = padded.reshape(*array.shape[:axis], num, width, *array.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def instantiated_cost(layer: TappedLayer, probe: Size, update: Size) -> float:
    """Multiplications of `instantiated` for all pairs; infinite for an embedding."""
    if isinstance(layer.site.layer, Embed):
        return math.inf
    size = math.prod(layer.site.matrix_shape)
    one, other = math.prod(probe), math.prod(update)
    return float((one + other) * layer.site.num_rows * size + one * other * size)
