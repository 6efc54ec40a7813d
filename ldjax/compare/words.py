"""A difference in words and in a table for a terminal."""

from collections.abc import Mapping, Sequence

import numpy as np

from ldjax.compare.difference import Difference
from ldjax.theory.fidelity import legible

__all__ = ["balance", "sentences"]

#: Columns of a table on a terminal.
_MOST = 8


def sentences(found: Difference) -> list[str]:
    """What changed, where, and how far from linear the way was.

    Args:
      found: The difference.
    """
    return [_of_types(found), _of_places(found), _of_first_order(found)]


def balance(
    found: Difference, parts: Mapping[str, np.ndarray] | None = None
) -> list[str]:
    """What every kind of matrix did to every type of response, as lines.

    Args:
      found: The difference.
      parts: What else it is the sum of, `[probe]`.
    """
    head = (
        f"{'type':20} {'n':>3} {'before':>9} {'after':>9} {'measured':>9} "
        f"{'quadrature':>10} {'1st order':>9} {'from end':>9} {'floor':>8}"
    )
    lines = ["", "Mean nats per response, after minus before:", head]
    for type_, places in _types(found).items():
        of = [found.ends[0], found.ends[1], found.measured]
        first, last, change = (values[places].mean() for values in of)
        lines.append(
            f"{type_:20} {len(places):3} {first:9.2f} {last:9.2f} {change:+9.3f} "
            f"{found.quadrature[places].mean():+10.1e} "
            f"{found.from_before[places].mean():+9.3f} "
            f"{found.from_after[places].mean():+9.3f} "
            f"{found.floor[places].mean():8.1e}"
        )
    if parts:
        lines += ["", *_rows(found, "parts", parts)]
    for by in ("kind", "layer"):
        lines += ["", *_rows(found, f"by {by}", found.shares_by(by))]
    return [*lines, "", _of_first_order(found)]


def _rows(found: Difference, title: str, sums: Mapping[str, np.ndarray]) -> list[str]:
    """A table of mean numbers by type; of many the largest, and the others."""
    largest = sorted(sums, key=lambda name: -abs(sums[name]).mean())[:_MOST]
    shown = [name for name in sums if name in largest]
    rest = [sums[name] for name in sums if name not in largest]
    columns = [sums[name] for name in shown]
    if rest:
        shown.append(f"{len(rest)} others")
        columns.append(np.sum(rest, axis=0))
    widths = [max(9, len(name)) for name in shown]
    heads = " ".join(map(str.rjust, shown, widths))
    lines = [f"{title:20} {heads}"]
    for type_, places in _types(found).items():
        numbers = (f"{of[places].mean():+.3f}" for of in columns)
        lines.append(f"{type_:20} {' '.join(map(str.rjust, numbers, widths))}")
    return lines


def _types(found: Difference) -> dict[str, np.ndarray]:
    """The places of the responses of each type."""
    of = np.array([probe.type for probe in found.probes])
    return {str(type_): np.flatnonzero(of == type_) for type_ in dict.fromkeys(of)}


def _of_types(found: Difference) -> str:
    clauses = [
        f"{type_} {found.measured[places].mean():+.2f}"
        for type_, places in _types(found).items()
    ]
    count = len({probe.prompt_name for probe in found.probes})
    return f"Mean change in nats, over {count} prompts: {_listed(clauses)}."


def _of_places(found: Difference) -> str:
    """The kinds and layers that did most, by the size of what they did."""
    clauses = []
    for by in ("kind", "layer"):
        shares = found.shares_by(by)
        sizes = {name: abs(of).mean() for name, of in shares.items()}
        most = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = _listed([f"{name} ({sizes[name]:.2f})" for name in most])
        clauses.append(f"of the {by}s {shown} moved responses most")
    return f"In mean size, nats, {'; '.join(clauses)}."


def _of_first_order(found: Difference) -> str:
    """How far from linear it was."""
    size = float(np.linalg.norm(found.measured))
    if not size:
        return "Nothing changed."
    missed = [
        float(np.linalg.norm(found.measured - of)) / size
        for of in (found.from_before, found.from_after)
    ]
    return (
        f"First order at the first checkpoint misses {missed[0]:.1%} of the change, at "
        f"the second {missed[1]:.1%} (norms; R² {legible(found.r_squared)}); it is off "
        f"by a tenth at {found.trust_radius:.2g} of the way."
    )


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
