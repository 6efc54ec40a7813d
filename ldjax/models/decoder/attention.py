"""Causal self-attention with rotary positions, grouped queries and a KV cache."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.low_rank import (
    Adapter,
    Target,
    adapted_dense,
    adapted_together,
)
from ldjax.models.decoder.norm import norm_of
from ldjax.models.decoder.rotary import rotate

__all__ = ["Attention", "KeyValues"]


class KeyValues(NamedTuple):
    """One layer's keys and values of the tokens read so far (keys are rotated).

    Attributes:
      keys: The keys, `[batch, slot, kv_head, head_dim]`.
      values: The values, `[batch, slot, kv_head, head_dim]`.
      next_slot: The slot that the next token is written to, one for all rows.

    Examples:
      >>> empty = KeyValues(
      ...     jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4, 2, 8)), jnp.array(0)
      ... )
      >>> empty.append(jnp.ones((1, 1, 2, 8)), jnp.ones((1, 1, 2, 8))).next_slot
      Array(1, dtype=...)
    """

    keys: Float[Array, "batch slot kv_head head_dim"]
    values: Float[Array, "batch slot kv_head head_dim"]
    next_slot: Int[Array, ""]

    def append(
        self,
        keys: Float[Array, "batch pos kv_head head_dim"],
        values: Float[Array, "batch pos kv_head head_dim"],
    ) -> "KeyValues":
        """The cache with these tokens written behind the ones it holds.

        Args:
          keys: Keys of the new tokens.
          values: Values of the new tokens.

        Returns:
          A cache of the same shape. There must be room: this cannot be checked
          under `jit`, where tokens that do not fit overwrite the last slots.

        Examples:
          >>> cache = KeyValues(*2 * (jnp.zeros((1, 3, 1, 1)),), jnp.array(1))
          >>> cache.append(*2 * (jnp.ones((1, 2, 1, 1)),)).keys.ravel()
          Array([0., 1., 1.], dtype=...)
        """
        write = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=self.next_slot, axis=1
        )
        return KeyValues(
            write(self.keys, keys.astype(self.keys.dtype)),
            write(self.values, values.astype(self.values.dtype)),
            self.next_slot + keys.shape[1],
        )


class Attention(nn.Module):
    r"""Grouped-query attention: query, key, value and output are one `Dense` each.

    .. math:: \mathrm{softmax}(q k^\top / \sqrt{d_\mathrm{head}}) \, v

    Query head `h` reads key/value head `h // (num_heads // num_kv_heads)`. Queries and
    keys are normed, then rotated, where the configuration says so; it may say another
    scale and a bound of the scores, too. Scores and softmax are float32 or better. A
    query that sees no key (padding) yields zero.

    Attributes:
      config: The architecture.
      layer: The number of the block.
      out_init: Initialiser of the output matrix.
      adapters: The low-rank adapters of its matrices.

    Examples:
      >>> from ldjax.models import llama_config
      >>> attention = Attention(llama_config(vocab_size=9, width=32), layer=0)
      >>> x, positions = jnp.ones((1, 3, 32)), jnp.arange(3)[None]
      >>> visible = jnp.tril(jnp.ones((1, 3, 3), bool))
      >>> variables = attention.init(jax.random.key(0), x, positions, visible)
      >>> y, _ = attention.apply(variables, x, positions, visible)
      >>> y.shape
      (1, 3, 32)
    """

    config: TransformerConfig
    layer: int
    out_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    adapters: Mapping[Target, Adapter] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch pos width"],
        positions: Int[Array, "batch pos"],
        visible: Bool[Array, "#batch pos slot"],
        past: KeyValues | None = None,
    ) -> tuple[Float[Array, "batch pos width"], KeyValues | None]:
        """Lets each position read the ones it may see.

        Args:
          x: Normalised inputs.
          positions: Position of each token, in tokens.
          visible: Whether a query position sees a key; with a cache a key is a slot,
            without one it is a position.
          past: Keys and values of earlier tokens, with room for these.

        Returns:
          The outputs, and `past` extended by these tokens (None without a cache).
        """
        config = self.config
        batch, length, width = x.shape
        query, keys, values = (
            y.reshape(batch, length, -1, config.head_dim) for y in self._project(x)
        )
        if config.qk_norm == "head":
            query, keys = self._normed(query, keys)
        if num_rotated := config.rotated_at(self.layer):
            theta, scaling = config.rotary_at(self.layer)
            turn = functools.partial(
                rotate,
                positions=positions,
                num_rotated=num_rotated,
                theta=theta,
                scaling=scaling,
            )
            query, keys = turn(query), turn(keys)
        if past is not None:
            past = past.append(keys, values)
            keys, values = past.keys, past.values
        mixed = _attend(
            query,
            keys,
            values,
            visible,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
        )
        out = adapted_dense(
            mixed.reshape(batch, length, -1),
            width,
            name="out",
            adapters=self.adapters,
            use_bias=config.attention_out_bias,
            kernel_init=self.out_init,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
        )
        return out, past

    def _project(self, x: Float[Array, "batch pos width"]) -> list[Array]:
        """Query, key and value, heads side by side."""
        config = self.config
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        wide = config.num_heads * config.head_dim
        narrow = config.num_kv_heads * config.head_dim
        settings = {"adapters": self.adapters, "use_bias": config.qkv_bias, **dtypes}
        projected = [
            adapted_dense(x, wide, name="query", **settings),
            adapted_dense(x, narrow, name="key", **settings),
            adapted_dense(x, narrow, name="value", **settings),
        ]
        projected = adapted_together(
            projected, x, name="qkv", adapters=self.adapters, **dtypes
        )
        if config.qk_norm == "projection":
            projected[:2] = self._normed(*projected[:2])
        return projected

    def _normed(self, query: Array, keys: Array) -> tuple[Array, Array]:
        return (
            norm_of(self.config, name="query_norm")(query),
            norm_of(self.config, name="key_norm")(keys),
        )


def _attend(
    query: Float[Array, "batch pos head head_dim"],
    keys: Float[Array, "batch slot kv_head head_dim"],
    values: Float[Array, "batch slot kv_head head_dim"],
    visible: Bool[Array, "#batch pos slot"],
    *,
    scale: float | None,
    softcap: float | None,
) -> Float[Array, "batch pos head head_dim"]:
    batch, length, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    query = query.reshape(batch, length, num_kv_heads, -1, head_dim)
    scores = jnp.einsum(
        "btkgd,bskd->bkgts",
        query,
        keys,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
    visible = visible[:, None, None]  # [batch, 1, 1, pos, slot]
    scores = scores / head_dim**0.5 if scale is None else scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(scores.dtype).min))
    # A row that sees nothing has a finite, uniform softmax; make it zero.
    weights = jnp.where(visible, weights, 0).astype(values.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values)
    return mixed.reshape(batch, length, num_heads, head_dim)
