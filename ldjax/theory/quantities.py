"""What is measured on a watched response: at each of its tokens, and of the whole.

The definitions follow section 9 of the paper where its code is sound, and repair it
where it is not: the complement of the greedy token is finite also where that token's
probability rounds to one, masked positions are left out before any logarithm, and norms
over a sequence are root mean squares over its tokens, so that they are Frobenius norms
(there the square of a mean).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldjax.equation.log_probs import token_log_probs

__all__ = ["TokenQuantities", "sequence_quantities", "token_quantities"]


class TokenQuantities(NamedTuple):
    r"""What is measured at each token of a response; zero where masked.

    With :math:`\pi` the predictive distribution at the token's position.

    Attributes:
      log_prob: :math:`\log \pi(y)` of the response's own token, in nats.
      argmax_log_prob: :math:`\log \max_v \pi(v)`: of the token greedy decoding would
        take after this prefix, the paper's `y*`, in nats.
      argmax_complement: :math:`\log(1 - \max_v \pi(v))`, in nats; from the logits of
        the other tokens, so that it is finite.
      adaptation_square: :math:`\|A\|_F^2 = V - 2 + V \|\pi\|_2^2`.
      prob_norm: :math:`\|\pi\|_2`.
      residual_square: :math:`\|\pi - e_y\|_2^2`.
      energy: :math:`1 - \pi(y)`.
      entropy: :math:`-\sum_v \pi(v) \log \pi(v)`, in nats.

    References:
      Ren & Sutherland 2025, appendix C, equations 27 to 31 for the norm of `A`.

    Examples:
      >>> one = jnp.ones((1, 1), int)
      >>> token_quantities(jnp.zeros((1, 1, 4)), one, one > 0).argmax_complement
      Array([[-0.287...]], dtype=...)
    """

    log_prob: Float[Array, "*batch pos"]
    argmax_log_prob: Float[Array, "*batch pos"]
    argmax_complement: Float[Array, "*batch pos"]
    adaptation_square: Float[Array, "*batch pos"]
    prob_norm: Float[Array, "*batch pos"]
    residual_square: Float[Array, "*batch pos"]
    energy: Float[Array, "*batch pos"]
    entropy: Float[Array, "*batch pos"]


def token_quantities(
    logits: Float[Array, "*batch pos vocab"],
    targets: Int[Array, "*batch pos"],
    mask: Bool[Array, "*batch pos"],
) -> TokenQuantities:
    """Everything that is measured at each token.

    Args:
      logits: Unnormalised log-probabilities, in nats; at least two tokens.
      targets: The response's token at each position.
      mask: True where a position is scored.

    Returns:
      Arrays like `targets`.

    Examples:
      >>> one = jnp.ones((1, 1), int)
      >>> certain = jnp.array([[[0.0, 200.0, 0.0]]])
      >>> found = token_quantities(certain, one, one > 0)
      >>> found.argmax_log_prob, found.argmax_complement.round(2)
      (Array([[0.]], dtype=...), Array([[-199.31]], dtype=...))
    """
    vocab_size = logits.shape[-1]
    logits = jnp.where(mask[..., None], logits, 0)
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    log_prob = token_log_probs(logits, targets, mask)
    is_top = jax.nn.one_hot(logits.argmax(axis=-1), vocab_size, dtype=bool)
    others = jnp.where(is_top, -jnp.inf, log_probs)
    square = (probs**2).sum(axis=-1)
    # Sums over the other labels: near certainty `1 - pi(y)` is a difference of ones.
    is_target = jax.nn.one_hot(targets, vocab_size, dtype=bool)
    other_probs = jnp.where(is_target, 0, probs)
    energy = other_probs.sum(axis=-1)
    entropy = -(probs * jnp.where(probs > 0, log_probs, 0)).sum(axis=-1)
    quantities = TokenQuantities(
        log_prob=log_prob,
        argmax_log_prob=log_probs.max(axis=-1),
        argmax_complement=jax.nn.logsumexp(others, axis=-1),
        adaptation_square=vocab_size - 2 + vocab_size * square,
        prob_norm=jnp.sqrt(square),
        residual_square=(other_probs**2).sum(axis=-1) + energy**2,
        energy=energy,
        entropy=entropy,
    )
    return jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), quantities)


def sequence_quantities(
    tokens: TokenQuantities, mask: Bool[Array, "batch pos"], *, vocab_size: int
) -> dict[str, Float[Array, " batch"]]:
    r"""The same for whole responses: sums of log-probs, means of the others.

    Args:
      tokens: From `token_quantities`.
      mask: True where a position is scored.
      vocab_size: Number of tokens of the vocabulary.

    Returns:
      By name, one number per response:

      * `log_prob`, `argmax_log_prob`, `argmax_complement`: sums over its tokens, nats;
      * `adaptation_norm`: root mean square over tokens of :math:`\|A\|_F`;
      * `adaptation_norm_published`: :math:`\sqrt{V \bar{n}^2 + V - 2}` with
        :math:`\bar n` the mean of :math:`\|\pi\|_2`, as in the published curves;
      * `residual_norm`: root mean square over tokens of :math:`\|\pi - e_y\|_2`;
      * `energy`, `entropy`: means over tokens;
      * `squeezing_threshold`: mean over tokens of :math:`\|\pi\|_2^2 - \pi(y)`. A small
        step down on `y` alone, with a kernel that is a multiple of the identity, raises
        exactly the labels whose probability is above it.

    Examples:
      >>> mask = jnp.ones((1, 2), bool)
      >>> tokens = token_quantities(jnp.zeros((1, 2, 4)), mask.astype(int), mask)
      >>> sequence_quantities(tokens, mask, vocab_size=4)["log_prob"]
      Array([-2.772...], dtype=...)
    """
    count = jnp.maximum(mask.sum(axis=-1), 1)  # a row that fills up a batch has none

    def mean(values: Array) -> Array:
        return values.sum(axis=-1) / count

    # |p|^2 - p_y; of a likely token from the other labels, not a difference of ones.
    is_likely = tokens.energy < 0.5
    from_others = tokens.residual_square - tokens.energy
    from_own = tokens.prob_norm**2 - jnp.exp(tokens.log_prob)
    thresholds = jnp.where(is_likely, from_others, from_own)
    return {
        "log_prob": tokens.log_prob.sum(axis=-1),
        "argmax_log_prob": tokens.argmax_log_prob.sum(axis=-1),
        "argmax_complement": tokens.argmax_complement.sum(axis=-1),
        "adaptation_norm": jnp.sqrt(mean(tokens.adaptation_square)),
        "adaptation_norm_published": jnp.sqrt(
            vocab_size * mean(tokens.prob_norm) ** 2 + vocab_size - 2
        ),
        "residual_norm": jnp.sqrt(mean(tokens.residual_square)),
        "energy": mean(tokens.energy),
        "entropy": mean(tokens.entropy),
        "squeezing_threshold": mean(jnp.where(mask, thresholds, 0)),
    }
