r"""What a difference of two computed log-probs cannot resolve.

A log-prob is computed from logits that are each the end of a long computation in the
model's precision. Two things bound what is lost: the last operations round numbers of
the size of the logits (a constant added to all of them costs digits, though it changes
no log-prob), and the model passes on, amplified or not, what was rounded within it. The
first is known from the logits; the second is measured, by rounding the parameters at
random in their last place (Monte Carlo arithmetic): a product of a matrix and a vector
that was computed in some precision is the exact product of a matrix that differs from
it by about as much.

What the floor is: docs/theory/equation.md#floor.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldjax.equation.log_probs import log_softmax, token_log_probs
from ldjax.equation.sequences import Sequences

__all__ = [
    "Observed",
    "compute_eps",
    "floor",
    "noise",
    "observe",
    "perturbed",
    "rounding_of_products",
    "rounding_of_sum",
    "spread_rows",
    "unit",
    "widened",
]

#: Floors in units of `unit` times one plus the noise. The error of a difference is that
#: of two log-probs, each within about one of these (largest seen in a decoder: 0.3 to
#: 1.9, up to 2.8 where also the scales of its norms are threefold); the noise is the
#: largest of a sample, not of all.
UNITS = 4

#: Updates between two measurements of the noise.
NOISE_EVERY = 64

#: It is measured on this share of the probes, and on no fewer than so many.
NOISE_SHARE, NOISE_ROWS = 8, 8

# What moves numbers, and rounds none.
_MOVES = frozenset(
    (
        *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"),
        *("dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota"),
        *("neg", "pad", "reshape", "rev", "select_n", "slice", "split", "squeeze"),
        *("stop_gradient", "transpose", "max", "min", "reduce_max", "reduce_min"),
        *("clamp", "sort", "argmax", "argmin", "eq", "ne", "lt", "le", "gt", "ge"),
    )
)


class Observed(NamedTuple):
    """Watched log-probs, and what bounds their rounding.

    Attributes:
      log_probs: `[probe, pos]`, or with all labels a last axis more; in nats.
      unit: Likewise, from the function of that name.

    Examples:
      >>> Observed(jnp.array([[-2.0]]), jnp.array([[1e-6]])).unit.shape
      (1, 1)
    """

    log_probs: Any
    unit: Any


def observe(
    logits: Float[Array, "batch pos vocab"],
    sequences: Sequences,
    *,
    full_vocab: bool = False,
) -> Observed:
    """The log-probs of what is watched, zero where it is masked, and their units.

    Args:
      logits: Of the sequences; their derivatives pass to the log-probs alone.
      sequences: What is watched.
      full_vocab: Whether all labels are, and not only the targets.

    Examples:
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> observe(jnp.zeros((1, 1, 4)), answer).log_probs
      Array([[-1.386...]], dtype=...)
    """
    mask = sequences.mask
    largest = jnp.abs(jax.lax.stop_gradient(logits)).max(-1)
    if full_vocab:
        log_probs = jnp.where(mask[..., None], log_softmax(logits), 0)
        mask, largest = mask[..., None], largest[..., None]
    else:
        log_probs = token_log_probs(logits, sequences.targets, mask)
    constant = jax.lax.stop_gradient(log_probs)
    return Observed(log_probs, unit(constant, jnp.where(mask, largest, 0)))


def unit(log_probs: Array, largest_logit: Array) -> Array:
    r"""Rounding of a log-prob by its last operations, :math:`z_y - \log\sum e^z`.

    .. math:: \epsilon (1 + |\log \pi| + \max_v |z_v|)

    Args:
      log_probs: In nats, any shape.
      largest_logit: :math:`\max_v |z_v|`, which broadcasts against it.

    Examples:
      >>> unit(jnp.float32(-2.0), jnp.float32(5.0))
      Array(9.5367...e-07, dtype=float32)
    """
    eps = jnp.finfo(log_probs.dtype).eps
    return eps * (1 + jnp.abs(log_probs) + largest_logit)


def noise(log_probs: Array, perturbed: Array, units: Array) -> Array:
    """By how many units the log-probs moved when the parameters were rounded anew.

    Args:
      log_probs: At the parameters, in nats; masked ones zero in both.
      perturbed: At those of `perturbed`.
      units: From `unit`.

    Returns:
      A scalar, the largest.

    Examples:
      >>> noise(jnp.array([-2.0, 0.0]), jnp.array([-2.5, 0.0]), jnp.array([0.1, 0.1]))
      Array(5., dtype=...)
    """
    return jnp.max(jnp.abs(perturbed - log_probs) / units, initial=0)


def floor(units: Any, noise: Any) -> Any:
    """Changes below it, in nats, may be rounding alone.

    Args:
      units: From `unit`.
      noise: From the function of that name.

    Examples:
      >>> floor(jnp.array([1e-6, 2e-6]), jnp.array(0.5))
      Array([6.0e-06, 1.2e-05], dtype=...)
    """
    return UNITS * units * (1 + noise)


def spread_rows(tree: Any, together: int = 1) -> Any:
    """Some rows, evenly spread, that speak for all where the noise is measured.

    Args:
      tree: A pytree of arrays with as many rows each; an array with fewer has one entry
        for each `together` of them.
      together: So many rows in line are chosen or none of them, as those of a prompt.

    Examples:
      >>> spread_rows(jnp.arange(32))
      Array([ 0,  4,  8, 12, 16, 20, 24, 28], dtype=...)
      >>> spread_rows(jnp.arange(32), together=8)
      Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=...)
    """
    rows = max((leaf.shape[0] for leaf in jax.tree.leaves(tree)), default=0)
    count = rows // together
    chosen = max(math.ceil(NOISE_ROWS / together), count // NOISE_SHARE)
    stride = max(1, count // chosen)

    def some(leaf: Array) -> Array:
        parts = leaf.reshape(count, -1, *leaf.shape[1:])[::stride]
        return parts.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(some, tree)


def perturbed(params: Any, eps: float) -> Any:
    r"""Parameters rounded another way, :math:`\theta_i (1 \pm \epsilon)`.

    The signs are drawn once and for all, by the place of a parameter. Parameters that
    are stored in a coarser precision than they are computed with become wider.

    Args:
      params: A pytree of floating-point arrays.
      eps: Of the precision that the model computes in.

    Examples:
      >>> jnp.unique(perturbed(jnp.ones(40), 0.25))
      Array([0.75, 1.25], dtype=...)
    """

    def leaf(values: Array) -> Array:
        places = jnp.arange(values.size, dtype=jnp.uint32).reshape(values.shape)
        # A multiplicative hash: neighbours get signs that have nothing to do with
        # each other. (Random bits would be a program to compile for every shape.)
        mixed = places * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(0x85EBCA77)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return values
        step = jnp.asarray(eps, values.dtype)
        return values * jnp.where(mixed >> 31 == 0, 1 + step, 1 - step)

    return jax.tree.map(leaf, widened(params, eps))


def widened(params: Any, eps: float) -> Any:
    """Parameters that can hold what a computation tells apart.

    Those that are stored in a coarser precision than they are computed with become
    float32; all others stay.

    Args:
      params: A pytree of arrays.
      eps: Of the precision that the model computes in (`compute_eps`).

    Examples:
      >>> widened(jnp.bfloat16(1.0), 1e-7).dtype, widened(jnp.bfloat16(1.0), 0.01).dtype
      (dtype('float32'), dtype(bfloat16))
    """

    def leaf(values: Array) -> Array:
        dtype = jnp.result_type(values)
        is_half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
        is_coarser = is_half and eps < jnp.finfo(dtype).eps
        return jnp.asarray(values, jnp.float32 if is_coarser else dtype)

    return jax.tree.map(leaf, params)


def compute_eps(fn: Any, *args: Any) -> float:
    """The unit in the last place of the coarsest arithmetic in a function's program.

    Args:
      fn: A function of arrays.
      *args: What it is called with; only shapes and dtypes are looked at.

    Examples:
      >>> compute_eps(lambda x: (x.astype(jnp.bfloat16) * 2).sum(), jnp.ones(3))
      0.0078125
    """
    jaxpr = jax.make_jaxpr(fn)(*args)
    return max(
        (float(jnp.finfo(dtype).eps) for dtype in _float_dtypes(jaxpr.jaxpr)),
        default=0.0,
    )


def _float_dtypes(jaxpr: Any) -> Iterator[Any]:
    """Of what the program's arithmetic rounds to."""
    for eqn in jaxpr.eqns:
        bodies = [
            getattr(leaf, "jaxpr", leaf)  # closed or not
            for leaf in jax.tree.leaves(list(eqn.params.values()))
            if hasattr(leaf, "eqns")
        ]
        for body in bodies:
            yield from _float_dtypes(body)
        if bodies or eqn.primitive.name in _MOVES:
            continue
        for out in eqn.outvars:
            if jnp.issubdtype(out.aval.dtype, jnp.floating):
                yield out.aval.dtype


def rounding_of_products(num_parameters: int) -> float:
    r"""What float32 may lose of a sum of products over all parameters.

    .. math:: 2^{-24} \sqrt{n}

    as a share of the sizes of its terms: each is rounded by :math:`2^{-24}` of it at
    most, and roundings of either sign add up as a random walk.

    Args:
      num_parameters: The number `n` of terms.

    Examples:
      >>> f"{rounding_of_products(400_000):.1e}"
      '3.8e-05'
    """
    return 2.0**-24 * math.sqrt(num_parameters)


def rounding_of_sum(floors: np.ndarray) -> Any:
    r"""What the rounding errors of many steps can add up to.

    .. math:: \min\Big(\sum_t f_t,\; 6 \sqrt{\textstyle\sum_t f_t^2}\Big)

    Errors of either sign, each within its floor: beyond six roots once in 3e7 sums
    (Hoeffding's inequality). A defect that repeats at every step grows faster and is
    seen, however small.

    Args:
      floors: Of each step, `[step, ...]`.

    Examples:
      >>> float(rounding_of_sum(np.full(400, 1e-6)).round(6))
      0.00012
    """
    floors = floors.astype(float)
    return np.minimum(floors.sum(0), 6 * np.sqrt((floors**2).sum(0)))
