"""The bridge from Flax Linen modules to pure functions of their parameters.

The core of ldjax knows `params -> logits` only. Users of Flax NNX or plain JAX bring
such a function themselves (`nnx.split` and `nnx.merge`; see the README).
"""

from collections.abc import Callable
from typing import Any, cast

import flax.errors
import flax.linen as nn
from jaxtyping import Array

from ldjax.log_probs import ReferencedSequences, Sequences

__all__ = ["apply_fn", "logits_fn"]


def apply_fn(
    module: nn.Module,
) -> Callable[[Any, Sequences | ReferencedSequences], Array]:
    """What `ldjax.make_step` takes, for a Linen module.

    Args:
      module: A deterministic module that reads `tokens` and returns logits,
        `[batch, pos, vocab]`, or `[batch, classes]` for a classifier, which then gets
        its one position.

    Returns:
      `(params, sequences) -> logits`, where `params` is the module's `"params"`
      collection.

    Raises:
      ValueError: On the first call, if the module needs random numbers (dropout) or
        other collections (batch statistics): its logits would not be a function of
        the parameters alone.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ldjax.models import LeNet
      >>> images = Sequences(
      ...     jnp.zeros((2, 28, 28)), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool)
      ... )
      >>> params = LeNet().init(jax.random.key(0), images.tokens)["params"]
      >>> apply_fn(LeNet())(params, images).shape
      (2, 1, 10)
    """

    def apply(params: Any, sequences: Sequences | ReferencedSequences) -> Array:
        try:
            logits = cast(Array, module.apply({"params": params}, sequences.tokens))
        except (
            flax.errors.InvalidRngError,
            flax.errors.ModifyScopeVariableError,
            flax.errors.ScopeCollectionNotFound,
        ) as error:
            raise ValueError(
                f"The logits of {type(module).__name__} are not a function of its "
                f"parameters and inputs alone ({error}). Make it deterministic: "
                "dropout off, batch statistics frozen into parameters or closed over."
            ) from error
        if logits.ndim == sequences.targets.ndim:  # a classifier
            logits = logits[..., None, :]
        return logits

    return apply


def logits_fn(
    module: nn.Module, sequences: Sequences | ReferencedSequences
) -> Callable[[Any], Array]:
    """A `LogitsFn`, `params -> logits`, of a Linen module on given sequences.

    Args:
      module: As in `apply_fn`.
      sequences: What it reads; closed over.

    Returns:
      What `ldjax.decompose` and `ldjax.empirical_ntk` take.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ldjax.models import LeNet
      >>> images = Sequences(
      ...     jnp.zeros((2, 28, 28)), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool)
      ... )
      >>> params = LeNet().init(jax.random.key(0), images.tokens)["params"]
      >>> logits_fn(LeNet(), images)(params).shape
      (2, 1, 10)
    """
    apply = apply_fn(module)
    return lambda params: apply(params, sequences)
