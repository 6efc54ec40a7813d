"""Greedy and sampled decoding: compiled, batched, with a KV cache.

Prompts of unequal lengths are padded on the left up to a bucket, so that all rows
write the same slot of the cache. What a row gets does not depend on its neighbours,
on the padding or on the maximum length: its key is folded with the number of the row
and of the new token, and with nothing else.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ldjax.batching import bucket_length, check_row
from ldjax.models.transformer import Cache, Transformer

__all__ = ["Generated", "filter_logits", "generate_greedy", "generate_sampled"]


class Generated(NamedTuple):
    """Responses drawn from a model.

    Attributes:
      tokens: `[batch, pos]` new token ids; 0 after the end of a row.
      mask: `[batch, pos]`, true on the tokens of the response, its EOS included.
      num_steps: New tokens of the longest row, after which the loop ended.

    Examples:
      >>> Generated(
      ...     jnp.array([[7, 2, 0]]), jnp.array([[True, True, False]]), jnp.array(2)
      ... ).responses()
      [[7, 2]]
    """

    tokens: Int[Array, "batch pos"]
    mask: Bool[Array, "batch pos"]
    num_steps: Int[Array, ""]

    def responses(self) -> list[list[int]]:
        """The new tokens of each row as a list, EOS included where it was drawn."""
        rows = zip(np.asarray(self.tokens), np.asarray(self.mask), strict=True)
        return [tokens[mask].tolist() for tokens, mask in rows]


def filter_logits(
    logits: Float[Array, " vocab"],
    *,
    top_k: int | Int[Array, ""] | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Float[Array, " vocab"]:
    r"""Logits with the unlikely tokens at minus infinity.

    `top_k` keeps the k most likely tokens. `top_p` keeps the smallest set of the most
    likely tokens whose probability is at least p, of those that `top_k` left, with
    their probabilities renormalised. Tokens as likely as the last one kept are kept.

    Args:
      logits: Of one position, in nats, after the temperature.
      top_k: Number of tokens to keep; None, or more than there are, keeps all.
      top_p: Probability to keep, in (0, 1]; None keeps all.

    Returns:
      The logits, with `-inf` at the tokens that are not to be drawn.

    References:
      Holtzman et al., `Neural Text Degeneration
      <https://arxiv.org/abs/1904.09751>`_, 2020 (`top_p`).

    Examples:
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> filter_logits(logits, top_p=0.6)
      Array([-0.693..., -1.203...,       -inf], dtype=...)
    """
    descending = -jnp.sort(-logits)
    lowest = -jnp.inf
    if top_k is not None:
        lowest = descending[jnp.minimum(top_k, logits.shape[-1]) - 1]
    if top_p is not None:
        descending = jnp.where(descending < lowest, -jnp.inf, descending)
        probs = jax.nn.softmax(descending)
        is_kept = jnp.cumsum(probs) - probs < top_p  # true at the first in any case
        lowest = jnp.maximum(lowest, jnp.where(is_kept, descending, jnp.inf).min())
    return jnp.where(logits < lowest, -jnp.inf, logits)


def generate_greedy(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int | None = None,
) -> Generated:
    r"""The most likely token at each step, the one of lowest id among equals.

    .. math:: y_l = \arg\max_v \pi(v \mid x, y_{<l})

    Args:
      model: A decoder.
      params: Its parameters (`variables["params"]`).
      prompts: Token ids of each row's prompt, of any lengths.
      max_new_tokens: Length at which a row ends at the latest, in tokens.
      eos_id: The token that ends a row; None for rows of full length.

    Returns:
      The new tokens. Compiled: once for each number of rows, bucket of the longest
      prompt and `max_new_tokens`.

    Raises:
      TypeError: If a prompt is no row of integers.
      ValueError: If a prompt is empty or has unknown ids, or if the learned positions
        do not suffice.

    Examples:
      >>> from ldjax.models import llama_config
      >>> model = Transformer(llama_config(vocab_size=10, num_layers=1))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> generate_greedy(model, params, [(5, 3), (7,)], max_new_tokens=4).tokens.shape
      (2, 4)
    """
    tokens, mask = _left_padded(model, prompts, max_new_tokens)
    return _generate(
        *(params, tokens, mask, None, _Draw(None, None, None), _eos(eos_id)),
        model=model,
        max_new_tokens=max_new_tokens,
    )


def generate_sampled(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Key[Array, "*batch"],
    max_new_tokens: int,
    eos_id: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Generated:
    r"""Tokens drawn from the model's own distribution, or from its likely part.

    .. math:: y_l \sim \mathrm{softmax}(\mathrm{filter}(z_l / T))

    Args:
      model: A decoder.
      params: Its parameters (`variables["params"]`).
      prompts: Token ids of each row's prompt, of any lengths.
      key: One key, from which row `i` gets `fold_in(key, i)`; or one key per row,
        for rows whose draws should not depend on their place in the batch. New token
        `l` of a row is drawn with `fold_in(row_key, l)`.
      max_new_tokens: Length at which a row ends at the latest, in tokens.
      eos_id: The token that ends a row; None for rows of full length.
      temperature: `T`, by which the logits are divided; 1 for the model itself.
      top_k: See `filter_logits`.
      top_p: See `filter_logits`.

    Returns:
      The new tokens. Compiled as `generate_greedy` is, not anew for other values of
      the temperature, `top_k` or `top_p`.

    Raises:
      TypeError: As `generate_greedy`.
      ValueError: As `generate_greedy`, and if a setting is out of its range.

    Examples:
      >>> from ldjax.models import llama_config
      >>> model = Transformer(llama_config(vocab_size=10, num_layers=1))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> drawn = generate_sampled(
      ...     model, params, [(5, 3)], key=jax.random.key(0), max_new_tokens=4
      ... )
      >>> drawn.tokens.shape
      (1, 4)
    """
    if temperature <= 0:
        raise ValueError(
            f"`temperature` must be positive, got {temperature}. For its limit 0 use "
            "`generate_greedy`."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p}.")
    if key.shape not in ((), (len(prompts),)):
        raise ValueError(
            f"`key` must be one key or one for each of the {len(prompts)} prompts, "
            f"got shape {key.shape}."
        )
    tokens, mask = _left_padded(model, prompts, max_new_tokens)
    if not key.shape:
        rows = jnp.arange(len(prompts))
        key = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    return _generate(
        *(params, tokens, mask, key, _Draw(temperature, top_k, top_p), _eos(eos_id)),
        model=model,
        max_new_tokens=max_new_tokens,
    )


class _Draw(NamedTuple):
    # Traced, so that a new value does not compile anew; None where not wanted.
    temperature: Any
    top_k: Any
    top_p: Any


class _State(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, " batch"]
    is_done: Bool[Array, " batch"]
    tokens: Int[Array, "batch pos"]
    mask: Bool[Array, "batch pos"]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def _generate(
    params: Any,
    tokens: Int[Array, "batch prompt_pos"],
    mask: Bool[Array, "batch prompt_pos"],
    keys: Key[Array, " batch"] | None,
    draw: _Draw,
    eos_id: Int[Array, ""],
    *,
    model: Transformer,
    max_new_tokens: int,
) -> Generated:
    apply = functools.partial(cast("Any", model.apply), {"params": params})

    def pick(hidden: Array, step: Array) -> Array:
        logits = apply(hidden[:, -1], method=model.head)
        if keys is None:
            return logits.argmax(axis=-1).astype(jnp.int32)
        filtered = functools.partial(filter_logits, top_k=draw.top_k, top_p=draw.top_p)
        logits = logits / draw.temperature
        if draw.top_k is not None or draw.top_p is not None:  # spares a sort
            logits = jax.vmap(filtered)(logits)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        drawn = jax.vmap(jax.random.categorical)(step_keys, logits)
        return drawn.astype(jnp.int32)

    def record(state: _State, token: Array) -> _State:
        write = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=state.step, axis=1
        )
        new = jnp.where(state.is_done, 0, token)
        return _State(
            step=state.step + 1,
            token=new,
            is_done=state.is_done | (new == eos_id),
            tokens=write(state.tokens, new[:, None]),
            mask=write(state.mask, ~state.is_done[:, None]),
            cache=state.cache,
        )

    def body(state: _State) -> _State:
        hidden, cache = apply(
            *(state.token[:, None], state.cache, ~state.is_done[:, None]),
            method=model.extend,
        )
        return record(state._replace(cache=cache), pick(hidden, state.step))

    def is_going(state: _State) -> Array:
        return (state.step < max_new_tokens) & ~state.is_done.all()

    batch, length = tokens.shape
    hidden, cache = apply(
        *(tokens, mask),
        cache_length=length + max_new_tokens - 1,  # the last token is never read
        method=model.prefill,
    )
    state = _State(
        step=jnp.zeros((), jnp.int32),
        token=jnp.zeros(batch, jnp.int32),
        is_done=jnp.zeros(batch, bool),
        tokens=jnp.zeros((batch, max_new_tokens), jnp.int32),
        mask=jnp.zeros((batch, max_new_tokens), bool),
        cache=cache,
    )
    state = record(state, pick(hidden, state.step))
    state = jax.lax.while_loop(is_going, body, state)
    return Generated(state.tokens, state.mask, state.step)


def _eos(eos_id: int | None) -> Array:
    return jnp.asarray(-1 if eos_id is None else eos_id, jnp.int32)  # no token is -1


def _left_padded(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Array, Array]:
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be positive, got {max_new_tokens}.")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(
            "`prompts` must hold at least one prompt, and each at least one token; "
            f"got lengths {[len(prompt) for prompt in prompts]}. Begin with START."
        )
    config = model.config
    longest = max(map(len, prompts))
    num_read = longest + max_new_tokens - 1
    if config.positions == "learned" and num_read > config.max_positions:
        raise ValueError(
            f"A prompt of {longest} tokens and `max_new_tokens={max_new_tokens}` need "
            f"{num_read} positions, but the model learned {config.max_positions}."
        )
    tokens = np.zeros((len(prompts), bucket_length(longest)), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        check_row(prompt, f"prompts[{row}]")
        tokens[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = True
    # An id out of range would embed as NaN, and the argmax of NaN looks like a token.
    if tokens.max() >= config.vocab_size:
        row, place = np.argwhere(tokens >= config.vocab_size)[0]
        place -= tokens.shape[1] - len(prompts[row])
        raise ValueError(
            f"`prompts` must hold ids from 0 to {config.vocab_size - 1}, got "
            f"{tokens.min()} to {tokens.max()}; the first is at `prompts[{row}]"
            f"[{place}]`. Is this the model's tokenizer?"
        )
    return jnp.asarray(tokens), jnp.asarray(mask)
