"""The paper's equation: `A`, `K` and `G` of one step, and their product.

Derived in docs/theory/equation.md#one-step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldjax.equation.jacobian import jacobian
from ldjax.equation.linear_map import LinearMap
from ldjax.equation.log_probs import log_softmax
from ldjax.precision import watched

__all__ = ["StepDecomposition", "decompose"]


class StepDecomposition(NamedTuple):
    r"""The three terms of one gradient step, in the order they multiply.

    .. math:: \Delta \log \pi(\chi_o) = -\eta\, A(\chi_o)\, K(\chi_o, \chi_u)\,
              G(\chi_u) + O(\eta^2)

    Attributes:
      adaptation: `A = d log pi / d z` at the probe, a `LinearMap` on probe logits.
      kernel: `K`, a `LinearMap` from update logits to probe logits. Any
        representation fits: `decomposition._replace(kernel=dense)`.
      residual: `G = d loss / d z` at the update, shaped like its logits.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda w: 2.0 * w
      >>> terms = decompose(logits_fn, logits_fn, jnp.zeros(2), loss_fn=jnp.sum)
      >>> A, K, G = terms
      >>> K @ G
      Array([4., 4.], dtype=...)
      >>> -0.1 * A @ K @ G  # adding the same to all logits moves no log-prob
      Array([...0., ...0.], dtype=...)
    """

    adaptation: LinearMap
    kernel: LinearMap
    residual: Any

    def predict(self, learning_rate: float | Float[Array, ""]) -> Any:
        r"""First-order change of every log-prob of the probe, in nats.

        :math:`-\eta A K G`, the change a plain SGD step of this size makes up to
        :math:`O(\eta^2)`; for other optimizers see `ldjax.make_step`.

        Args:
          learning_rate: The step size eta of gradient *descent*.

        Returns:
          A pytree shaped like the probe's logits; positive means "went up".
        """
        return -learning_rate * self.adaptation @ self.kernel @ self.residual

    def token_map(
        self,
        targets: Any,
        learning_rate: float | Float[Array, ""],
        *,
        mask: Any = None,
        batch_size: int = 16,
    ) -> Any:
        r"""What each update token did to each probe token: `predict`, taken apart.

        .. math:: T_{m,l} = -\eta\, \big[A_m K_{m,l} G_l\big]_{y_m}, \qquad
                  \sum_l T_{m,l} = -\eta\, [A K G]_{m, y_m}

        The change of the log-prob of probe token `m` due to the residual of update
        position `l` alone; the sum over the update is the prediction, exactly. `K` is
        not formed: each update position costs one application of the kernel (for a
        lazy one a backward pass through the update and a forward-mode pass through the
        probe). Nothing is assumed to be causal.

        Args:
          targets: The watched label of each probe position: integers, shaped like the
            probe's logits without their last axis.
          learning_rate: The step size eta of gradient *descent*. For an optimizer's
            own step, put its preconditioned kernel into `kernel` and pass 1.0: the map
            is exact for that `P`, which all update tokens made together (it does not
            say what would have happened without one).
          mask: True where a probe position is scored, booleans shaped like `targets`;
            the map is zero elsewhere, whatever the target is. By default where the
            target is a label (not negative, as -100 is).
          batch_size: Update positions at a time; more are faster and take more memory.

        Returns:
          The map in nats; positive means "went up". For two arrays one array,
          `[*probe, *update]`: `[probe_batch, probe_pos, update_batch, update_pos]`.
          For pytrees, as in `LinearMap.dense`, a pytree (of the probe) of pytrees (of
          the update): `result["rejected"]["chosen"]` is what the chosen side did to
          the rejected probes. Sum over `update_pos` for what each example did.

        Raises:
          ValueError: If `targets` or `mask` is not shaped like the probe.

        Examples:
          Two update positions of one parameter, the first with twice the residual:

          >>> import jax.numpy as jnp
          >>> logits_fn = lambda w: w * jnp.array([[1.0, 0.0], [1.0, 0.0]])
          >>> loss_fn = lambda z: -(jnp.array([2.0, 1.0]) @ z[:, 0])
          >>> terms = decompose(logits_fn, logits_fn, jnp.zeros(()), loss_fn=loss_fn)
          >>> terms.token_map(jnp.array([0, 1]), 0.5)
          Array([[ 0.5 ,  0.25],
                 [-0.5 , -0.25]], dtype=...)
        """
        if mask is None:
            mask = jax.tree.map(lambda labels: labels >= 0, targets)
        _check_positions(self.adaptation.out_struct, targets=targets, mask=mask)

        def done_by(residual: Any) -> Any:
            change = self._replace(residual=residual).predict(learning_rate)
            return jax.tree.map(_at_targets, change, targets, mask)

        return _by_position(done_by, self.residual, batch_size)


def decompose(
    probe_fn: Callable[[Any], Any],
    update_fn: Callable[[Any], Any],
    params: Any,
    *,
    loss_fn: Callable[[Any], Float[Array, ""]],
) -> StepDecomposition:
    r"""Decompose a gradient step on one set of examples as seen by another.

    The kernel is lazy: a backward pass through the update and a forward-mode pass
    through the probe per application. Nothing is compiled here; use it inside
    `jax.jit`.

    Args:
      probe_fn: `params -> logits` of the watched examples, a pytree of
        `[..., vocab]` float32 (or wider) arrays.
      update_fn: `params -> logits` of the trained examples, likewise, for example
        `{"chosen": ..., "rejected": ...}`.
      params: Parameters before the step, a pytree of floating-point arrays.
      loss_fn: `logits -> scalar` of the update, with its own reduction;
        `functools.partial(ldjax.losses.sft, batch=batch)`.

    Returns:
      A `StepDecomposition`.

    Raises:
      TypeError: If logits are narrower than float32, parameters are not floating
        point, or the probe has no forward derivative.
      ValueError: If the update cannot be differentiated backwards.

    References:
      Ren & Sutherland 2025, Proposition 1 and equations 5 and 7.

    Examples:
      A two-parameter model of two classes, trained on class 0 of one input:

      >>> import jax.numpy as jnp
      >>> inputs = jnp.array([1.0, 2.0])
      >>> logits_fn = lambda w: w * inputs.sum()
      >>> loss_fn = lambda z: -jax.nn.log_softmax(z)[0]
      >>> terms = decompose(logits_fn, logits_fn, jnp.zeros(2), loss_fn=loss_fn)
      >>> terms.residual
      Array([-0.5,  0.5], dtype=...)
      >>> terms.predict(0.5)
      Array([ 2.25, -2.25], dtype=...)
    """
    update_jacobian = jacobian(update_fn, params)
    kernel = jacobian(probe_fn, params) @ update_jacobian.T
    residual = jax.grad(watched(loss_fn))(watched(update_fn)(params))
    jax.eval_shape(kernel.mv, residual)  # what cannot be differentiated says so now
    return StepDecomposition(
        adaptation=jacobian(log_softmax, watched(probe_fn)(params)),
        kernel=kernel,
        residual=residual,
    )


def _at_targets(
    change: Float[Array, "*pos vocab"],
    targets: Int[Array, "*pos"],
    mask: Bool[Array, "*pos"],
) -> Float[Array, "*pos"]:
    """The entries of the watched labels, zero where they are masked."""
    targets = jnp.where(mask, targets, 0)
    picked = jnp.take_along_axis(change, targets[..., None], axis=-1)
    return jnp.where(mask, picked[..., 0], 0)


def _by_position(fn: Callable[[Any], Any], vector: Any, batch_size: int) -> Any:
    """`fn` of each position of `vector` alone, the others being zero.

    Returns:
      The pytree that `fn` returns, of pytrees of `vector`, `[*fn's, *positions]`.
    """
    leaves, treedef = jax.tree.flatten(vector)

    def of_leaf(place: int) -> Any:
        *shape, vocab = leaves[place].shape
        rows = leaves[place].reshape(-1, vocab)

        def of_position(index: Array) -> Any:
            alone = [jnp.zeros_like(leaf) for leaf in leaves]
            row = jnp.zeros_like(rows).at[index].set(rows[index])
            alone[place] = row.reshape(leaves[place].shape)
            return fn(treedef.unflatten(alone))

        stacked = jax.lax.map(
            of_position, jnp.arange(len(rows)), batch_size=min(batch_size, len(rows))
        )
        last = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), stacked)
        return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], *shape), last)

    by_leaf = map(of_leaf, range(len(leaves)))
    return jax.tree.map(lambda *parts: treedef.unflatten(parts), *by_leaf)


def _check_positions(logits: Any, **given: Any) -> None:
    """Refuse what is not one number for each position of the probe."""
    expected = jax.tree.map(lambda leaf: leaf.shape[:-1], logits)
    for name, tree in given.items():
        shapes = jax.tree.map(jnp.shape, tree)
        if shapes != expected:
            raise ValueError(
                f"`{name}` has the shapes {shapes}, but the probe's positions have "
                f"{expected}: give the probe's own, for a dict of probes a dict."
            )
