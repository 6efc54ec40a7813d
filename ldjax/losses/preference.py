r"""Losses on pairs of a chosen and a rejected response; all are means over the batch.

With the log-ratios :math:`h^\pm = \log \pi(y^\pm) - \log \pi_\mathrm{ref}(y^\pm)`
(sums over tokens), the margin :math:`h = h^+ - h^-` and
:math:`R^\pm = \mathrm{mask}\,(\pi - e_{y^\pm})`, every residual is a number for each
side of each pair times `R`: the gradient of a log-prob is `-R`. Where the paper prints
that number with another sign than the gradient has, the loss says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.log_probs import ReferencedSequences, sequence_log_probs

__all__ = [
    "dpo",
    "gated_dpo",
    "hinge",
    "ipo",
    "kto",
    "log_ratio_margin",
    "log_ratios",
    "orpo",
    "rpo",
    "simpo",
    "slic",
    "sppo",
]

Pair = Mapping[str, Any]
PairLogits = Mapping[str, Array]
PairLoss = Callable[[PairLogits, Pair], Float[Array, ""]]


def log_ratios(logits: PairLogits, batch: Pair) -> dict[str, Float[Array, "*batch"]]:
    r"""How much likelier a policy makes both responses than its reference does.

    .. math:: h^\pm = \log \frac{\pi(y^\pm \mid x)}{\pi_\mathrm{ref}(y^\pm \mid x)}

    Args:
      logits: `{"chosen": [batch, pos, vocab], "rejected": ...}`, in nats.
      batch: `ReferencedSequences` under the same keys.

    Returns:
      `{"chosen": [batch], "rejected": [batch]}`, in nats; zero at the reference.

    Raises:
      TypeError: If a side has no reference log-probs.
      ValueError: If a side is missing.

    Examples:
      >>> answer = *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool)
      >>> side = ReferencedSequences(*answer, reference=jnp.array([-2.0]))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> log_ratios(z, {"chosen": side, "rejected": side})["chosen"].round(2)
      Array([0.61], dtype=...)
    """
    ratios = {}
    for side, log_prob in _log_probs(logits, batch).items():
        if not isinstance(batch[side], ReferencedSequences):
            raise TypeError(
                f"batch[{side!r}] has no reference log-probs to compare with: make it "
                "a `ReferencedSequences` with `ldjax.reference.add_reference`."
            )
        ratios[side] = log_prob - batch[side].reference
    return ratios


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
      >>> answer = *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool)
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> pair = {
      ...     "chosen": ReferencedSequences(*answer, reference=jnp.array([-2.0])),
      ...     "rejected": ReferencedSequences(*answer, reference=jnp.array([-1.0])),
      ... }
      >>> log_ratio_margin(z, pair)
      Array([1.], dtype=...)
    """
    ratios = log_ratios(logits, batch)
    return ratios["chosen"] - ratios["rejected"]


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
        :math:`h = \log \pi(y^+) - \log \pi(y^-)`. The sides may be plain `Sequences`.

    Returns:
      `loss_fn(logits, batch) -> scalar` in nats, for a batch with the sides `"chosen"`
      and `"rejected"`, both `ReferencedSequences`.

    Raises:
      ValueError: If `beta` or `label_smoothing` is out of its range; on the call, if a
        side is missing.
      TypeError: On the call, if a side has no reference log-probs.

    References:
      Rafailov et al. 2023, equation 7; Ren & Sutherland 2025, equations 6 and 15.
      Label smoothing: Mitchell 2023, "cDPO". SPIN: Chen et al. 2024, equation 4.7.

    Examples:
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> dpo(beta=0.1)(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    _require_positive(beta=beta)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}.")

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        if reference_free:
            log_probs = _log_probs(logits, batch)
            margin = beta * (log_probs["chosen"] - log_probs["rejected"])
        else:
            margin = beta * log_ratio_margin(logits, batch)
        agrees, disagrees = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
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
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), jnp.zeros(1)
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> ipo(beta=0.25)(z, {"chosen": answer, "rejected": answer})
      Array(4., dtype=...)
    """
    _require_positive(beta=beta)

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
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), jnp.zeros(1)
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> hinge()(z, {"chosen": answer, "rejected": answer})
      Array(1., dtype=...)
    """
    _require_positive(beta=beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        return jax.nn.relu(1 - beta * log_ratio_margin(logits, batch)).mean()

    return loss_fn


def slic(delta: float = 1.0, beta: float = 0.1) -> PairLoss:
    r"""Sequence likelihood calibration: a hinge on log-probs, and SFT as an anchor.

    .. math:: L = \frac{1}{B} \sum_b
              \max\Bigl(0, \delta - \log \frac{\pi(y^+_b)}{\pi(y^-_b)}\Bigr)
              - \beta \log \pi(y^\mathrm{anchor}_b)

    :math:`G^\pm = \pm [\cdot > 0] R^\pm / B`, and the anchor is a source of its own,
    :math:`\beta R^\mathrm{anchor} / B`, with its own kernel. No reference policy. (Ren
    & Sutherland, equation 18, print a minus in front of the whole, a maximisation.)

    Args:
      delta: The margin of log-probs, in nats.
      beta: Weight of the anchor.

    Returns:
      As `dpo`, but the sides may be plain `Sequences`; a third side `"anchor"`, where
      the batch has one, is the anchor, else the chosen response is.

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
    _require_positive(delta=delta)
    _require_not_negative(beta=beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        log_probs = _log_probs(logits, batch)
        anchor = log_probs["chosen"]
        if "anchor" in batch:
            anchor = _log_prob(logits, batch, "anchor")
        gap = log_probs["chosen"] - log_probs["rejected"]
        return (jax.nn.relu(delta - gap) - beta * anchor).mean()

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
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> sppo(beta=0.5)(z, {"chosen": answer, "rejected": answer})
      Array(2., dtype=...)
    """
    _require_positive(beta=beta)
    target = 1 / (2 * beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        squares = (ratios["chosen"] - target) ** 2 + (ratios["rejected"] + target) ** 2
        return squares.mean()

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
    _require_positive(beta=beta)
    _require_not_negative(gamma=gamma)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        means = _mean_log_probs(logits, batch)
        margin = beta * (means["chosen"] - means["rejected"]) - gamma
        return -jax.nn.log_sigmoid(margin).mean()

    return loss_fn


def orpo(weight: float = 0.1) -> PairLoss:
    r"""Odds-ratio preference optimisation: SFT with a penalty, and no reference.

    .. math:: L = \frac{1}{B} \sum_b -\ell^+_b - \lambda \log \sigma\Bigl(
              \log \frac{p^+_b}{1 - p^+_b} - \log \frac{p^-_b}{1 - p^-_b}\Bigr)

    with the mean log-prob per token :math:`\ell^\pm = \log \pi(y^\pm) / |y^\pm|` and
    :math:`p = e^\ell`. With `o` the argument of the logistic function,
    :math:`G^+ = (1 + \lambda \frac{1 - \sigma(o)}{1 - p^+}) R^+ / (|y^+| B)` and
    :math:`G^- = -\lambda \frac{1 - \sigma(o)}{1 - p^-} R^- / (|y^-| B)`.

    Args:
      weight: :math:`\lambda`, TRL's `beta`.

    Returns:
      As `dpo`, but the sides may be plain `Sequences`.

    Raises:
      ValueError: If `weight` is negative; if a side is missing.

    References:
      Hong et al. 2024, equations 6 and 7.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> orpo(weight=1.0)(z, {"chosen": answer, "rejected": answer})  # log 4 + log 2
      Array(2.079..., dtype=...)
    """
    _require_not_negative(weight=weight)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        means = _mean_log_probs(logits, batch)
        log_odds = {
            side: mean - jnp.log(-jnp.expm1(mean)) for side, mean in means.items()
        }
        odds_ratio = log_odds["chosen"] - log_odds["rejected"]
        return (-means["chosen"] - weight * jax.nn.log_sigmoid(odds_ratio)).mean()

    return loss_fn


def rpo(alpha: float = 1.0, beta: float = 0.1) -> PairLoss:
    r"""DPO with a term that holds the chosen response up.

    .. math:: L = L_\mathrm{DPO} - \frac{\alpha}{B} \sum_b
                  \frac{\log \pi(y^+_b)}{|y^+_b|}

    adds :math:`\alpha R^+ / (|y^+| B)` to DPO's :math:`G^+`.

    Args:
      alpha: Weight of the likelihood; TRL's `rpo_alpha`.
      beta: As in `dpo`.

    Returns:
      As `dpo`.

    Raises:
      ValueError: If `alpha` is negative; as `dpo`.
      TypeError: As `dpo`.

    References:
      Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1.

    Examples:
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> rpo()(z, {"chosen": answer, "rejected": answer})  # log 2 + log 4
      Array(2.079..., dtype=...)
    """
    _require_not_negative(alpha=alpha)
    preference = dpo(beta)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        likelihood = _mean_log_probs(logits, batch)["chosen"].mean()
        return preference(logits, batch) - alpha * likelihood

    return loss_fn


def kto(
    beta: float = 0.1, *, desirable: float = 1.0, undesirable: float = 1.0
) -> PairLoss:
    r"""Kahneman-Tversky optimisation: each response against the batch, not its partner.

    .. math:: L = \frac{1}{B} \sum_b \lambda_D (1 - a^+_b) + \lambda_U (1 - a^-_b),
              \quad a^+ = \sigma(\beta (h^+ - z)), \; a^- = \sigma(\beta (z - h^-))

    with the reference point `z`, the batch's mean log-ratio or 0 if that is larger,
    which is not differentiated. So
    :math:`G^+ = \lambda_D \beta a^+ (1 - a^+) R^+ / B` and
    :math:`G^- = -\lambda_U \beta a^- (1 - a^-) R^- / B`. (The source estimates `z` from
    mismatched prompts and responses; here all responses of the batch stand in.)

    Args:
      beta: Steepness, 1/nats.
      desirable: :math:`\lambda_D`, weight of chosen responses.
      undesirable: :math:`\lambda_U`, weight of rejected responses.

    Returns:
      As `dpo`.

    Raises:
      ValueError: If a weight is negative; as `dpo`.
      TypeError: As `dpo`.

    References:
      Ethayarajh et al. 2024, equation 8.

    Examples:
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> kto()(z, {"chosen": answer, "rejected": answer})
      Array(1., dtype=...)
    """
    _require_positive(beta=beta)
    _require_not_negative(desirable=desirable, undesirable=undesirable)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        mean = (ratios["chosen"].mean() + ratios["rejected"].mean()) / 2
        point = jax.lax.stop_gradient(jnp.maximum(mean, 0))
        gain = desirable * jax.nn.sigmoid(-beta * (ratios["chosen"] - point))
        loss = undesirable * jax.nn.sigmoid(-beta * (point - ratios["rejected"]))
        return (gain + loss).mean()

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
      >>> answer = ReferencedSequences(
      ...     *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool), -jnp.log(4.0)[None]
      ... )
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> gated_dpo()(z, {"chosen": answer, "rejected": answer})  # log 2
      Array(0.693..., dtype=...)
    """
    _require_positive(beta=beta, sharpness=sharpness)

    def loss_fn(logits: PairLogits, batch: Pair) -> Float[Array, ""]:
        ratios = log_ratios(logits, batch)
        prob = jnp.exp(_mean_log_probs(logits, batch)["rejected"])
        gate = jax.lax.stop_gradient(jax.nn.sigmoid(sharpness * (prob - level)))
        still = jax.lax.stop_gradient(ratios["rejected"])
        rejected = still + gate * (ratios["rejected"] - still)
        return -jax.nn.log_sigmoid(beta * (ratios["chosen"] - rejected)).mean()

    return loss_fn


def _log_probs(logits: PairLogits, batch: Pair) -> dict[str, Array]:
    return {side: _log_prob(logits, batch, side) for side in ("chosen", "rejected")}


def _log_prob(logits: PairLogits, batch: Pair, side: str) -> Array:
    if side not in batch or side not in logits:
        raise ValueError(
            "A preference loss takes a pair: logits and batch with the keys "
            f"'chosen' and 'rejected'; {side!r} is missing."
        )
    return sequence_log_probs(logits[side], batch[side].targets, batch[side].mask)


def _mean_log_probs(logits: PairLogits, batch: Pair) -> dict[str, Array]:
    """Per scored token."""
    sums = _log_probs(logits, batch)
    return {side: x / batch[side].mask.sum(axis=-1) for side, x in sums.items()}


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def _require_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must not be negative, got {value}.")
