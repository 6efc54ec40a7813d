"""Log-probabilities of responses under teacher forcing.

Everything here returns log-probs per token, in nats; the log-prob of a response is
their sum. Many responses to one prompt share the reading of the prompt.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldjax.data.batches import Example, bucket_length, bucketed_batches
from ldjax.equation.doors import Door, check_ids
from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.sequences import Sequences
from ldjax.models.decoder.transformer import Cache, Transformer, check_length
from ldjax.precision import watched

__all__ = ["make_score_fn", "score_examples", "score_responses"]


def make_score_fn(
    apply_fn: Callable[..., Any],
) -> Callable[[Any, Sequences], Float[Array, "batch pos"]]:
    """A compiled function to the log-prob of each target, zero where masked.

    Args:
      apply_fn: `(params, sequences) -> logits`, for example `ldjax.linen.apply_fn(
        model)`. Right-padded sequences need no padding mask: a causal model reads
        nothing to the right of a token, and the padding is not scored.

    Returns:
      `(params, sequences) -> log-probs` in nats, under `jax.jit`: one compilation for
      each shape of batch. Make it once and keep it.

    Raises:
      TypeError: On a call, if parameters are no numbers, or what `apply_fn` returns is
        no array of logits, float32 or wider.
      ValueError: On a call, if parameters were donated; if the logits are not `[batch,
        pos, vocab]`; if a token id is not in the model's vocabulary, a target that is
        scored is no label (mask those of -100), or a row has more positions than the
        model learned.

    Examples:
      >>> from ldjax.data.batches import to_sequences
      >>> score_fn = make_score_fn(lambda params, batch: jnp.zeros((1, 16, 4)))
      >>> score_fn(None, to_sequences([Example((5, 3), (2, 0))])).sum()
      Array(-2.772..., dtype=...)
    """
    apply_fn = Door(watched(apply_fn))

    @jax.jit
    def score(params: Any, sequences: Sequences) -> Any:
        logits = apply_fn(params, sequences)
        return token_log_probs(logits, sequences.targets, sequences.mask)

    def score_fn(params: Any, sequences: Sequences) -> Any:
        apply_fn.check(score, params=params, sequences=sequences)
        return score(params, sequences)

    return score_fn


def score_examples(
    score_fn: Callable[[Any, Sequences], Any],
    params: Any,
    examples: Sequence[Example],
    *,
    max_length: int,
    batch_size: int,
) -> list[np.ndarray]:
    r"""Log-probs of each response's tokens, whatever the lengths.

    .. math:: \log \pi(y_l \mid x, y_{<l})

    Args:
      score_fn: A function from `make_score_fn`.
      params: The parameters of the model.
      examples: The examples, in any order.
      max_length: The length of the longest prompt and response together, in tokens.
      batch_size: The number of rows of a batch.

    Returns:
      For each example, in order, one log-prob in nats per token of its response; the
      log-prob of the response is their sum. Compiles at most
      `len(length_buckets(max_length - 1))` shapes.

    Raises:
      TypeError: If ids are no integers.
      ValueError: If an example is empty or too long, or holds ids that the model does
        not know.

    Examples:
      >>> score_fn = make_score_fn(lambda params, batch: jnp.zeros((2, 9, 4)))
      >>> examples = [Example((5, 3), (2, 0)), Example((1,), (3,))]
      >>> scores = score_examples(score_fn, None, examples, max_length=10, batch_size=2)
      >>> [len(score) for score in scores]
      [2, 1]
    """
    scores: list[np.ndarray] = [np.empty(0)] * len(examples)
    batches = bucketed_batches(examples, max_length=max_length, batch_size=batch_size)
    for places, batch in batches:
        rows, mask = np.asarray(score_fn(params, batch)), np.asarray(batch.mask)
        for row, place in enumerate(places):
            scores[place] = rows[row][mask[row]]
    return scores


def score_responses(
    model: Transformer,
    params: Any,
    prompt_ids: Sequence[int],
    *,
    responses: Sequence[Sequence[int]],
    max_length: int,
) -> list[np.ndarray]:
    """Log-probs of many responses to one prompt, which is read only once.

    The prompt's keys and values are computed for one row and then shared, so the cost
    is that of the prompt plus the responses instead of the prompt times the number of
    responses. The numbers are those of `score_examples` up to rounding.

    Args:
      model: A decoder.
      params: The decoder's parameters (`variables["params"]`).
      prompt_ids: Token ids of the prompt.
      responses: Token ids of each response.
      max_length: The length of the prompt and its longest response together, in
        tokens.

    Returns:
      For each response one log-prob in nats per token. Compiled: once for each pair
      of buckets and number of responses.

    Raises:
      TypeError: If ids are no integers.
      ValueError: If the prompt or a response is empty or has unknown ids, or if they
        are too long together.

    Examples:
      >>> from ldjax.models import llama_config
      >>> model = Transformer(llama_config(vocab_size=10, num_layers=1))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> scores = score_responses(
      ...     model, params, (5, 3), responses=[(7, 0), (1,)], max_length=8
      ... )
      >>> [len(score) for score in scores]
      [2, 1]
    """
    if not responses:
        return []
    for response in responses:
        Example(prompt_ids, response).check(max_length)
    prompt, prompt_mask = _right_padded([prompt_ids], max_length)
    targets, mask = _right_padded(responses, max_length)
    check_ids(prompt, model.config.vocab_size, "prompt_ids")
    check_ids(targets, model.config.vocab_size, "responses")
    # A response's last token is not read.
    check_length(model.config, len(prompt_ids) + max(map(len, responses)) - 1)
    scores = _score_after(
        params,
        jnp.asarray(prompt),
        jnp.asarray(prompt_mask),
        jnp.asarray(targets),
        jnp.asarray(mask),
        model=model,
    )
    return [row[keep] for row, keep in zip(np.asarray(scores), mask, strict=True)]


@functools.partial(jax.jit, static_argnames="model")
def _score_after(
    params: Any,
    prompt: Int[Array, "1 prompt_pos"],
    prompt_mask: Bool[Array, "1 prompt_pos"],
    targets: Int[Array, "batch pos"],
    mask: Bool[Array, "batch pos"],
    *,
    model: Transformer,
) -> Float[Array, "batch pos"]:
    apply = watched(functools.partial(cast("Any", model.apply), {"params": params}))
    batch, length = targets.shape
    prompt_hidden, cache = apply(
        prompt,
        prompt_mask,
        cache_length=prompt.shape[1] + length,
        method=model.prefill,
    )
    # The response is the input too: its first token is predicted by the prompt's last
    # hidden state, the others by the response's own. Its last token predicts nothing
    # and is not read: it may be one more than the model has positions.
    is_read = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    hidden, _ = apply(targets, _shared(cache, batch), is_read, method=model.extend)
    last = prompt_hidden[:, prompt_mask.sum() - 1]
    first = jnp.broadcast_to(last, (batch, last.shape[-1]))[:, None]
    hidden = jnp.concatenate([first, hidden[:, :-1]], axis=1)
    logits = apply(hidden, method=model.head)
    return token_log_probs(logits, targets, mask)


def _shared(cache: Cache, batch: int) -> Cache:
    def repeat(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, *x.shape[1:])) if x.ndim else x

    return jax.tree.map(repeat, cache)


def _right_padded(
    rows: Sequence[Sequence[int]], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    bucket = bucket_length(max(map(len, rows)), max_length)
    ids = np.zeros((len(rows), bucket), np.int32)
    mask = np.arange(bucket)[None, :] < np.array([len(row) for row in rows])[:, None]
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, mask
