"""Families with windows, other norms, soft caps and blocks without positions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import numpy_transformer
from zoo.decoders import (
    CONFIGS,
    LATER_STYLES,
    VOCAB,
    make_decoder,
    random_params,
    random_tokens,
)

from ldjax.models import Transformer, TransformerConfig
from ldjax.models.decoder.norm import Norm
from ldjax.models.decoder.sampling import generate_greedy
from ldjax.models.decoder.scoring import score_responses
from ldjax.models.hub.config import from_hub, to_hub

TOLERANCE = 1e-10
#: Between them they have most of what is new.
FAST = ("gemma2", "smollm3")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(style, marks=() if style in FAST else pytest.mark.slow)
        for style in LATER_STYLES
    ],
)
def decoder(request):
    """Model, parameters and the logits of each prefix of a row by the witness."""
    model, params = make_decoder(request.param)
    row = random_tokens(8)
    return model, params, row, numpy_transformer.forward(model.config, params, row)


def test_logits_are_those_of_numpy_wherever_padding_stands(decoder):
    model, params, row, wanted = decoder
    rows = np.full((4, 12), VOCAB + 1000)
    mask = np.zeros(rows.shape, bool)
    places = np.array([range(8), range(4, 12), range(2, 10), [0, 2, 3, 5, 6, 7, 9, 11]])
    np.put_along_axis(rows, places, np.array([row] * 4), axis=1)
    np.put_along_axis(mask, places, True, axis=1)
    logits = jax.jit(model.apply)({"params": params}, jnp.array(rows), jnp.array(mask))
    assert jnp.isfinite(logits).all()
    for got, real in zip(np.asarray(logits), mask, strict=True):
        np.testing.assert_allclose(got[real], wanted, rtol=0, atol=TOLERANCE)


def test_reading_on_from_a_cache_is_reading_all_at_once(decoder):
    model, params, row, wanted = decoder

    @jax.jit
    def in_pieces(tokens, mask):
        variables, pieces = {"params": params}, []
        hidden, cache = model.apply(
            variables, tokens[:, :4], mask[:, :4], cache_length=13, method="prefill"
        )
        pieces.append(hidden)
        for part in (slice(4, 9), slice(9, 10), slice(10, 12)):
            hidden, cache = model.apply(
                variables, tokens[:, part], cache, mask[:, part], method="extend"
            )
            pieces.append(hidden)
        return model.apply(variables, jnp.concatenate(pieces, axis=1), method="head")

    tokens = jnp.array([[0, 0, *row, 0, 0], [0, *row[:5], 0, 0, 0, *row[5:]]])
    mask = jnp.array([[False] * 2 + [True] * 8 + [False] * 2] * 2)
    mask = mask.at[1].set(jnp.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1], bool))
    logits = np.asarray(in_pieces(tokens, mask))
    for got, real in zip(logits, np.asarray(mask), strict=True):
        np.testing.assert_allclose(got[real], wanted, rtol=0, atol=TOLERANCE)


def test_scores_are_of_the_bounded_logits_and_greedy_takes_their_largest(decoder):
    model, params, row, wanted = decoder
    log_probs = np.asarray(jax.nn.log_softmax(wanted))
    (scores,) = score_responses(
        model, params, row[:3], responses=[row[3:]], max_length=8
    )
    expected = log_probs[np.arange(2, 7), row[3:]]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
    drawn = generate_greedy(model, params, [row, row[:2]], max_new_tokens=1)
    assert drawn.tokens[0, 0] == wanted[-1].argmax()
    assert drawn.tokens[1, 0] == wanted[1].argmax()


@pytest.mark.parametrize("window", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_window_of_any_length_is_that_of_numpy(window):
    model, params = make_decoder("mistral", num_layers=1, sliding_layers=(0,))
    config = dataclasses.replace(model.config, sliding_window=window)
    row = random_tokens(5)
    got = jax.jit(Transformer(config).apply)({"params": params}, jnp.array([row]))
    wanted = numpy_transformer.forward(config, params, row)
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=TOLERANCE)


def operations(config, length=6):
    """The program of a model, as text."""
    params = random_params(Transformer(config))
    tokens = jnp.zeros((1, length), int)
    return str(jax.make_jaxpr(Transformer(config).apply)({"params": params}, tokens))


def test_a_window_that_no_row_is_longer_than_adds_nothing():
    config = CONFIGS["llama"]
    wide = dataclasses.replace(config, sliding_window=6, sliding_layers=(0, 1))
    assert operations(wide) == operations(config)
    assert operations(wide, length=7) != operations(config, length=7)


def test_a_fresh_norm_has_scale_one_whatever_is_added_to_it():
    x = jnp.array([[3.0, -4.0]])
    plain, moved = Norm(center=False), Norm(center=False, offset=1.0)
    variables = moved.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["scale"], 0)
    wanted = plain.apply(plain.init(jax.random.key(0), x), x)
    np.testing.assert_array_equal(moved.apply(variables, x), wanted)


@pytest.mark.parametrize("style", LATER_STYLES)
def test_a_configuration_survives_json_and_the_hub(style):
    config = make_decoder(style)[0].config
    back = TransformerConfig.of(json.loads(json.dumps(dataclasses.asdict(config))))
    assert back == config
    assert hash(back) == hash(config)
    read = dataclasses.replace(from_hub(to_hub(config)), param_dtype="float64")
    assert to_hub(read) == to_hub(config)


@pytest.mark.parametrize(
    ("style", "changes", "message"),
    [
        ("llama", {"sliding_window": 3}, "need each other"),
        ("llama", {"sliding_layers": (0,)}, "need each other"),
        ("mistral", {"sliding_layers": (1, 0)}, "in order"),
        ("mistral", {"sliding_layers": (0, 2)}, "of the 2 blocks"),
        ("mistral", {"sliding_window": 0}, "must be positive"),
        ("llama", {"unrotated_layers": (0, 0)}, "in order"),
        ("gpt2", {"unrotated_layers": (0,)}, "rotary `positions`"),
        ("llama", {"local_rotary_theta": 5.0}, "needs `sliding_layers`"),
        ("mistral", {"local_rotary_theta": 0.5}, "at least 1"),
        ("llama", {"norm_offset": float("nan")}, "finite"),
        ("llama", {"logit_softcap": 0.0}, "must be positive"),
        ("llama", {"attention_scale": -1.0}, "must be positive"),
    ],
)
def test_contradictory_configurations_are_refused(style, changes, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(style, **changes)


@pytest.mark.parametrize(
    ("style", "changes", "named"),
    [
        ("llama", {"logit_softcap": 3.0}, "llama comes closest, .*logit_softcap=3.0"),
        ("olmo2", {"norm_offset": 1.0}, "olmo2 .*norm_offset=1.0"),
        ("gemma3", {"attention_softcap": 9.0}, "gemma3_text .*attention_softcap"),
        ("gemma2", {"width": 36}, "gemma2 .*embedding_scale"),
        ("phi3", {"qkv_bias": True}, "phi3 .*qkv_bias"),
        ("mistral", {"sliding_layers": (1,)}, "mistral .*sliding_layers"),
        ("qwen2", {"family": "bert"}, "`family` is 'bert'"),
    ],
)
def test_an_architecture_that_the_hub_has_not_is_told(style, changes, named):
    config = make_decoder(style, **changes)[0].config
    with pytest.raises(ValueError, match=named):
        to_hub(config)
