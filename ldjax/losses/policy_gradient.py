r"""Losses of sampled responses whose tokens have advantages; means over the batch.

With :math:`R_l = \pi_l - e_{y_l}` every residual is a number for each token times `R`.
A negative advantage is a negative gradient: on-policy its token is rarely improbable,
so it squeezes less than a rejected response from elsewhere.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.sequences import Sequences
from ldjax.losses.pairs import per_token

__all__ = ["grpo", "reinforce"]

Logits = Float[Array, "*batch pos vocab"]


def reinforce(logits: Logits, batch: Sequences) -> Float[Array, ""]:
    r"""The policy gradient: sum over tokens, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_{bl} \mathrm{mask}_{bl}\, A_{bl}
                  \log \pi(y_{bl})_l, \qquad
              G_{bl} = \mathrm{mask}_{bl}\, A_{bl}\, R_{bl} / B

    Args:
      logits: As in `sft`.
      batch: Responses with the advantages of their tokens; `old_log_probs` is not
        read.

    Returns:
      The loss; its value means little, its gradient is that of minus the expected
      return.

    References:
      Williams 1992. With advantages 1 it is `sft`, with -1 `gradient_ascent`.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> drawn = answer._replace(advantages=jnp.full((1, 1), 2.0))
      >>> reinforce(jnp.zeros((1, 1, 4)), drawn)  # 2 log 4
      Array(2.772..., dtype=...)
    """
    log_probs = token_log_probs(logits, batch.targets, batch.mask)
    return -(_scored(batch, "advantages") * log_probs).sum(axis=-1).mean()


def grpo(
    epsilon: float = 0.2,
) -> Callable[[Logits, Sequences], Float[Array, ""]]:
    r"""Group-relative policy optimisation with given advantages, clipped as in PPO.

    .. math:: L = -\frac{1}{B} \sum_b \frac{1}{|y_b|} \sum_l \mathrm{mask}_{bl}
              \min\bigl(r_{bl} A_{bl},\;
              \mathrm{clip}(r_{bl}, 1 - \epsilon, 1 + \epsilon)\, A_{bl}\bigr), \qquad
              r = \frac{\pi(y)}{\pi_\mathrm{old}(y)}

    so :math:`G_{bl} = \mathrm{mask}_{bl}\, r_{bl} A_{bl} R_{bl} / (|y_b| B)` where the
    clip does not bind, and 0 where it does: for :math:`r > 1 + \epsilon` with a
    positive, :math:`r < 1 - \epsilon` with a negative advantage. On the samples of the
    policy itself `r` is 1. Nothing bounds it for a negative advantage but the type:
    from 72 nats on (693 in float64) it stays as it is, and pushes as it does there. A
    response without a scored token counts 0.

    Args:
      epsilon: How far a token's probability is worth moving, as a share of it.

    Returns:
      `loss_fn(logits, batch) -> scalar` for `Sequences` with `advantages` and
      `old_log_probs`. It has no KL term.

    Raises:
      ValueError: If `epsilon` is not positive.

    References:
      Shao et al. 2024, "DeepSeekMath", equation 3, without its KL term (TRL's `beta`,
      0 by default; this is its `loss_type="grpo"`).

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> old = jnp.full((1, 1), -jnp.log(5.0))
      >>> drawn = answer._replace(advantages=jnp.ones((1, 1)), old_log_probs=old)
      >>> grpo()(jnp.zeros((1, 1, 4)), drawn)  # r = 5/4, clipped to 6/5
      Array(-1.2, dtype=...)
    """
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be positive, got {epsilon}.")

    def loss_fn(logits: Logits, batch: Sequences) -> Float[Array, ""]:
        log_probs = token_log_probs(logits, batch.targets, batch.mask)
        advantages = _scored(batch, "advantages")
        ratio = _ratio(log_probs, _scored(batch, "old_log_probs"))
        clipped = jnp.where(
            advantages < 0,
            jnp.maximum(ratio, 1 - epsilon),
            jnp.minimum(ratio, 1 + epsilon),
        )
        gains = (clipped * advantages).sum(axis=-1)
        return -per_token(gains, batch.mask.sum(axis=-1)).mean()

    return loss_fn


def _ratio(log_probs: Array, old: Array) -> Array:
    """The probability ratio, at most a ten-millionth of what its type holds.

    Its gradient goes on beyond: infinity times the nothing of a clip would be NaN.
    """
    most = math.log(jnp.finfo(log_probs.dtype).max) - math.log(1e7)
    oldest = jax.lax.stop_gradient(log_probs) - most
    return jnp.exp(log_probs - jnp.maximum(old, oldest))


def _scored(batch: Sequences, field: str) -> Array:
    """A number for each token, zero where nothing is scored, whatever stands there."""
    values = getattr(batch, field)
    if values is None:
        raise TypeError(f"The batch has no `{field}`, which a policy gradient needs.")
    return jnp.where(batch.mask, values, 0)
