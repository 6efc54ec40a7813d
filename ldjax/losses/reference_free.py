r"""Losses on pairs that need no reference policy; all are means over the batch.

With :math:`R^\pm = \mathrm{mask}\,(\pi - e_{y^\pm})` every residual is a number for
each token of each pair times `R`, as in `ldjax.losses.preference`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ldjax.equation.log_probs import token_log_odds
from ldjax.losses.pairs import (
    SIDES,
    Pair,
    PairLogits,
    PairLoss,
    log_prob,
    log_probs,
    mean_likelihood,
    mean_log_probs,
    require_not_negative,
    require_positive,
    require_reduction,
)

__all__ = ["orpo", "simpo", "slic"]


def slic(delta: float = 1.0, beta: float = 0.1) -> PairLoss:
    r"""Sequence likelihood calibration: a hinge on log-probs, and SFT as an anchor.

    .. math:: L = \frac{1}{B} \sum_{b=1}^B
              \max\Bigl(0, \delta - \log \frac{\pi(y^+_b)}{\pi(y^-_b)}\Bigr)
              - \frac{\beta}{A} \sum_{a=1}^A \log \pi(y^\mathrm{anchor}_a)

    :math:`G^\pm = \pm [\cdot > 0] R^\pm / B`, and the anchor is a source of its own,
    :math:`\beta R^\mathrm{anchor} / A`, with its own kernel. No reference policy. (Ren
    & Sutherland, equation 18, print a minus in front of the whole, a maximisation.)

    Args:
      delta: The margin of log-probs, in nats.
      beta: Weight of the anchor.

    Returns:
      As `dpo`, but the sides may be plain `Sequences`; a third side `"anchor"`, where
      the batch has one, is the anchor, of any number of rows; else the chosen
      response is.

    Raises:
      ValueError: If `delta` or `beta` is out of its range; if a side is missing.

    References:
      Zhao et al. 2023, "SLiC-HF", equation 1.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> slic(beta=0.0)(z, {"chosen": answer, "rejected": answer})
      Array(1., dtype=...)
    """
    require_positive(delta=delta)
    require_not_negative(beta=beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        sums = log_probs(logits, batch)
        anchor = sums["chosen"]
        if "anchor" in batch:
            anchor = log_prob(logits, batch, "anchor")
        gap = sums["chosen"] - sums["rejected"]
        return jax.nn.relu(delta - gap).mean() - beta * anchor.mean()

    return loss_fn


def simpo(beta: float = 2.0, gamma: float = 1.0) -> PairLoss:
    r"""Simple preference optimisation: log-probs per token, and no reference.

    .. math:: L = -\frac{1}{B} \sum_b \log \sigma(m_b), \qquad
              m_b = \beta \Bigl(\frac{\log \pi(y^+_b)}{|y^+_b|}
                  - \frac{\log \pi(y^-_b)}{|y^-_b|}\Bigr) - \gamma

    so :math:`G^\pm_b = \pm \beta (1 - \sigma(m_b)) R^\pm_b / (|y^\pm_b| B)`.

    Args:
      beta: Scale of the mean log-probs, 1/nats.
      gamma: The margin that is asked for.

    Returns:
      As `dpo`, but the sides may be plain `Sequences`.

    Raises:
      ValueError: If `beta` or `gamma` is out of its range; if a side is missing.

    References:
      Meng et al. 2024, equation 6.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> simpo(gamma=0.0)(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    require_positive(beta=beta)
    require_not_negative(gamma=gamma)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        means = mean_log_probs(logits, batch)
        margin = beta * (means["chosen"] - means["rejected"]) - gamma
        return -jax.nn.log_sigmoid(margin).mean()

    return loss_fn


def orpo(weight: float = 0.1, *, reduction: str = "responses") -> PairLoss:
    r"""Odds-ratio preference optimisation: SFT with a penalty, and no reference.

    .. math:: L = \frac{1}{B} \sum_b -\ell^+_b - \lambda \log \sigma\Bigl(
              \log \frac{p^+_b}{1 - p^+_b} - \log \frac{p^-_b}{1 - p^-_b}\Bigr)

    with the mean log-prob per token :math:`\ell^\pm = \log \pi(y^\pm) / |y^\pm|` and
    :math:`p = e^\ell`. With `o` the argument of the logistic function,
    :math:`G^+ = (1 + \lambda \frac{1 - \sigma(o)}{1 - p^+}) R^+ / (|y^+| B)` and
    :math:`G^- = -\lambda \frac{1 - \sigma(o)}{1 - p^-} R^- / (|y^-| B)`. A pair with
    an empty side has no odds ratio, and so no penalty.

    TRL's likelihood is one mean over all tokens of the batch's chosen rows, those of
    the prompt included. `reduction` makes it one mean over the scored tokens; prompts
    are never part of it here, as a mask has one value for both terms.

    Args:
      weight: :math:`\lambda`, TRL's `beta`.
      reduction: Of the likelihood: `"responses"` for the mean of each response's mean,
        as in the source; `"tokens"` for
        :math:`\sum_b \log \pi(y^+_b) / \sum_b |y^+_b|`.

    Returns:
      As `dpo`, but the sides may be plain `Sequences`.

    Raises:
      ValueError: If `weight` is negative or `reduction` another word; if a side is
        missing.

    References:
      Hong et al. 2024, equations 6 and 7.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> orpo(weight=1.0)(z, {"chosen": answer, "rejected": answer})  # log 4 + log 2
      Array(2.079..., dtype=...)
    """
    require_not_negative(weight=weight)
    require_reduction(reduction, "responses", "tokens")

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        means = mean_log_probs(logits, batch)
        log_odds = {}
        for side in SIDES:
            targets, mask = batch[side].targets, batch[side].mask
            by_token = token_log_odds(logits[side], targets, mask)
            log_odds[side] = means[side] - _log_complement(by_token, mask)
        odds_ratio = log_odds["chosen"] - log_odds["rejected"]
        is_scored = [batch[side].mask.any(axis=-1) for side in SIDES]
        is_pair = is_scored[0] & is_scored[1]
        penalty = -jnp.where(is_pair, jax.nn.log_sigmoid(odds_ratio), 0)
        likelihood = mean_likelihood(logits, batch, reduction)
        return weight * penalty.mean() - likelihood

    return loss_fn


# Beyond it `1 - exp(-x)` and `log(1 + x)` are `x` to the last digit of float64, for
# `x = exp(-_FAR)`.
_FAR = 40.0


def _log_complement(
    log_odds: Float[Array, "*batch pos"], mask: Bool[Array, "*batch pos"]
) -> Float[Array, "*batch"]:
    """`log(1 - p)` of the geometric mean `p` of the token probabilities.

    All in logarithms, because `-log p` of a lead of a hundred nats underflows.
    """
    largest = jnp.finfo(log_odds.dtype).max
    log_odds = jnp.clip(log_odds, -largest, largest)
    is_far = log_odds > _FAR
    near = jnp.where(is_far, 0, log_odds)
    log_costs = jnp.where(is_far, -log_odds, jnp.log(jax.nn.softplus(-near)))
    # A row without a token keeps all its (masked) zeros, for a finite gradient.
    count = mask.sum(axis=-1)
    is_counted = mask | (count == 0)[..., None]
    log_costs = jnp.where(is_counted, log_costs, -jnp.inf)
    log_cost = jax.nn.logsumexp(log_costs, axis=-1)
    log_cost = log_cost - jnp.log(jnp.maximum(count, 1).astype(log_cost.dtype))
    cost = jnp.exp(jnp.clip(log_cost, -_FAR, 10))  # the mean of `-log p`
    return jnp.where(log_cost < -_FAR, log_cost, jnp.log(-jnp.expm1(-cost)))
