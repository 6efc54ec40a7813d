r"""Why the chosen response falls although it is preferred.

A preference loss pushes the chosen response of a pair up and the rejected one down, by
the same strength. Both pushes move both responses, and what the second takes from the
chosen response can be more than what the first gives. For one pair and a small step of
plain gradient descent, with :math:`g^\pm = \nabla_\theta \log \pi(y^\pm \mid x)`,

.. math:: \Delta \log \pi(y^+) \propto \|g^+\|^2 - \langle g^+, g^- \rangle,

so it falls if and only if :math:`\langle g^+, g^- \rangle > \|g^+\|^2`
(`pair_products`). That is first order, and the pair's own two sides alone: in a batch
the other pairs, the optimizer's history and the weight decay move it too
(`split_by_origin` says by how much each at one update, `ldjax.origins` over a run), and
so does the remainder. Under an optimizer that rescales, such as Adam, it is about those
two sides *as the batch's step scaled them*; trained on alone, the pair would have been
scaled (and clipped) otherwise.

References:
  Ren & Sutherland 2025, section 4.2; Razin et al. 2025, "Unintentional Unalignment:
  Likelihood Displacement in Direct Preference Optimization".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ldjax.equation.log_probs import sequence_log_probs
from ldjax.equation.sequences import ApplyFn, Sequences, check_sequences
from ldjax.equation.update_parts.dated import is_side
from ldjax.precision import watched

__all__ = ["PairProducts", "pair_products", "split_by_origin"]


class PairProducts(NamedTuple):
    r"""Inner products of the gradients of both log-probs of each pair, in nats².

    Attributes:
      chosen: :math:`\|g^+\|^2`, `[pair]`.
      rejected: :math:`\|g^-\|^2`.
      cross: :math:`\langle g^+, g^- \rangle`.

    Examples:
      >>> products = PairProducts(*jnp.array([[4.0, 4.0], [9.0, 9.0], [5.0, 3.0]]))
      >>> products.chosen_falls
      Array([ True, False], dtype=bool)
    """

    chosen: Float[Array, " pair"]
    rejected: Float[Array, " pair"]
    cross: Float[Array, " pair"]

    @property
    def chosen_falls(self) -> Bool[Array, " pair"]:
        """Where a pair's own two sides lower its chosen response, to first order.

        With no preconditioner: where a small enough step of plain gradient descent on
        the pair alone does. With that of a batch's step: of the two sides as this step
        scaled them, without momentum and decay.
        """
        return self.cross > self.chosen


def pair_products(
    apply_fn: ApplyFn,
    params: Any,
    pairs: Mapping[str, Any],
    *,
    preconditioner: Any = None,
) -> PairProducts:
    r"""Whether the two sides of each pair lower its own chosen response together.

    .. math:: \|g^+\|_P^2, \quad \|g^-\|_P^2, \quad \langle g^+, g^- \rangle_P, \qquad
              \langle a, b \rangle_P = a^\top P\, b

    Args:
      apply_fn: `(params, sequences) -> logits`.
      params: Parameters.
      pairs: `{"chosen": Sequences, "rejected": Sequences}`, `[pair, pos]`.
      preconditioner: Diagonal `P`, shaped like `params` (`ldjax.preconditioner`); by
        default the identity, of plain gradient descent. That of a batch's step is made
        by all its pairs: a step on one pair alone has another.

    Returns:
      The products; two backward passes for each pair, one pair at a time.

    Examples:
      Of two softmax labels what one loses the other gains:

      >>> apply_fn = lambda w, s: w[None, None]
      >>> mask = jnp.ones((1, 1), bool)
      >>> side = lambda label: Sequences(*jnp.full((2, 1, 1), label), mask)
      >>> pairs = {"chosen": side(0), "rejected": side(1)}
      >>> pair_products(apply_fn, jnp.zeros(2), pairs)
      PairProducts(chosen=Array([0.5], ...), ... cross=Array([-0.5], ...))
    """

    def gradient(side: Sequences) -> Any:
        def log_prob(p: Any) -> Array:
            logits = watched(apply_fn)(p, side)
            return sequence_log_probs(logits, side.targets, side.mask)[0]

        return jax.grad(log_prob)(params)

    def of_pair(pair: Mapping[str, Sequences]) -> PairProducts:
        pair = jax.tree.map(lambda leaf: leaf[None], pair)
        chosen, rejected = gradient(pair["chosen"]), gradient(pair["rejected"])
        scaled = chosen, rejected
        if preconditioner is not None:
            scaled = [jax.tree.map(jnp.multiply, preconditioner, g) for g in scaled]
        dot = lambda a, b: jnp.asarray(optax.tree.vdot(a, b))
        return PairProducts(
            dot(chosen, scaled[0]), dot(rejected, scaled[1]), dot(chosen, scaled[1])
        )

    check_sequences(pairs, name="pairs")
    # Only what a model reads: references and the like may have other shapes.
    sides = {name: pairs[name].plain for name in ("chosen", "rejected")}
    return jax.lax.map(of_pair, sides)


def split_by_origin(
    parts: Mapping[str, Array], is_own: Bool[Array, "example probe"]
) -> dict[str, Array]:
    """What a probe's own pair did to it, side by side, and what the others did.

    This divides what happened; it does not say what would have happened without a pair.
    Where the optimizer rescales, its scales are held at what the whole batch made of
    them. For an element-wise optimizer without memory these are the Aumann-Shapley
    shares of the step; with momentum or a norm (clipping) they are a convention.

    Args:
      parts: Of a comparison of `make_step(..., parts="example")`: `[example, probe,
        ...]` for each side of the update, `[probe, ...]` for what is no side of it,
        such as the history and the weight decay.
      is_own: Whether an example of the update is the probe's own pair.

    Returns:
      `"own SIDE"` for each side, `"others"` (the sides of all other examples), and the
      rest as it was; all `[probe, ...]`. They sum to what the parts sum to.

    Raises:
      ValueError: If the parts are not by example.

    Examples:
      >>> parts = {"chosen": jnp.array([[1.0], [2.0]]), "history": jnp.array([0.5])}
      >>> split = split_by_origin(parts, jnp.array([[False], [True]]))
      >>> {name: float(change[0]) for name, change in split.items()}
      {'own chosen': 2.0, 'others': 1.0, 'history': 0.5}
    """
    rest = {k: v for k, v in parts.items() if not is_side(k)}
    sides = {k: v for k, v in parts.items() if k not in rest}
    own, others = {}, []
    for name, change in sides.items():
        if change.shape[:2] != is_own.shape:
            raise ValueError(
                f"The part {name!r} has shape {change.shape}; expected {is_own.shape} "
                "first, the examples of the update by the probes: pass "
                '`parts="example"` to `make_step`.'
            )
        mask = is_own.reshape(*is_own.shape, *(1,) * (change.ndim - 2))
        own[f"own {name}"] = jnp.where(mask, change, 0).sum(0)
        others.append(jnp.where(mask, 0, change).sum(0))
    return own | {"others": jax.tree.reduce(jnp.add, others)} | rest
