"""Response log-probs do not depend on how they are batched, and share their prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from witnesses import numpy_transformer
from zoo.decoders import STYLES, count_traces, make_decoder, random_tokens

from ldjax.data.batches import Example, length_buckets, to_sequences
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.linen import apply_fn
from ldjax.models.decoder.scoring import (
    make_score_fn,
    score_examples,
    score_responses,
)

TOLERANCE = 1e-10

EXAMPLES = [
    Example(random_tokens(num_prompt, seed), random_tokens(num_response, seed + 100))
    for seed, (num_prompt, num_response) in enumerate([(4, 3), (1, 1), (9, 6), (14, 8)])
]


@pytest.fixture(scope="module", params=STYLES)
def scored(request):
    """Model, parameters, the compiled score function and the scores of EXAMPLES."""
    model, params = make_decoder(request.param)
    score_fn = make_score_fn(apply_fn(model))
    scores = score_examples(score_fn, params, EXAMPLES, max_length=40, batch_size=3)
    return model, params, score_fn, scores


def test_scores_equal_the_numpy_decoder(scored):
    model, params, _, scores = scored
    for example, score in zip(EXAMPLES[:2], scores, strict=False):
        ids = [*example.prompt_ids, *example.response_ids]
        logits = numpy_transformer.forward(model.config, params, ids)
        log_probs = scipy.special.log_softmax(logits, axis=-1)
        first = len(example.prompt_ids)
        expected = [log_probs[t - 1, ids[t]] for t in range(first, len(ids))]
        np.testing.assert_allclose(score, expected, rtol=0, atol=TOLERANCE)


def test_bucket_and_neighbours_do_not_change_a_sequence_log_prob(scored):
    _, params, score_fn, scores = scored
    # Another order, batch size and bucket (everything in the one of 30).
    again = score_examples(
        *(score_fn, params, EXAMPLES[::-1]), max_length=31, batch_size=3
    )
    for score, other, example in zip(scores, again[::-1], EXAMPLES, strict=True):
        assert score.shape == (len(example.response_ids),)
        assert abs(score.sum() - other.sum()) < TOLERANCE
    alone = score_examples(score_fn, params, EXAMPLES[:1], max_length=31, batch_size=3)
    assert abs(scores[0].sum() - alone[0].sum()) < TOLERANCE


def test_padding_side_and_amount_do_not_change_a_sequence_log_prob(scored):
    model, params, _, scores = scored
    plain = to_sequences(EXAMPLES[:1], max_length=17)  # 6 inputs, 16 positions
    real = jnp.arange(16)[None] < 6
    shifts = [0, 1, 4, 10]
    tokens, targets, mask, padding_mask = (
        jnp.concatenate([jnp.roll(x, shift, axis=1) for shift in shifts])
        for x in (plain.tokens, plain.targets, plain.mask, real)
    )
    logits = jax.jit(model.apply)({"params": params}, tokens, padding_mask)
    log_probs = sequence_log_probs(logits, targets, mask)
    np.testing.assert_allclose(
        log_probs, np.full(4, scores[0].sum()), rtol=0, atol=TOLERANCE
    )


def test_responses_that_share_their_prompt_score_as_if_alone(scored):
    model, params, score_fn, _ = scored
    prompt = random_tokens(11)
    responses = [random_tokens(num, num) for num in (1, 5, 17)]
    shared = score_responses(model, params, prompt, responses=responses, max_length=40)
    examples = [Example(prompt, response) for response in responses]
    alone = score_examples(score_fn, params, examples, max_length=40, batch_size=3)
    for score, expected in zip(shared, alone, strict=True):
        np.testing.assert_allclose(score, expected, rtol=0, atol=TOLERANCE)


def test_a_run_compiles_a_bounded_number_of_shapes():
    model, params = make_decoder("llama", num_layers=1)
    score_fn = make_score_fn(apply_fn(model))
    examples = [Example((1,) * num, (2, 3)) for num in range(1, 60)]

    def run():
        score_examples(score_fn, params, examples, max_length=61, batch_size=4)

    assert count_traces(run) == len(length_buckets(60)) == 3
    assert count_traces(run) == 0

    def share(lengths):
        for num in lengths:
            responses = [(1,) * num, (2,)]
            score_responses(
                model, params, (3,) * (num + 2), responses=responses, max_length=40
            )

    assert count_traces(lambda: share([1, 5, 14])) == 2  # prefill and extend
    assert count_traces(lambda: share([2, 4])) == 0


def test_mistakes_are_refused():
    model, params = make_decoder("llama", num_layers=1)
    with pytest.raises(ValueError, match="got 3 of prompt and 2 of response"):
        score_responses(model, params, (1, 2, 3), responses=[(4, 5)], max_length=4)
    with pytest.raises(ValueError, match="`prompt_ids` must hold"):
        score_responses(model, params, (), responses=[(4, 5)], max_length=4)
    assert score_responses(model, params, (1,), responses=[], max_length=4) == []
