"""What a kernel costs, from shapes alone, before anything is allocated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ldjax._spaces import size_of

__all__ = ["Plan", "plan_dense"]


class Plan(NamedTuple):
    """The memory a dense method asks for.

    Attributes:
      method: The name `empirical_ntk` takes.
      result_bytes: The kernel itself.
      work_bytes: What exists beside it while it is computed, activations apart.

    Examples:
      >>> Plan("jacobian", result_bytes=1000, work_bytes=5000).total_bytes
      6000
    """

    method: str
    result_bytes: int
    work_bytes: int

    @property
    def total_bytes(self) -> int:
        """Result and work together."""
        return self.result_bytes + self.work_bytes


def plan_dense(
    probe_fn: Callable[[Any], Any], update_fn: Callable[[Any], Any], params: Any
) -> tuple[Plan, ...]:
    r"""Bytes of the dense kernel by each method, the cheapest first.

    With N and N' outputs on the two sides and P parameters:

    * `"jacobian"` stores both Jacobians and, while they are contracted, a transposed
      copy of each: 2 (N + N') P numbers.
    * `"ntk_vp"` pulls every basis vector of the narrower side back to the parameters
      and pushes it forward again: min(N, N') (P + N + N') numbers.

    Activations, which the compiler schedules, are not counted.

    Args:
      probe_fn: `params -> logits` of the watched examples.
      update_fn: `params -> logits` of the trained examples.
      params: The parameters; only shapes and dtypes are read.

    Returns:
      One `Plan` per method, by `total_bytes`.

    Examples:
      >>> import jax.numpy as jnp
      >>> probe_fn = lambda w: jnp.zeros((2, 5, 10), jnp.float32)
      >>> update_fn = lambda w: jnp.zeros((1, 5, 10), jnp.float32)
      >>> for plan in plan_dense(probe_fn, update_fn, jnp.zeros(1000, jnp.float32)):
      ...     print(plan.method, plan.result_bytes, plan.work_bytes)
      ntk_vp 20000 230000
      jacobian 20000 1200000
    """
    probe, update = (jax.eval_shape(fn, params) for fn in (probe_fn, update_fn))
    params = jax.eval_shape(lambda p: p, params)  # Python numbers get shapes
    rows, columns = size_of(probe), size_of(update)
    num_params = size_of(params)
    width = max(leaf.dtype.itemsize for leaf in jax.tree.leaves((probe, params)))
    work = {
        "jacobian": 2 * (rows + columns) * num_params,
        "ntk_vp": min(rows, columns) * (num_params + rows + columns),
    }
    plans = (Plan(name, rows * columns * width, n * width) for name, n in work.items())
    return tuple(sorted(plans, key=lambda plan: plan.total_bytes))
