"""Losses of one response: raise or lower its likelihood."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.equation.log_probs import sequence_log_probs, token_log_odds
from ldjax.equation.sequences import Sequences

__all__ = ["gradient_ascent", "sft", "unlikelihood"]

Logits = Float[Array, "*batch pos vocab"]


def sft(logits: Logits, batch: Sequences) -> Float[Array, ""]:
    r"""Supervised finetuning loss: sum over tokens, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_b \sum_l \mathrm{mask}_{bl}
                  \log \pi(y_{bl} \mid \chi_b)_l

    For images (one position) this is the usual mean cross-entropy. Its residual is
    :math:`G_{bl} = \mathrm{mask}_{bl} (\pi_{bl} - e_{y_{bl}}) / B`. (TRL's is a mean
    over all scored tokens of the batch.)

    Args:
      logits: Unnormalised log-probabilities, in nats. Without batch axes the mean is
        over one sequence.
      batch: Targets and mask; `batch.tokens` is not read.

    Returns:
      The loss in nats.

    References:
      Ren & Sutherland 2025, equations 4 and 11; the sum over tokens and the mean
      over the batch are those of the paper's code.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ldjax import Sequences
      >>> image = Sequences(jnp.zeros((1, 4)), jnp.array([[3]]), jnp.array([[True]]))
      >>> sft(jnp.zeros((1, 1, 10)), image)
      Array(2.302..., dtype=...)
    """
    return -sequence_log_probs(logits, batch.targets, batch.mask).mean()


def gradient_ascent(logits: Logits, batch: Sequences) -> Float[Array, ""]:
    r"""Minus `sft`: the pure negative gradient of unlearning. It has no lower bound.

    .. math:: L = \frac{1}{B} \sum_b \log \pi(y_b \mid x_b), \qquad
              G = -\mathrm{mask}\,(\pi - e_y) / B

    Args:
      logits: As in `sft`.
      batch: The responses to forget.

    Returns:
      The loss in nats.

    References:
      Jang et al. 2023, "Knowledge Unlearning", equation 1.

    Examples:
      >>> from ldjax import Sequences
      >>> image = Sequences(jnp.zeros((1, 4)), jnp.array([[3]]), jnp.array([[True]]))
      >>> gradient_ascent(jnp.zeros((1, 1, 10)), image)
      Array(-2.302..., dtype=...)
    """
    return -sft(logits, batch)


def unlikelihood(logits: Logits, batch: Sequences) -> Float[Array, ""]:
    r"""Lowers every token of a response; sum over tokens, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_b \sum_l \mathrm{mask}_{bl}
                  \log (1 - \pi(y_{bl})_l), \qquad
              G = -\mathrm{mask}\,\frac{\pi_y}{1 - \pi_y} (\pi - e_y) / B

    Unlike `gradient_ascent` it stops where a token is improbable already, so it does
    not push in a valley. From a certain token it is as steep as that is certain:
    the push tends to 1 and the loss to the lead of its logit.

    Args:
      logits: As in `sft`.
      batch: The responses to avoid.

    Returns:
      The loss in nats, at least 0.

    References:
      Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training",
      equation 2, with the response's own tokens as negative candidates.

    Examples:
      >>> from ldjax import Sequences
      >>> image = Sequences(jnp.zeros((1, 4)), jnp.array([[1]]), jnp.array([[True]]))
      >>> unlikelihood(jnp.zeros((1, 1, 2)), image)  # log 2
      Array(0.693..., dtype=...)
    """
    log_odds = token_log_odds(logits, batch.targets, batch.mask)
    losses = jnp.where(batch.mask, jax.nn.softplus(log_odds), 0)
    return losses.sum(axis=-1).mean()
