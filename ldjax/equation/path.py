r"""The change that an update makes, as the integral of its derivative along the way.

First order asks how fast a log-prob :math:`s` moves at the start of an update `u`. What
it moves by is that speed, averaged over the segment from the old parameters to the new:

.. math:: s(\theta + u) - s(\theta) = \Big\langle \int_0^1
          \nabla s(\theta + \tau u)\, d\tau,\; u \Big\rangle
          \approx \sum_q w_q \langle \nabla s(\theta + \tau_q u), u \rangle

The averaged gradient does not know how `u` is divided. So every part of an update keeps
its linear share, as in first order, and the shares sum to what was *measured*, up to
the error of the quadrature.

Orders and constants: docs/theory/equation.md#path.
"""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.equation.resolution import compute_eps, widened
from ldjax.equation.subset import leaf_paths
from ldjax.precision import watched

__all__ = [
    "Nodes",
    "Path",
    "averaged",
    "difference",
    "enough_nodes",
    "moved",
    "path_integral",
    "path_of",
    "trust_radius",
    "widened_for",
]

#: Where along an update its derivative is taken: a number of Gauss-Legendre nodes, a
#: rule by its name, or None for the start alone.
Nodes = int | Literal["midpoint", "trapezoid", "simpson"] | None


class Path(NamedTuple):
    """A quadrature rule on the segment from the start (0) to the end (1) of an update.

    Attributes:
      places: Of the nodes, in increasing order.
      weights: Of the nodes; they sum to one.

    Examples:
      >>> Path((0.0, 1.0), (0.5, 0.5)).mean(lambda w: w**2, 1.0, 2.0)
      Array(5., dtype=...)
    """

    places: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def inner(self) -> "Path":
        """Its nodes that are neither the start nor the end, with their weights."""
        pairs = [pair for pair in zip(*self, strict=True) if 0 < pair[0] < 1]
        return Path(*map(tuple, zip(*pairs, strict=True))) if pairs else Path((), ())

    def weight_at(self, place: float) -> float:
        """The weight of the node at a place, zero where there is none."""
        return dict(zip(*self, strict=True)).get(place, 0.0)

    def mean(self, fn: Callable[[Any], Any], params: Any, update: Any) -> Any:
        r"""The weighted sum of a function's values at the nodes of an update.

        One node after the other and added up, so that the memory is that of one, and
        the program no longer for many. (The mean of a gradient is so, and not the
        gradient of a mean, which keeps what it needs of every node.)

        Args:
          fn: Of the parameters.
          params: At the start.
          update: What is added to them at the end.

        Returns:
          :math:`\sum_q w_q f(\theta + \tau_q u)`, shaped like what `fn` returns.
        """
        if len(self.places) == 1:
            ((place,), (weight,)) = self
            return weighted(weight, fn(moved(params, update, place)))

        def add(total: Any, node: Any) -> tuple[Any, None]:
            place, weight = node
            value = fn(moved(params, update, place))
            terms = jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, value)
            return jax.tree.map(jnp.add, total, terms), None

        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, params)
        )
        nodes = jnp.asarray(self.places), jnp.asarray(self.weights)
        return jax.lax.scan(add, nothing, nodes)[0]


_NAMED = {
    None: Path((0.0,), (1.0,)),
    "midpoint": Path((0.5,), (1.0,)),
    "trapezoid": Path((0.0, 1.0), (0.5, 0.5)),
    "simpson": Path((0.0, 0.5, 1.0), (1 / 6, 2 / 3, 1 / 6)),
}


def path_of(nodes: Nodes) -> Path:
    r"""The places and weights of a quadrature rule along an update.

    Args:
      nodes: A number `n` of Gauss-Legendre nodes, exact for polynomials of degree
        `2 n - 1` along the update, so that what is left of a change is of order
        :math:`\|u\|^{2n+1}`; `"midpoint"`, which is one of them; `"trapezoid"` and
        `"simpson"`, of third and fifth order, whose ends are evaluated anyway; None for
        the start alone, which is first order.

    Raises:
      ValueError: If it is none of these.

    Examples:
      >>> path_of("simpson").places
      (0.0, 0.5, 1.0)
      >>> path_of(2).weights
      (0.5, 0.5)
    """
    if nodes is None or isinstance(nodes, str):
        if nodes in _NAMED:
            return _NAMED[nodes]
    elif not isinstance(nodes, bool) and nodes >= 1:
        places, weights = np.polynomial.legendre.leggauss(nodes)
        return Path(tuple(((1 + places) / 2).tolist()), tuple((weights / 2).tolist()))
    raise ValueError(
        f'`nodes` must be "midpoint", "trapezoid", "simpson", a number of nodes from 1 '
        f"on, or None for the start of the update alone; got {nodes!r}."
    )


def averaged(fn: Callable[[Any], Any], update: Any, nodes: Nodes) -> Any:
    r"""A function whose Jacobian at the start is that of `fn`, averaged over an update.

    .. math:: \bar f(\theta) = \sum_q w_q f(\theta + \tau_q u), \qquad
              \bar J u \approx f(\theta + u) - f(\theta)

    So whatever takes a Jacobian (`jacobian`, `jax.grad`, a kernel, a token map) takes
    the averaged one, by being given this function. Each application costs as many
    passes as there are nodes.

    Args:
      fn: Function of the parameters, such as the log-probs of a probe.
      update: New minus old parameters.
      nodes: As in `path_of`.

    Returns:
      A function of the parameters.

    Raises:
      ValueError: As `path_of`.

    Examples:
      The change of a cube, of which first order sees 3 of 7:

      >>> from ldjax import jacobian
      >>> cube, one = lambda w: w**3, jnp.ones(())
      >>> jacobian(averaged(cube, one, 2), one) @ one
      Array(7., dtype=...)
      >>> jacobian(cube, one) @ one
      Array(3., dtype=...)
    """
    path = path_of(nodes)
    return lambda params: path.mean(fn, params, update)


def moved(params: Any, update: Any, place: Any) -> Any:
    """The parameters on the way along an update.

    Args:
      params: At the start, in the precision in which the way is to be resolved.
      update: What is added to them at the end.
      place: How far, from 0 to 1.

    Examples:
      >>> moved(jnp.array(1.0), jnp.array(4.0), 0.5)
      Array(3., dtype=...)
    """
    if isinstance(place, float) and not place:
        return params

    def leaf(p: Any, u: Any) -> Any:
        dtype = jnp.result_type(p)
        return p + jnp.asarray(place, dtype) * jnp.asarray(u, dtype)

    return jax.tree.map(leaf, params, update)


def difference(new: Any, old: Any) -> Any:
    """New minus old parameters, in float32 where they are stored in less.

    A difference of bfloat16 numbers is none itself where it is a large share of them.

    Args:
      new: A pytree of arrays.
      old: Another one like it.

    Examples:
      >>> new, old = jnp.bfloat16(1.0), jnp.bfloat16(2.0**-9)
      >>> new - old, difference(new, old)
      (Array(1, dtype=bfloat16), Array(0.998..., dtype=float32))
    """
    return jax.tree.map(jnp.subtract, widened(new, 0.0), widened(old, 0.0))


def widened_for(fn: Callable[[Any], Any], params: Any) -> Any:
    """Parameters between which there are others, for nodes on the way.

    What is stored in bfloat16 becomes float32, unless that is what the function
    computes in: then it would round the nodes itself.

    Args:
      fn: What is differentiated, a function of the parameters.
      params: A pytree of arrays.

    Examples:
      >>> fn = lambda w: w.astype(jnp.float32) ** 2
      >>> widened_for(fn, jnp.bfloat16(1.0)).dtype
      dtype('float32')
    """
    dtypes = map(jnp.result_type, jax.tree.leaves(params))
    if all(dtype.itemsize >= 4 for dtype in dtypes):
        return params
    return widened(params, compute_eps(fn, params))


def weighted(weight: float, tree: Any) -> Any:
    """A pytree times a number; itself for one, so that no work is added.

    Args:
      weight: The number.
      tree: A pytree of arrays.
    """
    return tree if weight == 1 else jax.tree.map(lambda leaf: weight * leaf, tree)


def path_integral(
    fn: Callable[[Any], Any],
    old: Any,
    new: Any,
    *,
    nodes: Nodes = 3,
    group_of: Callable[[tuple[str, ...]], Hashable] = "/".join,
) -> dict[Hashable, Any]:
    r"""A change between two sets of parameters, divided among the parameters.

    .. math:: f(\theta') - f(\theta) \approx \sum_g \sum_q w_q
              \big\langle \nabla f(\theta + \tau_q (\theta' - \theta)),\;
              (\theta' - \theta)_g \big\rangle

    along the straight line, whatever led from one to the other: it says which layers,
    matrices or adapters carry the change between two checkpoints, and not which
    examples put it there. What is not the same in both is all that counts; one tangent
    pass for each group and node. Checkpoints lie far apart: ask `enough_nodes`.

    Args:
      fn: Function of the parameters, such as the log-probs of some responses.
      old: Nested dicts of arrays (or another pytree).
      new: Others like it.
      nodes: As in `path_of`.
      group_of: From the names on the way to a parameter, as `("layer_0", "kernel")`, to
        the group that it belongs to; by default each parameter by itself. `lambda path:
        path[0]` for layers.

    Returns:
      By group, in the order of the parameters, what `fn` returns: its share of the
      change. They sum to `fn(new) - fn(old)`, up to the quadrature.

    Raises:
      ValueError: As `path_of`; from JAX, if the two differ in structure or shapes.

    Examples:
      Both layers of a product, which each had half of the change; at the start the
      first would have had none:

      >>> fn = lambda p: p["first"]["w"] * p["last"]["w"]
      >>> old = {"first": {"w": jnp.array(1.0)}, "last": {"w": jnp.array(0.0)}}
      >>> new = {"first": {"w": jnp.array(2.0)}, "last": {"w": jnp.array(1.0)}}
      >>> path_integral(fn, old, new, group_of=lambda path: path[0])
      {'first': Array(0.5, dtype=...), 'last': Array(1.5, dtype=...)}
    """
    fn = watched(fn)
    groups = [group_of(path) for path in leaf_paths(old)]
    names = list(dict.fromkeys(groups))
    update, treedef = jax.tree.flatten(difference(new, old))

    def along_groups(params: Any) -> Any:
        _, derivative = jax.linearize(fn, params)
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]

        def along(index: Any) -> Any:
            alone = [
                jnp.where(index == names.index(group), leaf, 0).astype(dtype)
                for group, leaf, dtype in zip(groups, update, dtypes, strict=True)
            ]
            return derivative(treedef.unflatten(alone))

        return jax.lax.map(along, jnp.arange(len(names)))

    shares = path_of(nodes).mean(
        along_groups, widened_for(fn, old), treedef.unflatten(update)
    )
    return {
        name: jax.tree.map(lambda leaf: leaf[i], shares)  # noqa: B023
        for i, name in enumerate(names)
    }


def enough_nodes(
    integrated_of: Callable[[int], Any], tolerance: float, *, most: int = 8
) -> tuple[int, float]:
    r"""The smallest number of nodes that one more does not change.

    With `n` nodes the error falls by the factor :math:`\|u\|^2` for each further one,
    so the difference to `n + 1` nodes is the error of `n`, nearly.

    Args:
      integrated_of: From a number of nodes to integrated changes, any pytree of arrays:
        those of the first updates of a run, say.
      tolerance: Largest difference, as a share of the change (Euclidean norms).
      most: Where to stop.

    Returns:
      The number of nodes, and that difference; larger than the tolerance where even
      `most` nodes are too few.

    Raises:
      ValueError: If the tolerance is not positive.

    Examples:
      >>> change_of = lambda n: averaged(jax.grad(jnp.exp), 1.0, n)(0.0)
      >>> enough_nodes(change_of, 1e-3)[0]  # of e - 1
      2
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}.")
    count, gap, finer = 0, np.inf, _flat(integrated_of(1))
    while count < max(most, 1) and not gap <= tolerance:
        count += 1
        coarse, finer = finer, _flat(integrated_of(count + 1))
        gap = _ratio(finer - coarse, finer)
    return count, gap


def trust_radius(predicted: Any, measured: Any, *, share: float = 0.1) -> float:
    r"""How far first order can be trusted, as a multiple of an update.

    An update `m` times as large changes log-probs by :math:`m\,p + m^2 r + O(m^3)`,
    with `p` predicted and `r` the remainder of the update itself. So first order is off
    by the given share of what it predicts where

    .. math:: m^* = \text{share} \cdot \|p\| \,/\, \|r\|,

    and the learning rate there is :math:`m^*` times the one used. Right where the
    third order is small at both, the update and its multiple: at small updates halving
    the rate doubles it. A remainder that is rounding makes it too small.

    Args:
      predicted: First order, any pytree of arrays.
      measured: What was measured or integrated, likewise.
      share: How far off first order may be.

    Returns:
      The multiple; infinite without a remainder, NaN where nothing moved.

    Examples:
      >>> trust_radius(jnp.array([3.0, 4.0]), jnp.array([3.0, 5.0]))
      0.5
    """
    predicted = _flat(predicted)
    return _ratio(share * predicted, _flat(measured) - predicted, nothing=np.nan)


def _flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def _ratio(part: np.ndarray, whole: np.ndarray, *, nothing: float = 0.0) -> float:
    """Of their norms; infinite for a share of nothing."""
    size, of = float(np.linalg.norm(part)), float(np.linalg.norm(whole))
    if not of:
        return np.inf if size else nothing
    return size / of
