"""Texts at their scored tokens: what is learned, what is watched, their kernels.

An update example is one trained prompt: its chosen response (SFT) or its pair (DPO),
the loss restricted to some of each response's tokens. Its probes are the responses of
all types to that prompt, with all their tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.data.batches import to_sequences
from ldjax.equation.sequences import Sequences
from ldjax.linen import logits_fn
from ldjax.ntk.empirical import empirical_ntk
from ldjax.ntk.layers import FactoredMap
from ldjax.precision import exact_products
from ldjax.watch.probes import Probe

__all__ = [
    "Scored",
    "UpdateExample",
    "factored_kernel",
    "make_update_examples",
    "pushes",
]

#: Bytes of work of a kernel; a fixed number, so that a run can be repeated.
_MEMORY = 2**32


class Scored(NamedTuple):
    """Responses with the places of their scored tokens, as many in every row.

    Attributes:
      sequences: `[row, pos]`.
      positions: Where the scored tokens are predicted, `[row, token]`.
      mask: False where a place only fills up its row.
    """

    sequences: Sequences
    positions: Array
    mask: Array

    @property
    def batch(self) -> Sequences:
        """What a loss takes together with the logits of the scored tokens."""
        targets = jnp.take_along_axis(self.sequences.targets, self.positions, axis=1)
        return Sequences(self.sequences.tokens, targets, self.mask)

    def token(self, place: int) -> "Scored":
        """One token of every row."""
        at = slice(place, place + 1)
        return self._replace(positions=self.positions[:, at], mask=self.mask[:, at])

    def logits_fn(self, model: nn.Module) -> Callable[[Any], Array]:
        """`params -> logits` of the scored tokens."""
        return logits_fn(model, self.sequences, positions=self.positions)


class UpdateExample(NamedTuple):
    """One trained prompt.

    Attributes:
      probes: The watched responses to it, one per row.
      sides: What is learned: `"chosen"`, for DPO also `"rejected"`; one row each.
      rows: The row of `probes` that is the response of a side.
      places: The places of the probes in the list of all probes.
    """

    probes: Scored
    sides: dict[str, Scored]
    rows: dict[str, int]
    places: np.ndarray

    def learned_logits(self, model: nn.Module, params: Any) -> dict[str, Array]:
        """Logits of the learned tokens, by side."""
        return {name: one.logits_fn(model)(params) for name, one in self.sides.items()}


def make_update_examples(
    probes: Sequence[Probe], sides: Sequence[str], *, num_tokens: int
) -> list[UpdateExample]:
    """The prompts of some probes as update examples, all of one shape.

    Args:
      probes: Responses to some prompts; for each prompt those of all `sides` too.
      sides: Response types that are learned.
      num_tokens: How many of a response's tokens the loss is restricted to, evenly
        spread; 0 for all of them.
    """
    ids = [probe.example for probe in probes]
    length = max(each.num_tokens for each in ids)
    longest = max(len(each.response_ids) for each in ids)
    names = np.array([probe.prompt_name for probe in probes])
    examples = []
    for name in dict.fromkeys(names.tolist()):
        places = np.flatnonzero(names == name)
        types = [probes[place].type for place in places.tolist()]
        # The longest of all fills the last bucket, so that all prompts have one shape.
        batch = _padded(
            to_sequences([ids[place] for place in places.tolist()]), length - 1
        )
        rows = {side: types.index(side) for side in sides}
        learned = {
            side: _scored(
                jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch),
                num_tokens or longest,
            )
            for side, row in rows.items()
        }
        examples.append(UpdateExample(_scored(batch, longest), learned, rows, places))
    return examples


def factored_kernel(
    model: nn.Module, params: Any, P: Any, probes: Scored, update: Scored
) -> FactoredMap:
    """The kernel of all scored tokens of some texts with those of others, in factors.

    Inside `jax.jit`. `P` is a diagonal, or None.
    """
    return empirical_ntk(
        probes.logits_fn(model),
        update.logits_fn(model),
        params,
        method="factored",
        preconditioner=P,
        memory_limit=_MEMORY,
    )


@functools.partial(jax.jit, static_argnums=0)
def pushes(
    model: nn.Module,
    params: Any,
    P: Any,
    probes: Scored,
    update: Scored,
    residual: Array,
    labels: Array,
) -> tuple[Array, Array]:
    """What the residual of a token does to some labels' logits, both ways.

    Returns:
      `[probe, probe token, label]`, twice.
    """
    kernel = factored_kernel(model, params, P, probes, update)
    everything = jnp.arange(residual.shape[-1])
    entries = kernel.entries(labels, everything)[:, :, :, 0, 0]
    with exact_products():
        _, pullback = jax.vjp(update.logits_fn(model), params)
        (direction,) = pullback(residual)
        if P is not None:
            direction = jax.tree.map(jnp.multiply, P, direction)
        _, along = jax.jvp(probes.logits_fn(model), (params,), (direction,))
        return jnp.einsum("pmvw,w->pmv", entries, residual[0, 0]), along[..., labels]


def _padded(batch: Sequences, length: int) -> Sequences:
    """The batch with so many positions; none of its tokens is cut."""

    def resized(leaf: Array) -> Array:
        extra = max(length - leaf.shape[1], 0)
        return jnp.pad(leaf, ((0, 0), (0, extra)))[:, :length]

    return jax.tree.map(resized, batch)


def _scored(sequences: Sequences, width: int) -> Scored:
    """At most so many of each row's scored tokens, evenly spread, in so many places."""
    positions = np.zeros((len(sequences.mask), width), np.int32)
    mask = np.zeros(positions.shape, bool)
    for row, is_scored in enumerate(np.asarray(sequences.mask)):
        there = np.flatnonzero(is_scored)
        count = min(width, len(there))
        spread = np.linspace(0, len(there) - 1, count).round().astype(int)
        positions[row, :count], mask[row, :count] = there[spread], True
    return Scored(sequences, jnp.asarray(positions), jnp.asarray(mask))
