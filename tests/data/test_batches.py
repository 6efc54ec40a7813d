"""Padding, shifting, buckets and truncation, on lists that can be read by eye."""

import numpy as np
import pytest

from ldjax.data.batches import (
    Example,
    bucket_length,
    bucketed_batches,
    length_buckets,
    to_sequences,
    truncate_examples,
)


def test_tokens_are_shifted_and_the_mask_covers_the_response():
    batch = to_sequences(
        [Example((1, 2, 3), (4, 5)), Example((6,), (7,))], max_length=7, num_rows=3
    )
    np.testing.assert_array_equal(
        batch.tokens, [[1, 2, 3, 4, 0, 0], [6, 0, 0, 0, 0, 0], [0] * 6]
    )
    np.testing.assert_array_equal(
        batch.targets, [[2, 3, 4, 5, 0, 0], [7, 0, 0, 0, 0, 0], [0] * 6]
    )
    np.testing.assert_array_equal(
        batch.mask, [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    )


def test_buckets_are_powers_of_two_and_the_maximum():
    assert length_buckets(512) == (16, 32, 64, 128, 256, 512)
    assert length_buckets(100) == (16, 32, 64, 100)
    assert length_buckets(10) == (10,)
    for length in range(1, 101):
        bucket = bucket_length(length, 100)
        assert bucket in length_buckets(100)
        assert length <= bucket < max(2 * length, 17)
        assert bucket == min(bucket_length(length), 100)


def test_batches_hold_every_example_once_in_few_shapes():
    rng = np.random.default_rng(0)
    examples = [Example((1,) * n, (2, 3)) for n in rng.integers(1, 90, size=50)]
    places, shapes = [], set()
    for chosen, batch in bucketed_batches(examples, max_length=100, batch_size=8):
        places += chosen
        shapes.add(batch.tokens.shape)
        assert batch.mask.sum() == 2 * len(chosen)
    assert sorted(places) == list(range(50))
    assert shapes <= {(8, length) for length in length_buckets(99)}


@pytest.mark.parametrize(
    ("max_length", "keep", "prompt", "responses"),
    [
        (9, "end", (1, 2, 3, 4, 5), [(6,), (7, 8, 9)]),
        (8, "end", (1, 2, 3, 4, 5), [(6,), (7, 8, 9)]),
        (7, "end", (3, 4, 5), [(6,), (7, 8, 9)]),
        (7, "start", (1, 2, 3), [(6,), (7, 8, 9)]),
        (5, "end", (3, 4, 5), [(6,), (7, 8)]),
    ],
)
def test_truncation_follows_the_paper(max_length, keep, prompt, responses):
    examples = truncate_examples(
        (1, 2, 3, 4, 5),
        [(6,), (7, 8, 9)],
        max_length=max_length,
        max_prompt_length=3,
        keep=keep,
    )
    assert examples == [Example(prompt, response) for response in responses]


def test_a_short_prompt_is_kept_when_only_the_response_is_too_long():
    for keep in ("start", "end"):
        [example] = truncate_examples(
            (1, 2), [(3,) * 9], max_length=6, max_prompt_length=3, keep=keep
        )
        assert example == Example((1, 2), (3,) * 4)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="`prompt_ids` must hold at least one"):
        to_sequences([Example((), (1,))])
    with pytest.raises(ValueError, match="`response_ids` must hold at least one"):
        to_sequences([Example((1,), ())])
    with pytest.raises(ValueError, match="is 5 tokens, got 4 of prompt and 2 of resp"):
        to_sequences([Example((1,) * 4, (1, 2))], max_length=5)
    with pytest.raises(ValueError, match="cut the texts with `truncate_examples`"):
        list(bucketed_batches([Example((1,) * 9, (1,))], max_length=9, batch_size=2))
    with pytest.raises(ValueError, match="less than `max_length`, got 5 and 5"):
        truncate_examples((1,), [(1,)], max_length=5, max_prompt_length=5, keep="end")
    with pytest.raises(ValueError, match="`max_length` must be positive, got 0"):
        length_buckets(0)
    with pytest.raises(ValueError, match="got a sequence of 9"):
        bucket_length(9, 8)
