"""What a model is trained on: batches of rows, with all that the loss needs of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.command.options import COUNT
from ldjax.data.batches import Example, bucket_length, to_sequences
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import SIDES
from ldjax.data.responses import RowExamples, count_cuts, count_notes
from ldjax.data.templates.shown import ShownExample
from ldjax.equation.sequences import ApplyFn, Sequences, is_sequences
from ldjax.finetune.texts import Encoder
from ldjax.models.decoder.scoring import make_score_fn

__all__ = [
    "count_steps",
    "cropped",
    "shown_first",
    "told_of",
    "training_rows",
    "with_advantages",
]


def training_rows(
    rows: Sequence[PreferenceRow],
    encode: Encoder,
    *,
    target: Sequence[str] | None,
    max_length: int,
    also: Sequence[PreferenceRow] = (),
) -> tuple[Any, dict[str, int]]:
    """The training examples as one padded pytree of rows, and how much was cut.

    Rows of the target's responses, or with None of pairs. A side that a row lacks is
    there with nothing scored.

    Args:
      rows: The texts.
      encode: How they are read.
      target: Response types, each an example of its own; None for pairs.
      max_length: Length that others are padded to as well, in tokens; examples may be
        longer.
      also: Rows that are watched only: how they were read is counted, too.
    """
    encoded = [encode(row) for row in rows]

    def padded(examples: Sequence[Example]) -> Sequences:
        most = max([max_length, *(example.check() for example in examples)])
        return jax.tree.map(np.asarray, to_sequences(examples, max_length=most))

    if target is not None:
        # Each prompt with its targets in turn, as in the authors' extended set.
        rows_ = padded([row.examples[type_] for row in encoded for type_ in target])
    else:
        rows_ = {side: _side(side, encoded, padded) for side in SIDES}
    notes = count_notes([*encoded, *map(encode, also)])
    return rows_, count_cuts(encoded) | notes


def _side(
    name: str,
    encoded: Sequence[RowExamples],
    padded: Callable[[Sequence[Example]], Sequences],
) -> Sequences:
    """One side of all rows; of those that lack it the other, with nothing scored."""
    (other,) = set(SIDES) - {name}
    rows = padded([row.examples.get(name) or row.examples[other] for row in encoded])
    is_there = np.array([name in row.examples for row in encoded])
    return rows._replace(mask=rows.mask & is_there[:, None])


def shown_first(
    rows: Sequence[PreferenceRow], encode: Encoder, types: Sequence[str]
) -> list[ShownExample]:
    """The first row as it is trained on, decoded.

    Args:
      rows: The training rows.
      encode: How they are read.
      types: The response types that are trained on.
    """
    row = rows[0]
    examples = encode(row).examples
    return [
        ShownExample.of(
            encode.tokenizer, examples[type_], type=type_, source=row.source
        )
        for type_ in types
        if type_ in examples
    ]


def told_of(counts: dict[str, int]) -> str:
    """A line for each note among the counts of `training_rows`."""
    notes = {n: count for n, count in counts.items() if not n.startswith("num_")}
    return "".join(f"\nnote: {n} ({count:,} prompts)" for n, count in notes.items())


def count_steps(num_rows: int, *, batch_size: int, epochs: float) -> int:
    """The updates of a run.

    Raises:
      ValueError: If there are no rows for one, or more of them than can be counted.
    """
    if batch_size > num_rows:
        raise ValueError(
            f"`batch_size` must be at most the number of training examples, {num_rows},"
            f" got {batch_size}"
        )
    num_steps = max(1, round(epochs * (num_rows // batch_size)))
    if num_steps > COUNT.most:
        raise ValueError(
            f"`epochs={epochs:g}` of {num_rows} examples are {num_steps:.3g} "
            f"updates; there can be at most {COUNT.most:g}"
        )
    return num_steps


#: What the preference of a pair is worth to a policy gradient.
_ADVANTAGES = {"chosen": 1.0, "rejected": -1.0}


def with_advantages(
    apply_fn: ApplyFn, params: Any, rows: Any, *, batch_size: int
) -> dict[str, Sequences]:
    """Both sides of pairs as samples, as if the policy at the start had drawn them."""
    score_fn = make_score_fn(apply_fn)

    def sample(side: Sequences, advantage: float) -> Sequences:
        old = jnp.concatenate(
            [
                score_fn(params, jax.tree.map(lambda x: x[i : i + batch_size], side))  # noqa: B023
                for i in range(0, len(side.targets), batch_size)
            ]
        )
        worth = jnp.full_like(old, advantage)
        return side._replace(advantages=worth, old_log_probs=old)

    return {name: sample(rows[name], worth) for name, worth in _ADVANTAGES.items()}


def cropped(batch_fn: Callable[[int], Any]) -> Callable[[int], Any]:
    """Batches without the padding that all of their rows have, in few lengths."""

    def cropped_batch(step: int) -> Any:
        batch = batch_fn(step)
        sides = jax.tree.leaves(batch, is_leaf=is_sequences)
        longest = max(
            int(place) + 1
            for side in sides
            for place in np.flatnonzero(np.asarray(side.mask).any(0))[-1:]
        )
        length = bucket_length(longest, max(side.mask.shape[1] for side in sides))

        def crop(side: Any) -> Any:
            # What has one number for each row, such as a reference, has no padding.
            return jax.tree.map(
                lambda leaf: leaf[:, :length] if leaf.ndim > 1 else leaf, side
            )

        return jax.tree.map(crop, batch, is_leaf=is_sequences)

    return cropped_batch
