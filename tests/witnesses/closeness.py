"""The one place for tolerances.

Two ways to the same number differ by rounding only, and rounding has a size: a few
units in the last place of the largest entry, growing with the square root of the
number of terms that are summed. Anything looser needs a comment where it is asked for.
"""

import math

import jax
import numpy as np

__all__ = ["assert_close", "rounding", "worst_ratio"]


def rounding(dtype, terms=1):
    """The relative error of two honest computations in this dtype."""
    return 32 * float(np.finfo(dtype).eps) * math.sqrt(terms)


def worst_ratio(actual, expected, *, scale=None):
    """Largest difference over the largest expected entry, the worst leaf's."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(_ratio(*map(np.asarray, pair), scale=scale) for pair in pairs)


def _ratio(actual, expected, scale):
    largest = np.abs(expected).max() if scale is None else scale
    difference = np.abs(actual - expected).max()
    return float(difference / largest) if largest else float(difference > 0) * math.inf


def assert_close(actual, expected, *, terms=1, rtol=None, scale=None):
    """Two pytrees of arrays are the same numbers.

    Args:
      actual: What the library gave.
      expected: What it should be: the same structure and shapes.
      terms: How many numbers are summed on the way to one entry.
      rtol: Relative tolerance, instead of `rounding(dtype, terms)`.
      scale: What errors are relative to; by default the largest expected entry of
        each leaf. Needed where the expected value is zero.
    """
    found, wanted = (jax.tree.structure(tree) for tree in (actual, expected))
    assert found == wanted, f"structure {found}, expected {wanted}"
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(expected)]
    leaves = zip(paths, jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for path, found, wanted in leaves:
        _assert_leaf_close(
            jax.tree_util.keystr(path) or "the array",
            np.asarray(found),
            np.asarray(wanted),
            rtol=rtol,
            terms=terms,
            scale=scale,
        )


def _assert_leaf_close(name, actual, expected, *, terms, rtol, scale):
    assert actual.shape == expected.shape, (
        f"{name}: shape {actual.shape}, expected {expected.shape}"
    )
    if not actual.size:
        return
    for what, array in (("actual", actual), ("expected", expected)):
        assert np.isfinite(array).all(), f"{name}: {what} is not finite: {array}"
    if rtol is None:
        floats = [a.dtype for a in (actual, expected) if a.dtype.kind == "f"]
        # The coarser of the two; integers are exact.
        rtol = max((rounding(dtype, terms) for dtype in floats), default=0.0)
    scale = np.abs(expected).max() if scale is None else scale
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    index = np.unravel_index(difference.argmax(), difference.shape)
    worst, allowed = difference[index], rtol * scale
    assert worst <= allowed, (
        f"{name}: {int((difference > allowed).sum())} of {difference.size} entries "
        f"differ by more than {allowed:.3g}. Worst at {tuple(map(int, index))}: "
        f"{actual[index]!r}, expected {expected[index]!r}, difference {worst:.3g}, "
        f"ratio to the largest entry {worst / scale if scale else math.inf:.3g} "
        f"(rtol {rtol:.3g}). actual in [{actual.min():.3g}, {actual.max():.3g}], "
        f"expected in [{expected.min():.3g}, {expected.max():.3g}]."
    )
