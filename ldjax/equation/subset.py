r"""Some of the parameters, and the others: what is trained, and what stays.

A kernel of a part of the parameters, or of preconditioned ones, is

    K_w = J_probe diag(w) J_update^T

with `w` 0 for a frozen parameter, 1 for a trained one, or the optimizer's diagonal
preconditioner. Frozen leaves are not differentiated at all.

What becomes of its structure: docs/theory/kernel.md#preconditioned.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["Weights", "leaf_paths", "make_weights", "merge", "split", "trained_of"]


def split(params: Any, where: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take parameters apart.

    Args:
      params: Nested dicts of arrays.
      where: As `where=` of `ldjax.empirical_ntk`: bools in the structure of `params`
        (or a prefix of it), or a function from params to that.

    Returns:
      The chosen parameters and the rest, each with the branches that it has leaves in.

    Raises:
      TypeError: If `params` are not nested dicts.
      ValueError: If `where` does not fit them, or chooses none.

    Examples:
      >>> split({"a": 1.0, "b": {"c": 2.0}}, {"a": False, "b": True})
      ({'b': {'c': 2.0}}, {'a': 1.0})
    """
    mask = _chosen(params, where)
    return _picked(params, mask, True), _picked(params, mask, False)


def merge(chosen: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what `split` took apart.

    Args:
      chosen: Nested dicts.
      rest: Nested dicts with other leaves.

    Returns:
      All of them, with keys in sorted order, as JAX has them.

    Raises:
      ValueError: If both have a leaf of the same name.

    Examples:
      >>> merge({"b": {"c": 2.0}}, {"a": 1.0})
      {'a': 1.0, 'b': {'c': 2.0}}
    """
    merged = {}
    for name in sorted({*chosen, *rest}):
        if name not in rest:
            merged[name] = chosen[name]
        elif name not in chosen:
            merged[name] = rest[name]
        elif isinstance(chosen[name], Mapping) and isinstance(rest[name], Mapping):
            merged[name] = merge(chosen[name], rest[name])
        else:
            raise ValueError(f"Both have a parameter {name!r}.")
    return merged


def trained_of(params: Any, where: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What is trained of the parameters, and from that to all of them.

    Args:
      params: Any pytree where all is trained, else nested dicts.
      where: As in `split`; None for all.

    Examples:
      >>> trained, whole = trained_of({"a": 1.0, "b": 2.0}, {"a": False, "b": True})
      >>> trained, whole({"b": 3.0})
      ({'b': 2.0}, {'a': 1.0, 'b': 3.0})
    """
    if where is None:
        return params, lambda trained: trained
    trained, rest = split(params, where)
    return trained, lambda trained: merge(trained, rest)


def _chosen(params: Any, where: Any) -> Any:
    """Whether each parameter is chosen, in the structure of all."""
    mask = where(params) if callable(where) else where
    try:
        mask = jax.tree.map(bool, jax.tree.broadcast(mask, params))
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`where` must be bools in the structure of `params` (or a prefix of that), "
            f"or a function that returns them: {error}"
        ) from error
    if not any(jax.tree.leaves(mask)):
        raise ValueError("`where` chooses no parameter.")
    return mask


def _picked(params: Any, mask: Any, value: bool) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be nested dicts of arrays, got {type(params).__name__}."
        )
    picked = {}
    for name, branch in params.items():
        if mask[name] is value:
            picked[name] = branch
        elif not isinstance(mask[name], bool):
            below = _picked(branch, mask[name], value)
            if below:
                picked[name] = below
    return picked


class Weights(NamedTuple):
    """The diagonal `w` leaf by leaf, in the order of `jax.tree.leaves(params)`.

    Attributes:
      chosen: Whether a leaf takes part.
      factors: The preconditioner of each leaf; None where it is the identity.

    Examples:
      >>> make_weights({"a": 1.0, "b": 2.0}, where={"a": True, "b": False}).chosen
      (True, False)
    """

    chosen: tuple[bool, ...]
    factors: tuple[Array, ...] | None

    def of(self, index: int) -> Array | bool:
        """A leaf's preconditioner; True for the identity, False for a frozen leaf."""
        if not self.chosen[index] or self.factors is None:
            return self.chosen[index]
        return self.factors[index]

    def pick(self, params: Any) -> list[Any]:
        """The leaves that take part."""
        leaves = jax.tree.leaves(params)
        return [
            x for x, is_chosen in zip(leaves, self.chosen, strict=True) if is_chosen
        ]

    def restrict(
        self, fn: Callable[[Any], Any], params: Any, *, preconditioned: bool
    ) -> Callable[[list[Any]], Any]:
        """`fn` as a function of the leaves that take part.

        Args:
          fn: Function of all parameters.
          params: Where the others are held.
          preconditioned: Whether its Jacobian is to be `J diag(w)`: for one side of a
            kernel.

        Returns:
          A function that agrees with `fn` at `pick(params)`.
        """
        leaves, treedef = jax.tree.flatten(params)
        factors = self.factors if preconditioned else None

        def restricted(chosen: list[Any]) -> Any:
            rest = iter(chosen)
            merged = list(leaves)
            for i, is_chosen in enumerate(self.chosen):
                if is_chosen:
                    moved = next(rest)
                    if factors is not None:
                        moved = leaves[i] + factors[i] * (moved - leaves[i])
                    merged[i] = moved
            return fn(treedef.unflatten(merged))

        return restricted


def make_weights(
    params: Any, *, where: Any = None, preconditioner: Any = None
) -> Weights:
    """Checks `where` and `preconditioner` against the parameters.

    Args:
      params: The parameters.
      where: As optax masks: a pytree of bools (or a prefix of one), or a callable from
        params to that; None for all.
      preconditioner: A pytree like `params`, the diagonal `P`; None for the identity.

    Raises:
      ValueError: If one does not fit `params`, or nothing is left.

    Examples:
      >>> make_weights({"a": 1.0}, preconditioner={"a": 0.5}).of(0)
      Array(0.5, dtype=...)
    """
    leaves, treedef = jax.tree.flatten(params)
    chosen = (True,) * len(leaves)
    if where is not None:
        chosen = tuple(jax.tree.leaves(_chosen(params, where)))
    return Weights(chosen, _factors(preconditioner, leaves, treedef))


def _factors(
    preconditioner: Any, leaves: list[Any], treedef: Any
) -> tuple[Array, ...] | None:
    if preconditioner is None:
        return None
    factors, structure = jax.tree.flatten(preconditioner)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if structure != treedef or [jnp.shape(f) for f in factors] != shapes:
        raise ValueError(
            "`preconditioner` must be a pytree shaped like `params`, one number for "
            f"each parameter; got {structure} with shapes "
            f"{[jnp.shape(f) for f in factors]} for {treedef} with {shapes}."
        )
    return tuple(
        jnp.asarray(f, jnp.result_type(leaf))
        for f, leaf in zip(factors, leaves, strict=True)
    )


def leaf_paths(params: Any) -> list[tuple[str, ...]]:
    """The names on the way to each leaf, in the order of `jax.tree.leaves`.

    Args:
      params: Any pytree.

    Examples:
      >>> leaf_paths({"dense": {"bias": 0.0, "kernel": 1.0}})
      [('dense', 'bias'), ('dense', 'kernel')]
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    return [
        tuple(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        for path, _ in flat
    ]
