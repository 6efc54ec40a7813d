r"""Losses on pairs that compare with a reference policy; all are means over the batch.

With the log-ratios :math:`h^\pm = \log \pi(y^\pm) - \log \pi_\mathrm{ref}(y^\pm)`
(sums over tokens), the margin :math:`h = h^+ - h^-` and
:math:`R^\pm = \mathrm{mask}\,(\pi - e_{y^\pm})`, every residual is a number for each
side of each pair times `R`: the gradient of a log-prob is `-R`. Where the paper prints
that number with another sign than the gradient has, the loss says so.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.losses.pairs import (
    SIDES,
    Pair,
    PairLogits,
    PairLoss,
    log_probs,
    log_ratio,
    log_ratio_margin,
    log_ratios,
    mean_likelihood,
    mean_log_probs,
    per_token,
    require_not_negative,
    require_positive,
    require_reduction,
    sigmoid,
)

__all__ = ["dpo", "gated_dpo", "hinge", "ipo", "kto", "rpo", "sppo"]


def dpo(
    beta: float = 0.1, label_smoothing: float = 0.0, *, reference_free: bool = False
) -> PairLoss:
    r"""Direct preference optimisation: a loss on pairs, mean over the batch.

    .. math:: L = -\frac{1}{B} \sum_b (1 - \epsilon) \log \sigma(\beta h_b)
                  + \epsilon \log \sigma(-\beta h_b)

    with the margin :math:`h` of `log_ratio_margin` (sums over tokens) and the label
    smoothing :math:`\epsilon`. Without smoothing its residuals are
    :math:`G^\pm_b = \pm \beta (1 - \sigma(\beta h_b)) R^\pm_b / B`, where
    :math:`R = \mathrm{mask} \, (\pi - e_y)`.

    SPIN is this loss on other data: the chosen response is a person's, the rejected one
    a sample of the policy of the iteration before, which is the reference too.

    Args:
      beta: Strength of the pull to the reference, 1/nats.
      label_smoothing: Share of pairs whose labels are taken to be swapped, in [0, 1).
      reference_free: Take a reference that finds both responses equally likely:
        :math:`h = \log \pi(y^+) - \log \pi(y^-)`. The sides need no `reference`.

    Returns:
      `loss_fn(logits, batch) -> scalar` in nats, for a batch with the sides `"chosen"`
      and `"rejected"`, both with a `reference`.

    Raises:
      ValueError: If `beta` or `label_smoothing` is out of its range; on the call, if a
        side is missing.
      TypeError: On the call, if a side has no reference log-probs.

    References:
      Rafailov et al. 2023, equation 7; Ren & Sutherland 2025, equations 6 and 15.
      Label smoothing: Mitchell 2023, "cDPO". SPIN: Chen et al. 2024, equation 4.7.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> dpo(beta=0.1)(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    require_positive(beta=beta)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}.")

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        if reference_free:
            free = log_probs(logits, batch)
            margin = beta * (free["chosen"] - free["rejected"])
        else:
            margin = beta * log_ratio_margin(logits, batch)
        agrees = jax.nn.log_sigmoid(margin)
        if not label_smoothing:  # else 0 times infinity, of an impossible response
            return -agrees.mean()
        disagrees = jax.nn.log_sigmoid(-margin)
        losses = (1 - label_smoothing) * agrees + label_smoothing * disagrees
        return -losses.mean()

    return loss_fn


def ipo(beta: float = 0.1) -> PairLoss:
    r"""Identity preference optimisation: the margin has a target and not only a sign.

    .. math:: L = \frac{1}{B} \sum_b \Bigl(h_b - \frac{1}{2\beta}\Bigr)^2, \qquad
              G^\pm_b = \pm 2 \Bigl(\frac{1}{2\beta} - h_b\Bigr) R^\pm_b / B

    The push changes its sign once the margin exceeds its target. (Sums over tokens, as
    in the source; TRL's `ipo` divides log-probs by length. Ren & Sutherland print the
    loss, equation 16, with a minus in front.)

    Args:
      beta: Half of the inverse of the margin's target, 1/nats.

    Returns:
      As `dpo`.

    Raises:
      ValueError: As `dpo`.
      TypeError: As `dpo`.

    References:
      Azar et al. 2023, equation 17.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), jnp.zeros(1)
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> ipo(beta=0.25)(z, {"chosen": answer, "rejected": answer})
      Array(4., dtype=...)
    """
    require_positive(beta=beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        return ((log_ratio_margin(logits, batch) - 1 / (2 * beta)) ** 2).mean()

    return loss_fn


def hinge(beta: float = 0.1) -> PairLoss:
    r"""A hinge on the margin: no push at all beyond it.

    .. math:: L = \frac{1}{B} \sum_b \max(0, 1 - \beta h_b), \qquad
              G^\pm_b = \pm \beta\, [\beta h_b < 1]\, R^\pm_b / B

    Args:
      beta: Inverse of the margin, 1/nats.

    Returns:
      As `dpo`.

    Raises:
      ValueError: As `dpo`.
      TypeError: As `dpo`.

    References:
      Liu et al. 2024, "Statistical Rejection Sampling" (RSO), the hinge of SLiC on
      log-ratios; TRL's `hinge`.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), jnp.zeros(1)
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> hinge()(z, {"chosen": answer, "rejected": answer})
      Array(1., dtype=...)
    """
    require_positive(beta=beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        return jax.nn.relu(1 - beta * log_ratio_margin(logits, batch)).mean()

    return loss_fn


def sppo(beta: float = 0.1) -> PairLoss:
    r"""Self-play preference optimisation: a target for each log-ratio by itself.

    .. math:: L = \frac{1}{B} \sum_b \Bigl(h^+_b - \frac{1}{2\beta}\Bigr)^2
                  + \Bigl(h^-_b + \frac{1}{2\beta}\Bigr)^2

    has :math:`G^+ = -2 (h^+ - 1/2\beta) R^+ / B` and
    :math:`G^- = -2 (h^- + 1/2\beta) R^- / B`: at the reference the rejected response
    *is* pushed down, until :math:`h^- = -1/2\beta`. (Ren & Sutherland, equation 22,
    print both without the minus and conclude that there is no negative gradient; the
    bounded target is the difference to DPO. Their eta is :math:`1/\beta`.)

    Args:
      beta: Half of the inverse of both targets, 1/nats.

    Returns:
      As `dpo`.

    Raises:
      ValueError: As `dpo`.
      TypeError: As `dpo`.

    References:
      Wu et al. 2024, equation 4.5, with hard preferences; TRL's `sppo_hard`.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> sppo(beta=0.5)(z, {"chosen": answer, "rejected": answer})
      Array(2., dtype=...)
    """
    require_positive(beta=beta)
    target = 1 / (2 * beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        squares = (ratios["chosen"] - target) ** 2 + (ratios["rejected"] + target) ** 2
        return squares.mean()

    return loss_fn


def rpo(
    alpha: float = 1.0, beta: float = 0.1, *, reduction: str = "responses"
) -> PairLoss:
    r"""DPO with a term that holds the chosen response up.

    .. math:: L = L_\mathrm{DPO} - \frac{\alpha}{B} \sum_b
                  \frac{\log \pi(y^+_b)}{|y^+_b|}

    adds :math:`\alpha R^+ / (|y^+| B)` to DPO's :math:`G^+`. TRL's likelihood is one
    mean over all chosen tokens of the batch, in which a long response counts more:
    :math:`\sum_b \log \pi(y^+_b) / \sum_b |y^+_b|`, and so
    :math:`\alpha R^+ / \sum_b |y^+_b|`.

    Args:
      alpha: Weight of the likelihood; TRL's `rpo_alpha`.
      beta: As in `dpo`.
      reduction: `"responses"` for the mean of each response's mean, as in the source;
        `"tokens"` for TRL's mean.

    Returns:
      As `dpo`.

    Raises:
      ValueError: If `alpha` is negative or `reduction` another word; as `dpo`.
      TypeError: As `dpo`.

    References:
      Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> rpo()(z, {"chosen": answer, "rejected": answer})  # log 2 + log 4
      Array(2.079..., dtype=...)
    """
    require_not_negative(alpha=alpha)
    require_reduction(reduction, "responses", "tokens")
    preference = dpo(beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        likelihood = mean_likelihood(logits, batch, reduction)
        return preference(logits, batch) - alpha * likelihood

    return loss_fn


def kto(
    beta: float = 0.1,
    *,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    reduction: str = "pairs",
) -> PairLoss:
    r"""Kahneman-Tversky optimisation: each response against the batch, not its partner.

    .. math:: L = \frac{1}{B} \sum_b \lambda_D (1 - a^+_b) + \lambda_U (1 - a^-_b),
              \quad a^+ = \sigma(\beta (h^+ - z)), \; a^- = \sigma(\beta (z - h^-))

    with a reference point `z`, which is not differentiated. So
    :math:`G^+ = \lambda_D \beta a^+ (1 - a^+) R^+ / B` and
    :math:`G^- = -\lambda_U \beta a^- (1 - a^-) R^- / B`.

    `z` is a mean log-ratio of the batch, or 0 if that is larger. The source and TRL
    take it of mismatched responses, each a response to another row's prompt; a batch
    with such a side `"mismatched"` is treated so. Without one all responses of the
    batch stand in, whose mean is another number. TRL's mean is over responses, of which
    a pair has two: its loss and gradient are half of these unless `reduction` says so.

    A row may have one of its sides alone (unpaired preferences): of the other nothing
    is scored, its mask is all false, and it counts nowhere. `B` is then half of the
    number of responses.

    Args:
      beta: Steepness, 1/nats.
      desirable: :math:`\lambda_D`, weight of chosen responses.
      undesirable: :math:`\lambda_U`, weight of rejected responses.
      reduction: `"pairs"` for the sum over responses by the number of pairs, half of
        theirs; `"responses"` for TRL's mean over the responses of both.

    Returns:
      As `dpo`; a third side `"mismatched"`, with a `reference` as well, is optional.

    Raises:
      ValueError: If a weight is negative or `reduction` another word; as `dpo`.
      TypeError: As `dpo`.

    References:
      Ethayarajh et al. 2024, equation 8; TRL's `KTOTrainer`.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> kto()(z, {"chosen": answer, "rejected": answer})
      Array(1., dtype=...)
      >>> kto(reduction="responses")(z, {"chosen": answer, "rejected": answer})
      Array(0.5, dtype=...)
    """
    require_positive(beta=beta)
    require_not_negative(desirable=desirable, undesirable=undesirable)
    require_reduction(reduction, "pairs", "responses")

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        is_there = {side: batch[side].mask.any(axis=-1) for side in SIDES}
        num = is_there["chosen"].sum() + is_there["rejected"].sum()
        if "mismatched" in batch:
            mean = log_ratio(logits, batch, "mismatched").mean()
        else:
            there = [jnp.where(is_there[side], ratios[side], 0) for side in SIDES]
            mean = per_token(there[0].sum() + there[1].sum(), num)
        point = jax.lax.stop_gradient(jnp.maximum(mean, 0))
        chosen = desirable * sigmoid(-beta * (ratios["chosen"] - point))
        rejected = undesirable * sigmoid(-beta * (point - ratios["rejected"]))
        total = jnp.where(is_there["chosen"], chosen, 0).sum()
        total += jnp.where(is_there["rejected"], rejected, 0).sum()
        return per_token(total, num) * (2 if reduction == "pairs" else 1)

    return loss_fn


def gated_dpo(
    beta: float = 0.1, *, sharpness: float = 10.0, level: float = 0.1
) -> PairLoss:
    r"""DPO whose push on an improbable rejected response is taken back.

    .. math:: G^-_b = -g_b\, \beta (1 - \sigma(\beta h_b)) R^-_b / B, \qquad
              g_b = \sigma\bigl(\alpha (p^-_b - \tau)\bigr)

    with the geometric mean of the token probabilities
    :math:`p^- = \pi(y^-)^{1/|y^-|}`, not differentiated. The value and :math:`G^+` are
    those of DPO: a response in a valley is no longer pushed, which is what squeezes.

    Args:
      beta: As in `dpo`.
      sharpness: :math:`\alpha`, of the gate.
      level: :math:`\tau`, the probability at which the gate is half open.

    Returns:
      As `dpo`.

    Raises:
      ValueError: As `dpo`, also for `sharpness`.
      TypeError: As `dpo`.

    References:
      "Gate-DPO", arXiv 2605.02626, with the geometric mean.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> gated_dpo()(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    require_positive(beta=beta, sharpness=sharpness)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        prob = jnp.exp(mean_log_probs(logits, batch)["rejected"])
        gate = jax.lax.stop_gradient(jax.nn.sigmoid(sharpness * (prob - level)))
        still = jax.lax.stop_gradient(ratios["rejected"])
        # An impossible response has no difference to scale, and no push to take back.
        rejected = jnp.where(
            still > -jnp.inf,
            still + gate * (ratios["rejected"] - still),
            ratios["rejected"],
        )
        return -jax.nn.log_sigmoid(beta * (ratios["chosen"] - rejected)).mean()

    return loss_fn
