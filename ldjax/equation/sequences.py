"""What a model reads and what is scored of it: one record, and batches with sides.

All of ldjax passes texts and images as `Sequences`. What is trained on may have sides,
such as the two responses of a preference pair: then it is a dict, or another pytree, of
`Sequences`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "ApplyFn",
    "Batch",
    "LogitsFn",
    "LossFn",
    "Params",
    "Prompts",
    "Sequences",
    "check_sequences",
    "in_chunks",
    "is_sequences",
    "like",
    "sides_of",
]


class Prompts(NamedTuple):
    """Beginnings of texts, each of which several rows go on from.

    Rows are in equal shares: of `n` rows and `g` prompts, row `i` goes on from prompt
    `i * g // n`.

    Attributes:
      tokens: Token ids, `[prompt, slot]`, without the last one, which its rows begin
        with.
      mask: Which of them are real, `[prompt, slot]`, booleans; padding may stand
        anywhere.

    Examples:
      >>> begun = Prompts(jnp.array([[5, 3]]), jnp.ones((1, 2), bool))
      >>> rows = Sequences(*jnp.zeros((3, 4, 1), int), prompts=begun)
      >>> rows.rows_per_prompt
      4
    """

    tokens: Int[Array, "prompt slot"]
    mask: Bool[Array, "prompt slot"]


class Sequences(NamedTuple):
    """Examples as a model reads them and as a loss or a probe scores them.

    A batch of language is `tokens[B, T]` with `targets[B, T]`, the token that
    position `t` has to predict (`tokens` shifted by one), and `mask[B, T]`, true
    where a response token is scored. An image is one position: `tokens` is the
    image, `targets[B, 1]` its label, `mask[B, 1]` all true. A row whose mask is all
    false is an empty response, of log-prob 0 and without a gradient; it fills up a
    batch, and every mean over the batch counts it.

    Some losses compare with numbers that were computed before; these lie with the
    examples and are None elsewhere. Models and probes do not see them.

    Attributes:
      tokens: Model input, `[batch, ...]`: token ids (integers) or images (floats).
      targets: Label of each position, `[batch, pos]`, integers; where the mask is
        false any number may stand (such as -100), elsewhere only a label.
      mask: Which positions are scored, `[batch, pos]`, booleans.
      reference: Log-prob of each sequence under a reference policy, `[batch]`, in nats,
        for the likes of `ldjax.losses.dpo`; `ldjax.data.reference.add_reference` makes
        it.
      advantages: How good each token was, `[batch, pos]`, for policy gradients
        (`ldjax.losses.grpo`); positive means "make it likelier".
      old_log_probs: Log-prob of each token under the policy that drew it, `[batch,
        pos]`, in nats, for policy gradients.
      prompts: What the rows go on from, where several have one prompt, which is then
        read once (`ldjax.watch.sharing`); None where each row is a whole text.

    Examples:
      >>> answer = Sequences(
      ...     tokens=jnp.array([[5, 3, 7]]),
      ...     targets=jnp.array([[3, 7, 0]]),
      ...     mask=jnp.array([[False, True, True]]),  # the prompt is not scored
      ... )
      >>> answer.mask.sum()
      Array(2, dtype=...)
      >>> answer._replace(reference=jnp.array([-4.2])).plain == answer
      True
    """

    tokens: Array
    targets: Int[Array, "*batch pos"]
    mask: Bool[Array, "*batch pos"]
    reference: Float[Array, "*batch"] | None = None
    advantages: Float[Array, "*batch pos"] | None = None
    old_log_probs: Float[Array, "*batch pos"] | None = None
    # `Prompts | None`; arrays are unpacked into a `Sequences`, which checkers of types
    # then take for its fields.
    prompts: Any = None

    @property
    def plain(self) -> "Sequences":
        """What models and probes see: tokens, targets and mask, and the prompts."""
        return Sequences(self.tokens, self.targets, self.mask, prompts=self.prompts)

    @property
    def rows_per_prompt(self) -> int:
        """Rows that go on from one prompt; 1 where each is a whole text."""
        if self.prompts is None:
            return 1
        return self.targets.shape[0] // self.prompts.tokens.shape[0]


Params = Any
# A `Sequences`, or a pytree of them such as {"chosen": ..., "rejected": ...}.
Batch = Any
LogitsFn = Callable[[Params], Any]
ApplyFn = Callable[[Params, Sequences], Array]
LossFn = Callable[[Any, Batch], Float[Array, ""]]


def is_sequences(node: Any) -> bool:
    """Where `jax.tree` functions stop in a batch.

    Args:
      node: A node of the tree.

    Returns:
      Whether it is a `Sequences`.

    Examples:
      >>> pair = {"chosen": Sequences(*jnp.zeros((3, 1, 1)))}
      >>> jax.tree.map(lambda side: side.tokens.shape, pair, is_leaf=is_sequences)
      {'chosen': (1, 1)}
    """
    return isinstance(node, Sequences)


def sides_of(batch: Batch) -> dict[str, Sequences]:
    """The sides of a batch by name, as models and probes see them.

    Args:
      batch: `Sequences`, or a pytree of them.

    Returns:
      The plain `Sequences`, in the order of `jax.tree.leaves`; what is no pytree of
      them has one side, `"update"`.

    Raises:
      TypeError: If the batch holds anything else.

    Examples:
      >>> answer = Sequences(*jnp.zeros((3, 1, 1)))
      >>> [*sides_of({"rejected": answer, "chosen": answer})], [*sides_of(answer)]
      (['chosen', 'rejected'], ['update'])
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch, is_leaf=is_sequences)
    for _, leaf in leaves:
        if not is_sequences(leaf):
            raise TypeError(
                "A batch is a `Sequences(tokens, targets, mask)` or a pytree of them, "
                "such as a dict with the keys 'chosen' and 'rejected'; got "
                f"{type(leaf).__name__}."
            )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "update": leaf.plain
        for path, leaf in leaves
    }


def like(batch: Batch, values: Iterable[Any]) -> Any:
    """One value for each side, in the structure of the batch.

    Args:
      batch: `Sequences`, or a pytree of them.
      values: In the order of `sides_of`.

    Examples:
      >>> answer = Sequences(*jnp.zeros((3, 1, 1)))
      >>> like({"chosen": answer, "rejected": answer}, [1, 2])
      {'chosen': 1, 'rejected': 2}
    """
    return jax.tree.structure(batch, is_leaf=is_sequences).unflatten(values)


def in_chunks(
    fn: Callable[[Sequences], Any], sequences: Sequences, size: int | None
) -> Any:
    """A function of slices of a batch, one at a time.

    Args:
      fn: Of any number of rows, from which arrays with as many first entries.
      sequences: All rows.
      size: Rows of a slice, or as many fewer as keep those of a prompt together; None
        for all at once.

    Returns:
      What it returns for all of them.

    Examples:
      >>> rows = Sequences(jnp.arange(5.0), *jnp.zeros((2, 5, 1), bool))
      >>> in_chunks(lambda some: 2 * some.tokens, rows, 2)
      Array([0., 2., 4., 6., 8.], dtype=...)
    """
    total = sequences.targets.shape[0]
    if size is None or total <= size:
        return fn(sequences)
    together = sequences.rows_per_prompt
    size = max(size // together, 1) * together
    # The last chunk overlaps the one before, so that all have one shape and the
    # examples are neither padded nor copied.
    starts = jnp.minimum(jnp.arange(0, total, size), total - size)

    def of_slice(start: Array) -> Any:
        def part(leaf: Array) -> Array:
            each = total // leaf.shape[0]  # rows for each entry: of prompts several
            return jax.lax.dynamic_slice_in_dim(leaf, start // each, size // each)

        return fn(jax.tree.map(part, sequences))

    fresh = total - (len(starts) - 1) * size  # rows of the last chunk not seen yet

    def join(chunks: Array) -> Array:
        before = chunks[:-1].reshape(-1, *chunks.shape[2:])
        return jnp.concatenate([before, chunks[-1, size - fresh :]])

    return jax.tree.map(join, jax.lax.map(of_slice, starts))


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
_REQUIRED = ("tokens", "targets", "mask")

# What is wrong with an id outside of the vocabulary, for `check_range`.
NO_TOKEN = (
    "which is no token id. It may be another tokenizer's, or padding, for which 0 "
    "will do"
)


def _check_static(sequences: Any, name: str) -> None:
    """Types and shapes; of what is traced `vmap` may have taken an axis."""
    if any(isinstance(leaf, Tracer) for leaf in sequences):
        return
    fields = sequences._asdict()
    if (prompts := fields.pop("prompts")) is not None:
        _check_prompts(prompts, len(sequences.mask), f"{name}.prompts")
    fields = {k: v for k, v in fields.items() if k in _REQUIRED or v is not None}
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


def _check_prompts(prompts: Any, rows: int, name: str) -> None:
    if not isinstance(prompts, Prompts):
        raise TypeError(f"`{name}` must be `Prompts`, got {type(prompts).__name__}.")
    tokens, mask = prompts
    if not jnp.issubdtype(tokens.dtype, np.integer) or mask.dtype != bool:
        raise TypeError(
            f"`{name}` must be token ids (integers) and booleans, got {tokens.dtype} "
            f"and {mask.dtype}."
        )
    if tokens.ndim != 2 or tokens.shape != mask.shape or rows % len(tokens):
        raise ValueError(
            f"`{name}` must be [prompt, slot], both, of as many prompts as the {rows} "
            f"rows can be divided by; got {tokens.shape} and {mask.shape}."
        )


def _check_values(
    sequences: Any, name: str, vocab_size: int | None, num_labels: int | None
) -> None:
    """Ranges of ids and targets, where the numbers can be seen."""
    tokens, targets, mask, *_, prompts = sequences
    if not all(map(is_here, (tokens, targets, mask))):
        return
    if prompts is not None and all(map(is_here, prompts)):
        begun = np.where(np.asarray(prompts.mask), np.asarray(prompts.tokens), 0)
        check_range(begun, f"`{name}.prompts.tokens`", vocab_size, NO_TOKEN)
    if jnp.issubdtype(tokens.dtype, np.integer):
        check_range(np.asarray(tokens), f"`{name}.tokens`", vocab_size, NO_TOKEN)
    require_labels(targets, mask, num_labels, name=f"{name}.targets")


def require_labels(
    targets: Any, mask: Any, num_labels: int | None, *, name: str = "targets"
) -> None:
    """Refuses targets that are no labels where they are scored."""
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
