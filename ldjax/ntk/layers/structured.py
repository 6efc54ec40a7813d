r"""The exact kernel of a Linen model through its layers' inputs and outputs.

    K = sum_layers  J_probe^(l) (S^(l) (x) I) J_update^(l)^T,   S[t, s] = <a[t], a[s]>

with `J^(l)` the Jacobian by the layer's outputs, so that nothing has the size of the
parameters. Leaves without such a layer (norm scales, whatever the certificate rejects)
go through plain derivatives in the same passes.

Derived in docs/theory/kernel.md#layers.
"""

from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ldjax import memory
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.spaces import dtype_of, size_of
from ldjax.equation.subset import Weights
from ldjax.ntk.layers.contract import Contraction, by_operator, pair_matrix
from ldjax.ntk.layers.model_map import ModelMap
from ldjax.ntk.layers.pairing import make_sides
from ldjax.ntk.layers.side import Side

__all__ = ["StructuredMap"]


class StructuredMap(ModelMap):
    """The kernel of Linen logits; its numbers are made when they are asked for.

    `mv` and `rmv` are those of the lazy kernel; `dense`, `trace` and `frobenius_norm`
    contract by layer.

    Args:
      probe_fn: Logits of the watched examples, from `ldjax.linen.logits_fn`.
      update_fn: Logits of the trained examples, of the same module.
      params: The parameters.
      weights: The part of the parameters that takes part, and its preconditioner.
      contraction: The order of the products. `"operator"` pushes each output of one
        side through both (many outputs per example); `"gram"` and `"instantiated"`
        pull back every output of both sides and multiply in pairs, by similarities of
        positions or by gradients of one layer at a time (many examples of few outputs).
        `"auto"` counts multiplications.
      memory_limit: The bytes that the work may take; None for a fraction of what is
        free.

    Raises:
      TypeError: If a function does not come from `ldjax.linen.logits_fn`.
      ValueError: If the modules differ, depend on more than their parameters, or mix
        the examples of a batch.

    Examples:
      >>> from ldjax import Sequences
      >>> from ldjax.linen import logits_fn
      >>> from ldjax.models import MLP
      >>> from ldjax.equation.subset import make_weights
      >>> images = jnp.ones((2, 28, 28))
      >>> batch = Sequences(images, jnp.zeros((2, 1), int), jnp.ones((2, 1), bool))
      >>> params = MLP((8,)).init(jax.random.key(0), images)["params"]
      >>> fn = logits_fn(MLP((8,)), batch)
      >>> StructuredMap(fn, fn, params, make_weights(params)).dense().shape
      (2, 1, 10, 2, 1, 10)
    """

    def __init__(
        self,
        probe_fn: LogitsFn,
        update_fn: LogitsFn,
        params: Any,
        weights: Weights,
        contraction: str = "auto",
        memory_limit: memory.Bytes | None = None,
    ):
        super().__init__(
            probe_fn, update_fn, params, weights, memory_limit, method="structured"
        )
        if contraction not in get_args(Contraction):
            raise ValueError(
                f"Unknown `contraction` {contraction!r}; choose one of "
                f"{list(get_args(Contraction))}."
            )
        self._contraction: Contraction = cast(Contraction, contraction)
        self._sides = make_sides(*self._arguments, proofs=self._proofs)

    @property
    def T(self) -> "StructuredMap":
        """The transpose, by the layers too."""
        return StructuredMap(
            *self._transposed_arguments, self._contraction, self._memory_limit
        )

    def trace(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Sum of the diagonal entries; input and output spaces must be the same."""
        del batch_size
        self.require_square()

        def of_part(probe: Side, update: Side) -> Array:
            def of_example(examples: Any) -> Array:
                one, other = (
                    side._replace(examples=jax.tree.map(lambda x: x[None], example))
                    for side, example in zip((probe, update), examples, strict=True)
                )
                return jnp.trace(self._pair(one, other))

            return jax.lax.map(of_example, (probe.examples, update.examples)).sum()

        parts = [of_part(*pair) for pair in zip(*self._sides, strict=True)]
        return jnp.stack(parts).sum()

    def frobenius_norm(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Square root of the sum of all squared entries.

        Where the entries do not fit, one column of them after the other.
        """
        del batch_size
        spaces = self.out_struct, self.in_struct
        entry_bytes = dtype_of(*spaces).itemsize
        entries_bytes = entry_bytes * size_of(spaces[0]) * size_of(spaces[1])
        if 4 * entries_bytes < self._limit:  # shares of layers are held beside the sum
            return jnp.linalg.norm(self.as_matrix())
        probes, updates = self._sides
        squares = [
            by_operator(probe, update, lambda x: jnp.sum(x**2), limit=self._limit).sum()
            for probe in probes
            for update in updates
        ]
        return jnp.sqrt(jnp.stack(squares).sum())

    def as_matrix(self, batch_size: int = 32) -> Inexact[Array, "rows columns"]:
        """All entries, contracted by layer, over the ravelled spaces."""
        del batch_size
        probes, updates = self._sides
        return jnp.concatenate(
            [
                jnp.concatenate([self._pair(probe, update) for update in updates], 1)
                for probe in probes
            ]
        )

    def _pair(self, probe: Side, update: Side) -> Inexact[Array, "rows columns"]:
        return pair_matrix(probe, update, self._contraction, limit=self._limit)
