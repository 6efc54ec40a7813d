r"""The next update of an optimizer whose moments are known, with its account.

AdamW as PyTorch computes it, behind the clip of its gradient:

.. math:: g \leftarrow g \min\!\Big(1, \frac{c}{\|g\| + 10^{-6}}\Big), \qquad
          \theta \leftarrow \theta - \eta\,\Big(
          \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda\theta\Big)

with weight decay where the checkpoint's optimizer has it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldjax import linen
from ldjax.compare.trainer import Moments
from ldjax.equation.sequences import Batch, LossFn
from ldjax.equation.step import make_step
from ldjax.models import Transformer, is_adapter
from ldjax.watch.probes import ProbeSet

__all__ = ["Update", "adamw", "clip_as_torch", "take"]


class Update(NamedTuple):
    """An update, and what it is made of.

    Attributes:
      params: The parameters after it.
      loss: Before it, in nats.
      parts: What each part of it did to each response, `[probe]`, in nats: the sides,
        `history`, `weight_decay` and `rounding`.
    """

    params: Any
    loss: float
    parts: dict[str, np.ndarray]


def take(
    model: Transformer,
    params: Any,
    moments: Moments,
    batch: Batch,
    probes: ProbeSet,
    *,
    loss_fn: LossFn,
    clip: float,
    learning_rate: float,
    nodes: int,
) -> Update:
    """Take the next update, and account for it.

    Args:
      model: The decoder.
      params: All its parameters; with adapters these alone are trained.
      moments: Of the optimizer.
      batch: What is trained on.
      probes: What is watched.
      loss_fn: `(logits, batch) -> scalar`.
      clip: Largest norm of the gradient; 0 for none.
      learning_rate: Of this update.
      nodes: Places along the update where derivatives are taken.
    """
    where = None if model.config.adapters is None else is_adapter
    optimizer = adamw(moments, clip=clip, learning_rate=learning_rate)
    apply_fn = linen.apply_fn(model)
    init, step = make_step(apply_fn, loss_fn, optimizer, nodes=nodes, where=where)
    state = init(params)
    state = state._replace(opt_state=_with_moments(state.opt_state, moments))
    watched = tuple(of for _, of in probes.batches)
    new, comparison = step(state, batch, watched)
    parts = {
        name: probes.gather([of.sum(-1) for of in by_batch])
        for name, by_batch in comparison.parts.items()
    }
    return Update(
        new.params,
        float(new.loss),
        {name: of.astype(float) for name, of in parts.items()},
    )


def adamw(
    moments: Moments, *, clip: float, learning_rate: float
) -> optax.GradientTransformation:
    """PyTorch's AdamW behind its clip, with the settings of a checkpoint.

    Args:
      moments: Of the checkpoint.
      clip: Largest norm of the gradient; 0 for none.
      learning_rate: Of the update.

    Examples:
      >>> moments = Moments(0, 0.1, (0.9, 0.999), 1e-8, 0.0, {"a": True}, {}, {})
      >>> optimizer = adamw(moments, clip=1.0, learning_rate=0.1)
      >>> params = {"a": jnp.ones(())}
      >>> optimizer.update(params, optimizer.init(params), params)[0]["a"].round(6)
      Array(-0.1, dtype=...)
    """
    decay = optax.add_decayed_weights(moments.weight_decay, mask=moments.decays)
    return optax.chain(
        clip_as_torch(clip) if 0 < clip < math.inf else optax.identity(),
        optax.scale_by_adam(*moments.betas, eps=moments.epsilon),
        decay if moments.weight_decay else optax.identity(),
        optax.scale(-learning_rate),
    )


def clip_as_torch(norm: float) -> optax.GradientTransformation:
    r"""A clip of the gradient as `torch.nn.utils.clip_grad_norm_` computes it.

    Its factor is :math:`c / (\|g\| + 10^{-6})`, a millionth less than optax's.

    Args:
      norm: The largest.

    Examples:
      >>> clip = clip_as_torch(1.0)
      >>> clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))[0].round(4)
      Array([0.6, 0.8], dtype=...)
    """

    def clipped(updates: Any, params: Any) -> Any:
        del params
        size = optax.tree.norm(updates)
        factor = jnp.minimum(1.0, norm / (size + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates)

    return optax.stateless(clipped)


def _with_moments(opt_state: Any, moments: Moments) -> Any:
    """A fresh state with the moments and the count of the checkpoint."""

    def like(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda o, n: jnp.asarray(n, jnp.result_type(o)), old, new)

    def filled(node: Any) -> Any:
        if not isinstance(node, optax.ScaleByAdamState):
            return node
        count = jnp.asarray(moments.num_steps, jnp.result_type(node.count))
        return optax.ScaleByAdamState(
            count, like(node.mu, moments.first), like(node.nu, moments.second)
        )

    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    return jax.tree.map(filled, opt_state, is_leaf=is_adam)
