"""Cached decoding equals decoding that recomputes everything, one row at a time."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo.decoders import STYLES, VOCAB, count_traces, make_decoder, random_tokens

from ldjax.models.decoder.sampling import (
    filter_logits,
    generate_greedy,
    generate_sampled,
)
from ldjax.models.decoder.transformer import Transformer

PROMPTS = [random_tokens(3, 1), random_tokens(1, 2), random_tokens(9, 3)]
NUM_NEW = 10
SETTINGS = {"temperature": 0.7, "top_k": 9, "top_p": 0.9}


@functools.partial(jax.jit, static_argnames="model")
def last_logits(model, params, tokens, length):
    """Recomputes a prefix, padded on the right to one shape."""
    return model.apply({"params": params}, tokens)[0, length - 1]


def reference(model, params, prompt, pick, *, eos_id=None, num_new=NUM_NEW):
    """Decodes one row without a cache; `pick(logits, step) -> token`."""
    ids = list(prompt)
    for step in range(num_new):
        tokens = jnp.array([ids + [0] * (24 - len(ids))])
        ids.append(int(pick(last_logits(model, params, tokens, len(ids)), step)))
        if ids[-1] == eos_id:
            break
    return ids[len(prompt) :]


def pick_greedy(logits, step):
    del step
    return np.argmax(logits)


@jax.jit
def draw(key, logits, *, temperature, top_k, top_p):
    logits = filter_logits(logits / temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, logits)


def pick_with(row_key):
    return lambda logits, step: draw(
        jax.random.fold_in(row_key, step), logits, **SETTINGS
    )


@pytest.fixture(
    scope="module",
    # Of the two with rotary positions and grouped heads one is enough here.
    params=[
        pytest.param(style, marks=[pytest.mark.exhaustive] if style == "qwen2" else [])
        for style in STYLES
    ],
)
def decoder(request):
    return make_decoder(request.param)


def test_cached_greedy_decoding_equals_recomputing(decoder):
    model, params = decoder
    generated = generate_greedy(model, params, PROMPTS, max_new_tokens=NUM_NEW)
    expected = [reference(model, params, prompt, pick_greedy) for prompt in PROMPTS]
    assert generated.responses() == expected
    assert generated.num_steps == NUM_NEW


def test_rows_end_at_eos_and_the_loop_when_all_have_ended(decoder):
    model, params = decoder
    eos_id = reference(model, params, PROMPTS[0], pick_greedy, num_new=3)[-1]
    generated = generate_greedy(
        model, params, PROMPTS, max_new_tokens=NUM_NEW, eos_id=eos_id
    )
    expected = [
        reference(model, params, prompt, pick_greedy, eos_id=eos_id)
        for prompt in PROMPTS
    ]
    assert generated.responses() == expected
    assert len(expected[0]) <= 3
    assert generated.num_steps == max(map(len, expected))
    np.testing.assert_array_equal(jnp.where(generated.mask, 0, generated.tokens), 0)


def test_cached_sampling_equals_recomputing_with_the_same_key(decoder):
    model, params = decoder
    key = jax.random.key(7)
    generated = generate_sampled(
        model, params, PROMPTS, key=key, max_new_tokens=NUM_NEW, **SETTINGS
    )
    expected = [
        reference(model, params, prompt, pick_with(jax.random.fold_in(key, row)))
        for row, prompt in enumerate(PROMPTS)
    ]
    assert generated.responses() == expected


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours_or_on_the_maximum_length():
    model, params = make_decoder("llama", num_layers=1)
    keys = jax.random.split(jax.random.key(1), 3)

    def responses(rows, max_new_tokens=NUM_NEW):
        return generate_sampled(
            model,
            params,
            [PROMPTS[row] for row in rows],
            key=keys[jnp.array(rows)],
            max_new_tokens=max_new_tokens,
        ).responses()

    together = responses([0, 1, 2])
    assert responses([2, 0, 1]) == [together[row] for row in (2, 0, 1)]
    assert responses([1]) == together[1:2]
    assert responses([0, 1, 2], 4) == [row[:4] for row in together]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-9}], ids=str
)
def test_top_one_and_a_vanishing_temperature_are_greedy(settings):
    model, params = make_decoder("llama", num_layers=1)
    greedy = generate_greedy(model, params, PROMPTS, max_new_tokens=NUM_NEW)
    sampled = generate_sampled(
        *(model, params, PROMPTS),
        key=jax.random.key(0),
        max_new_tokens=NUM_NEW,
        **settings,
    )
    assert sampled.responses() == greedy.responses()


@pytest.mark.slow
def test_draws_have_the_frequencies_of_the_filtered_softmax():
    model, params = make_decoder("llama", num_layers=1)
    num = 4000
    generated = generate_sampled(
        *(model, params, [PROMPTS[0]] * num),
        key=jax.random.key(0),
        max_new_tokens=1,
        **SETTINGS,
    )
    logits = last_logits(
        model, params, jnp.array([PROMPTS[0] + [0] * 21]), len(PROMPTS[0])
    )
    filtered = filter_logits(logits / 0.7, top_k=9, top_p=0.9)
    probs = np.asarray(jax.nn.softmax(filtered))
    counts = np.bincount(generated.tokens[:, 0], minlength=VOCAB)
    assert (counts[probs == 0] == 0).all()
    # Five standard deviations of a binomial count.
    assert (abs(counts - num * probs) <= 5 * np.sqrt(num * probs * (1 - probs))).all()


def filtered_by_hand(logits, top_k, top_p):
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    probs = np.exp([logits[i] for i in order])
    probs = probs / probs.sum()
    kept, total = set(), 0.0
    for i, prob in zip(order, probs, strict=True):
        if top_p is not None and total >= top_p:
            break
        kept.add(i)
        total += prob
    return kept


@given(
    seed=st.integers(0, 1000),
    top_k=st.sampled_from([None, 1, 3, 50]),
    top_p=st.sampled_from([None, 0.05, 0.5, 0.95]),
)
def test_the_filter_keeps_what_a_sorted_list_keeps(seed, top_k, top_p):
    logits = 2 * np.random.default_rng(seed).normal(size=11)
    filtered = filter_logits(jnp.array(logits), top_k=top_k, top_p=top_p)
    kept = {i for i in range(11) if filtered[i] > -np.inf}
    assert kept == filtered_by_hand(logits, top_k, top_p)
    assert all(filtered[i] == logits[i] for i in kept)


def kept_exactly(logits, top_p):
    """By sums in long double: at each place as many as are needed to have `top_p`."""
    probs = np.exp(np.sort(logits.astype(np.longdouble))[::-1])
    probs /= probs.sum()
    return np.count_nonzero(np.cumsum(probs) - probs < np.longdouble(top_p))


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1 - 1e-3, 1 - 1e-5, 1 - 2**-20])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_the_filter_keeps_what_exact_sums_keep_of_a_large_vocabulary(top_p, spread):
    logits = spread * np.random.default_rng(0).normal(size=50_257).astype(np.float32)
    # All different, in steps far above rounding where they are all alike.
    logits = logits + np.linspace(0, 1e-2, 50_257, dtype=np.float32)
    top_p = float(np.float32(top_p))
    filtered = np.asarray(filter_logits(jnp.asarray(logits), top_p=top_p))
    kept = np.count_nonzero(filtered > -np.inf)
    wanted = kept_exactly(logits, top_p)
    # The sum that decides has a relative error of 32 roundings, which moves the bound
    # by as many tokens as have that probability there.
    error = 32 * np.finfo(np.float32).eps * min(top_p, 1 - top_p)
    few, many = (kept_exactly(logits, top_p + e) for e in (-error, error))
    assert few - 1 <= kept <= many + 1, (few, wanted, many)
    assert kept == wanted or many > few


@pytest.mark.parametrize("vocab", [3, 50_257])
@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
def test_all_of_the_probability_is_all_tokens(vocab, spread):
    logits = spread * np.random.default_rng(1).normal(size=vocab).astype(np.float32)
    for top_p in (1.0, jnp.float32(1)):
        filtered = filter_logits(jnp.asarray(logits), top_p=top_p)
        np.testing.assert_array_equal(filtered, logits)


def test_tokens_that_are_ruled_out_stay_out_and_equals_stay_together():
    inf = np.inf
    logits = jnp.array([0.0, -inf, 0.0, -1.0, -inf])
    all_: list[dict[str, Any]] = [{"top_p": 1.0}]
    for kept in [*all_, {"top_k": 5}, {"top_k": 4}, {"top_k": 10**30}]:
        np.testing.assert_array_equal(filter_logits(logits, **kept), logits)
    some: list[dict[str, Any]] = [{"top_p": 1e-6}, {"top_p": 0.5}]
    for kept in [*some, {"top_k": 1}, {"top_k": 2}]:
        filtered = filter_logits(logits, **kept)
        np.testing.assert_array_equal(filtered, [0.0, -inf, 0.0, -inf, -inf])


def test_each_end_token_ends_a_row():
    model, params = make_decoder("gpt2", num_layers=1)
    whole = generate_greedy(model, params, PROMPTS, max_new_tokens=NUM_NEW).responses()
    ends = [whole[0][3], whole[1][1], VOCAB + 5]  # the last one is never drawn

    def until(ids):
        stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return ids[: stop + 1]

    for decode in (
        generate_greedy,
        functools.partial(generate_sampled, key=jax.random.key(0), top_k=1),
    ):
        ended = decode(model, params, PROMPTS, max_new_tokens=NUM_NEW, eos_id=ends)
        assert ended.responses() == [until(ids) for ids in whole]
        assert any(len(ids) < NUM_NEW for ids in ended.responses())
        none = decode(model, params, PROMPTS, max_new_tokens=NUM_NEW, eos_id=[])
        assert none.responses() == whole


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-20, 1e20, 1e300])
def test_temperatures_beyond_the_range_of_the_logits_have_their_limits(temperature):
    model, params = make_decoder("gpt2", num_layers=1)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    model = Transformer(dataclasses.replace(model.config, param_dtype="float32"))
    drawn = generate_sampled(
        *(model, params, [PROMPTS[0]] * 200),
        key=jax.random.key(0),
        max_new_tokens=1,
        temperature=temperature,
    )
    tokens = np.asarray(drawn.tokens[:, 0])
    if temperature < 1:
        greedy = generate_greedy(model, params, PROMPTS[:1], max_new_tokens=1)
        assert set(tokens.tolist()) == set(greedy.responses()[0])
    else:  # all alike: each of 23 is drawn 8.7 times, five deviations are 14.4
        assert np.bincount(tokens, minlength=VOCAB).max() <= 23
        assert len(set(tokens.tolist())) > VOCAB / 2


def test_a_model_of_no_numbers_draws_nothing():
    model, params = make_decoder("gpt2", num_layers=1)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="logits are not finite"):
        generate_greedy(model, broken, PROMPTS, max_new_tokens=2)
    with pytest.raises(ValueError, match="logits are not finite"):
        generate_sampled(
            *(model, broken, PROMPTS), key=jax.random.key(0), max_new_tokens=2
        )


def test_equal_shapes_compile_once_whatever_the_temperature():
    model, params = make_decoder("neox", num_layers=1)

    def run(prompts, **settings):
        generate_sampled(
            *(model, params, prompts),
            key=jax.random.key(0),
            max_new_tokens=5,
            **settings,
        )

    assert count_traces(lambda: run(PROMPTS, temperature=0.5, top_k=3)) == 2
    again = PROMPTS[::-1]
    assert count_traces(lambda: run(again, temperature=0.9, top_k=9)) == 0


def test_mistakes_are_refused():
    model, params = make_decoder("gpt2", num_layers=1)
    greedy = functools.partial(generate_greedy, model, params)
    sampled = functools.partial(
        generate_sampled, model, params, [(1,)], max_new_tokens=1
    )
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="each at least one token; got lengths"):
        greedy([(1,), ()], max_new_tokens=1)
    with pytest.raises(ValueError, match="at least one prompt"):
        greedy([], max_new_tokens=1)
    with pytest.raises(ValueError, match="`max_new_tokens` must be positive, got 0"):
        greedy([(1,)], max_new_tokens=0)
    with pytest.raises(ValueError, match="ids from 0 to 22, got 0 to 23"):
        greedy([(VOCAB,)], max_new_tokens=1)
    with pytest.raises(ValueError, match="need 65 positions, but the model learned 64"):
        greedy([(1,) * 60], max_new_tokens=6)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        sampled(key=key, temperature=0.0)
    for temperature in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be positive and finite"):
            sampled(key=key, temperature=temperature)
    for top_k in (0, -3):
        with pytest.raises(ValueError, match="`top_k` must be at least 1"):
            sampled(key=key, top_k=top_k)
    with pytest.raises(ValueError, match="`top_p` must be in"):
        sampled(key=key, top_p=float("nan"))
    with pytest.raises(ValueError, match="`top_p` must be in"):
        sampled(key=key, top_p=1.5)
    with pytest.raises(ValueError, match="one for each of the 1 prompts"):
        sampled(key=jax.random.split(key, 2))


def test_a_model_is_one_compilation_key_by_its_configuration():
    model, _ = make_decoder("gpt2", num_layers=1)
    assert model == Transformer(model.config)
