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

from ldjax.data.batches import bucket_length, check_row
from ldjax.models.decoder.transformer import Cache, Transformer

__all__ = ["Generated", "filter_logits", "generate_greedy", "generate_sampled"]


#: Below it, logits that are divided by the temperature may overflow.
_TINY_TEMPERATURE = 1e-6
#: Beyond these the logits' differences are infinite or nothing in float32 anyhow.
_TEMPERATURES = 1e-30, 1e30


class Generated(NamedTuple):
    """Responses drawn from a model.

    Attributes:
      tokens: New token ids, `[batch, pos]`; 0 after the end of a row.
      mask: Whether a token is of the response, `[batch, pos]`, its end included.
      num_steps: The new tokens of the longest row, after which the loop ended.

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
        """The new tokens of each row as a list, with the end token if one was drawn."""
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

    A token is kept where those before it in the order of likelihood have less than p,
    which is to say that those from it on have more than 1 - p. Of the two sums the
    smaller one decides, since each is rounded relative to itself: the first is 1 up to
    rounding long before the end of a large vocabulary.

    Args:
      logits: The logits of one position, in nats, after the temperature.
      top_k: The number of tokens to keep; None, or more than there are, keeps all.
      top_p: The probability to keep, in (0, 1]; None and 1 keep all.

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
        if isinstance(top_k, int):  # may be beyond the integers of an array
            top_k = min(top_k, logits.shape[-1])
        lowest = descending[jnp.minimum(top_k, logits.shape[-1]) - 1]
    if top_p is not None:
        descending = jnp.where(descending < lowest, -jnp.inf, descending)
        probs = jax.nn.softmax(descending)
        before = jnp.cumsum(probs) - probs
        from_it_on = jnp.cumsum(probs[::-1])[::-1]
        is_kept = jnp.where(
            jnp.asarray(top_p) > 0.5, from_it_on > 1 - top_p, before < top_p
        ) | (jnp.asarray(top_p) >= 1)  # what has no probability left, too
        is_kept = is_kept.at[0].set(True)
        lowest = jnp.maximum(lowest, jnp.where(is_kept, descending, jnp.inf).min())
    return jnp.where(logits < lowest, -jnp.inf, logits)


def generate_greedy(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int] | None = None,
) -> Generated:
    r"""The most likely token at each step, the one of lowest id among equals.

    .. math:: y_l = \arg\max_v \pi(v \mid x, y_{<l})

    Args:
      model: A decoder.
      params: The decoder's parameters (`variables["params"]`).
      prompts: Token ids of each row's prompt, of any lengths.
      max_new_tokens: The length at which a row ends at the latest, in tokens.
      eos_id: The token that ends a row, or each that does; None for rows of full
        length.

    Returns:
      The new tokens. Compiled: once for each number of rows, bucket of the longest
      prompt and `max_new_tokens`.

    Raises:
      TypeError: If a prompt is no row of integers.
      ValueError: If a prompt is empty or has unknown ids, if the learned positions do
        not suffice, or if the model's logits are no numbers.

    Examples:
      >>> from ldjax.models import llama_config
      >>> model = Transformer(llama_config(vocab_size=10, num_layers=1))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> generate_greedy(model, params, [(5, 3), (7,)], max_new_tokens=4).tokens.shape
      (2, 4)
    """
    padded, rule = _left_padded(model, prompts, max_new_tokens), _Rule(_eos(eos_id))
    found = _generate(params, padded, rule, model=model, max_new_tokens=max_new_tokens)
    return _sound(*found)


def generate_sampled(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Key[Array, "*batch"],
    max_new_tokens: int,
    eos_id: int | Sequence[int] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Generated:
    r"""Tokens drawn from the model's own distribution, or from its likely part.

    .. math:: y_l \sim \mathrm{softmax}(\mathrm{filter}(z_l / T))

    Args:
      model: A decoder.
      params: The decoder's parameters (`variables["params"]`).
      prompts: Token ids of each row's prompt, of any lengths.
      key: One key, from which row `i` gets `fold_in(key, i)`; or one key per row,
        for rows whose draws should not depend on their place in the batch. New token
        `l` of a row is drawn with `fold_in(row_key, l)`.
      max_new_tokens: The length at which a row ends at the latest, in tokens.
      eos_id: The token that ends a row, or each that does; None for rows of full
        length.
      temperature: `T`, positive and finite, by which the logits are divided; 1 for the
        model itself.
      top_k: The number of tokens to keep, as in `filter_logits`.
      top_p: The probability to keep, as in `filter_logits`.

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
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"`temperature` must be positive and finite, got {temperature}. For its "
            "limit 0 use `generate_greedy`."
        )
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        top_k = min(top_k, model.config.vocab_size)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p}.")
    if key.shape not in ((), (len(prompts),)):
        raise ValueError(
            f"`key` must be one key or one for each of the {len(prompts)} prompts, "
            f"got shape {key.shape}."
        )
    lowest, highest = _TEMPERATURES
    temperature = min(max(temperature, lowest), highest)
    padded = _left_padded(model, prompts, max_new_tokens)
    if not key.shape:
        rows = jnp.arange(len(prompts))
        key = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    rule = _Rule(_eos(eos_id), key, temperature, top_k, top_p)
    found = _generate(params, padded, rule, model=model, max_new_tokens=max_new_tokens)
    return _sound(*found)


class _Prompts(NamedTuple):
    tokens: Int[Array, "batch prompt_pos"]
    mask: Bool[Array, "batch prompt_pos"]


class _Rule(NamedTuple):
    """How the next token is found, and which ends a row.

    Traced, so that a new value does not compile anew; None where not wanted, and
    without keys the most likely token is taken.
    """

    eos_ids: Int[Array, " ends"]
    keys: Key[Array, " batch"] | None = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None


class _State(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, " batch"]
    is_done: Bool[Array, " batch"]
    tokens: Int[Array, "batch pos"]
    mask: Bool[Array, "batch pos"]
    is_sound: Bool[Array, ""]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def _generate(
    params: Any,
    prompts: _Prompts,
    rule: _Rule,
    *,
    model: Transformer,
    max_new_tokens: int,
) -> tuple[Generated, Bool[Array, ""]]:
    apply = functools.partial(cast("Any", model.apply), {"params": params})

    def following(state: _State, hidden: Array) -> _State:
        logits = apply(hidden[:, -1], method=model.head)
        return _recorded(state, *_next_token(logits, rule, state.step), rule.eos_ids)

    def body(state: _State) -> _State:
        hidden, cache = apply(
            state.token[:, None],
            state.cache,
            ~state.is_done[:, None],
            method=model.extend,
        )
        return following(state._replace(cache=cache), hidden)

    def is_going(state: _State) -> Array:
        return (state.step < max_new_tokens) & ~state.is_done.all()

    batch, length = prompts.tokens.shape
    hidden, cache = apply(
        prompts.tokens,
        prompts.mask,
        cache_length=length + max_new_tokens - 1,  # the last token is never read
        method=model.prefill,
    )
    state = following(_start(cache, batch, max_new_tokens), hidden)
    state = jax.lax.while_loop(is_going, body, state)
    return Generated(state.tokens, state.mask, state.step), state.is_sound


def _start(cache: Cache, batch: int, max_new_tokens: int) -> _State:
    return _State(
        step=jnp.zeros((), jnp.int32),
        token=jnp.zeros(batch, jnp.int32),
        is_done=jnp.zeros(batch, bool),
        tokens=jnp.zeros((batch, max_new_tokens), jnp.int32),
        mask=jnp.zeros((batch, max_new_tokens), bool),
        is_sound=jnp.ones((), bool),
        cache=cache,
    )


def _next_token(logits: Array, rule: _Rule, step: Array) -> tuple[Array, Array]:
    """The token of each row by the rule, and whether its logits are numbers."""
    # The argmax of NaN looks like a token. -inf is a label that is ruled out.
    is_sound = jnp.isfinite(logits.max(axis=-1))
    if rule.keys is None:
        return logits.argmax(axis=-1).astype(jnp.int32), is_sound
    filtered = functools.partial(filter_logits, top_k=rule.top_k, top_p=rule.top_p)
    logits = _cooled(logits, rule.temperature)
    if rule.top_k is not None or rule.top_p is not None:  # spares a sort
        logits = jax.vmap(filtered)(logits)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rule.keys, step)
    drawn = jax.vmap(jax.random.categorical)(step_keys, logits)
    return drawn.astype(jnp.int32), is_sound


def _recorded(state: _State, token: Array, is_sound: Array, eos_ids: Array) -> _State:
    """The state with one more token in each row that is not done."""
    write = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=state.step, axis=1
    )
    new = jnp.where(state.is_done, 0, token)
    return _State(
        step=state.step + 1,
        token=new,
        is_done=state.is_done | (new[:, None] == eos_ids[None]).any(-1),
        tokens=write(state.tokens, new[:, None]),
        mask=write(state.mask, ~state.is_done[:, None]),
        is_sound=state.is_sound & (is_sound | state.is_done).all(),
        cache=state.cache,
    )


def _cooled(logits: Array, temperature: Array) -> Array:
    """Logits over a temperature; relative to the largest where that may overflow."""
    below = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    return jnp.where(temperature < _TINY_TEMPERATURE, below, logits / temperature)


def _eos(eos_id: int | Sequence[int] | None) -> Array:
    ids = [] if eos_id is None else np.atleast_1d(np.asarray(eos_id, np.int32))
    return jnp.asarray(ids, jnp.int32)


def _sound(generated: Generated, is_sound: Array) -> Generated:
    if not is_sound:
        raise ValueError(
            "The model's logits are not finite: there is nothing to draw from. Are its "
            "parameters those of a training that diverged?"
        )
    return generated


def _left_padded(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> _Prompts:
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
    return _Prompts(jnp.asarray(tokens), jnp.asarray(mask))
