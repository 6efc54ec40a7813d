"""One decoder for all families, which its configuration tells apart.

Every matrix lives in a standard Linen layer (`Dense`, `Embed`), which is what the
exact kernels hook into. Trunk and head are separate: `model.hidden` and `model.head`.
The forward pass is a function of its parameters alone; the KV cache of decoding is
an argument and a result (`model.prefill`, `model.extend`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldjax.equation.doors import check_ids
from ldjax.equation.sequences import Prompts, is_here
from ldjax.models.decoder.attention import Attention, KeyValues
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.low_rank import (
    Adapter,
    Target,
    adapted_dense,
    adapted_together,
)
from ldjax.models.decoder.norm import norm_of

__all__ = ["Cache", "Transformer"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


class Cache(NamedTuple):
    """What decoding remembers of the tokens read so far; a slot holds one token.

    Attributes:
      layers: Keys and values of each block.
      mask: Whether a slot holds a real token, `[batch, slot]`.

    Examples:
      >>> from ldjax.models import llama_config
      >>> model = Transformer(llama_config(vocab_size=10, num_layers=1))
      >>> tokens = jnp.array([[1, 2]])
      >>> variables = model.init(jax.random.key(0), tokens)
      >>> _, cache = model.apply(
      ...     variables, tokens, cache_length=3, method=model.prefill
      ... )
      >>> cache.mask
      Array([[ True,  True, False]], dtype=bool)
    """

    layers: tuple[KeyValues, ...]
    mask: Bool[Array, "batch slot"]


class _Visible(NamedTuple):
    """Which slots a query sees."""

    all: Bool[Array, "#batch pos slot"]
    near: Bool[Array, "#batch pos slot"]  # within the sliding window


class Transformer(nn.Module):
    r"""A causal decoder: `logits[:, t]` are read from the tokens up to `t` alone.

    .. math:: z = \mathrm{head}(\mathrm{norm}(\mathrm{blocks}(\mathrm{embed}(x))))

    Padding may stand anywhere and hold any ids: with its `mask`, the numbers at the
    real tokens do not depend on it. Without a mask all tokens are real; right padding
    then changes nothing at the real tokens before it, left padding does. At padding
    the logits are finite and mean nothing.

    Attributes:
      config: The architecture.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> model = Transformer(gpt2_config(vocab_size=100, num_layers=1))
      >>> tokens = jnp.array([[5, 3, 7]])
      >>> variables = model.init(jax.random.key(0), tokens)
      >>> logits = model.apply(variables, tokens)
      >>> logits.shape
      (1, 3, 100)
      >>> hidden = model.apply(variables, tokens, method=model.hidden)
      >>> bool((model.apply(variables, hidden, method=model.head) == logits).all())
      True
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Makes the layers; Linen calls it."""
        config = self.config
        embed = functools.partial(
            nn.Embed,
            features=config.width,
            param_dtype=config.param_dtype,
            embedding_init=nn.initializers.normal(0.02),
        )
        self.token_embedding = embed(config.vocab_size)
        if config.positions == "learned":
            self.position_embedding = embed(config.max_positions)
        block = nn.remat(_Block) if config.remat else _Block
        self.blocks = [
            block(config, layer, config.adapters.at(layer) if config.adapters else {})
            for layer in range(config.num_layers)
        ]
        self.final_norm = norm_of(config)
        if not config.tied_head:
            # No `dtype`: the head computes in the wider of float32 and its parameters.
            self.unembedding = nn.Dense(
                config.vocab_size,
                use_bias=config.head_bias,
                param_dtype=config.param_dtype,
                kernel_init=nn.initializers.normal(0.02),
            )

    def __call__(
        self,
        tokens: Int[Array, "batch pos"],
        mask: Bool[Array, "batch pos"] | None = None,
        positions: Int[Array, "batch pos"] | None = None,
        prompts: Prompts | None = None,
    ) -> Float[Array, "batch pos vocab"]:
        """Logits of the next token at each position, in nats.

        Args:
          tokens: Token ids.
          mask: Whether a token is real and not padding; None if all are real.
          positions: Position of each token; by default the number of real tokens
            before it.
          prompts: What the rows go on from, each read once for all of its rows; then
            `positions` are counted.

        Returns:
          Logits, float32 or, with float64 parameters, float64.

        Raises:
          TypeError: If `tokens` or `positions` are no integers, or `mask` no booleans.
          ValueError: If `tokens` are longer than the table of learned positions; and,
            where their values are known (not inside `jax.jit`), if the id of a real
            token is not in the vocabulary or its position not in that table.
        """
        if prompts is not None:
            return self.head(self._continued(tokens, mask, prompts))
        return self.head(self.hidden(tokens, mask, positions))

    def hidden(
        self,
        tokens: Int[Array, "batch pos"],
        mask: Bool[Array, "batch pos"] | None = None,
        positions: Int[Array, "batch pos"] | None = None,
    ) -> Float[Array, "batch pos width"]:
        """The trunk: hidden states after the final norm; arguments of `__call__`."""
        self._check(tokens, mask, positions)
        if mask is None:
            mask = jnp.ones_like(tokens, dtype=bool)
        causal = jnp.tri(tokens.shape[1], dtype=bool)
        visible = self._visible(causal[None] & mask[:, None, :], mask)
        return self._trunk(tokens, mask, _or_counted(positions, mask), visible)[0]

    def head(
        self, hidden: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch vocab"]:
        """Logits, in nats, from hidden states after the final norm."""
        config = self.config
        hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        if config.tied_head:
            logits = self.token_embedding.attend(hidden)
        else:
            logits = self.unembedding(hidden)
        if config.logit_softcap is None:
            return logits
        return config.logit_softcap * jnp.tanh(logits / config.logit_softcap)

    def prefill(
        self,
        tokens: Int[Array, "batch pos"],
        mask: Bool[Array, "batch pos"] | None = None,
        *,
        cache_length: int,
    ) -> tuple[Float[Array, "batch pos width"], Cache]:
        """Hidden states of a prompt, and a cache from which to read on.

        Args:
          tokens: Token ids.
          mask: Whether a token is real; None if all are.
          cache_length: Slots of the cache: these tokens, padding included, and all
            that will follow.

        Returns:
          The hidden states of `hidden`, and the cache.

        Raises:
          ValueError: If `tokens` have more positions than the cache has slots.
        """
        batch, length = tokens.shape
        if length > cache_length:
            raise ValueError(
                f"`cache_length` must hold the prompt: got {cache_length} slots for "
                f"`tokens` of shape {tokens.shape}."
            )
        config = self.config
        shape = (batch, cache_length, config.num_kv_heads, config.head_dim)
        dtype = config.dtype or self.token_embedding.embedding.dtype
        empty = KeyValues(
            jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32)
        )
        unread = jnp.zeros((batch, cache_length), dtype=bool)
        return self.extend(tokens, Cache((empty,) * config.num_layers, unread), mask)

    def extend(
        self,
        tokens: Int[Array, "batch pos"],
        cache: Cache,
        mask: Bool[Array, "batch pos"] | None = None,
    ) -> tuple[Float[Array, "batch pos width"], Cache]:
        """Hidden states of tokens that follow those of a cache, and the longer cache.

        Args:
          tokens: Token ids, one (decoding) or several for each row.
          cache: A cache from `prefill` or `extend`, with room for `tokens`: where there
            is none, inside `jax.jit` the results are wrong without an error.
          mask: Whether a token is real; None if all are.

        Returns:
          The same hidden states as `hidden` of all the tokens, those of `tokens` only,
          and the cache that holds them too.

        Raises:
          TypeError: If `tokens` are no integers, or `mask` no booleans.
          ValueError: As `__call__`, and, where it is known, if there is no room.
        """
        self._check(tokens, mask, None, cache)
        if mask is None:
            mask = jnp.ones_like(tokens, dtype=bool)
        start = cache.layers[0].next_slot
        num_read = cache.mask.sum(axis=1, keepdims=True)
        written = jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, start, 1)
        slots = jnp.arange(written.shape[1])
        reached = slots[None, :] <= start + jnp.arange(tokens.shape[1])[:, None]
        visible = self._visible(reached[None] & written[:, None, :], written, start)
        positions = num_read + _or_counted(None, mask)
        hidden, layers = self._trunk(tokens, mask, positions, visible, cache.layers)
        return hidden, Cache(layers, written)

    def _continued(self, tokens, mask, prompts):
        """Hidden states of rows, several of which go on from one prompt."""
        begun, length = prompts.tokens.shape
        each = tokens.shape[0] // begun
        cache_length = length + tokens.shape[1]
        _, cache = self.prefill(*prompts, cache_length=cache_length)
        own = functools.partial(jnp.repeat, repeats=each, axis=0)
        layers = tuple(
            KeyValues(own(layer.keys), own(layer.values), layer.next_slot)
            for layer in cache.layers
        )
        return self.extend(tokens, Cache(layers, own(cache.mask)), mask)[0]

    def _check(self, tokens, mask, positions, cache=None):
        """Refuse ids and positions that have no row in a table."""
        config = self.config
        if mask is not None and mask.dtype != bool:
            raise TypeError(f"`mask` must be booleans, got {mask.dtype}.")
        check_ids(tokens, config.vocab_size, "tokens", where=mask)
        read = 0
        if cache is not None:
            read = _num_real(cache.mask)
            _check_room(cache, tokens.shape)
        if config.positions == "learned" and positions is not None:
            hint = "which is no position that the model learned"
            limit = config.max_positions
            check_ids(positions, limit, "positions", where=mask, hint=hint)
        else:
            new = tokens.shape[1] if mask is None else _num_real(mask)
            check_length(config, int(np.max(read + new, initial=0)))

    def _visible(self, visible, is_token, start: int | Array = 0):
        """Which slots the queries see, from slot `start` on, in each kind of block."""
        window = self.config.sliding_window
        if window is None or is_token.shape[1] <= window:
            return _Visible(visible, visible)
        # Among tokens, padding left out, so that it may stand anywhere.
        places = jnp.cumsum(is_token, axis=1, dtype=jnp.int32)
        queries = jax.lax.dynamic_slice_in_dim(places, start, visible.shape[1], axis=1)
        is_near = queries[:, :, None] - places[:, None, :] < window
        return _Visible(visible, visible & is_near)

    def _trunk(self, tokens, mask, positions, visible, layers=None):
        # Ids of padding may be out of range, which would embed as NaN.
        x = self.token_embedding(jnp.where(mask, tokens, 0))
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.config.positions == "learned":
            x = x + self.position_embedding(positions)
        x = x if self.config.dtype is None else x.astype(self.config.dtype)
        extended = []
        for i, block in enumerate(self.blocks):
            past = None if layers is None else layers[i]
            is_sliding = i in self.config.sliding_layers
            seen = visible.near if is_sliding else visible.all
            x, past = block(x, positions, seen, past)
            extended.append(past)
        return self.final_norm(x), tuple(extended)


class _Block(nn.Module):
    config: TransformerConfig
    layer: int
    adapters: Mapping[Target, Adapter]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch pos width"],
        positions: Int[Array, "batch pos"],
        visible: Bool[Array, "#batch pos slot"],
        past: KeyValues | None = None,
    ) -> tuple[Float[Array, "batch pos width"], KeyValues | None]:
        config = self.config
        attention = Attention(
            config,
            self.layer,
            out_init=_residual_init(config),
            adapters=self.adapters,
            name="attention",
        )
        mlp = _MLP(config, self.adapters, name="mlp")
        read = self._before("attention_norm", x)
        attended, past = attention(read, positions, visible, past)
        y = x + self._after("attention_out_norm", attended)
        read = self._before("mlp_norm", x if config.parallel_residual else y)
        return y + self._after("mlp_out_norm", mlp(read)), past

    def _before(self, name: str, x: Array) -> Array:
        """What a branch reads of the residual stream."""
        is_normed = self.config.norm_placement != "post"
        return norm_of(self.config, name=name)(x) if is_normed else x

    def _after(self, name: str, x: Array) -> Array:
        """What a branch adds to the residual stream."""
        is_normed = self.config.norm_placement != "pre"
        return norm_of(self.config, name=name)(x) if is_normed else x


class _MLP(nn.Module):
    config: TransformerConfig
    adapters: Mapping[Target, Adapter]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch pos width"]
    ) -> Float[Array, "batch pos width"]:
        config = self.config
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        adapted = {"adapters": self.adapters, **dtypes}
        dense = functools.partial(adapted_dense, use_bias=config.mlp_bias, **adapted)
        activate = _ACTIVATIONS[config.activation]
        up = dense(x, config.mlp_width, name="up")
        if config.gated_mlp:
            gate = dense(x, config.mlp_width, name="gate")
            gate, up = adapted_together([gate, up], x, name="gate_up", **adapted)
            inner = activate(gate) * up
        else:
            inner = activate(up)
        init = _residual_init(config)
        return dense(inner, config.width, kernel_init=init, name="down")


def _residual_init(config: TransformerConfig) -> nn.initializers.Initializer:
    # GPT-2's rule: the sum of all 2 * num_layers branches keeps the variance of one.
    return nn.initializers.variance_scaling(
        0.5 / config.num_layers, "fan_in", "truncated_normal"
    )


def _or_counted(
    positions: Int[Array, "batch pos"] | None, mask: Bool[Array, "batch pos"]
) -> Int[Array, "batch pos"]:
    if positions is not None:
        return positions
    # Leading padding would have -1, which is no row of a position table.
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def check_length(config: TransformerConfig, length: int) -> None:
    """Refuse more positions than a model has learned."""
    if config.positions == "learned" and length > config.max_positions:
        raise ValueError(
            f"`tokens` have {length} positions but the model learned "
            f"{config.max_positions}. Truncate them, pad them to less (`max_length` of "
            "`ldjax.data.batches.to_sequences`), or raise `max_positions` before "
            "training."
        )


def _num_real(mask: Bool[Array, "batch pos"]) -> Any:
    """Real tokens of each row; 0 where that is not known."""
    return np.asarray(mask).sum(axis=1) if is_here(mask) else 0


def _check_room(cache: Cache, shape: tuple[int, ...]) -> None:
    """Refuse more tokens than a cache has slots left, where it is known."""
    next_slot, slots = cache.layers[0].next_slot, cache.mask.shape[1]
    if is_here(next_slot) and int(next_slot) + shape[1] > slots:
        raise ValueError(
            f"`cache` has {slots - int(next_slot)} slots left, got `tokens` of shape "
            f"{shape}. Raise `cache_length` of `prefill`."
        )
