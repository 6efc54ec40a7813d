"""Log-probabilities of what is scored, and their derivative by logits, `A`.

All log-probabilities are in nats. A masked position (a prompt token, padding)
contributes exactly zero, whatever its target and its logits are. So a row without any
scored token is an empty response: its log-prob is 0 (it is certain), by the sum and by
the mean over its tokens, it has no gradient, and a mean over the batch counts it as a
row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldjax.equation.sequences import require_labels

__all__ = [
    "adaptation_matrix",
    "log_softmax",
    "sequence_log_probs",
    "token_log_odds",
    "token_log_probs",
]


def log_softmax(logits: Any) -> Any:
    r"""Leaf-wise log-softmax over the last axis, `log pi` of the paper.

    .. math:: \log \pi_v = z_v - \log \sum_w e^{z_w}

    It knows no mask: what is computed at a position that is not scored is for the
    caller to leave out. One number next to 0 is off by the rounding of one, which
    `token_log_probs` is not.

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


def token_log_odds(
    logits: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    r"""Log-odds of each position's target, from the other logits.

    .. math:: o = \log \frac{\pi_y}{1 - \pi_y} = z_y - \log \sum_{v \ne y} e^{z_v},
              \qquad \log \pi_y = \log \sigma(o), \quad
              \log (1 - \pi_y) = \log \sigma(-o)

    A log-prob next to 0 is a difference of numbers next to each other, and what is left
    of `1 - p` after rounding is noise, or 0 from a lead of 17 nats in float32 (37 in
    float64). The log-odds keep every digit, and so do their gradients.

    Args:
      logits: As in `token_log_probs`.
      targets: As in `token_log_probs`.
      mask: As in `token_log_probs`.

    Returns:
      One number (in nats) per position: 0 where it is masked, infinite where the target
      has no rival.

    Raises:
      ValueError: As in `token_log_probs`.

    Examples:
      A lead of 20 nats over 49 others; `1 - p` is 49 parts in 485 million:

      >>> lead = jnp.zeros((1, 50)).at[0, 7].set(20.0)
      >>> token_log_odds(lead, jnp.array([7]), jnp.array([True])).round(2)
      Array([16.11], dtype=...)
    """
    require_labels(targets, mask, logits.shape[-1])
    # Masked logits are replaced first: a NaN there would otherwise come back through
    # the gradient, multiplied by zero.
    is_half = jnp.finfo(logits.dtype).bits < 32
    wide = jnp.float32 if is_half else logits.dtype
    logits = jnp.where(mask[..., None], logits, 0).astype(wide)
    targets = jnp.where(mask, targets, 0)
    is_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    others = jnp.where(is_target, -jnp.inf, logits)
    # Shifted by the largest of them, which changes nothing but the rounding.
    top = jax.lax.stop_gradient(others.max(axis=-1))
    has_none = top == -jnp.inf
    shift = jnp.where(has_none, 0, top)
    total = jnp.exp(others - shift[..., None]).sum(axis=-1)
    own = jnp.where(is_target, logits, 0).sum(axis=-1)
    log_odds = own - shift - jnp.log(jnp.where(has_none, 1, total))
    log_odds = jnp.where(has_none, jnp.inf, log_odds)
    # A label that is none makes the value and its gradient NaN, not those of another.
    is_label = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(mask, log_odds * jnp.where(is_label, 1, jnp.nan).astype(wide), 0)


def token_log_probs(
    logits: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    r"""Log-probability of each position's target, zero where it is masked.

    .. math:: \ell_m = \mathrm{mask}_m \, \log \pi(y_m \mid \chi)_m

    By way of `token_log_odds`, so that value and gradient keep their digits where the
    target is next to certain.

    Args:
      logits: Unnormalised log-probabilities, in nats. Those in half precision are taken
        to float32, and so is the result.
      targets: The label of each position. Where the mask is false any value may
        stand (for example -100).
      mask: True where a position is scored.

    Returns:
      One log-probability (at most 0, in nats) per position.

    Raises:
      ValueError: If a target under a true mask is no label. Where targets are traced
        there is no error: the position's log-prob and gradient are NaN.

    Examples:
      >>> token_log_probs(
      ...     jnp.zeros((2, 4)), jnp.array([1, -100]), jnp.array([True, False])
      ... )
      Array([-1.386...,  0.        ], dtype=...)
    """
    log_odds = token_log_odds(logits, targets, mask)
    return jnp.where(mask, jax.nn.log_sigmoid(log_odds), 0)


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
