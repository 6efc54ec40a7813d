"""Three ways to contract two sides to the matrix of a kernel, and what each costs.

When each is right: docs/theory/kernel.md#contractions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ldjax import memory
from ldjax.equation.spaces import basis_vector, size_of
from ldjax.ntk.layers.products import Embed
from ldjax.ntk.layers.share import (
    Size,
    gram,
    gram_cost,
    instantiated,
    instantiated_cost,
    spread,
    spread_cost,
)
from ldjax.ntk.layers.side import Side, Signal, TappedLayer
from ldjax.precision import exact_products

Contraction = Literal["auto", "operator", "gram", "instantiated"]

# Basis vectors pushed through at once: enough to fill matrix products, few enough for
# their signals to stay near the cores.
_MAX_BATCH = 128


@exact_products()
def pair_matrix(
    probe: Side, update: Side, contraction: Contraction, *, limit: memory.Bytes
) -> Inexact[Array, "rows columns"]:
    """All entries between two sides.

    Args:
      probe: The side whose outputs are the rows.
      update: The side whose outputs are the columns.
      contraction: The name of a contraction, as `StructuredMap` takes it.
      limit: The bytes that the work may take.

    Raises:
      MemoryError: If a forced contraction in pairs cannot fit.
    """
    rows, columns = _size(probe), _size(update)
    if contraction == "auto":
        is_operator = _prefers_operator(probe, update, limit)
    else:
        is_operator = contraction == "operator"
    if not is_operator:
        kernel = _in_pairs(probe, update, contraction, limit)
    elif math.prod(columns) <= math.prod(rows):
        by_column = by_operator(probe, update, lambda x: x, limit=limit)
        kernel = by_column.reshape(math.prod(columns), math.prod(rows)).T
    else:
        kernel = by_operator(update, probe, lambda x: x, limit=limit)
    return kernel.reshape(math.prod(rows), math.prod(columns))


@exact_products()
def by_operator(
    probe: Side, update: Side, finish: Callable[[Array], Any], *, limit: memory.Bytes
) -> Any:
    """Each output of the update pulled back and pushed to all outputs of the probe.

    Args:
      probe: The side that every signal is pushed to.
      update: The side whose outputs the basis runs over.
      finish: A function of a column, `[example, *output]`, to what is kept of it.
      limit: The bytes that the work may take.

    Returns:
      The results of `finish`, `[update example, update output, ...]`.
    """
    struct = update.out_struct
    num_outputs = size_of(struct)
    carrier = Carrier(probe)
    batch = batch_size(probe, update, num_outputs, limit)

    def of_example(example: Any) -> Any:
        _, pull, update_in = update.vjp(example)
        push = carrier.from_example(update_in)

        def of_outputs(indices: Array) -> Any:
            signals = jax.vmap(lambda index: pull(basis_vector(struct, index)))(indices)
            return jax.vmap(finish)(push(signals, len(indices)))

        return map_chunks(of_outputs, num_outputs, batch)

    return map_examples(of_example, update.examples)


def map_examples(fn: Callable[[Any], Any], examples: Any) -> Any:
    """`fn` of stacked examples one by one, without a loop for a single one."""
    if jax.tree.leaves(examples)[0].shape[0] > 1:
        return jax.lax.map(fn, examples)
    alone = fn(jax.tree.map(lambda x: x[0], examples))
    return jax.tree.map(lambda x: x[None], alone)


def map_chunks(fn: Callable[[Array], Any], size: int, batch: int) -> Any:
    """`fn` of stretches of `arange(size)`, its results put together.

    Unlike in `jax.lax.map(..., batch_size=)`, `fn` sees the whole stretch.
    """
    whole, rest = divmod(size, batch)
    if whole <= 1 and not rest:
        return fn(jnp.arange(size))
    starts = batch * jnp.arange(whole)
    done = jax.lax.map(lambda start: fn(start + jnp.arange(batch)), starts)
    done = jax.tree.map(lambda x: x.reshape(whole * batch, *x.shape[2:]), done)
    if not rest:
        return done
    last = fn(jnp.arange(whole * batch, size))
    return jax.tree.map(lambda *both: jnp.concatenate(both), done, last)


class Carrier:
    """Takes signals of an update example to all outputs of the probes.

    Args:
      probe: The probes; linearised once.

    Attributes:
      outputs: The outputs of the probes.
      push: The derivative of the outputs, a function of a `Signal`.
      inputs: The rows that each layer reads of the probes.
    """

    def __init__(self, probe: Side):
        self._probe = probe
        self.outputs, self.push, self.inputs = probe.linearize()

    def still(self) -> Signal:
        """The signal that moves nothing."""
        return Signal(
            tuple(
                jnp.zeros((self._probe.num_examples, *shape), dtype)
                for shape, dtype in self._probe.row_shapes
            ),
            tuple(jnp.zeros_like(leaf) for leaf in self._probe.plain_leaves),
        )

    def from_example(
        self, update_in: tuple[Array, ...]
    ) -> Callable[[Signal, int], Array]:
        """The map of stacked signals of an example whose layers read these rows."""
        spreads = [
            spread(layer, *both)
            for layer, *both in zip(
                self._probe.layers, self.inputs, update_in, strict=True
            )
        ]

        def carry(signal: Signal, num_signals: int) -> Array:
            rows = tuple(f(g) for f, g in zip(spreads, signal.rows, strict=True))
            plain = self._probe.weigh_plain(signal.plain)
            if not jax.tree.leaves(signal):  # nothing of the trunk takes part
                return jnp.zeros((num_signals, *self.outputs.shape), self.outputs.dtype)
            return jax.vmap(self.push)(Signal(rows, plain))

        return carry


def batch_size(probe: Side, update: Side, num_outputs: int, limit: memory.Bytes) -> int:
    """Signals at a time: each of an update example and of all probes, with its work."""
    per_signal = 2 * (
        sum(_row_bytes(layer) for layer in update.layers)
        + probe.num_examples * sum(_row_bytes(layer) for layer in probe.layers)
        + _plain_bytes(update)
    )
    fitting = int(limit / 2 / max(1, per_signal))
    return max(1, min(num_outputs, _MAX_BATCH, fitting))


def _row_bytes(layer: TappedLayer) -> int:
    return sum(
        math.prod(shape.shape) * shape.dtype.itemsize for shape in layer.site.shapes
    )


def _size(side: Side) -> Size:
    return Size(side.num_examples, size_of(side.out_struct))


class _Pulled(NamedTuple):
    """Cotangents of every output of every example; and what the layers read."""

    inputs: tuple[Array, ...]
    signal: Signal


def _in_pairs(
    probe: Side,
    update: Side,
    contraction: Contraction,
    limit: memory.Bytes,
) -> Inexact[Array, "probes probe_out updates update_out"]:
    memory.refuse_above(
        limit,
        _pulled_bytes(probe) + _pulled_bytes(update),
        what="the cotangents of all outputs of both sides",
        instead='use `contraction="operator"`, or fewer examples',
    )
    one, other = _pull_both(probe, update)
    sizes = _size(probe), _size(update)
    shares = []
    for i, layer in enumerate(probe.layers):
        both = [(side.inputs[i], side.signal.rows[i]) for side in (one, other)]
        if _instantiates(layer, contraction, *sizes):
            share = functools.partial(instantiated, max_bytes=limit / 8)
        else:
            share = gram
        shares.append(share(layer, *both))
    weighed = probe.weigh_plain(other.signal.plain)
    for left, right in zip(one.signal.plain, weighed, strict=True):
        left, right = (x.reshape(*x.shape[:2], -1) for x in (left, right))
        shares.append(jnp.einsum("eip,ujp->eiuj", left, right))
    return sum(shares[1:], shares[0])


def _pull_both(probe: Side, update: Side) -> tuple[_Pulled, _Pulled]:
    """All cotangents of both sides.

    In one pass where reading the parameters is most of the work.
    """
    leaves = jax.tree.leaves(probe.params)
    params_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    is_wide = params_bytes > _pulled_bytes(probe) + _pulled_bytes(update)
    if not is_wide or _struct(probe.first) != _struct(update.first):
        return _pull_all(probe), _pull_all(update)
    join = lambda *both: jnp.concatenate(both)
    examples = jax.tree.map(join, probe.examples, update.examples)
    pulled = _pull_all(probe._replace(examples=examples))
    num = probe.num_examples
    return (
        jax.tree.map(lambda x: x[:num], pulled),
        jax.tree.map(lambda x: x[num:], pulled),
    )


def _struct(example: Any) -> tuple[Any, list[Any]]:
    leaves, treedef = jax.tree.flatten(example)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _pull_all(side: Side) -> _Pulled:
    struct = side.out_struct
    basis = jax.vmap(lambda index: basis_vector(struct, index))(
        jnp.arange(size_of(struct))
    )

    def of_example(example: Any) -> _Pulled:
        _, pull, inputs = side.vjp(example)
        return _Pulled(inputs, jax.vmap(pull)(basis))

    return jax.vmap(of_example)(side.examples)


def _instantiates(
    layer: TappedLayer, contraction: str, probe: Size, update: Size
) -> bool:
    cost = instantiated_cost(layer, probe, update)
    if contraction == "auto":
        return cost < gram_cost(layer, probe, update)
    return contraction == "instantiated" and cost < math.inf


def _pulled_bytes(side: Side) -> int:
    rows = sum(_row_bytes(layer) for layer in side.layers)
    return math.prod(_size(side)) * (rows + _plain_bytes(side))


def _plain_bytes(side: Side) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in side.plain_leaves)


def _prefers_operator(probe: Side, update: Side, limit: memory.Bytes) -> bool:
    """Whether pushing takes fewer multiplications than pairs, or these do not fit."""
    if _pulled_bytes(probe) + _pulled_bytes(update) > limit / 4:
        return True
    rows, columns = _size(probe), _size(update)
    narrow, wide = sorted([(columns, update), (rows, probe)], key=_num_outputs)
    spreads = sum(spread_cost(layer, wide[0].examples) for layer in wide[1].layers)
    operator = math.prod(narrow[0]) * (
        _pass_cost(narrow[1]) + wide[0].examples * _pass_cost(wide[1]) + spreads
    )
    pairs = math.prod(rows) * _pass_cost(probe) + math.prod(columns) * _pass_cost(
        update
    )
    pairs += sum(
        min(gram_cost(layer, rows, columns), instantiated_cost(layer, rows, columns))
        for layer in probe.layers
    )
    pairs += (
        math.prod(rows)
        * math.prod(columns)
        * sum(leaf.size for leaf in probe.plain_leaves)
    )
    return operator < pairs


def _num_outputs(side: tuple[Size, Side]) -> int:
    return math.prod(side[0])


def _pass_cost(side: Side) -> int:
    """Multiplications of one backward or forward-mode pass through the layers."""
    return sum(
        layer.site.num_rows * math.prod(layer.site.matrix_shape)
        for layer in side.layers
        if not isinstance(layer.site.layer, Embed)
    )
