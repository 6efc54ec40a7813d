"""The bridge from Flax Linen modules to pure functions of their parameters.

The core of ldjax knows `params -> logits` only. Users of Flax NNX or plain JAX bring
such a function themselves (`nnx.split` and `nnx.merge`; see docs/guides/own-model.md).
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.equation.sequences import Sequences, check_sequences, is_sequences

__all__ = ["LinenApply", "LinenLogits", "apply_fn", "logits_fn"]


class LinenApply:
    """A Linen module as `ldjax.make_step` takes it; made by `apply_fn`.

    Attributes:
      module: The module.
      reads_prompts: Whether it takes `Sequences.prompts`, as a decoder does, so that
        rows can share what they go on from.

    Examples:
      >>> from ldjax.models import MLP
      >>> apply_fn(MLP()).reads_prompts
      False
    """

    def __init__(self, module: nn.Module):
        self.module = module
        call = inspect.signature(type(module).__call__)
        self.reads_prompts = "prompts" in call.parameters

    def __call__(self, params: Any, sequences: Sequences) -> Array:
        """Logits of the sequences."""
        return logits_fn(self.module, sequences)(params)


def apply_fn(module: nn.Module) -> LinenApply:
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
      >>> from ldjax.models import MLP
      >>> images = Sequences(
      ...     jnp.zeros((2, 28, 28)), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool)
      ... )
      >>> params = MLP((8,)).init(jax.random.key(0), images.tokens)["params"]
      >>> apply_fn(MLP((8,)))(params, images).shape
      (2, 1, 10)
    """
    return LinenApply(module)


class LinenLogits:
    """A `LogitsFn` that knows the Linen module it runs; made by `logits_fn`.

    It is a function `params -> logits` like any other; the structured and factored
    kernels look at its attributes.

    Attributes:
      module: The module.
      sequences: `Sequences`, or a pytree of them, that it reads.
      positions: `[batch, k]`, the positions whose logits are returned; None for all.
      inputs: Further arrays the module reads, by keyword.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ldjax.models import MLP
      >>> image = Sequences(
      ...     jnp.zeros((1, 28, 28)), jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
      ... )
      >>> logits_fn(MLP(), image).module.widths
      (128, 128, 128, 128)
    """

    def __init__(
        self,
        module: nn.Module,
        sequences: Any,
        positions: Any,
        inputs: Mapping[str, Any],
    ):
        self.module, self.sequences = module, sequences
        self.positions, self.inputs = positions, inputs

    def __call__(self, params: Any) -> Any:
        """Logits, in the structure of `sequences`."""

        def run(sequences: Sequences) -> Array:
            return apply_module(
                self.module,
                {"params": params},
                sequences.tokens,
                self.positions,
                {**self.inputs, **_begun(sequences)},
            )[0]

        return jax.tree.map(run, self.sequences, is_leaf=is_sequences)


def _begun(sequences: Sequences) -> dict[str, Any]:
    """What a decoder is told besides the tokens, where rows share their prompts."""
    return {} if sequences.prompts is None else {"prompts": sequences.prompts}


def logits_fn(
    module: nn.Module,
    sequences: Any,
    *,
    positions: Any = None,
    **inputs: Any,
) -> LinenLogits:
    """A `LogitsFn`, `params -> logits`, of a Linen module on given sequences.

    Args:
      module: As in `apply_fn`.
      sequences: `Sequences` to read, or a pytree of them such as `{"chosen": ...,
        "rejected": ...}`; closed over.
      positions: Positions whose logits are returned, `[k]` for all examples or
        `[batch, k]`; by default all. A kernel of few positions costs less.
      inputs: Further arrays that the module takes by keyword, with a leading batch
        axis; `mask=` is what a decoder needs where padding comes first.

    Returns:
      What `ldjax.decompose` and `ldjax.empirical_ntk` take: logits `[batch, pos,
      vocab]` in the structure of `sequences`.

    Raises:
      TypeError: If the arrays of `sequences` or `positions` are of the wrong type.
      ValueError: If `positions` or `inputs` are given for several sequences, or
        `positions` are out of range or have another number of rows; if the arrays of
        `sequences` do not fit, or if an id is negative or, where the module's config
        says its `vocab_size`, beyond it.

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
    if (positions is not None or inputs) and not is_sequences(sequences):
        raise ValueError(
            "`positions` and further inputs belong to one `Sequences`; for several, "
            "such as chosen and rejected, make a kernel for each."
        )
    vocab_size = getattr(getattr(module, "config", None), "vocab_size", None)
    check_sequences(sequences, vocab_size=vocab_size)
    if positions is not None:
        positions = _rows_of_positions(positions, sequences)
    return LinenLogits(module, sequences, positions, inputs)


def apply_module(
    module: nn.Module,
    variables: Any,
    tokens: Any,
    positions: Any,
    inputs: Mapping[str, Any],
    mutable: Any = False,
) -> tuple[Array, Any]:
    """Logits `[batch, pos, vocab]` of a module, and the collections it changed."""
    try:
        output = module.apply(variables, tokens, **inputs, mutable=mutable)
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
    logits, changed = output if mutable else (output, {})
    if not hasattr(logits, "ndim"):
        raise TypeError(
            f"{type(module).__name__} must return logits, one array; got "
            f"{type(logits).__name__}. Wrap it in a module that returns these alone."
        )
    logits = cast(Array, logits)
    if logits.ndim == 2:  # a classifier
        logits = logits[:, None, :]
    if positions is not None:
        logits = jnp.take_along_axis(logits, positions[:, :, None], axis=1)
    return logits, changed


def _rows_of_positions(positions: Any, sequences: Any) -> Any:
    batch, length = sequences.targets.shape
    rows = jnp.asarray(positions)
    if not jnp.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"`positions` must be integers, got {rows.dtype}.")
    rows = jnp.broadcast_to(rows, (batch, rows.shape[0])) if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[0] != batch:
        raise ValueError(
            f"`positions` must be [k] or [batch, k] with batch {batch}, got shape "
            f"{jnp.shape(positions)}."
        )
    if not isinstance(rows, jax.core.Tracer):
        known = np.asarray(rows)
        if known.size and not (known.min() >= 0 and known.max() < length):
            raise ValueError(
                f"`positions` must lie in 0 to {length - 1}, the positions of the "
                f"sequences; got {known.min()} to {known.max()}."
            )
    return rows
