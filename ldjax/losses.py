"""Losses as functions of logits; the residual `G` is always `jax.grad` of one.

A loss takes the logits first and the batch they belong to second;
`functools.partial(loss, batch=batch)` is the one-argument form that
`ldjax.decompose` takes. The reduction is part of each definition, because it is a
factor of the learning rate.
"""

from jaxtyping import Array, Float

from ldjax.log_probs import Sequences, sequence_log_probs

__all__ = ["sft"]


def sft(logits: Float[Array, "*batch pos vocab"], batch: Sequences) -> Float[Array, ""]:
    r"""Supervised finetuning loss: sum over tokens, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_b \sum_l \mathrm{mask}_{bl}
                  \log \pi(y_{bl} \mid \chi_b)_l

    For images (one position) this is the usual mean cross-entropy. Its residual is
    :math:`G_{bl} = \mathrm{mask}_{bl} (\pi_{bl} - e_{y_{bl}}) / B`.

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
