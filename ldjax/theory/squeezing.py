r"""The squeezing effect: where the probability goes that a negative gradient removes.

One distribution `p` over labels takes a gradient step of strength `s > 0` that pushes
label `y` down, with logits that move on their own (a softmax readout of fixed features
`phi`, where :math:`s = \eta \|\phi\|^2`; in the equation of finetuning, `K = k I`):

.. math:: z' = z + s\,(p - e_y)

Every label then gains or loses by a common rule: the likely ones rise, the rest falls,
and the border between them is a threshold that is nearly as high as the peak of a peaky
distribution. A positive gradient is a negative strength. With the exact kernel of a
model instead of `k I`, `first_order_change` says which labels rise.

Derived in docs/theory/squeezing.md#lemma and docs/theory/squeezing.md#threshold.

References:
  Ren & Sutherland 2025, section 3.3 and appendix E.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldjax.equation.jacobian import jacobian
from ldjax.equation.linear_map import LinearMap
from ldjax.equation.log_probs import log_softmax

__all__ = [
    "first_order_change",
    "greedy_label",
    "log_ratios",
    "mass_share",
    "rising_labels",
    "small_step_threshold",
    "threshold",
]

LogProbs = Float[Array, "*batch vocab"]
Labels = Int[Array, "*batch"]
Strength = float | Float[Array, "*#batch"]


def log_ratios(log_probs: LogProbs, label: Labels, strength: Strength) -> LogProbs:
    r"""Change of every log-prob by one step, exactly (Lemma 1 in its log form).

    .. math:: \log \alpha_i = \log \frac{p'_i}{p_i} = s\,(p_i - [i = y])
              - \log \sum_j p_j\, e^{s (p_j - [j = y])}

    Concave in `s`, and 0 at 0: a label that starts to fall keeps falling. That of the
    pushed label decreases in `s`, that of `greedy_label` increases.

    Args:
      log_probs: Log-probabilities before the step, in nats.
      label: `y`, the label that is pushed down.
      strength: `s`; negative for a positive gradient.

    Returns:
      The changes, in nats.

    References:
      Ren & Sutherland 2025, Lemma 1: with :math:`\eta' = -s`,
      :math:`\alpha_i = \sum_j e^{z_j} / \sum_j \beta_j e^{z_j}`.

    Examples:
      >>> log_probs = jnp.log(jnp.array([0.7, 0.2, 0.1]))
      >>> log_ratios(log_probs, jnp.array(2), 1.0).round(2)
      Array([ 0.17, -0.33, -1.43], dtype=...)
    """
    push = _push(log_probs, label, _strengths(log_probs, strength))
    return push - _log_mean_exp(log_probs, push)[..., None]


def threshold(
    log_probs: LogProbs, label: Labels, strength: Strength
) -> Float[Array, "*batch"]:
    r"""The probability above which a label rises.

    .. math:: \tau(s) = \frac{1}{s} \log \sum_j p_j\, e^{s (p_j - [j = y])},
              \qquad \tau(0) = \|p\|_2^2 - p_y

    For `s > 0`, a label other than `y` rises if and only if :math:`p_i > \tau`. At
    small strengths the mean is next to 1, and its logarithm is taken of the difference,
    :math:`\log(1 + \sum_j p_j (e^{s (p_j - [j = y])} - 1))`.

    Args:
      log_probs: As in `log_ratios`.
      label: As in `log_ratios`.
      strength: As in `log_ratios`; at 0 the limit, `small_step_threshold`.

    Returns:
      One threshold for each distribution.

    Examples:
      >>> log_probs = jnp.log(jnp.array([0.7, 0.2, 0.1]))
      >>> threshold(log_probs, jnp.array(2), 1.0).round(2)
      Array(0.53, dtype=...)
    """
    strengths = _strengths(log_probs, strength)
    # Smaller ones times probabilities underflow; the limit is off by less than that.
    is_step = abs(strengths) > jnp.finfo(log_probs.dtype).tiny ** 0.5
    some = jnp.where(is_step, strengths, 1)
    border = _log_mean_exp(log_probs, _push(log_probs, label, some)) / some
    return jnp.where(is_step, border, small_step_threshold(log_probs, label))


def small_step_threshold(log_probs: LogProbs, label: Labels) -> Float[Array, "*batch"]:
    r"""The limit of `threshold` for small steps, :math:`\|p\|_2^2 - p_y`.

    Args:
      log_probs: As in `log_ratios`.
      label: As in `log_ratios`.

    Returns:
      One threshold for each distribution.

    Examples:
      >>> log_probs = jnp.log(jnp.array([0.7, 0.2, 0.1]))
      >>> small_step_threshold(log_probs, jnp.array(2)).round(2)
      Array(0.44, dtype=...)
    """
    return (jnp.exp(log_probs) * _slopes(log_probs, label)).sum(axis=-1)


def rising_labels(
    log_probs: LogProbs, label: Labels, strength: Strength = 0.0
) -> Bool[Array, "*batch vocab"]:
    r"""The labels that a negative gradient lifts: :math:`p_i > \tau(s)`, `i` not `y`.

    Args:
      log_probs: As in `log_ratios`.
      label: As in `log_ratios`.
      strength: As in `log_ratios`, at least 0; 0 for the limit of small steps.

    Returns:
      True where the label rises.

    Examples:
      Where little is left to remove, only the peak rises:

      >>> log_probs = jnp.log(jnp.array([0.70, 0.25, 0.05]))
      >>> rising_labels(log_probs, jnp.array(2))
      Array([ True, False, False], dtype=bool)

      From a flat distribution all others do:

      >>> rising_labels(jnp.log(jnp.array([0.3, 0.3, 0.4])), jnp.array(2))
      Array([ True,  True, False], dtype=bool)
    """
    border = threshold(log_probs, label, strength)
    is_pushed = jax.nn.one_hot(label, log_probs.shape[-1], dtype=bool)
    border = jnp.broadcast_to(border[..., None], log_probs.shape)
    return (jnp.exp(log_probs) > border) & ~is_pushed


def greedy_label(log_probs: LogProbs, label: Labels) -> Labels:
    r"""The likeliest other label, :math:`y^* = \arg\max_{i \ne y} p_i`.

    It rises at every step size, and gains most in ratio.

    Args:
      log_probs: As in `log_ratios`.
      label: The label that is left out.

    Returns:
      The label, the first of equal ones.

    Examples:
      >>> greedy_label(jnp.log(jnp.array([0.5, 0.2, 0.3])), jnp.array(0))
      Array(2, dtype=...)
    """
    is_pushed = jax.nn.one_hot(label, log_probs.shape[-1], dtype=bool)
    return jnp.argmax(jnp.where(is_pushed, -jnp.inf, log_probs), axis=-1)


def mass_share(
    before: LogProbs, after: LogProbs, label: Labels
) -> Float[Array, "*batch"]:
    r"""The share of the mass that moved which one label received.

    .. math:: \frac{\max(0, p'_i - p_i)}{\sum_j \max(0, p_j - p'_j)}

    Args:
      before: Log-probabilities, in nats.
      after: Likewise.
      label: `i`.

    Returns:
      A number in [0, 1]; NaN where nothing moved.

    Examples:
      >>> before = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> after = jnp.log(jnp.array([0.575, 0.325, 0.1]))
      >>> mass_share(before, after, jnp.array(0)).round(2)
      Array(0.75, dtype=...)
    """
    # Of the change of the log-prob: that of the probability may be lost in its size.
    change = jnp.where(after == before, 0, after - before)
    moved = jnp.exp(before) * jnp.expm1(change)
    received = jnp.take_along_axis(moved, label[..., None], axis=-1)[..., 0]
    return jnp.maximum(received, 0) / jnp.maximum(-moved, 0).sum(axis=-1)


def first_order_change(kernel: LinearMap, probe_logits: Any, residual: Any) -> Any:
    r"""Change of every log-prob of the probe, per unit of the learning rate.

    .. math:: \frac{\Delta \log \pi}{\eta} = -A\, K\, G

    Its sign says which labels rise under the exact kernel of a model. For a pure
    negative gradient `G` is `-R`, with :math:`R = \mathrm{mask}\,(\pi - e_y)`; where
    `K` is `k I` it is then the slope of `log_ratios` at 0.

    Args:
      kernel: From `empirical_ntk`, the probe by the update.
      probe_logits: Logits of the probe.
      residual: `G`, in the structure of the update's logits.

    Returns:
      A pytree like `probe_logits`, in nats; positive means "goes up".

    References:
      Ren & Sutherland 2025, equation 2.

    Examples:
      >>> from ldjax import jacobian
      >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
      >>> same = jacobian(lambda z: z, logits)  # K = I
      >>> down = jax.nn.one_hot(2, 3) - jax.nn.softmax(logits)  # -R
      >>> first_order_change(same, logits, down).round(2)
      Array([ 0.26, -0.24, -1.34], dtype=...)
    """
    return -(jacobian(log_softmax, probe_logits) @ kernel @ residual)


def _slopes(log_probs: Array, label: Array) -> Array:
    """`p - e_y`, that of `y` from the other labels: next to 1 a difference is noise."""
    probs = jnp.exp(log_probs)
    is_pushed = jax.nn.one_hot(label, log_probs.shape[-1], dtype=bool)
    others = jnp.where(is_pushed, 0, probs).sum(axis=-1, keepdims=True)
    return jnp.where(is_pushed, -others, probs)


def _strengths(log_probs: Array, strength: Strength) -> Array:
    """One for each distribution."""
    strength = jnp.asarray(strength, log_probs.dtype)
    return jnp.broadcast_to(strength, log_probs.shape[:-1])


def _push(log_probs: Array, label: Array, strengths: Array) -> Array:
    """`s (p - e_y)`, what a step adds to the logits."""
    slopes = _slopes(log_probs, label)
    return jnp.broadcast_to(strengths[..., None], slopes.shape) * slopes


def _log_mean_exp(log_probs: Array, push: Array) -> Array:
    """`log sum p exp(push)`; small pushes keep their digits, large ones their size."""
    is_small = abs(push).max(axis=-1) < 1
    small = jnp.where(is_small[..., None], push, 0)
    gain = (jnp.exp(log_probs) * jnp.expm1(small)).sum(axis=-1)
    large = jax.nn.logsumexp(log_probs + push, axis=-1)
    return jnp.where(is_small, jnp.log1p(gain), large)
