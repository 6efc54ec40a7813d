r"""What the paper reports in place of the kernel of a language model.

By the first-order equation the change of a response is bounded by the norms of the
three terms, so an observed change bounds the kernel from below (its equation 26):

.. math:: \|\Delta \log \pi\|_F^2 = \eta^2 \|A_o K_{uo} G\|_F^2
          \le \eta^2 \|A_o\|_F^2\, \|K_{uo}\|_F^2\, \|G\|_F^2

Two families of functions follow. Those of this equation take the change of the whole
distribution at every scored token. Those called `published_...` are what the authors'
code computes under the same names, from one number per response and evaluation: norms
instead of their squares, the root of the mean norm of `A`, changes of the target's
log-prob only and over a whole interval of training. They bound nothing.

References:
  Ren & Sutherland 2025, appendix C.2, equations 26 to 31.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ldjax.theory.quantities import token_quantities

__all__ = [
    "accumulated_influence",
    "adaptation_norm",
    "lower_bound_kernel",
    "published_adaptation_norm",
    "published_lower_bound_kernel",
    "published_residual_norm",
    "published_sign_delta",
    "sign_delta",
]


def adaptation_norm(
    logits: Float[Array, "*batch pos vocab"], mask: Bool[Array, "*batch pos"]
) -> Float[Array, "*batch"]:
    r"""Frobenius norm of a response's adaptation term, its "peakiness".

    The tokens of a response adapt on their own, so `A` is block diagonal:

    .. math:: \|A_o\|_F^2 = \sum_m \|I - \mathbf{1} \pi_m^\top\|_F^2
                          = \sum_m (V - 2 + V \|\pi_m\|_2^2)

    Args:
      logits: Unnormalised log-probabilities, in nats.
      mask: True where a position is scored.

    Returns:
      The norm of each response (not squared).

    References:
      Ren & Sutherland 2025, equations 27 to 31, for one token.

    Examples:
      Of one token between two labels, uniform and certain:

      >>> mask = jnp.ones((2, 1), bool)
      >>> adaptation_norm(jnp.array([[[0.0, 0.0]], [[50.0, 0.0]]]), mask) ** 2
      Array([1., 2.], dtype=...)
    """
    vocab_size = logits.shape[-1]
    square = (jax.nn.softmax(logits) ** 2).sum(axis=-1)
    per_token = vocab_size - 2 + vocab_size * square
    return jnp.sqrt(jnp.where(mask, per_token, 0).sum(axis=-1))


def lower_bound_kernel(
    change: Float[Array, "*batch pos vocab"],
    logits: Float[Array, "*batch pos vocab"],
    mask: Bool[Array, "*batch pos"],
    *,
    residual: Any,
) -> Float[Array, "*batch"]:
    r"""A lower bound of the squared kernel norm, from a change that was seen.

    .. math:: \mathrm{LBK}_{uo} = \frac{\|\Delta \log \pi\|_F^2}
              {\|A_o\|_F^2\, \|G\|_F^2} \le \eta^2 \|K_{uo}\|_F^2

    The inequality is exact for the first-order change :math:`-\eta A K G`; for a
    measured change it holds up to the remainder of the step.

    Args:
      change: Change of every log-prob by one step of gradient descent, in nats; what
        stands at masked positions is not read.
      logits: Of the watched responses before the step.
      mask: True where a watched response is scored.
      residual: `G`, the gradient of the update's loss with respect to its logits, a
        pytree (of both sides of a pair, say).

    Returns:
      One number per response, in the unit of :math:`\eta^2 \|K\|_F^2`; 0 where
      nothing changed, also where nothing is watched or learned.

    References:
      Ren & Sutherland 2025, equation 26, where `G` is that of the updated example.

    Examples:
      With a kernel of one and two labels the bound can be reached:

      >>> logits, mask = jnp.zeros((1, 1, 2)), jnp.ones((1, 1), bool)
      >>> residual = jnp.array([[[1.0, -1.0]]])
      >>> change = -0.1 * residual  # A K G, as A leaves what sums to zero
      >>> lower_bound_kernel(change, logits, mask, residual=residual).round(4)
      Array([0.01], dtype=...)
    """
    square = (jnp.where(mask[..., None], change, 0) ** 2).sum(axis=(-2, -1))
    scale = adaptation_norm(logits, mask) * optax.tree.norm(residual)
    return jnp.where(square == 0, 0, square / jnp.where(scale == 0, 1, scale) ** 2)


def sign_delta(
    change: Float[Array, "*batch pos vocab"], mask: Bool[Array, "*batch pos"]
) -> Float[Array, "*batch"]:
    r"""Whether a response's distributions went up or down on average.

    .. math:: \mathrm{SignDelta}_{uo} = \mathbb{E}_{v,l} [\log \pi^{t+1}_{v,l} -
              \log \pi^t_{v,l}]

    over all labels alike, likely or not.

    Args:
      change: Change of every log-prob, in nats.
      mask: True where a position is scored.

    Returns:
      One mean per response, in nats; 0 where no position is scored.

    References:
      Ren & Sutherland 2025, appendix C.2.

    Examples:
      >>> mask = jnp.ones((1, 1), bool)
      >>> sign_delta(jnp.array([[[0.3, -0.1, -0.5]]]), mask).round(4)
      Array([-0.1], dtype=...)
    """
    return _mean(change.mean(axis=-1), mask)


def published_adaptation_norm(
    logits: Float[Array, "*batch pos vocab"], mask: Bool[Array, "*batch pos"]
) -> Float[Array, "*batch"]:
    r"""`A_norm` of the authors' code, from the mean of a response's norms.

    .. math:: \sqrt{V \bar n^2 + V - 2}, \qquad
              \bar n = \mathrm{mean}_m \|\pi_m\|_2

    The square of a mean where a Frobenius norm has the mean of squares; so at most
    the root mean square over tokens of :math:`\|A_m\|_F`.

    Args:
      logits: Unnormalised log-probabilities, in nats.
      mask: True where a position is scored.

    Returns:
      One number per response.

    Examples:
      >>> published_adaptation_norm(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool))
      Array([1.], dtype=...)
    """
    vocab_size = logits.shape[-1]
    norms = jnp.linalg.norm(jax.nn.softmax(logits), axis=-1)
    return jnp.sqrt(vocab_size * _mean(norms, mask) ** 2 + vocab_size - 2)


def published_residual_norm(
    logits: Float[Array, "*batch pos vocab"],
    targets: Int[Array, "*batch pos"],
    mask: Bool[Array, "*batch pos"],
) -> Float[Array, "*batch"]:
    r"""`p_e` of the authors' code: mean over tokens of :math:`\|\pi_m - e_{y_m}\|_2`.

    Args:
      logits: Unnormalised log-probabilities, in nats.
      targets: The response's token at each position.
      mask: True where a position is scored.

    Returns:
      One number per response, at most :math:`\sqrt 2`.

    Examples:
      >>> one = jnp.ones((1, 2), int)
      >>> published_residual_norm(jnp.zeros((1, 2, 2)), one, one > 0)
      Array([0.707...], dtype=...)
    """
    tokens = token_quantities(logits, targets, mask)
    return _mean(jnp.sqrt(tokens.residual_square), mask)


def published_lower_bound_kernel(
    log_probs: Float[np.ndarray, "time *series example"],
    adaptation_norms: Float[np.ndarray, "time example"],
    residual_norms: Float[np.ndarray, "time example"],
) -> Float[np.ndarray, " time-1 *series"]:
    r"""`LBK_t` of the authors' code, between one evaluation and the next.

    .. math:: \mathrm{LBK}_t = \frac{\|s_{t+1} - s_t\|_2}
              {\sqrt{\overline{a}_{t+1}}\; \overline{p}_{t+1}}

    with :math:`s_t` the vector over examples of the *summed* log-probs of their
    targets, and the means over examples of `A_norm` and `p_e` after the interval.
    Unlike in `lower_bound_kernel` nothing is squared, `A` counts by the root of its
    norm, and an interval has many updates; it grows with the root of the number of
    examples.

    Args:
      log_probs: Of whole responses, in nats.
      adaptation_norms: From `published_adaptation_norm`.
      residual_norms: From `published_residual_norm`.

    Returns:
      One number for each interval and series.

    Examples:
      >>> ones = np.ones((2, 4))
      >>> published_lower_bound_kernel(np.array([4 * [0.0], 4 * [1.5]]), ones, ones)
      array([3.])
    """
    norms = np.linalg.norm(np.diff(log_probs, axis=0), axis=-1)
    return norms / _published_scale(norms, adaptation_norms, residual_norms)


def published_sign_delta(
    log_probs: Float[np.ndarray, "time *series example"],
    adaptation_norms: Float[np.ndarray, "time example"],
    residual_norms: Float[np.ndarray, "time example"],
) -> Float[np.ndarray, " time-1 *series"]:
    r"""`SignDelta_t` of the authors' code, between one evaluation and the next.

    .. math:: \mathrm{SignDelta}_t = \frac{\mathrm{mean}_i (s_{t+1} - s_t)_i}
              {\sqrt{\overline{a}_{t+1}}\; \overline{p}_{t+1}}

    Args:
      log_probs: As in `published_lower_bound_kernel`.
      adaptation_norms: Likewise.
      residual_norms: Likewise.

    Returns:
      One number for each interval and series.

    Examples:
      >>> ones = np.ones((2, 4))
      >>> published_sign_delta(np.array([4 * [0.0], 4 * [-1.5]]), 4 * ones, ones)
      array([-0.75])
    """
    means = np.diff(log_probs, axis=0).mean(axis=-1)
    return means / _published_scale(means, adaptation_norms, residual_norms)


def accumulated_influence(
    values: Float[np.ndarray, " time *series"], *, decay: float = 0.9
) -> Float[np.ndarray, "*series"]:
    r"""The bars of the paper's Figure 8: a proxy smoothed, then added up over time.

    .. math:: \sum_t s_t, \qquad s_0 = x_0, \quad
              s_t = \gamma\, s_{t-1} + (1 - \gamma)\, x_t

    Args:
      values: A proxy at each time.
      decay: :math:`\gamma`, the weight of the past.

    Returns:
      One number for each series.

    Examples:
      >>> accumulated_influence(np.array([[1.0], [0.0], [0.0]]))
      array([2.71])
    """
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append(decay * smooth[-1] + (1 - decay) * value)
    return np.asarray(np.sum(smooth, axis=0))


def _published_scale(
    intervals: np.ndarray, adaptation_norms: np.ndarray, residual_norms: np.ndarray
) -> np.ndarray:
    """The common denominator, for each interval, with the axes of `intervals`."""
    scale = np.sqrt(adaptation_norms[1:].mean(-1)) * residual_norms[1:].mean(-1)
    return scale.reshape(-1, *(1,) * (intervals.ndim - 1))


def _mean(values: Array, mask: Array) -> Array:
    """Mean over the scored tokens; 0 where there is none."""
    count = jnp.maximum(mask.sum(axis=-1), 1)
    return jnp.where(mask, values, 0).sum(axis=-1) / count
