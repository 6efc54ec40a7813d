r"""Log-probs and their derivatives on the straight line between two sets of parameters.

.. math:: \log\pi(\theta') - \log\pi(\theta) = \int_0^1
          \langle \nabla \log\pi(\theta + s\Delta),\, \Delta \rangle\, ds, \qquad
          \Delta = \theta' - \theta

By token the integrand is one forward-mode pass along :math:`\Delta`, whatever the
number of tokens. By parameter it is one backward pass for each response, contracted
leaf by leaf, whatever the number of leaves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.path import difference, moved
from ldjax.equation.sequences import ApplyFn, Sequences
from ldjax.precision import watched

__all__ = ["Line", "Tokens"]


class Tokens(NamedTuple):
    """Tokens of a batch at one place of the line; masked ones are zero.

    Attributes:
      log_probs: `[row, pos]`, in nats.
      slopes: Their derivative along the line, `[row, pos]`, in nats.
    """

    log_probs: np.ndarray
    slopes: np.ndarray


class Line:
    """The straight line between two sets of parameters, and what is watched on it.

    All numbers are handed out in float64: sums of many of them are not rounded anew.

    Args:
      apply_fn: `(params, sequences) -> logits`.
      before: The parameters at its start.
      after: Those at its end.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> apply_fn = lambda w, s: jnp.zeros((1, 1, 2)).at[0, 0, 0].set(w["a"] * w["b"])
      >>> ends = [{"a": jnp.array(x), "b": jnp.array(x)} for x in (1.0, 2.0)]
      >>> line = Line(apply_fn, *ends)
      >>> line.leaves(0.0, answer).round(3)
      array([[0.269, 0.269]])
      >>> line.tokens(0.0, answer).slopes.round(3)
      array([[0.538]])
    """

    def __init__(self, apply_fn: ApplyFn, before: Any, after: Any) -> None:
        self._before, self._after = before, after
        self._update = difference(after, before)
        self._place, self._here = 0.0, before

        def log_probs_of(params: Any, batch: Sequences) -> Array:
            logits = watched(apply_fn)(params, batch)
            return token_log_probs(logits, batch.targets, batch.mask)

        def along(params: Any, update: Any, batch: Sequences) -> tuple[Array, Array]:
            of_batch = lambda p: log_probs_of(p, batch)
            return jax.jvp(of_batch, (params,), (update,))

        def by_leaf(params: Any, update: Any, batch: Sequences) -> Array:
            def of_row(row: Sequences) -> Array:
                one = jax.tree.map(lambda leaf: leaf[None], row)
                gradient = jax.grad(lambda p: log_probs_of(p, one).sum())(params)
                products = jax.tree.map(_contracted, gradient, update)
                return jnp.stack(jax.tree.leaves(products))

            return jax.lax.map(of_row, batch)

        def by_group(
            params: Any, update: Any, batch: Sequences, group_of: Array, groups: Array
        ) -> Array:
            def of_group(group: Array) -> Array:
                leaves, treedef = jax.tree.flatten(update)
                alone = [
                    jnp.where(group_of[i] == group, leaf, 0)
                    for i, leaf in enumerate(leaves)
                ]
                return along(params, treedef.unflatten(alone), batch)[1]

            return jax.lax.map(of_group, groups)

        self._along, self._by_leaf = jax.jit(along), jax.jit(by_leaf)
        self._by_group = jax.jit(by_group)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The parameters at both ends."""
        return self._before, self._after

    def tokens(self, place: float, batch: Sequences) -> Tokens:
        """Log-probs and slopes of every token.

        Args:
          place: On the line, from 0 to 1.
          batch: What is watched.
        """
        found = self._along(self._at(place), self._update, batch)
        return Tokens(*(np.asarray(of, float) for of in found))

    def leaves(self, place: float, batch: Sequences) -> np.ndarray:
        """The slope of every response by parameter, `[row, leaf]`, in nats.

        Memory is that of one gradient, whatever the number of responses.

        Args:
          place: On the line, from 0 to 1.
          batch: What is watched.
        """
        found = self._by_leaf(self._at(place), self._update, batch)
        return np.asarray(found, float)

    def groups(
        self, place: float, batch: Sequences, group_of: np.ndarray
    ) -> np.ndarray:
        """The slope of every token by group of parameters, `[group, row, pos]`.

        A forward-mode pass for each group.

        Args:
          place: On the line, from 0 to 1.
          batch: What is watched.
          group_of: The number of each leaf's group.
        """
        groups = jnp.arange(int(group_of.max()) + 1)
        of = jnp.asarray(group_of)
        found = self._by_group(self._at(place), self._update, batch, of, groups)
        return np.asarray(found, float)

    def _at(self, place: float) -> Any:
        """The parameters at a place, which are kept until another one is asked for."""
        if place in (0.0, 1.0):
            return self._before if place == 0.0 else self._after
        if place != self._place:
            self._here = None
            self._place, self._here = place, _moved(self._before, self._update, place)
        return self._here


_moved = jax.jit(moved)


def _contracted(gradient: Array, update: Array) -> Array:
    return jnp.vdot(gradient, update, precision="highest")
