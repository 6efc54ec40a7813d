"""Prompts with responses as padded batches, in few shapes.

A prompt and its response are one sequence; position `t` predicts token `t + 1`, and
only the tokens of the response are scored. Batches are padded on the right: a causal
model reads nothing to the right of a token, so the scored numbers need no padding
mask. Lengths are rounded up to buckets, because every new shape is compiled anew.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ldjax.equation.sequences import NO_TOKEN, Sequences, check_range

__all__ = [
    "Example",
    "bucket_length",
    "bucketed_batches",
    "length_buckets",
    "to_sequences",
    "truncate_examples",
]

_SMALLEST_BUCKET = 16


class Example(NamedTuple):
    """A prompt and one response to it, as token ids.

    Attributes:
      prompt_ids: At least one token, since the first token of the response has to be
        predicted from something.
      response_ids: At least one token. Append the END token yourself where the model
        should be scored on stopping.
      scored: Which tokens of the response are scored; None for all. In a dialogue those
        that the user says are part of the response, and not scored.

    Examples:
      >>> Example(prompt_ids=(5, 3), response_ids=(7, 0)).response_ids
      (7, 0)
      >>> Example((5, 3), (7, 0, 4, 7), (True, False, False, True)).num_scored
      2
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    scored: Sequence[bool] | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens prompt and response have."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        scored = self.scored
        return len(self.response_ids) if scored is None else sum(map(bool, scored))

    def check(
        self, max_length: int | None = None, *, vocab_size: int | None = None
    ) -> int:
        """Refuses an example that cannot be scored.

        Args:
          max_length: The limit of prompt and response together, in tokens, or
            None.
          vocab_size: Number of tokens of the model, beyond which no id may be; None
            where it is not known.

        Returns:
          The number of tokens of prompt and response.

        Raises:
          TypeError: If either is no row of integers.
          ValueError: If either is empty, if they are too long together, or if an id is
            negative (such as -100) or not of the vocabulary; if `scored` is not as
            long as the response.

        Examples:
          >>> Example((5, 3), ()).check()
          Traceback (most recent call last):
            ...
          ValueError: `response_ids` must hold at least one token; append END.
        """
        if not len(self.prompt_ids):
            raise ValueError(
                "`prompt_ids` must hold at least one token, from which the first of "
                "the response is predicted; begin with START."
            )
        if not len(self.response_ids):
            raise ValueError("`response_ids` must hold at least one token; append END.")
        length = self.num_tokens
        if max_length is not None and length > max_length:
            raise ValueError(
                f"`max_length` is {max_length} tokens, got {len(self.prompt_ids)} of "
                f"prompt and {len(self.response_ids)} of response. Raise it, or cut "
                "the texts with `truncate_examples`."
            )
        check_row(self.prompt_ids, "prompt_ids", vocab_size)
        check_row(self.response_ids, "response_ids", vocab_size)
        if self.scored is not None and len(self.scored) != len(self.response_ids):
            raise ValueError(
                f"`scored` must say of each of the {len(self.response_ids)} tokens of "
                f"`response_ids` whether it is scored, got {len(self.scored)}."
            )
        return length


def length_buckets(max_length: int) -> tuple[int, ...]:
    """The lengths to which sequences are padded: 16, 32, 64, ... and `max_length`.

    So a sequence is padded to less than twice its length (from 16 on), and a run
    compiles at most `log2(max_length / 16) + 2` lengths.

    Args:
      max_length: The length of the longest sequence allowed, in tokens.

    Returns:
      The lengths in ascending order; the last is `max_length`.

    Raises:
      ValueError: If `max_length` is not positive.

    Examples:
      >>> length_buckets(100)
      (16, 32, 64, 100)
    """
    if max_length < 1:
        raise ValueError(f"`max_length` must be positive, got {max_length}.")
    lengths = []
    length = _SMALLEST_BUCKET
    while length < max_length:
        lengths.append(length)
        length *= 2
    return (*lengths, max_length)


def bucket_length(length: int, max_length: int | None = None) -> int:
    """The bucket of `length_buckets` that a sequence is padded to.

    Args:
      length: The length of the sequence, in tokens.
      max_length: The length of the longest sequence allowed; None for no limit.

    Returns:
      The smallest bucket that holds the sequence.

    Raises:
      ValueError: If the sequence is longer than `max_length`.

    Examples:
      >>> bucket_length(17), bucket_length(17, max_length=20)
      (32, 20)
    """
    if max_length is None:
        return max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    if length > max_length:
        raise ValueError(
            f"`max_length` is {max_length} tokens, got a sequence of {length}."
        )
    return next(bucket for bucket in length_buckets(max_length) if bucket >= length)


def to_sequences(
    examples: Sequence[Example], *, max_length: int | None = None, num_rows: int = 0
) -> Sequences:
    """One right-padded batch whose mask is true on what is scored of the responses.

    With prompt `p` and response `r`, a row's tokens are `(p + r)[:-1]` and its targets
    `(p + r)[1:]`, so its length is one less than the number of tokens.

    A padded batch of one's own may hold any target where its mask is false. Where it is
    true a target is a label: those of -100, as other libraries mark what is not scored,
    are to be masked, and every function that takes sequences refuses them.

    Args:
      examples: One per row.
      max_length: Of the longest `p + r` allowed, in tokens; a longer one is refused.
        None for no limit.
      num_rows: Fill the batch up to this many rows with rows that score nothing.

    Returns:
      `[batch, bucket]` arrays, the bucket being that of the longest row. Padding is
      id 0, unmasked nowhere.

    Raises:
      TypeError: If a prompt or a response is no row of integers.
      ValueError: If a prompt or a response is empty or holds a negative id, or if one
        is too long.

    Examples:
      >>> batch = to_sequences([Example((5, 3), (7, 0))], max_length=6)
      >>> batch.tokens, batch.targets
      (Array([[5, 3, 7, 0, 0]], dtype=int32), Array([[3, 7, 0, 0, 0]], dtype=int32))
      >>> batch.mask
      Array([[False,  True,  True, False, False]], dtype=bool)
    """
    lengths = [example.check(max_length) for example in examples]
    bucket = _input_bucket(max(lengths, default=2), max_length)
    shape = (max(len(examples), num_rows), bucket)
    tokens = np.zeros(shape, np.int32)
    targets = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        ids = [*example.prompt_ids, *example.response_ids]
        tokens[row, : length - 1] = ids[:-1]
        targets[row, : length - 1] = ids[1:]
        scored = True if example.scored is None else example.scored
        mask[row, len(example.prompt_ids) - 1 : length - 1] = scored
    return Sequences(jnp.asarray(tokens), jnp.asarray(targets), jnp.asarray(mask))


def truncate_examples(
    prompt_ids: Sequence[int],
    responses: Sequence[Sequence[int]],
    *,
    max_length: int,
    max_prompt_length: int,
    keep: Literal["start", "end"],
) -> list[Example]:
    """One prompt's examples, cut by the paper's rule to fit into `max_length`.

    All responses of a prompt get the same prompt, so that they stay comparable: if the
    prompt and its longest response are too long together, the prompt is cut to
    `max_prompt_length`; where that is not enough, every response is cut to the
    `max_length - len(prompt)` tokens that are left, and loses its END token.

    Args:
      prompt_ids: Token ids of the prompt.
      responses: Token ids of each response.
      max_length: Tokens of prompt and response together.
      max_prompt_length: Tokens of a prompt that has to be cut.
      keep: Which part of the prompt to keep.

    Returns:
      One example per response, in order.

    Raises:
      ValueError: If `max_prompt_length` leaves no room for a prompt or a response.

    References:
      Ren & Sutherland 2025, their code: 512, 256, "end" for Anthropic-HH.

    Examples:
      >>> responses = [(4,), (5, 6, 7)]
      >>> truncate_examples(
      ...     (1, 2, 3), responses, max_length=4, max_prompt_length=2, keep="end"
      ... )[1]
      Example(prompt_ids=(2, 3), response_ids=(5, 6), scored=None)
    """
    if not 1 <= max_prompt_length < max_length:
        raise ValueError(
            "`max_prompt_length` must be positive and less than `max_length`, "
            f"got {max_prompt_length} and {max_length}."
        )
    if len(prompt_ids) + max(map(len, responses), default=0) > max_length:
        start = 0 if keep == "start" else max(len(prompt_ids) - max_prompt_length, 0)
        prompt_ids = prompt_ids[start : start + max_prompt_length]
    room = max_length - len(prompt_ids)
    return [Example(prompt_ids, response[:room]) for response in responses]


def bucketed_batches(
    examples: Sequence[Example], *, max_length: int, batch_size: int | None
) -> Iterator[tuple[list[int], Sequences]]:
    """Batches of examples of similar length, in one shape per bucket.

    Args:
      examples: In any order.
      max_length: The limit of prompt and response together, in tokens.
      batch_size: Rows of every batch; the last one of a bucket is filled up with rows
        that score nothing. None for one batch with all examples of each bucket.

    Yields:
      The places in `examples` of the first rows, and the batch.

    Raises:
      TypeError: If an example is no row of integers.
      ValueError: If an example is empty, too long or holds a negative id; if
        `batch_size` is not positive.

    Examples:
      >>> short, long = Example((1,), (2,)), Example((1,) * 20, (2,))
      >>> examples = [short, long, short]
      >>> batches = bucketed_batches(examples, max_length=64, batch_size=4)
      >>> [(places, batch.tokens.shape) for places, batch in batches]
      [([0, 2], (4, 16)), ([1], (4, 32))]
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    by_bucket: dict[int, list[int]] = {}
    for place, example in enumerate(examples):
        bucket = _input_bucket(example.check(max_length), max_length)
        by_bucket.setdefault(bucket, []).append(place)
    for _, places in sorted(by_bucket.items()):
        num_rows = batch_size or len(places)
        for start in range(0, len(places), num_rows):
            chosen = places[start : start + num_rows]
            yield (
                chosen,
                to_sequences(
                    [examples[place] for place in chosen],
                    max_length=max_length,
                    num_rows=num_rows,
                ),
            )


def check_count(name: str, value: Any) -> None:
    """Refuse a number of things that is no positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be a positive integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_row(ids: Any, name: str, vocab_size: int | None = None) -> None:
    """Refuse what is no row of token ids."""
    array = np.asarray(ids if hasattr(ids, "dtype") else list(ids))
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"`{name}` must be token ids, one row of integers; got {array.dtype} of "
            f"shape {array.shape}. An image is a `Sequences` of one position, which "
            "`make_step` and the batches of a `ProbeSet` may be made of."
        )
    size = np.iinfo(np.int32).max if vocab_size is None else vocab_size
    check_range(array, f"`{name}`", size, NO_TOKEN)


def _input_bucket(length: int, max_length: int | None) -> int:
    # The last token is a target only, so there is one input fewer than tokens.
    return bucket_length(length - 1, None if max_length is None else max_length - 1)
