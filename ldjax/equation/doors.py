r"""What a compiled function is given, checked before it runs.

JAX has no error for an index out of range: a token id beyond the vocabulary embeds as
NaN, or as another token, and a target beyond it reads another label. So every function
that takes ids from outside asks here first. What a model can read is written in its
program: `Door` looks up which tables the ids of the tokens are looked up in, and how
many labels the logits have. Nothing is added to the program; what is traced is not
looked at.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ldjax.equation.sequences import (
    NO_TOKEN,
    check_range,
    check_sequences,
    is_here,
    is_sequences,
)
from ldjax.programs.lookups import find_lookups

__all__ = ["Door", "check_ids", "check_logits", "check_params", "was_donated"]


class Door:
    """An apply function that knows what it reads, for the doors of what it is part of.

    It is called like the function that it was made from, and then refuses what are no
    logits. `check` stands before a compiled function that calls it.

    Args:
      apply_fn: `(params, sequences) -> logits`.

    Attributes:
      limits: What `check` found last: `vocab_size` and `num_labels` of
        `ldjax.equation.sequences.check_sequences`, each None where it is not known.

    Examples:
      >>> from ldjax.equation.sequences import Sequences
      >>> apply_fn = Door(lambda table, batch: table[batch.tokens])
      >>> program = jax.jit(lambda table, batch: apply_fn(table, batch).sum())
      >>> ids, mask = jnp.array([[1, 4]]), jnp.ones((1, 2), bool)
      >>> batch = Sequences(ids, ids, mask)
      >>> apply_fn.check(program, params=jnp.zeros((4, 4)), update=batch)
      Traceback (most recent call last):
        ...
      ValueError: `update.tokens` is 4 at [0, 1], ...
    """

    def __init__(self, apply_fn: Callable[[Any, Any], Any]):
        self._apply_fn = apply_fn
        self._num_labels: int | None = None
        self.limits: dict[str, int | None] = {}
        self._limits: dict[Any, tuple[dict[str, int | None], list[str]]] = {}

    def __call__(self, params: Any, sequences: Any) -> Any:
        """The logits of the apply function, of the right shape and type."""
        logits = self._apply_fn(params, sequences)
        sides, treedef = jax.tree.flatten(sequences, is_leaf=is_sequences)
        if all(map(is_sequences, sides)):  # for several, as many logits
            of_sides = treedef.flatten_up_to(logits)
            for side, of_side in zip(sides, of_sides, strict=True):
                self._num_labels = check_logits(of_side, side).shape[-1]
        return logits

    def check(self, program: Any, **arguments: Any) -> None:
        """Refuse arguments from which a program would compute nonsense.

        Args:
          program: A function under `jax.jit` that calls this apply function. It is
            traced here, once for each shape, and not again when it is called.
          **arguments: Its positional arguments in order, by the names that messages
            give them.

        Raises:
          TypeError: If an array is of a type that nothing can be computed from.
          ValueError: If an array was donated, or shapes do not fit; if an id is not in
            a table that it is looked up in, or a target is no label.
        """
        leaves = jax.tree.leaves(arguments)
        if any(issubclass(kind, Tracer) for kind in set(map(type, leaves))):
            return
        if not all(map(_is_usable, leaves)):
            for name, argument in arguments.items():
                _refuse_unusable(argument, name)
        key = tuple([getattr(leaf, "shape", ()) for leaf in leaves])
        if key not in self._limits:
            self._limits[key] = self._found(program, arguments)
        self.limits, batches = self._limits[key]
        for name in batches:
            check_sequences(arguments[name], name=name, **self.limits)

    def _found(
        self, program: Any, arguments: dict[str, Any]
    ) -> tuple[dict[str, int | None], list[str]]:
        """The limits of a program for arguments of such shapes; which are batches."""
        batches = []
        for name, argument in arguments.items():
            nodes = jax.tree.leaves(argument, is_leaf=is_sequences)
            if any(map(is_sequences, nodes)):
                batches.append(name)
                check_sequences(argument, name=name)  # before a trace fails on it
        vocab_size = _vocab_size(program, arguments)
        return {"vocab_size": vocab_size, "num_labels": self._num_labels}, batches


def check_logits(logits: Any, sequences: Any) -> Any:
    """Refuse what an apply function returned, if log-probs cannot be read from it.

    Args:
      logits: What it returned.
      sequences: What it was given.

    Returns:
      The logits.

    Raises:
      TypeError: If they are no array, or narrower than float32.
      ValueError: If they are not `[batch, pos, vocab]` for targets `[batch, pos]`.

    Examples:
      >>> from ldjax.equation.sequences import Sequences
      >>> image = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> check_logits(jnp.zeros((1, 10)), image)
      Traceback (most recent call last):
        ...
      ValueError: `apply_fn` returned logits of shape (1, 10) for targets of ...
    """
    if not hasattr(logits, "dtype") or not hasattr(logits, "shape"):
        raise TypeError(
            "`apply_fn` must return logits, one array [batch, pos, vocab]; got "
            f"{type(logits).__name__}. Return its logits alone."
        )
    expected = sequences.targets.shape
    if logits.shape[:-1] != expected or sequences.mask.shape != expected:
        raise ValueError(
            f"`apply_fn` returned logits of shape {logits.shape} for targets of shape "
            f"{expected} and a mask of shape {sequences.mask.shape}; expected "
            "[batch, pos, vocab] for [batch, pos]. A classifier has one position: "
            "`logits[:, None, :]` and `labels[:, None]`."
        )
    is_float = jnp.issubdtype(logits.dtype, jnp.floating)
    if not is_float or jnp.finfo(logits.dtype).bits < 32:
        raise TypeError(
            f"`apply_fn` returned {logits.dtype} logits, too coarse for differences of "
            "log-probs: return `logits.astype(jnp.float32)`; the compute inside may "
            "stay narrower."
        )
    return logits


def check_params(params: Any, name: str = "params", *, like: Any = None) -> None:
    """Refuse parameters that nothing can be differentiated with respect to.

    Args:
      params: A pytree.
      name: What the message calls it.
      like: Parameters that it must equal in structure, shapes and types, as after an
        optimizer step.

    Raises:
      TypeError: If it holds no arrays, or others than of floats; names the first.
      ValueError: If one of them was donated, or if it is not like the other.

    Examples:
      >>> check_params({"kernel": jnp.zeros(2), "count": jnp.array(3)})
      Traceback (most recent call last):
        ...
      TypeError: `params['count']` is int..., which has no derivative: ...
    """
    if not jax.tree.leaves(params):
        raise TypeError(
            f"`{name}` must hold at least one array of floats, got {_words(params)}."
        )
    _refuse_unusable(params, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` is {dtype}, which has no "
                "derivative: `params` are arrays of floats. Close over the others, or "
                "leave them out (`flax.nnx.split(model, nnx.Param, ...)`)."
            )
    if like is not None:
        _check_like(params, like, name)


def check_ids(
    ids: Any, size: int, name: str, *, where: Any = None, hint: str = NO_TOKEN
) -> None:
    """Refuse ids that are not rows of a table; what is traced is not looked at.

    Args:
      ids: Integers of any shape.
      size: Rows of the table.
      name: What the message calls them.
      where: True where ids count, shaped like them; by default everywhere.
      hint: What is wrong with such an id.

    Raises:
      TypeError: If they are no integers.
      ValueError: If one is not in the table; names the first place.

    Examples:
      >>> check_ids(np.array([[3, 7]]), 7, "tokens")
      Traceback (most recent call last):
        ...
      ValueError: `tokens` is 7 at [0, 1], ...
    """
    if not jnp.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"`{name}` must be integers, got {ids.dtype}.")
    if is_here(ids) and (where is None or is_here(where)):
        ids = np.asarray(ids)
        ids = ids if where is None else np.where(np.asarray(where), ids, 0)
        check_range(ids, f"`{name}`", size, hint)


def was_donated(tree: Any) -> bool:
    """Whether the memory of an array was given to a compiled function.

    Examples:
      >>> was_donated({"kernel": jnp.zeros(2)})
      False
    """
    return any(
        isinstance(leaf, jax.Array) and leaf.is_deleted()
        for leaf in jax.tree.leaves(tree)
    )


def _refuse_unusable(tree: Any, name: str) -> None:
    """Refuse leaves that are no numbers, and arrays that are no more."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if _is_usable(leaf):
            continue
        where = f"`{name}{jax.tree_util.keystr(path)}`"
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{where} must be an array of numbers, got {_words(leaf)}.")
        raise ValueError(
            f"{where} was donated to a compiled function (`donate_argnums`), which "
            "took its memory. Pass a copy (`jax.tree.map(jnp.copy, ...)`), or do not "
            "donate it."
        )


def _is_usable(leaf: Any) -> bool:
    kind = _kind(type(leaf))
    if kind == "array":
        return not leaf.is_deleted()
    return kind == "number" or (kind == "numpy" and leaf.dtype.kind not in "OSUMm")


@functools.cache  # asked of every array at every call
def _kind(of: type) -> str:
    if issubclass(of, Tracer):
        return "number"
    kinds = {
        "array": jax.Array,
        "numpy": (np.ndarray, np.generic),
        "number": (int, float, complex),
    }
    return next((name for name, types in kinds.items() if issubclass(of, types)), "")


def _check_like(tree: Any, other: Any, name: str) -> None:
    """Refuse parameters of another structure, other shapes or types."""
    if _same(tree, other):
        return
    kinds = [
        {
            jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{jnp.shape(leaf)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(each)
        }
        for each in (tree, other)
    ]
    for path in {**kinds[0], **kinds[1]}:
        found, expected = (of.get(path, "nothing") for of in kinds)
        if found != expected:
            raise ValueError(
                f"`{name}{path}` is {found}, but before the update it was {expected}: "
                "pass the parameters before and after one step."
            )


def _same(tree: Any, other: Any) -> bool:
    leaves = jax.tree.leaves(tree), jax.tree.leaves(other)
    kinds = ([(jnp.shape(x), jnp.result_type(x)) for x in each] for each in leaves)
    return jax.tree.structure(tree) == jax.tree.structure(other) and (
        next(kinds) == next(kinds)
    )


def _words(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


def _vocab_size(program: Any, arguments: dict[str, Any]) -> int | None:
    """Rows of the smallest table that a program looks token ids up in, if it does."""

    def marks(node: Any) -> Any:
        if not is_sequences(node):
            return False
        shape, dtype = jnp.shape(node.tokens), jnp.result_type(node.tokens)
        is_text = len(shape) == 2 and jnp.issubdtype(dtype, np.integer)
        return jax.tree.map(lambda _: False, node)._replace(tokens=is_text)

    values = tuple(arguments.values())
    is_ids = jax.tree.leaves(jax.tree.map(marks, values, is_leaf=is_sequences))
    lookups = find_lookups(program.trace(*values).jaxpr.jaxpr, is_ids)
    lengths = {
        jnp.shape(leaf)[1]
        for leaf, is_text in zip(jax.tree.leaves(values), is_ids, strict=True)
        if is_text
    }
    for length, size in lookups.positions:
        if length in lengths and length > size:
            raise ValueError(
                f"The tokens have {length} positions, padding included, but the model "
                f"learned {size}. Truncate them, or pad them to less (`max_length` of "
                "`to_sequences`)."
            )
    return min(lookups.vocab_sizes, default=None)
