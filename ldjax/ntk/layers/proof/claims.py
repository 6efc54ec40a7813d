"""That a piece of a traced model is some product: compared at drawn whole numbers.

The two sides of a claim have the same fixed form, linear in each of what is drawn. So
they are the same function if they agree at one draw, but for draws that a wrong
coefficient happens not to show at; and whole numbers are multiplied without rounding.

Why one draw is enough: docs/theory/certificate.md#claims.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldjax.equation.spaces import struct_of
from ldjax.precision import exact_products

# Not zero, so that every coefficient shows.
_LARGEST = 15


class Claim(NamedTuple):
    """That a function returns a multiple of what it should.

    Attributes:
      text: A text that tells the claim from others.
      sides: The function of the arguments to what is found and what that should be a
        multiple of.
      arguments: The numbers drawn for it.
      num_terms: The number of numbers that are summed for one.
    """

    text: str
    sides: Callable[..., tuple[Array, Array]]
    arguments: tuple[np.ndarray, ...]
    num_terms: int


def whole_numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A draw of either sign, without zeros.

    Args:
      shape: The shape of the array.
      seed: The seed of the draw.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, _LARGEST + 1, size=shape, dtype=np.int8)
    signs = rng.integers(2, size=shape, dtype=np.int8)
    return sizes * (1 - 2 * signs)


def ratios(claims: Sequence[Claim]) -> list[float | None]:
    """The multiple of each claim; None where it does not hold.

    A claim is checked once in a process; those that are new are compiled together,
    ahead, so that it can be done while somebody's `jit` is being traced.
    """
    new = {claim.text: claim for claim in claims if claim.text not in _ratios}
    if new:
        functions = [claim.sides for claim in new.values()]
        arguments = [claim.arguments for claim in new.values()]

        def measure(arguments: Any) -> list[tuple[Array, Array, Array]]:
            with exact_products():
                return [
                    _measure(*sides(*drawn))
                    for sides, drawn in zip(functions, arguments, strict=True)
                ]

        measured = jax.jit(measure).lower(struct_of(arguments)).compile()(arguments)
        for claim, (ratio, difference, size) in zip(
            new.values(), measured, strict=True
        ):
            holds = float(difference) <= _rounding(claim.num_terms) * float(size)
            _ratios[claim.text] = float(ratio) if holds else None
    return [_ratios[claim.text] for claim in claims]


_ratios: dict[str, float | None] = {}


def is_one(ratio: float | None) -> bool:
    """Whether a multiple is one; it is found by a sum over many numbers."""
    return ratio is not None and abs(ratio - 1) <= _rounding(1)


def _measure(
    found: Array, expected: Array
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    ratio = jnp.vdot(expected, found) / jnp.vdot(expected, expected)
    multiple = ratio * expected
    return ratio, jnp.abs(found - multiple).max(), jnp.abs(multiple).max()


def _rounding(num_terms: int) -> float:
    """The error of a number that is a sum, relative to the largest of its kind.

    Whole numbers are exact, but a convolution may go through transforms, and factors
    that cancel need not do so to the last bit: some units in the last place for each
    of the terms, which add up like a random walk.
    """
    return 32 * float(np.finfo(np.float32).eps) * num_terms**0.5
