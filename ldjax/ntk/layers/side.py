r"""One side of a kernel: examples of a Linen module and their derivatives.

A derivative is taken by the taps of certified layers and by the plain leaves, those
that no certified layer accounts for. Both together are a `Signal`: what an output's
cotangent becomes on its way back, and what is pushed forward on the other side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.ntk.layers.taps import Example, Site, run
from ldjax.precision import exact_products


class TappedLayer(NamedTuple):
    """A certified layer with the weights of its leaves in the kernel.

    Attributes:
      site: The layer and its calls.
      kernel: The weights of its matrix in the kernel, as rows `[groups, in, out]` (for
        an embedding the table's); True for the identity, False where it is frozen.
      bias: The weights of its bias in the kernel, `[groups, out]`; True for the
        identity, False where it is frozen or there is none.
    """

    site: Site
    kernel: Array | bool
    bias: Array | bool


class Signal(NamedTuple):
    """A cotangent or a tangent of one side of a kernel.

    Attributes:
      rows: The part of each tapped layer, `[..., pos, groups, out]`.
      plain: The part of each plain leaf, shaped like it.
    """

    rows: tuple[Array, ...]
    plain: tuple[Array, ...]


class Side(NamedTuple):
    """Stacked examples of a module and how their outputs are differentiated.

    Attributes:
      module: The module that is run.
      params: The parameters of the module.
      examples: The examples, stacked along the first axis.
      layers: The tapped layers.
      plain: Indices of plain leaves, in the order of `jax.tree.leaves(params)`.
      plain_weights: The preconditioner of each plain leaf; True for the identity.
      read: The function `(logits, inputs by call, example) -> output` of one example.
    """

    module: nn.Module
    params: Any
    examples: Example
    layers: tuple[TappedLayer, ...]
    plain: tuple[int, ...]
    plain_weights: tuple[Array | bool, ...]
    read: Callable[[Array, Any, Example], Array]

    @property
    def num_examples(self) -> int:
        """The number of stacked examples."""
        return self.examples.tokens.shape[0]

    @property
    def out_struct(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the output of one example."""
        return jax.eval_shape(
            lambda e: self._evaluate(*self._zeros(), e)[0], self.first
        )

    @property
    def first(self) -> Example:
        """The first example."""
        return jax.tree.map(lambda array: array[0], self.examples)

    @property
    def plain_leaves(self) -> tuple[Array, ...]:
        """The plain leaves themselves."""
        leaves = jax.tree.leaves(self.params)
        return tuple(leaves[i] for i in self.plain)

    def weigh_plain(self, signals: tuple[Array, ...]) -> tuple[Array, ...]:
        """Gradients of plain leaves (stacked or not) times their weights."""
        return tuple(
            signal
            if isinstance(weight, bool)
            else signal * jnp.broadcast_to(weight, signal.shape)
            for signal, weight in zip(signals, self.plain_weights, strict=True)
        )

    def vjp(
        self, example: Example
    ) -> tuple[Array, Callable[[Array], Signal], tuple[Array, ...]]:
        """The output, its transposed derivative and the rows that each layer reads."""
        with exact_products():
            output, pull, inputs = jax.vjp(
                lambda rows, plain: self._evaluate(rows, plain, example),
                *self._zeros(),
                has_aux=True,
            )
        return output, lambda cotangent: Signal(*pull(cotangent)), inputs

    def linearize(
        self,
    ) -> tuple[Array, Callable[[Signal], Array], tuple[Array, ...]]:
        """The outputs of all examples, their derivative and what each layer reads.

        The derivative takes rows stacked over examples, and plain leaves shared.
        """
        batched = self._evaluate_one if self.num_examples == 1 else self._evaluate_all
        rows, plain = self._zeros()
        stacked = jax.tree.map(
            lambda r: jnp.zeros((self.num_examples, *r.shape), r.dtype), rows
        )
        with exact_products():
            outputs, push, inputs = jax.linearize(
                lambda rows, plain: batched(rows, plain, self.examples),
                stacked,
                plain,
                has_aux=True,
            )
        return outputs, lambda signal: push(*signal), inputs

    @property
    def row_shapes(self) -> list[tuple[tuple[int, ...], Any]]:
        """The shape and dtype of the rows that each layer gives."""
        return [(row.shape, row.dtype) for row in jax.eval_shape(self._zeros)[0]]

    def _zeros(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        rows = tuple(
            layer.site.rows_out(layer.site.zero_taps()) for layer in self.layers
        )
        return rows, self.plain_leaves

    def _evaluate_all(
        self, rows: tuple[Array, ...], plain: tuple[Array, ...], examples: Example
    ) -> tuple[Array, tuple[Array, ...]]:
        return jax.vmap(self._evaluate, in_axes=(0, None, 0))(rows, plain, examples)

    def _evaluate_one(
        self, rows: tuple[Array, ...], plain: tuple[Array, ...], examples: Example
    ) -> tuple[Array, tuple[Array, ...]]:
        # Without `vmap`: an axis less is up to ten times faster in XLA's reductions.
        rows, example = jax.tree.map(lambda x: x[0], (rows, examples))
        return jax.tree.map(lambda x: x[None], self._evaluate(rows, plain, example))

    def _evaluate(
        self, rows: tuple[Array, ...], plain: tuple[Array, ...], example: Example
    ) -> tuple[Array, tuple[Array, ...]]:
        leaves, treedef = jax.tree.flatten(self.params)
        for i, leaf in zip(self.plain, plain, strict=True):
            leaves[i] = leaf
        taps = {}
        for layer, tangent in zip(self.layers, rows, strict=True):
            taps |= layer.site.to_taps(tangent)
        logits, inputs = run(self.module, treedef.unflatten(leaves), taps, example)
        return self.read(logits, inputs, example), tuple(
            layer.site.rows_in(inputs) for layer in self.layers
        )
