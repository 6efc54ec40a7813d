"""Which tables a program looks ids up in: read off its jaxpr, whatever it is made of.

An embedding is a gather from a table by the ids, whether Flax, `jnp.take` or an index
wrote it; a product with one-hot vectors compares the ids with a range. The size of the
smallest table is the vocabulary that a model can read. Ids are followed through what
keeps them as they are. Where a model guards itself (`clip`, `where(ids < n, ids, 0)`,
`mode="clip"`) nothing is claimed.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.lax import GatherScatterMode

from ldjax.programs.calls import CALLS

__all__ = ["Lookups", "find_lookups"]

# The same numbers, in another shape or type.
_SAME = frozenset(
    (
        *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose"),
        *("convert_element_type", "copy", "copy_p", "optimization_barrier"),
    )
)
_ORDERS = frozenset(("lt", "le", "gt", "ge"))


class Lookups(NamedTuple):
    """What a program looks up.

    Attributes:
      vocab_sizes: Rows of each table that is indexed by the ids.
      positions: For each table indexed by a range, how long the range and the table
        are.

    Examples:
      >>> Lookups([5], []).vocab_sizes
      [5]
    """

    vocab_sizes: list[int]
    positions: list[tuple[int, int]]


def find_lookups(jaxpr: Any, is_ids: Sequence[bool]) -> Lookups:
    """The tables that a program looks ids and positions up in.

    Args:
      jaxpr: A `jax.extend.core.Jaxpr`.
      is_ids: Which of its arguments are ids.

    Returns:
      The sizes, in no order.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> read = lambda table, ids: jnp.take(table, ids, axis=0)
      >>> jaxpr = jax.make_jaxpr(read)(jnp.zeros((5, 2)), jnp.zeros((1, 3), int)).jaxpr
      >>> find_lookups(jaxpr, [False, True])
      Lookups(vocab_sizes=[5], positions=[])
    """
    found = Lookups([], [])
    _follow(jaxpr, [_IDS if flag else None for flag in is_ids], found)
    return found


# What is followed besides ranges, of which it is the length.
_IDS, _GUARD = -1, -2


def _follow(
    jaxpr: Any, inputs: Sequence[int | None], found: Lookups
) -> list[int | None]:
    """Adds the lookups of a jaxpr to `found`; what of its results is followed."""
    kinds = dict(zip(jaxpr.invars, inputs, strict=True))

    def kind_of(atom: Any) -> int | None:
        return None if hasattr(atom, "val") else kinds.get(atom)  # literals: no hash

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        operands = [kind_of(atom) for atom in eqn.invars]
        results: list[int | None] = [None]
        if name == "iota":
            results = [eqn.params["shape"][eqn.params["dimension"]]]
        elif not any(operands):
            continue
        elif name in CALLS or name == "scan":
            body = eqn.params[CALLS.get(name, "jaxpr")]
            results = _follow(getattr(body, "jaxpr", body), operands, found)
        elif name in _SAME:
            results = operands[: len(eqn.outvars)]
        elif name == "select_n" and operands[0] != _GUARD:
            results = [next(filter(None, operands[1:]), None)]
        elif name in _ORDERS and not _is_sign(eqn):
            results = [_GUARD]
        elif name == "eq" and _IDS in operands:  # one-hot vectors
            found.vocab_sizes.extend(size for size in operands if size and size > 0)
        elif operands[0] == _IDS and _keeps_rows(eqn):
            results = [_IDS]
        elif name == "gather" and operands[1]:
            _look_up(eqn, operands[1], found)
        kinds |= {
            v: kind for v, kind in zip(eqn.outvars, results, strict=False) if kind
        }
    return [kind_of(atom) for atom in jaxpr.outvars]


def _look_up(eqn: Any, kind: int, found: Lookups) -> None:
    axes = eqn.params["dimension_numbers"].start_index_map
    fill = eqn.params["fill_value"]
    is_guarded = eqn.params["mode"] == GatherScatterMode.CLIP or (
        fill is not None and not math.isnan(fill)
    )
    if len(axes) == 1 and not is_guarded:
        size = eqn.invars[0].aval.shape[axes[0]]
        if kind == _IDS:
            found.vocab_sizes.append(size)
        else:
            found.positions.append((kind, size))


def _is_sign(eqn: Any) -> bool:
    """Whether a comparison is with zero, as where an index may count from the end."""
    return any(getattr(atom, "val", None) == 0 for atom in eqn.invars)


def _keeps_rows(eqn: Any) -> bool:
    """Whether it takes some rows, each of them whole."""
    shape = eqn.invars[0].aval.shape
    if eqn.primitive.name == "slice":
        return eqn.outvars[0].aval.shape[1:] == shape[1:]
    is_taken = eqn.primitive.name in ("dynamic_slice", "gather")
    return is_taken and tuple(eqn.params["slice_sizes"][1:]) == shape[1:]
