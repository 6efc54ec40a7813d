"""Losses as functions of logits; the residual `G` is always `jax.grad` of one.

A loss takes the logits first and the batch they belong to second;
`functools.partial(loss, batch=batch)` is the one-argument form that
`ldjax.decompose` takes. The reduction is part of each definition, because it is a
factor of the learning rate.
"""

from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array, Float

from ldjax.log_probs import ReferencedSequences, Sequences, sequence_log_probs

__all__ = ["dpo", "log_ratio_margin", "sft"]

Pair = Mapping[str, ReferencedSequences]
PairLogits = Mapping[str, Array]


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


def log_ratio_margin(logits: PairLogits, batch: Pair) -> Float[Array, "*batch"]:
    r"""By how much a policy prefers the chosen response more than its reference does.

    .. math:: h = \log \frac{\pi(y^+ \mid x)}{\pi_\mathrm{ref}(y^+ \mid x)}
                - \log \frac{\pi(y^- \mid x)}{\pi_\mathrm{ref}(y^- \mid x)}

    Args:
      logits: `{"chosen": [batch, pos, vocab], "rejected": ...}`, in nats.
      batch: `ReferencedSequences` under the same keys.

    Returns:
      The margin of each pair, in nats; zero where the policy is the reference.

    Raises:
      TypeError: If a side has no reference log-probs.
      ValueError: If a side is missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> answer = *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool)
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> pair = {
      ...     "chosen": ReferencedSequences(*answer, reference=jnp.array([-2.0])),
      ...     "rejected": ReferencedSequences(*answer, reference=jnp.array([-1.0])),
      ... }
      >>> log_ratio_margin(z, pair)
      Array([1.], dtype=...)
    """
    ratios = {}
    for side in ("chosen", "rejected"):
        if side not in batch or side not in logits:
            raise ValueError(
                "A preference loss takes a pair: logits and batch with the keys "
                f"'chosen' and 'rejected'; {side!r} is missing."
            )
        if not isinstance(batch[side], ReferencedSequences):
            raise TypeError(
                f"batch[{side!r}] has no reference log-probs to compare with: make it "
                "a `ReferencedSequences` with `ldjax.reference.add_reference`."
            )
        _, targets, mask, reference = batch[side]
        ratios[side] = sequence_log_probs(logits[side], targets, mask) - reference
    return ratios["chosen"] - ratios["rejected"]


def dpo(
    beta: float = 0.1, label_smoothing: float = 0.0
) -> Callable[[PairLogits, Pair], Float[Array, ""]]:
    r"""Direct preference optimisation: a loss on pairs, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_b (1 - \epsilon) \log \sigma(\beta h_b)
                  + \epsilon \log \sigma(-\beta h_b)

    with the margin :math:`h` of `log_ratio_margin` (sums over tokens) and the label
    smoothing :math:`\epsilon`. Without smoothing its residuals are
    :math:`G^\pm_b = \pm \beta (1 - \sigma(\beta h_b)) R^\pm_b / B`, where
    :math:`R = \mathrm{mask} \, (\pi - e_y)`.

    Args:
      beta: Strength of the pull to the reference, 1/nats.
      label_smoothing: Share of pairs whose labels are taken to be swapped, in [0, 1).

    Returns:
      `loss_fn(logits, batch) -> scalar` in nats, for a batch with the sides `"chosen"`
      and `"rejected"`, both `ReferencedSequences`.

    Raises:
      ValueError: If `beta` or `label_smoothing` is out of its range; on the call, if a
        side is missing.
      TypeError: On the call, if a side has no reference log-probs.

    References:
      Rafailov et al. 2023, equation 7; Ren & Sutherland 2025, equations 6 and 15.
      Label smoothing: Mitchell 2023, "cDPO".

    Examples:
      >>> import jax.numpy as jnp
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> dpo(beta=0.1)(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be positive, got {beta}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}.")

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        margin = beta * log_ratio_margin(logits, batch)
        agrees, disagrees = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
        losses = (1 - label_smoothing) * agrees + label_smoothing * disagrees
        return -losses.mean()

    return loss_fn
