r"""What changed between two checkpoints, divided among the places of the model.

.. math:: m_i = \log\pi_i(\theta') - \log\pi_i(\theta)
              = \sum_g \sum_q w_q
                \langle \nabla_g \log\pi_i(\theta + s_q\Delta),\, \Delta_g \rangle
                + \text{quadrature}_i

for each watched response `i`, with `g` over the places (`ldjax.compare.places`). The
nodes lie symmetric about the middle, so the two checkpoints may be swapped: then all
signs flip. Orders and constants: docs/theory/equation.md#path.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from ldjax.compare.along import Line
from ldjax.compare.places import Places
from ldjax.equation.path import Path, path_of, trust_radius
from ldjax.equation.resolution import rounding_of_products
from ldjax.equation.sequences import Sequences
from ldjax.progress import Tell, progress
from ldjax.theory.claims import Claim
from ldjax.theory.fidelity import r_squared
from ldjax.watch.probes import Probe, ProbeSet

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MOST_NODES", "Difference", "checks", "divide"]

#: More of them are only taken where they are asked for.
MOST_NODES = 12


class Difference(NamedTuple):
    """What changed between two checkpoints, in nats.

    Attributes:
      probes: The watched responses.
      places: The places of the model's parameters.
      num_parameters: How many they are.
      nodes: Places along the line where the derivative was taken.
      shares: What each place did to each response, `[probe, place]`.
      measured: Log-prob after minus before, `[probe]`.
      by_token: The same as `integrated`, by another derivative, `[probe]`.
      from_before: First order at the first checkpoint, `[probe]`.
      from_after: First order at the second one, backwards, `[probe]`.
      floor: What rounding can make of `measured`, `[probe]`.
      batches: The places of the probes, and their tokens, batch by batch.
      tokens: Of each batch by token, `[row, pos]`, masked ones zero: `measured`,
        `integrated`, `from_before`, `from_after`, and `log_prob` `[2, row, pos]`,
        before and after.
      layers: Of the first responses what each layer did to each token, `[layer, pos]`,
        by number of the response; empty if it was not asked for.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> from ldjax.compare.places import places_of
      >>> two = np.array([2.0])
      >>> found = Difference(
      ...     probes=(Probe("train/0", "chosen", Example((1,), (2,))),),
      ...     places=places_of({"final_norm": {"scale": 1.0}}),
      ...     num_parameters=1,
      ...     nodes=3,
      ...     shares=two[None],
      ...     **dict.fromkeys(("measured", "by_token", "from_before"), two),
      ...     **dict.fromkeys(("from_after", "floor"), two),
      ...     batches=(),
      ...     tokens=(),
      ...     layers={},
      ... )
      >>> found.table.rows()
      [('train/0', 'chosen', 'final norm', 'norm', 2.0)]
    """

    probes: tuple[Probe, ...]
    places: Places
    num_parameters: int
    nodes: int
    shares: np.ndarray
    measured: np.ndarray
    by_token: np.ndarray
    from_before: np.ndarray
    from_after: np.ndarray
    floor: np.ndarray
    batches: tuple[tuple[np.ndarray, Sequences], ...]
    tokens: tuple[dict[str, np.ndarray], ...]
    layers: dict[int, np.ndarray]

    @property
    def integrated(self) -> np.ndarray:
        """The sum over all places, `[probe]`."""
        return self.shares.sum(1)

    @property
    def quadrature(self) -> np.ndarray:
        """What the nodes leave of the change: measured - integrated, `[probe]`."""
        return self.measured - self.integrated

    @property
    def ends(self) -> np.ndarray:
        """Log-probs before and after, `[2, probe]`."""
        rows = np.concatenate([of for of, _ in self.batches])
        sums = [
            of["log_prob"][:, : len(places)].sum(-1)
            for (places, _), of in zip(self.batches, self.tokens, strict=True)
        ]
        return np.concatenate(sums, axis=1)[:, np.argsort(rows)]

    @property
    def trust_radius(self) -> float:
        """How far first order can be trusted, as a multiple of the way."""
        return trust_radius(self.from_before, self.measured)

    @property
    def r_squared(self) -> float | None:
        """How much of the spread of the changes first order explains."""
        return r_squared(self.measured, self.from_before)

    @property
    def table(self) -> "pl.DataFrame":
        """What each place did to each response: probe, type, layer, kind and value."""
        import polars as pl

        count, places = len(self.probes), self.places.places
        of_probe = [
            np.repeat(np.array([str(p[i]) for p in self.probes]), len(places))
            for i in (0, 1)
        ]
        of_place = [np.tile([p[i] for p in places], count) for i in (0, 1)]
        columns = dict(
            zip(("probe", "type", "layer", "kind"), (*of_probe, *of_place), strict=True)
        )
        return pl.DataFrame(
            {
                name: pl.Series(of.tolist(), dtype=pl.String)
                for name, of in columns.items()
            }
            | {"value": self.shares.ravel()}
        )

    def shares_by(self, by: Literal["layer", "kind"]) -> dict[str, np.ndarray]:
        """What each layer, or kind, did to each response, `[probe]`, by name.

        Args:
          by: Which of the two.
        """
        names = [getattr(place, by) for place in self.places.places]
        return {
            name: self.shares[:, [of == name for of in names]].sum(1)
            for name in getattr(self.places, f"{by}s")
        }

    def sums(self, by: str) -> "pl.DataFrame":
        """What each layer, or kind, did to each response.

        Args:
          by: `"layer"` or `"kind"`.
        """
        import polars as pl

        keys = ["probe", "type", by]
        return self.table.group_by(keys, maintain_order=True).agg(pl.col("value").sum())


def divide(
    line: Line,
    probes: ProbeSet,
    places: Places,
    floor_fn: Callable[[Any], np.ndarray],
    *,
    nodes: int | None = None,
    tolerance: float = 0.01,
    by_layer: int = 0,
) -> Difference:
    """Measure what changed, and divide it.

    Args:
      line: From the first checkpoint to the second.
      probes: The watched responses.
      places: Of the parameters.
      floor_fn: From a set of parameters to what rounding makes of a change, `[probe]`.
      nodes: Places along the line where the derivative is taken, Gauss and Legendre's;
        None for as many as the tolerance needs.
      tolerance: Most that they may leave, as a share of what was measured.
      by_layer: Responses, the first ones, of which each token is divided by layer, too.

    Raises:
      ValueError: If a model gives log-probs that are no numbers.
    """
    batches = [batch for _, batch in probes.batches]
    ends = [[line.tokens(place, batch) for batch in batches] for place in (0.0, 1.0)]
    for name, end in zip(("first", "second"), ends, strict=True):
        if not all(np.isfinite(of.log_probs).all() for of in end):
            raise ValueError(f"The {name} model gives log-probs that are no numbers.")
    before, after = ends
    measured = [b.log_probs - a.log_probs for a, b in zip(before, after, strict=True)]
    floor = np.maximum(*map(floor_fn, line.ends))
    if nodes is None:
        nodes = _enough(line, probes, measured, floor, tolerance)
    path = path_of(nodes)
    count = len(path.places) * len(batches)
    with progress("dividing", count, unit="batches") as tell:
        slopes, leaves = _integrals(line, path, batches, tell)
    tokens = tuple(
        {
            "measured": change,
            "integrated": slope,
            "from_before": a.slopes,
            "from_after": b.slopes,
            "log_prob": np.stack([a.log_probs, b.log_probs]),
        }
        for change, slope, a, b in zip(measured, slopes, before, after, strict=True)
    )
    names = ("measured", "integrated", "from_before", "from_after")
    sums = probes.gather([{name: of[name].sum(-1) for name in names} for of in tokens])
    return Difference(
        probes=probes.probes,
        places=places,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(line.ends[0])),
        nodes=nodes,
        shares=places.sums(probes.gather(leaves)),
        measured=sums["measured"],
        by_token=sums["integrated"],
        from_before=sums["from_before"],
        from_after=sums["from_after"],
        floor=floor,
        batches=probes.batches,
        tokens=tokens,
        layers=_layers(line, path, probes, places, by_layer),
    )


def checks(found: Difference, tolerance: float) -> list[Claim]:
    """What has to hold of a difference.

    By parameter and by token it is the same, which is two ways to take one derivative;
    and the account closes: the nodes leave no more than the tolerance, or rounding.

    Args:
      found: The difference.
      tolerance: Most that the nodes may leave, as a share of what was measured.
    """
    gap = abs(found.integrated - found.by_token)
    lost = rounding_of_products(found.num_parameters)
    allowed = found.floor + lost * abs(found.shares).sum(1)
    worst = float((gap / np.maximum(allowed, 1e-250)).max())
    same = Claim(
        f"the sum over places is the sum over tokens: {gap.max():.1e} nats apart, "
        f"{worst:.1e} of what rounding allows",
        worst <= 1,
        "identity",
        numbers={"value": worst, "bound": 1},
    )
    left, size = (
        float(np.linalg.norm(of)) for of in (found.quadrature, found.measured)
    )
    floor = float(np.linalg.norm(found.floor))
    bound = max(tolerance * size, floor)
    advice = "" if left <= bound else "; more nodes leave less"
    closes = Claim(
        f"the account closes: {found.nodes} "
        f"{'nodes leave' if found.nodes > 1 else 'node leaves'} "
        f"{left:.1e} of {size:.1e} nats (norms over the responses; {tolerance:g} of it "
        f"may be left, or {floor:.1e} of rounding){advice}",
        left <= bound,
        numbers={"value": left, "bound": bound},
    )
    return [same, closes]


def _enough(
    line: Line,
    probes: ProbeSet,
    measured: Sequence[np.ndarray],
    floor: np.ndarray,
    tolerance: float,
) -> int:
    """The fewest nodes that leave no more than the tolerance, or rounding.

    On the first batch of each length. What they leave is known, since the change itself
    was measured.
    """
    shapes = [batch.targets.shape for _, batch in probes.batches]
    some = [shapes.index(shape) for shape in dict.fromkeys(shapes)]
    wanted = np.concatenate([measured[i].sum(-1) for i in some])
    places = np.concatenate([probes.batches[i][0] for i in some])
    bound = max(
        tolerance * float(np.linalg.norm(wanted)), float(np.linalg.norm(floor[places]))
    )

    def integrated(place: float) -> np.ndarray:
        found = [line.tokens(place, probes.batches[i][1]).slopes for i in some]
        return np.concatenate([of.sum(-1) for of in found])

    with progress("choosing the nodes", MOST_NODES, unit="nodes") as tell:
        nodes = 0
        while nodes < MOST_NODES:
            nodes += 1
            gap = _mean(path_of(nodes), integrated) - wanted
            if np.linalg.norm(gap) <= bound:
                break
            tell(nodes, f"{np.linalg.norm(gap):.1e} nats are left")
    return nodes


def _integrals(
    line: Line, path: Path, batches: Sequence[Sequences], tell: Tell
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Slopes averaged along the line: by token, and by leaf, of each batch."""
    slopes = [np.zeros(batch.targets.shape) for batch in batches]
    leaves: list[Any] = [0.0] * len(batches)
    done = 0
    for place, weight in zip(*path, strict=True):
        for i, batch in enumerate(batches):
            slopes[i] += weight * line.tokens(place, batch).slopes
            leaves[i] = leaves[i] + weight * line.leaves(place, batch)
            done += 1
            tell(done, "")
    return slopes, leaves


def _layers(
    line: Line, path: Path, probes: ProbeSet, places: Places, count: int
) -> dict[int, np.ndarray]:
    """What each layer did to each token of the first responses."""
    chosen = ProbeSet(
        probes.probes,
        tuple(
            (of[of < count], _rows(batch, np.flatnonzero(of < count)))
            for of, batch in probes.batches
            if (of < count).any()
        ),
    )
    found = {}
    for of, batch in chosen.batches:
        sums = _mean(
            path,
            lambda place, batch=batch: line.groups(place, batch, places.layer_of_leaf),
        )
        found |= {int(number): sums[:, row] for row, number in enumerate(of)}
    return found


def _mean(path: Path, fn: Callable[[float], np.ndarray]) -> np.ndarray:
    """The weighted mean of what a function gives at the nodes."""
    return np.tensordot(path.weights, [fn(place) for place in path.places], axes=1)


def _rows(batch: Sequences, rows: np.ndarray) -> Sequences:
    return Sequences(batch.tokens[rows], batch.targets[rows], batch.mask[rows])
