"""What is scored: sequences with targets and masks, and their log-probabilities.

All log-probabilities are in nats. A masked position (a prompt token, padding)
contributes exactly zero, whatever its target and its logits are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "AdvantagedSequences",
    "ReferencedSequences",
    "Sequences",
    "adaptation_matrix",
    "is_sequences",
    "log_softmax",
    "sequence_log_probs",
    "token_log_probs",
]


class Sequences(NamedTuple):
    """Examples as a model reads them and as a loss or a probe scores them.

    A batch of language is `tokens[B, T]` with `targets[B, T]`, the token that
    position `t` has to predict (`tokens` shifted by one), and `mask[B, T]`, true
    where a response token is scored. An image is one position: `tokens` is the
    image, `targets[B, 1]` its label, `mask[B, 1]` all true.

    Attributes:
      tokens: Model input, `[batch, ...]`: token ids (integers) or images (floats).
      targets: Label of each position, `[batch, pos]`, integers.
      mask: Which positions are scored, `[batch, pos]`, booleans.

    Examples:
      >>> Sequences(
      ...     tokens=jnp.array([[5, 3, 7]]),
      ...     targets=jnp.array([[3, 7, 0]]),
      ...     mask=jnp.array([[False, True, True]]),  # the prompt is not scored
      ... ).mask.sum()
      Array(2, dtype=...)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]


class ReferencedSequences(NamedTuple):
    """`Sequences` with what a reference policy thinks of them.

    What the losses that compare with a reference (`ldjax.losses.dpo`) train on; models
    and probes see the first three fields only. See `ldjax.reference.add_reference`.

    Attributes:
      tokens: As in `Sequences`.
      targets: As in `Sequences`.
      mask: As in `Sequences`.
      reference: Log-prob of each sequence under the reference, `[batch]`, in nats.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 3), int), jnp.ones((1, 3), bool))
      >>> ReferencedSequences(*answer, reference=jnp.array([-4.2])).reference
      Array([-4.2], dtype=...)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]
    reference: Float[Array, "*batch"]


class AdvantagedSequences(NamedTuple):
    """`Sequences` with how good each token was, and how likely when it was drawn.

    What the losses of policy gradients (`ldjax.losses.grpo`) train on; models and
    probes see the first three fields only.

    Attributes:
      tokens: As in `Sequences`.
      targets: As in `Sequences`.
      mask: As in `Sequences`.
      advantages: Of each token, `[batch, pos]`; positive means "make it likelier".
      old_log_probs: Log-prob of each token under the policy that drew it, `[batch,
        pos]`, in nats.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 3), int), jnp.ones((1, 3), bool))
      >>> drawn = AdvantagedSequences(*answer, *jnp.ones((2, 1, 3)))
      >>> drawn.advantages.shape
      (1, 3)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]
    advantages: Float[Array, "*batch pos"]
    old_log_probs: Float[Array, "*batch pos"]


def is_sequences(node: Any) -> bool:
    """Where `jax.tree` functions stop in a pytree of `Sequences`.

    Args:
      node: A node of the tree.

    Returns:
      Whether it is a `Sequences`, or one with more fields.

    Examples:
      >>> pair = {"chosen": Sequences(*jnp.zeros((3, 1, 1)))}
      >>> jax.tree.map(lambda side: side.tokens.shape, pair, is_leaf=is_sequences)
      {'chosen': (1, 1)}
    """
    return isinstance(node, Sequences | ReferencedSequences | AdvantagedSequences)


def log_softmax(logits: Any) -> Any:
    r"""Leaf-wise log-softmax over the last axis, `log pi` of the paper.

    .. math:: \log \pi_v = z_v - \log \sum_w e^{z_w}

    Args:
      logits: Pytree of `[..., vocab]` arrays, in nats.

    Returns:
      A pytree of the same structure and shapes.

    Examples:
      >>> log_softmax({"chosen": jnp.zeros(2)})
      {'chosen': Array([-0.693..., -0.693...], dtype=...)}
    """
    return jax.tree.map(jax.nn.log_softmax, logits)


def adaptation_matrix(
    logits: Float[Array, "*pos vocab"],
) -> Float[Array, "*pos vocab vocab"]:
    r"""Jacobian of log-softmax, the `A` of `A K G`, written out.

    .. math:: A(z) = \nabla_z \log \mathrm{softmax}(z) = I - \mathbf{1}\,\pi^\top

    Rows sum to zero: a constant added to all logits changes nothing. `A` is not
    symmetric. This is the closed form; the lazy `jacobian(log_softmax, logits)`
    is the same map and never stores it.

    Args:
      logits: Unnormalised log-probabilities, in nats.

    Returns:
      `[..., v, w]` is the derivative of log-prob `v` by logit `w`. Memory is
      `O(pos * vocab**2)`.

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, Proposition 1.

    Examples:
      >>> adaptation_matrix(jnp.zeros(2))
      Array([[ 0.5, -0.5],
             [-0.5,  0.5]], dtype=...)
    """
    probs = jax.nn.softmax(logits)[..., None, :]
    identity = jnp.eye(logits.shape[-1], dtype=probs.dtype)
    return jnp.expand_dims(identity, range(probs.ndim - 2)) - probs


def token_log_probs(
    logits: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    r"""Log-probability of each position's target, zero where it is masked.

    .. math:: \ell_m = \mathrm{mask}_m \, \log \pi(y_m \mid \chi)_m

    Args:
      logits: Unnormalised log-probabilities, in nats.
      targets: The label of each position. Where the mask is false any value may
        stand (for example -100).
      mask: True where a position is scored.

    Returns:
      One log-probability (at most 0, in nats) per position.

    Examples:
      >>> token_log_probs(
      ...     jnp.zeros((2, 4)), jnp.array([1, -100]), jnp.array([True, False])
      ... )
      Array([-1.386...,  0.        ], dtype=...)
    """
    # Masked logits are replaced before the softmax: a NaN there would otherwise come
    # back through the gradient, multiplied by zero.
    logits = jnp.where(mask[..., None], logits, 0)
    targets = jnp.where(mask, targets, 0)
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), targets[..., None], axis=-1
    )
    return jnp.where(mask, picked[..., 0], 0)


def sequence_log_probs(
    logits: Float[Array, "*batch pos vocab"],
    targets: Int[Array, "*batch pos"],
    mask: Bool[Array, "*batch pos"],
) -> Float[Array, "*batch"]:
    r"""Log-probability of each response: the *sum* over its scored tokens.

    .. math:: \log \pi(y \mid x) = \sum_m \mathrm{mask}_m \, \log \pi(y_m \mid \chi)_m

    Args:
      logits: Unnormalised log-probabilities, in nats.
      targets: The label of each position.
      mask: True where a position is scored; its sum is the number of tokens, for
        whoever wants a mean.

    Returns:
      One log-probability per sequence, in nats.

    References:
      Ren & Sutherland 2025, equation 4 (there with a minus sign, as a loss).

    Examples:
      >>> sequence_log_probs(
      ...     jnp.zeros((2, 4)), jnp.array([1, 2]), jnp.array([True, True])
      ... )
      Array(-2.772..., dtype=...)
    """
    return token_log_probs(logits, targets, mask).sum(axis=-1)
