"""What is scored: sequences with targets and masks, and their log-probabilities.

All log-probabilities are in nats. A masked position (a prompt token, padding)
contributes exactly zero, whatever its target and its logits are. So a row without any
scored token is an empty response: its log-prob is 0 (it is certain), by the sum and by
the mean over its tokens, it has no gradient, and a mean over the batch counts it as a
row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "AdvantagedSequences",
    "ReferencedSequences",
    "Sequences",
    "adaptation_matrix",
    "check_sequences",
    "is_sequences",
    "log_softmax",
    "sequence_log_probs",
    "token_log_odds",
    "token_log_probs",
]


class Sequences(NamedTuple):
    """Examples as a model reads them and as a loss or a probe scores them.

    A batch of language is `tokens[B, T]` with `targets[B, T]`, the token that
    position `t` has to predict (`tokens` shifted by one), and `mask[B, T]`, true
    where a response token is scored. An image is one position: `tokens` is the
    image, `targets[B, 1]` its label, `mask[B, 1]` all true. A row whose mask is all
    false is an empty response, of log-prob 0 and without a gradient; it fills up a
    batch, and every mean over the batch counts it.

    Attributes:
      tokens: Model input, `[batch, ...]`: token ids (integers) or images (floats).
      targets: Label of each position, `[batch, pos]`, integers; where the mask is
        false any number may stand (such as -100), elsewhere only a label.
      mask: Which positions are scored, `[batch, pos]`, booleans.

    Examples:
      >>> Sequences(
      ...     tokens=jnp.array([[5, 3, 7]]),
      ...     targets=jnp.array([[3, 7, 0]]),
      ...     mask=jnp.array([[False, True, True]]),  # the prompt is not scored
      ... ).mask.sum()
      Array(2, dtype=...)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]


class ReferencedSequences(NamedTuple):
    """`Sequences` with what a reference policy thinks of them.

    What the losses that compare with a reference (`ldjax.losses.dpo`) train on; models
    and probes see the first three fields only. `ldjax.data.reference.add_reference`
    fills it in.

    Attributes:
      tokens: As in `Sequences`.
      targets: As in `Sequences`.
      mask: As in `Sequences`.
      reference: Log-prob of each sequence under the reference, `[batch]`, in nats.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 3), int), jnp.ones((1, 3), bool))
      >>> ReferencedSequences(*answer, reference=jnp.array([-4.2])).reference
      Array([-4.2], dtype=...)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]
    reference: Float[Array, "*batch"]


class AdvantagedSequences(NamedTuple):
    """`Sequences` with how good each token was, and how likely when it was drawn.

    What the losses of policy gradients (`ldjax.losses.grpo`) train on; models and
    probes see the first three fields only.

    Attributes:
      tokens: As in `Sequences`.
      targets: As in `Sequences`.
      mask: As in `Sequences`.
      advantages: Of each token, `[batch, pos]`; positive means "make it likelier".
      old_log_probs: Log-prob of each token under the policy that drew it, `[batch,
        pos]`, in nats.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 3), int), jnp.ones((1, 3), bool))
      >>> drawn = AdvantagedSequences(*answer, *jnp.ones((2, 1, 3)))
      >>> drawn.advantages.shape
      (1, 3)
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]
    advantages: Float[Array, "*batch pos"]
    old_log_probs: Float[Array, "*batch pos"]


def is_sequences(node: Any) -> bool:
    """Where `jax.tree` functions stop in a pytree of `Sequences`.

    Args:
      node: A node of the tree.

    Returns:
      Whether it is a `Sequences`, or one with more fields.

    Examples:
      >>> pair = {"chosen": Sequences(*jnp.zeros((3, 1, 1)))}
      >>> jax.tree.map(lambda side: side.tokens.shape, pair, is_leaf=is_sequences)
      {'chosen': (1, 1)}
    """
    return isinstance(node, Sequences | ReferencedSequences | AdvantagedSequences)


def check_sequences(
    sequences: Any,
    *,
    vocab_size: int | None = None,
    num_labels: int | None = None,
    name: str = "sequences",
) -> None:
    """Refuses what would be scored wrongly without a word: ids, labels, types, shapes.

    JAX has no errors for an index out of range: a label of -100 under a true mask would
    read the hundredth logit from the end, an id beyond a table NaN. Values are read on
    the host, so this stands before a compiled function; what is traced or lies on
    other hosts is taken as it is.

    Args:
      sequences: `Sequences`, or a pytree of them such as a pair; other leaves are not
        looked at.
      vocab_size: Token ids must be below it; by default only negative ones are refused.
      num_labels: Targets must be below it where the mask is true; `vocab_size` by
        default. It is another number for a classifier of texts.
      name: What the messages call them.

    Raises:
      TypeError: If a field is not an array, or if it has another type than integers
        (`targets`), booleans (`mask`), integers or floats (`tokens`), floats
        (`reference`, `advantages`, `old_log_probs`).
      ValueError: If shapes do not fit (`[batch, pos]` for targets and mask; the same
        for token ids, unless one label stands for all of them), or if an id or a
        target is out of its range. The message names the first position.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 3), int), jnp.ones((1, 3), bool))
      >>> check_sequences(answer, vocab_size=4)
      >>> check_sequences({"chosen": answer._replace(targets=answer.targets - 100)})
      Traceback (most recent call last):
        ...
      ValueError: `sequences['chosen'].targets` is -100 at [0, 0], where ...
    """
    num_labels = vocab_size if num_labels is None else num_labels
    leaves = jax.tree_util.tree_leaves_with_path(sequences, is_leaf=is_sequences)
    for path, leaf in leaves:
        if is_sequences(leaf):
            where = name + jax.tree_util.keystr(path)
            _check_static(leaf, where)
            _check_values(leaf, where, vocab_size, num_labels)


# What each field holds: NumPy's kinds of numbers, in words, and its axes.
_FIELDS = {
    "tokens": ((np.integer, np.floating), "token ids (integers) or images (floats)", 0),
    "targets": ((np.integer,), "integers", 2),
    "mask": ((np.bool_,), "booleans", 2),
    "reference": ((np.floating,), "floats", 1),
    "advantages": ((np.floating,), "floats", 2),
    "old_log_probs": ((np.floating,), "floats", 2),
}


# What is wrong with an id outside of the vocabulary, for `check_range`.
NO_TOKEN = (
    "which is no token id. It may be another tokenizer's, or padding, for which 0 "
    "will do"
)


def _check_static(sequences: Any, name: str) -> None:
    """Types and shapes; of what is traced `vmap` may have taken an axis."""
    fields = sequences._asdict()
    if any(isinstance(leaf, Tracer) for leaf in fields.values()):
        return
    for field, array in fields.items():
        kinds, words, _ = _FIELDS[field]
        if not hasattr(array, "dtype"):
            raise TypeError(
                f"`{name}.{field}` must be an array, got {type(array).__name__}."
            )
        if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
            raise TypeError(f"`{name}.{field}` must be {words}, got {array.dtype}.")
    shape = sequences.mask.shape
    if len(shape) != 2:
        raise ValueError(
            f"`{name}.mask` must be [batch, pos], got the shape {shape}; one sequence "
            "is a batch of one."
        )
    for field, array in fields.items():
        if (axes := _FIELDS[field][2]) and array.shape != shape[:axes]:
            raise ValueError(
                f"`{name}.{field}` must have the shape {shape[:axes]} to go with a "
                f"mask of {shape}, got {array.shape}."
            )
    tokens = sequences.tokens
    if tokens.shape[:1] != shape[:1]:
        raise ValueError(
            f"`{name}.tokens` must have {shape[0]} rows as the mask has, got the shape "
            f"{tokens.shape}."
        )
    is_text = jnp.issubdtype(tokens.dtype, np.integer) and len(tokens.shape) == 2
    if is_text and shape[1] not in (1, tokens.shape[1]):
        raise ValueError(
            f"`{name}.tokens` have the shape {tokens.shape} and the targets {shape}: "
            "each position has one target, the token after it; mask those that have "
            "none."
        )


def _check_values(
    sequences: Any, name: str, vocab_size: int | None, num_labels: int | None
) -> None:
    """Ranges of ids and targets, where the numbers can be seen."""
    if not all(map(is_here, sequences[:3])):
        return
    tokens, targets, mask = sequences[:3]
    if jnp.issubdtype(tokens.dtype, np.integer):
        check_range(np.asarray(tokens), f"`{name}.tokens`", vocab_size, NO_TOKEN)
    _require_labels(targets, mask, num_labels, name=f"{name}.targets")


def _require_labels(
    targets: Any, mask: Any, num_labels: int | None, *, name: str = "targets"
) -> None:
    if is_here(targets) and is_here(mask):
        scored = np.where(np.asarray(mask), np.asarray(targets), 0)
        hint = "where the mask is true; set the mask to false where nothing is scored"
        check_range(scored, f"`{name}`", num_labels, hint)


def check_range(values: np.ndarray, name: str, size: int | None, hint: str) -> None:
    """Refuses numbers outside of [0, size); names the first place."""
    wrong = values < 0 if size is None else (values < 0) | (values >= size)
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        allowed = "at least 0" if size is None else f"in [0, {size})"
        raise ValueError(
            f"{name} is {values[first]} at {list(first)}, {hint}. It must be {allowed}."
        )


def is_here(array: Any) -> bool:
    """Whether the numbers can be read on this host."""
    if isinstance(array, jax.Array):
        return not isinstance(array, Tracer) and array.is_fully_addressable
    return isinstance(array, np.ndarray)


def log_softmax(logits: Any) -> Any:
    r"""Leaf-wise log-softmax over the last axis, `log pi` of the paper.

    .. math:: \log \pi_v = z_v - \log \sum_w e^{z_w}

    It knows no mask: what is computed at a position that is not scored is for the
    caller to leave out. One number next to 0 is off by the rounding of one, which
    `token_log_probs` is not.

    Args:
      logits: Pytree of `[..., vocab]` arrays, in nats.

    Returns:
      A pytree of the same structure and shapes.

    Examples:
      >>> log_softmax({"chosen": jnp.zeros(2)})
      {'chosen': Array([-0.693..., -0.693...], dtype=...)}
    """
    return jax.tree.map(jax.nn.log_softmax, logits)


def adaptation_matrix(
    logits: Float[Array, "*pos vocab"],
) -> Float[Array, "*pos vocab vocab"]:
    r"""Jacobian of log-softmax, the `A` of `A K G`, written out.

    .. math:: A(z) = \nabla_z \log \mathrm{softmax}(z) = I - \mathbf{1}\,\pi^\top

    Rows sum to zero: a constant added to all logits changes nothing. `A` is not
    symmetric. This is the closed form; the lazy `jacobian(log_softmax, logits)`
    is the same map and never stores it.

    Args:
      logits: Unnormalised log-probabilities, in nats.

    Returns:
      `[..., v, w]` is the derivative of log-prob `v` by logit `w`. Memory is
      `O(pos * vocab**2)`.

    References:
      Ren & Sutherland, `Learning Dynamics of LLM Finetuning
      <https://arxiv.org/abs/2407.10490>`_, 2025, Proposition 1.

    Examples:
      >>> adaptation_matrix(jnp.zeros(2))
      Array([[ 0.5, -0.5],
             [-0.5,  0.5]], dtype=...)
    """
    probs = jax.nn.softmax(logits)[..., None, :]
    identity = jnp.eye(logits.shape[-1], dtype=probs.dtype)
    return jnp.expand_dims(identity, range(probs.ndim - 2)) - probs


def token_log_odds(
    logits: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    r"""Log-odds of each position's target, from the other logits.

    .. math:: o = \log \frac{\pi_y}{1 - \pi_y} = z_y - \log \sum_{v \ne y} e^{z_v},
              \qquad \log \pi_y = \log \sigma(o), \quad
              \log (1 - \pi_y) = \log \sigma(-o)

    A log-prob next to 0 is a difference of numbers next to each other, and what is left
    of `1 - p` after rounding is noise, or 0 from a lead of 17 nats in float32 (37 in
    float64). The log-odds keep every digit, and so do their gradients.

    Args:
      logits: As in `token_log_probs`.
      targets: As in `token_log_probs`.
      mask: As in `token_log_probs`.

    Returns:
      One number (in nats) per position: 0 where it is masked, infinite where the target
      has no rival.

    Raises:
      ValueError: As in `token_log_probs`.

    Examples:
      A lead of 20 nats over 49 others; `1 - p` is 49 parts in 485 million:

      >>> lead = jnp.zeros((1, 50)).at[0, 7].set(20.0)
      >>> token_log_odds(lead, jnp.array([7]), jnp.array([True])).round(2)
      Array([16.11], dtype=...)
    """
    _require_labels(targets, mask, logits.shape[-1])
    # Masked logits are replaced first: a NaN there would otherwise come back through
    # the gradient, multiplied by zero.
    is_half = jnp.finfo(logits.dtype).bits < 32
    wide = jnp.float32 if is_half else logits.dtype
    logits = jnp.where(mask[..., None], logits, 0).astype(wide)
    targets = jnp.where(mask, targets, 0)
    is_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    others = jnp.where(is_target, -jnp.inf, logits)
    # Shifted by the largest of them, which changes nothing but the rounding.
    top = jax.lax.stop_gradient(others.max(axis=-1))
    has_none = top == -jnp.inf
    shift = jnp.where(has_none, 0, top)
    total = jnp.exp(others - shift[..., None]).sum(axis=-1)
    own = jnp.where(is_target, logits, 0).sum(axis=-1)
    log_odds = own - shift - jnp.log(jnp.where(has_none, 1, total))
    log_odds = jnp.where(has_none, jnp.inf, log_odds)
    # A label that is none makes the value and its gradient NaN, not those of another.
    is_label = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(mask, log_odds * jnp.where(is_label, 1, jnp.nan).astype(wide), 0)


def token_log_probs(
    logits: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    r"""Log-probability of each position's target, zero where it is masked.

    .. math:: \ell_m = \mathrm{mask}_m \, \log \pi(y_m \mid \chi)_m

    By way of `token_log_odds`, so that value and gradient keep their digits where the
    target is next to certain.

    Args:
      logits: Unnormalised log-probabilities, in nats. Those in half precision are taken
        to float32, and so is the result.
      targets: The label of each position. Where the mask is false any value may
        stand (for example -100).
      mask: True where a position is scored.

    Returns:
      One log-probability (at most 0, in nats) per position.

    Raises:
      ValueError: If a target under a true mask is no label. Where targets are traced
        there is no error: the position's log-prob and gradient are NaN.

    Examples:
      >>> token_log_probs(
      ...     jnp.zeros((2, 4)), jnp.array([1, -100]), jnp.array([True, False])
      ... )
      Array([-1.386...,  0.        ], dtype=...)
    """
    log_odds = token_log_odds(logits, targets, mask)
    return jnp.where(mask, jax.nn.log_sigmoid(log_odds), 0)


def sequence_log_probs(
    logits: Float[Array, "*batch pos vocab"],
    targets: Int[Array, "*batch pos"],
    mask: Bool[Array, "*batch pos"],
) -> Float[Array, "*batch"]:
    r"""Log-probability of each response: the *sum* over its scored tokens.

    .. math:: \log \pi(y \mid x) = \sum_m \mathrm{mask}_m \, \log \pi(y_m \mid \chi)_m

    Args:
      logits: Unnormalised log-probabilities, in nats.
      targets: The label of each position.
      mask: True where a position is scored; its sum is the number of tokens, for
        whoever wants a mean.

    Returns:
      One log-probability per sequence, in nats.

    References:
      Ren & Sutherland 2025, equation 4 (there with a minus sign, as a loss).

    Examples:
      >>> sequence_log_probs(
      ...     jnp.zeros((2, 4)), jnp.array([1, 2]), jnp.array([True, True])
      ... )
      Array(-2.772..., dtype=...)
    """
    return token_log_probs(logits, targets, mask).sum(axis=-1)
