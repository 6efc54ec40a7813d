r"""The states of a run backward: some are kept, those between are made again.

A run of :math:`T` updates is made once forward and keeps a state at the start of every
segment of some :math:`\sqrt T` updates; then one segment after the other, from the last
to the first, is made again. So a state is at hand for :math:`2 T` updates in all and
the memory of :math:`2 \sqrt T` states. Each replay must hit the states that are known,
and the start of the segment behind it, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ldjax.origins.kept import Kept, difference, on_device, on_host
from ldjax.origins.pull import Point
from ldjax.origins.trajectory import Trajectory

__all__ = ["Replay", "ReplayError"]


class ReplayError(ValueError):
    """A run that was made again is not the run; the message says where they part.

    Examples:
      >>> str(ReplayError("update 3 gave other bits"))
      'update 3 gave other bits'
    """


class Replay(NamedTuple):
    """A run whose states can be had backward.

    Attributes:
      trajectory: The run.
      segment: Updates between two states that are kept.
      kept: Where those are.
    """

    trajectory: Trajectory
    segment: int
    kept: Kept

    @classmethod
    def of(cls, trajectory: Trajectory, kept: Kept) -> "Replay":
        """With segments as long as there are many of them."""
        return cls(trajectory, math.isqrt(trajectory.num_steps - 1) + 1, kept)

    @property
    def starts(self) -> list[int]:
        """The first update of every segment."""
        return list(range(0, self.trajectory.num_steps, self.segment))

    def forward(self, tell: Callable[[int], None]) -> None:
        """Make the run once, and keep the states between its segments.

        Args:
          tell: Is told how many updates are done.

        Raises:
          ReplayError: If it misses a state that is known.
        """
        boundaries = [*self.starts, self.trajectory.num_steps]
        known = self.trajectory.known
        first = max((b for b in boundaries if _name(b) in self.kept), default=None)
        if first is None:
            first = 0
            self._keep(0, self.trajectory.start)
        for step, state in self._steps(first, self.trajectory.num_steps):
            if step in boundaries or (known is not None and step in known.steps):
                self._keep(step, state)
            tell(step)

    def backward(self, start: int) -> Iterator[tuple[int, Point, Any]]:
        """The updates of a segment, the last one first.

        Args:
          start: Its first update.

        Yields:
          The number of an update, the state before it and the parameters after it.

        Raises:
          ReplayError: If the segment does not end in the state that is kept.
        """
        end = min(start + self.segment, self.trajectory.num_steps)
        like, last = self.point(self.trajectory.start), self.trajectory.start
        points = [on_host(self.point(self._kept(start)))]
        for _, last in self._steps(start, end):
            points.append(on_host(self.point(last)))
        if leaf := difference(on_host(last), self.kept.get(_name(end)), last):
            raise ReplayError(
                f"The updates {start} to {end - 1}, made a second time, gave other "
                f"bits of {leaf}: the program of the run does not give the same "
                "numbers each time, so its states cannot be had again."
            )
        after = on_device(points.pop(), like).params
        for step in reversed(range(start, end)):
            point = on_device(points.pop(), like)
            yield step, point, after
            after = point.params

    @property
    def end(self) -> Point:
        """The state after the last update."""
        return self.point(self._kept(self.trajectory.num_steps))

    def _steps(self, first: int, end: int) -> Iterator[tuple[int, Any]]:
        """States after each update, from one that is kept on."""
        state = self._kept(first)
        for step in range(first, end):
            state = self.trajectory.step_fn(state, self.trajectory.batch_fn(step))[0]
            yield step + 1, state

    def _kept(self, step: int) -> Any:
        return on_device(self.kept.get(_name(step)), self.trajectory.start)

    def point(self, state: Any) -> Point:
        """Of a state what the sweep reads."""
        training = self.trajectory.training_of(state)
        return Point(training.params, training.opt_state)

    def _keep(self, step: int, state: Any) -> None:
        """Keep a state; one that is known must be the one there is."""
        known = self.trajectory.known
        if known is not None and step in known.steps:
            made, there = self.point(state), self.point(known.read(step))
            if leaf := difference(on_host(made), on_host(there), made):
                raise ReplayError(
                    f"The run, made again, has other bits than its checkpoint of step "
                    f"{step}, first of all of {leaf}. The ledger needs the very "
                    "program of the run: the same machine, devices, versions of jax "
                    "and of this package, data and settings."
                )
        if step % self.segment == 0 or step == self.trajectory.num_steps:
            self.kept.put(_name(step), on_host(state))


def _name(step: int) -> str:
    return f"state-{step}"
