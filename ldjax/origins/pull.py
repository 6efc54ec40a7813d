r"""One update of the sweep: what it paid, and to whom.

The adjoint :math:`\lambda_{t+1}` of a watched response says how much each number of
the optimizer's memory after update `t` still moves the response's log-prob until the
end of the run. `make_pull_fn` pulls it through the update, its scales frozen,

.. math:: \kappa_t = D_t^\top a_t + B_t^\top \lambda_{t+1}, \qquad
          \lambda_t = C_t^\top a_t + A_t^\top \lambda_{t+1},

with :math:`a_t` the mean gradient of the log-prob along the update, and pays every
row and token of the batch its :math:`\langle \kappa_t, g_{t,i} \rangle`: one
forward-mode pass of the batch's logits along :math:`\kappa_t`, times the residual.

Derived in docs/theory/ledger.md#sweep.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldjax.equation import resolution
from ldjax.equation.account.gradients import gradients_of, transformation, updated
from ldjax.equation.path import Path, difference
from ldjax.equation.sequences import Batch, Sequences, sides_of
from ldjax.equation.subset import leaf_paths, trained_of
from ldjax.equation.update_parts import LinearStep, linear_step
from ldjax.origins.trajectory import Training
from ldjax.precision import watched

__all__ = [
    "Adjoint",
    "Paid",
    "Point",
    "Watch",
    "layers_of",
    "make_pull_fn",
    "moments_of",
]

# One array for each point, `[probe, ...]`.
Adjoint = dict[str, Array]


class Point(NamedTuple):
    """A state of the training.

    Attributes:
      params: All parameters.
      opt_state: The optimizer's state.
    """

    params: Any
    opt_state: Any


class Paid(NamedTuple):
    r"""What one update did to each watched response, in nats.

    Attributes:
      examples: By side of the batch, `[probe, row, pos]`.
      layers: By side, `[probe, layer]`: what the examples' sum comes through.
      weight_decay: Likewise of the parameters themselves, `[probe, layer]`.
      noise: Of what the optimizer drew at random, `[probe]`.
      integrated: The change along the update, by the nodes, `[probe]`.
      held: What the optimizer's memory before the update does until the end of the
        run, :math:`\langle \lambda_t, \sigma_t \rangle`, `[probe]`.
      log_probs: Of each token before the update, `[probe, pos]`.
      unit: Their rounding, summed (`ldjax.equation.resolution.unit`), `[probe]`.
    """

    examples: dict[str, Float[Array, "probe row pos"]]
    layers: dict[str, Float[Array, "probe layer"]]
    weight_decay: Float[Array, "probe layer"]
    noise: Float[Array, " probe"]
    integrated: Float[Array, " probe"]
    held: Float[Array, " probe"]
    log_probs: Float[Array, "probe pos"]
    unit: Float[Array, " probe"]


class Watch(NamedTuple):
    """The log-probs of responses, each a row of `Sequences`.

    Attributes:
      watch_fn: What computes their logits, with all digits.
    """

    watch_fn: Callable[[Any, Sequences], Array]

    @classmethod
    def of(cls, training: Training) -> "Watch":
        """By what is watched in a training."""
        return cls(watched(training.watch_fn or training.apply_fn))

    def one(self, params: Any, probe: Sequences) -> resolution.Observed:
        """Of the tokens of one response, `[pos]`."""
        row = jax.tree.map(lambda leaf: leaf[None], probe)
        observed = resolution.observe(self.watch_fn(params, row), row)
        return jax.tree.map(lambda leaf: leaf[0], observed)

    def all(self, params: Any, probes: Sequences) -> resolution.Observed:
        """Of all responses, `[probe, pos]`."""
        return jax.vmap(lambda probe: self.one(params, probe))(probes)

    def noise(self, params: Any, probes: Sequences) -> Float[Array, ""]:
        """How far they move where the parameters are rounded anew, in their units."""
        eps = resolution.compute_eps(lambda p: self.all(p, probes).log_probs, params)
        log_probs, unit = self.all(params, probes)
        other, _ = self.all(resolution.perturbed(params, eps), probes)
        return resolution.noise(log_probs, other, unit)


def layers_of(training: Training, params: Any) -> list[str]:
    """The names of the layers: the first on the way to each trained parameter.

    Args:
      training: How was trained.
      params: All parameters, or their shapes.
    """
    trained, _ = trained_of(params, training.where)
    return list(dict.fromkeys(_layer_names(trained)))


def moments_of(
    training: Training, point: Point, batch: Batch
) -> dict[str, jax.ShapeDtypeStruct]:
    """What the optimizer carries from update to update: the shapes of an adjoint.

    Args:
      training: How was trained.
      point: Any state of the run.
      batch: Any batch of it.

    Raises:
      ValueError: If updates of the optimizer cannot be split; names the operation.
    """

    def moments(point: Point, batch: Batch) -> dict[str, Array]:
        trained, whole = trained_of(point.params, training.where)
        return _linearized(training, point, trained, whole, batch)[0].moments

    return jax.eval_shape(moments, point, batch)


def make_pull_fn(
    training: Training, path: Path
) -> Callable[[Point, Any, Batch, Sequences, Adjoint], tuple[Adjoint, Paid]]:
    """A function that goes back over one update.

    Args:
      training: How was trained.
      path: Where along the update the gradients of the log-probs are taken.

    Returns:
      `(point, new_params, batch, probes, adjoint) -> (adjoint, paid)`: the state
      before the update, the parameters after it, its batch; the adjoints after and
      before it. Compiled once for each shape; takes the memory of the adjoint.
    """
    watch, exact = Watch.of(training), watched(training.apply_fn)

    def pull(
        point: Point, new_params: Any, batch: Batch, probes: Sequences, adjoint: Adjoint
    ) -> tuple[Adjoint, Paid]:
        trained, whole = trained_of(point.params, training.where)
        new_trained, _ = trained_of(new_params, training.where)
        change = difference(new_trained, trained)

        def log_prob(params: Any, probe: Sequences) -> Array:
            return watch.one(whole(params), probe).log_probs.sum()

        def gradients_at(params: Any) -> Any:
            return jax.vmap(lambda probe: jax.grad(log_prob)(params, probe))(probes)

        averaged = path.mean(gradients_at, resolution.widened(trained, 0.0), change)
        linear, gradients = _linearized(training, point, trained, whole, batch)
        update, _ = jax.eval_shape(
            linear.carry, gradients.total, linear.moments, trained
        )
        paid_for = jax.tree.map(lambda a, u: a.astype(u.dtype), averaged, update)
        _, pullback = jax.vjp(linear.carry, gradients.total, linear.moments, trained)
        kappa, new_adjoint, of_params = jax.vmap(
            lambda *cotangents: pullback(cotangents)
        )(paid_for, adjoint)

        def of_examples(direction: Any) -> dict[str, Array]:
            """What each token of the batch gave of the gradient, along a direction."""

            def logits_of(params: Any) -> dict[str, Array]:
                sides = sides_of(batch).items()
                return {k: exact(whole(params), side) for k, side in sides}

            _, moved = jax.jvp(logits_of, (trained,), (direction,))
            return {k: (moved[k] * gradients.residuals[k]).sum(-1) for k in moved}

        count = len(probes.mask)
        noise = jnp.zeros(count)
        if linear.noise is not None:
            noise = _dots(count, (paid_for, adjoint), linear.noise)
        observed = watch.all(point.params, probes)
        paid = Paid(
            examples=jax.vmap(of_examples)(kappa),
            layers={
                side: _dots_by_layer(kappa, gradient)
                for side, gradient in gradients.by_side.items()
            },
            weight_decay=_dots_by_layer(of_params, trained),
            noise=noise,
            integrated=_dots(count, averaged, change),
            held=_dots(count, new_adjoint, linear.moments),
            log_probs=observed.log_probs,
            unit=jnp.where(probes.mask, observed.unit, 0).sum(-1),
        )
        return new_adjoint, paid

    return jax.jit(pull, donate_argnums=4)


def _linearized(
    training: Training, point: Point, trained: Any, whole: Any, batch: Batch
) -> tuple[LinearStep, Any]:
    """The optimizer's step with frozen scales, and the gradient by side."""
    optimizer = transformation(training.optimizer)
    gradients = gradients_of(
        lambda params, side: training.apply_fn(whole(params), side),
        training.loss_fn,
        trained,
        batch,
    )
    gradient, opt_state = gradients.total, point.opt_state
    _, extra_args = updated(optimizer, gradient, opt_state, trained, gradients.offered)
    return linear_step(optimizer, gradient, opt_state, trained, **extra_args), gradients


def _dots(count: int, of_probes: Any, other: Any) -> Float[Array, " probe"]:
    """Inner products of each probe's tree with another."""
    pairs = zip(jax.tree.leaves(of_probes), jax.tree.leaves(other), strict=True)
    return sum((_dot(a, b) for a, b in pairs), jnp.zeros(count))


def _dot(of_probes: Array, other: Array) -> Float[Array, " probe"]:
    wide = jnp.promote_types(jnp.result_type(of_probes, other), jnp.float32)
    flat = of_probes.reshape(len(of_probes), -1).astype(wide)
    return jnp.matmul(flat, other.reshape(-1).astype(wide), precision="highest")


def _dots_by_layer(of_probes: Any, other: Any) -> Float[Array, "probe layer"]:
    """Likewise, layer by layer."""
    sums: dict[str, Array] = {}
    pairs = zip(jax.tree.leaves(of_probes), jax.tree.leaves(other), strict=True)
    for name, pair in zip(_layer_names(other), pairs, strict=True):
        sums[name] = sums.get(name, 0) + _dot(*pair)
    return jnp.stack([*sums.values()], axis=-1)


def _layer_names(params: Any) -> list[str]:
    return [path[0] if path else "" for path in leaf_paths(params)]
