"""Some of the parameters, and the others: what is trained, and what stays."""

from collections.abc import Mapping
from typing import Any

import jax

__all__ = ["merge", "split"]


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
    mask = where(params) if callable(where) else where
    try:
        mask = jax.tree.broadcast(mask, params)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`where` must be bools in the structure of `params` (or a prefix of that), "
            f"or a function that returns them: {error}"
        ) from error
    chosen, rest = _picked(params, mask, True), _picked(params, mask, False)
    if not chosen:
        raise ValueError("`where` chooses no parameter.")
    return chosen, rest


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


def _picked(params: Any, mask: Any, value: bool) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be nested dicts of arrays, got {type(params).__name__}."
        )
    picked = {}
    for name, branch in params.items():
        if isinstance(branch, Mapping):
            below = _picked(branch, mask[name], value)
            if below:
                picked[name] = below
        elif bool(mask[name]) is value:
            picked[name] = branch
    return picked
