"""What the losses on pairs have in common: log-probs of both sides, and checks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.equation.log_probs import sequence_log_probs

SIDES = "chosen", "rejected"

Pair = Mapping[str, Any]
PairLogits = Mapping[str, Array]
PairLoss = Callable[[PairLogits, Pair], Float[Array, ""]]


def log_ratios(logits: PairLogits, batch: Pair) -> dict[str, Float[Array, "*batch"]]:
    r"""How much likelier a policy makes both responses than its reference does.

    .. math:: h^\pm = \log \frac{\pi(y^\pm \mid x)}{\pi_\mathrm{ref}(y^\pm \mid x)}

    Args:
      logits: `{"chosen": [batch, pos, vocab], "rejected": ...}`, in nats.
      batch: `Sequences` with their `reference`, under the same keys.

    Returns:
      `{"chosen": [batch], "rejected": [batch]}`, in nats; zero at the reference.

    Raises:
      TypeError: If a side has no reference log-probs.
      ValueError: If a side is missing.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool)
      >>> side = Sequences(*answer, reference=jnp.array([-2.0]))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> log_ratios(z, {"chosen": side, "rejected": side})["chosen"].round(2)
      Array([0.61], dtype=...)
    """
    return {side: log_ratio(logits, batch, side) for side in SIDES}


def log_ratio_margin(logits: PairLogits, batch: Pair) -> Float[Array, "*batch"]:
    r"""By how much a policy prefers the chosen response more than its reference does.

    .. math:: h = \log \frac{\pi(y^+ \mid x)}{\pi_\mathrm{ref}(y^+ \mid x)}
                - \log \frac{\pi(y^- \mid x)}{\pi_\mathrm{ref}(y^- \mid x)}

    Args:
      logits: `{"chosen": [batch, pos, vocab], "rejected": ...}`, in nats.
      batch: `Sequences` with their `reference`, under the same keys.

    Returns:
      The margin of each pair, in nats; zero where the policy is the reference.

    Raises:
      TypeError: If a side has no reference log-probs.
      ValueError: If a side is missing.

    Examples:
      >>> from ldjax import Sequences
      >>> answer = *jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool)
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> pair = {
      ...     "chosen": Sequences(*answer, reference=jnp.array([-2.0])),
      ...     "rejected": Sequences(*answer, reference=jnp.array([-1.0])),
      ... }
      >>> log_ratio_margin(z, pair)
      Array([1.], dtype=...)
    """
    ratios = log_ratios(logits, batch)
    return ratios["chosen"] - ratios["rejected"]


def log_probs(logits: PairLogits, batch: Pair) -> dict[str, Array]:
    """Of both responses, sums over their tokens."""
    return {side: log_prob(logits, batch, side) for side in SIDES}


def log_prob(logits: PairLogits, batch: Pair, side: str) -> Array:
    """Of the responses of one side."""
    if side not in batch or side not in logits:
        raise ValueError(
            "A preference loss takes a pair: logits and batch with the keys "
            f"'chosen' and 'rejected'; {side!r} is missing."
        )
    return sequence_log_probs(logits[side], batch[side].targets, batch[side].mask)


def log_ratio(logits: PairLogits, batch: Pair, side: str) -> Array:
    """Of the responses of one side, to their reference."""
    current = log_prob(logits, batch, side)
    if batch[side].reference is None:
        raise TypeError(
            f"batch[{side!r}] has no `reference` to compare with: let "
            "`ldjax.data.reference.add_reference` make it."
        )
    return current - batch[side].reference


def mean_log_probs(logits: PairLogits, batch: Pair) -> dict[str, Array]:
    """Of both responses per scored token; 0 where there is none."""
    sums = log_probs(logits, batch)
    return {side: per_token(sums[side], batch[side].mask.sum(-1)) for side in SIDES}


def per_token(total: Array, count: Array) -> Array:
    """A sum over tokens by their number; 0 where there is none."""
    return total / jnp.maximum(count, 1).astype(total.dtype)


def mean_likelihood(logits: PairLogits, batch: Pair, reduction: str) -> Array:
    """Log-prob of the chosen responses per token, each a mean or all of them one."""
    if reduction == "tokens":
        total = log_prob(logits, batch, "chosen").sum()
        return per_token(total, batch["chosen"].mask.sum())
    return mean_log_probs(logits, batch)["chosen"].mean()


def sigmoid(x: Array) -> Array:
    """The logistic function, with a gradient that keeps its digits next to 1."""
    return jnp.exp(jax.nn.log_sigmoid(x))


def require_positive(**values: float) -> None:
    """Refuses coefficients that are not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def require_not_negative(**values: float) -> None:
    """Refuses coefficients below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must not be negative, got {value}.")


def require_reduction(reduction: str, *known: str) -> None:
    """Refuses a reduction that a loss does not have."""
    if reduction not in known:
        names = " or ".join(map(repr, known))
        raise ValueError(f"`reduction` must be {names}, got {reduction!r}.")
