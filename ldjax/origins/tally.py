"""What a sweep has paid so far, added up on the host in float64."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ldjax.equation import resolution
from ldjax.equation.sequences import sides_of
from ldjax.origins.kept import Arrays
from ldjax.origins.pull import Adjoint, Paid
from ldjax.origins.trajectory import Trajectory

__all__ = ["Rows", "Tally"]


class Rows(NamedTuple):
    """What the batches of a run consist of.

    Attributes:
      sides: Names of a batch's sides.
      counts: Rows of each update.
      places: `[step, row]`: which row of the training set, -1 for none; None where
        rows have no names.
      names: Of the rows of the training set, in the order in which they come up.
      lengths: Positions of each update's longest side.
    """

    sides: tuple[str, ...]
    counts: np.ndarray
    places: np.ndarray | None
    names: tuple[str, ...]
    lengths: np.ndarray

    @property
    def longest(self) -> int:
        """An update of which no other one has more positions."""
        return int(np.argmax(self.lengths * self.counts))

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Rows":
        """Read off all batches.

        Raises:
          ValueError: If a batch's sides have not as many rows as names.
        """
        sides: tuple[str, ...] = ()
        lengths, counts = [], []
        names: dict[str, int] = {}
        places: list[list[int]] = []
        for step in range(trajectory.num_steps):
            batch = sides_of(trajectory.batch_fn(step))
            found = {len(side.mask) for side in batch.values()}
            of_rows = trajectory.names_of and trajectory.names_of(step)
            if of_rows is not None:
                found.add(len(of_rows))
                places.append([names.setdefault(name, len(names)) for name in of_rows])
            if len(found) > 1:
                raise ValueError(
                    f"The batch of update {step} has {sorted(found)} rows and names: "
                    "each row of every side is one example and has one name."
                )
            sides = tuple(batch)
            counts += found
            lengths.append(max(side.mask.shape[1] for side in batch.values()))
        filled = None
        if places:
            filled = np.full((len(counts), max(counts)), -1)
            for step, row in enumerate(places):
                filled[step, : len(row)] = row
        return cls(sides, np.array(counts), filled, tuple(names), np.array(lengths))


class Tally:
    """The account of some responses, filled from the last update to the first.

    Args:
      rows: What the batches consist of.
      num_probes: How many responses there are.
      num_layers: Into how many layers the parameters are divided.
      has_maps: Whether every token of the training set is paid by itself.

    Attributes:
      done: The first update that is entered.
      arrays: By name: of each update `measured`, `integrated`, `unit`, `noise_level`,
        `weight_decay`, `noise`, `rounding`, all `[step, probe]`, and `examples/SIDE`,
        `[step, probe, row]`; summed over the run `layers/SIDE` and
        `layers/weight_decay`, `[probe, layer]`, and on request `map/SIDE`,
        `[probe, row of the training set, pos]`; `before`, `[probe]`.
    """

    def __init__(
        self, rows: Rows, *, num_probes: int, num_layers: int, has_maps: bool
    ) -> None:
        self._rows, self._has_maps = rows, has_maps
        shapes = _shapes(rows, num_probes, num_layers, has_maps)
        self.arrays: Arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.done = len(rows.counts)
        self._after: Arrays = {}

    @staticmethod
    def bytes_of(
        rows: Rows, *, num_probes: int, num_layers: int, has_maps: bool
    ) -> int:
        """What it takes."""
        shapes = _shapes(rows, num_probes, num_layers, has_maps)
        return 8 * sum(map(math.prod, shapes.values()))

    def restore(self, arrays: Arrays) -> Arrays:
        """Go on where an earlier tally stopped; the adjoint there."""
        self.done = int(arrays["done"])
        self.arrays = {name: arrays[f"sum/{name}"] for name in self.arrays}
        self._after = _under("after/", arrays)
        return _under("adjoint/", arrays)

    def saved(self, adjoint: Adjoint) -> Arrays:
        """What `restore` needs."""
        saved = {"done": np.array(self.done)}
        saved |= {f"sum/{name}": values for name, values in self.arrays.items()}
        saved |= {f"after/{name}": values for name, values in self._after.items()}
        return saved | {f"adjoint/{k}": np.array(v) for k, v in adjoint.items()}

    def begin(self, log_probs: Any) -> None:
        """Note the log-probs at the end of the run, `[probe, pos]`."""
        log_probs = np.asarray(log_probs, float)
        self._after = {"log_probs": log_probs, "held": np.zeros(len(log_probs))}

    def add(self, paid: Paid, noise_level: Any | None) -> None:
        """Enter the update before those that are entered.

        Args:
          paid: What it paid.
          noise_level: Of the log-probs' rounding, where it was measured.
        """
        paid = Paid(*jax.tree.map(lambda leaf: np.asarray(leaf, float), tuple(paid)))
        step = self.done = self.done - 1
        sums, count = self.arrays, int(self._rows.counts[step])
        gradient = np.zeros(len(paid.noise))
        for side, tokens in paid.examples.items():
            by_row = tokens.sum(-1)
            sums[f"examples/{side}"][step, :, :count] = by_row
            gradient += by_row.sum(-1)
            if self._has_maps:
                self._add_to_map(step, side, tokens)
        for side, layers in paid.layers.items():
            sums[f"layers/{side}"] += layers
        sums["layers/weight_decay"] += paid.weight_decay
        decay = paid.weight_decay.sum(-1)
        # Per token first: less is lost.
        moved = self._after["log_probs"] - paid.log_probs
        numbers = {
            "measured": moved.sum(-1),
            "integrated": paid.integrated,
            "unit": paid.unit,
            "weight_decay": decay,
            "noise": paid.noise,
            # What the recurrence leaves: of storing parameters and moments in their
            # precision, and of the arithmetic here.
            "rounding": paid.integrated
            + self._after["held"]
            - paid.held
            - gradient
            - decay
            - paid.noise,
        }
        for name, values in numbers.items():
            sums[name][step] = values
        if noise_level is not None:
            sums["noise_level"][step] = float(noise_level)
        if step == 0:
            sums["before"] = np.asarray(paid.held)
        self._after = {k: np.asarray(getattr(paid, k)) for k in ("log_probs", "held")}

    def _add_to_map(self, step: int, side: str, tokens: Any) -> None:
        assert self._rows.places is not None
        sums = self.arrays[f"map/{side}"]
        for row, place in enumerate(self._rows.places[step, : tokens.shape[1]]):
            sums[:, place, : tokens.shape[2]] += tokens[:, row]

    def floors(self) -> np.ndarray:
        """What rounding can make of each measured change, `[step, probe]`."""
        measured_at = np.arange(len(self._rows.counts))
        measured_at -= measured_at % resolution.NOISE_EVERY
        level = self.arrays["noise_level"][measured_at]
        return resolution.floor(self.arrays["unit"], level[:, None])


def _shapes(
    rows: Rows, num_probes: int, num_layers: int, has_maps: bool
) -> dict[str, tuple[int, ...]]:
    steps, most = len(rows.counts), int(rows.counts.max())
    by_step = ("measured", "integrated", "unit", "weight_decay", "noise", "rounding")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(by_step, (steps, num_probes))
    shapes |= {"before": (num_probes,), "noise_level": (steps,)}
    shapes |= {f"examples/{side}": (steps, num_probes, most) for side in rows.sides}
    for name in (*rows.sides, "weight_decay"):
        shapes[f"layers/{name}"] = num_probes, num_layers
    if has_maps:
        shape = (num_probes, len(rows.names), int(rows.lengths.max()))
        shapes |= {f"map/{side}": shape for side in rows.sides}
    return shapes


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
