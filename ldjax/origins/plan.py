"""How many responses a sweep can have in flight, planned before anything is made."""

import math
from collections.abc import Callable
from typing import Any

import jax

from ldjax.memory import Bytes, default_limit, refuse_above
from ldjax.ntk.cost import peak_bytes
from ldjax.origins.replay import Replay

__all__ = ["MOST_PROBES", "most_probes", "sweep_bytes"]

#: Responses in flight where memory is no matter.
MOST_PROBES = 32


def most_probes(
    count: int, bytes_of: Callable[[int], Bytes], *, limit: Bytes | None = None
) -> int:
    """The number of responses in flight that go evenly through a run with fewest turns.

    Args:
      count: How many there are.
      bytes_of: What the sweep takes with so many in flight: a fixed part, and as much
        for each.
      limit: Bytes that may be used; by default those that are free.

    Raises:
      MemoryError: If one does not fit.
    """
    limit = default_limit() if limit is None else limit
    most = min(count, MOST_PROBES)
    if bytes_of(most) > limit:
        one, two = bytes_of(1), bytes_of(2)
        refuse_above(
            limit,
            one,
            what="the ledger of a single response",
            instead="choose fewer `nodes`, or train fewer parameters (`where`)",
        )
        most = min(most, 1 + int((limit - one) / max(two - one, 1)))
    turns = -(-count // most)
    return -(-count // turns)


def sweep_bytes(
    pull: Callable[..., Any], arguments: tuple[Any, ...], replay: Replay
) -> int:
    """What a sweep takes while it goes back over a segment, sums aside.

    Args:
      pull: What goes back over one update.
      arguments: Of one call, or their shapes.
      replay: Where the states come from. On a CPU those that are kept in memory count.

    Returns:
      Bytes.
    """
    held = _bytes(arguments) + peak_bytes(pull, *arguments)
    if jax.default_backend() != "cpu":
        return held
    start = replay.trajectory.start
    held += replay.segment * _bytes(replay.point(start))
    if not replay.kept.lasts:
        held += (len(replay.starts) + 1) * _bytes(start)
    return held


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
