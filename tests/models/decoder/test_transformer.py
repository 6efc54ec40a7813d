"""The decoder against plain NumPy, and the laws that scoring and decoding rely on."""

import copy
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import numpy_transformer
from zoo.decoders import (
    CONFIGS,
    STYLES,
    VOCAB,
    make_decoder,
    random_params,
    random_tokens,
)

from ldjax.models import (
    PRESETS,
    Transformer,
    TransformerConfig,
    gpt2_config,
    llama_config,
    neox_config,
    preset,
    qwen2_config,
)

TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=STYLES)
def decoder(request):
    """Model, parameters and the compiled forward pass."""
    model, params = make_decoder(request.param)
    return model, params, jax.jit(model.apply)


def count_params(config):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_logits_equal_the_numpy_decoder(decoder):
    model, params, apply = decoder
    rows = [random_tokens(7, seed) for seed in range(2)]
    logits = apply({"params": params}, jnp.array(rows))
    assert logits.dtype == jnp.float64
    for row, got in zip(rows, logits, strict=True):
        expected = numpy_transformer.forward(model.config, params, row)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "changes"),
    [
        ("gpt2", {"activation": "relu", "head_bias": True, "tied_head": False}),
        ("gpt2", {"head_dim": 6, "num_kv_heads": 1, "mlp_bias": False}),
        ("neox", {"parallel_residual": False, "rotary_fraction": 0.5}),
        ("llama", {"parallel_residual": True, "mlp_bias": True, "rotary_theta": 50.0}),
        ("qwen2", {"attention_out_bias": True, "norm": "layer", "activation": "gelu"}),
    ],
)
def test_every_switch_equals_the_numpy_decoder(style, changes):
    model, params = make_decoder(style, num_layers=1, **changes)
    row = random_tokens(4)
    logits = jax.jit(model.apply)({"params": params}, jnp.array([row]))
    expected = numpy_transformer.forward(model.config, params, row)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=TOLERANCE)


def padded(row, *, left, length):
    """Ids with rubbish around them, out of range too, and the mask of the row."""
    ids = np.full(length, VOCAB + 1000)
    ids[::2] = 1
    mask = np.zeros(length, bool)
    ids[left : left + len(row)] = row
    mask[left : left + len(row)] = True
    return ids, mask


def test_padding_and_neighbours_do_not_change_the_logits_of_real_tokens(decoder):
    _, params, apply = decoder
    row, other = random_tokens(7), random_tokens(12, seed=5)
    expected = apply({"params": params}, jnp.array([row, row]))[0]
    amounts = [0, 5, 2]
    rows = [padded(row, left=left, length=12) for left in amounts]
    rows.append((np.array(other), np.ones(12, bool)))
    tokens, mask = (jnp.array(np.stack(part)) for part in zip(*rows, strict=True))
    logits = apply({"params": params}, tokens, mask)
    for left, got in zip(amounts, logits, strict=False):
        np.testing.assert_allclose(
            got[left : left + 7], expected, rtol=0, atol=TOLERANCE
        )
    assert jnp.isfinite(logits).all()
    # Without any mask, what stands to the right of a token does not reach it either.
    right = jnp.array([[*row, 1, 2, 3, 4, 5]] * 4)
    unmasked = apply({"params": params}, right)[:, :7]
    np.testing.assert_allclose(unmasked[0], expected, rtol=0, atol=TOLERANCE)


def test_future_tokens_never_change_earlier_logits(decoder):
    _, params, apply = decoder
    row = random_tokens(12)
    changed = [[*row[:t], (row[t] + 1) % VOCAB, *row[t + 1 :]] for t in (3, 7, 11)]
    mask = jnp.ones((4, 12), bool)
    logits = apply({"params": params}, jnp.array([row, *changed]), mask)
    for got, t in zip(logits[1:], (3, 7, 11), strict=True):
        np.testing.assert_array_equal(got[:t], logits[0, :t])
        assert abs(got[t] - logits[0, t]).max() > 1e-3


def test_a_row_of_padding_alone_gives_finite_logits_and_zero_gradients():
    model, params = make_decoder("llama", num_layers=1)
    tokens, mask = jnp.zeros((2, 4), int), jnp.array([[False] * 4, [True] * 4])

    @jax.jit
    def loss(params):
        logits = jnp.asarray(model.apply({"params": params}, tokens, mask))
        return jnp.where(mask[:, :, None], logits, 0).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    assert jnp.isfinite(logits).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_rotary_logits_depend_on_distances_only_learned_ones_on_positions(decoder):
    model, params, apply = decoder
    tokens, mask = jnp.array([random_tokens(7)] * 2), jnp.ones((2, 7), bool)
    positions = jnp.arange(7)[None] + jnp.array([[0], [9]])
    logits = apply({"params": params}, tokens, mask, positions)
    difference = abs(logits[0] - logits[1]).max()
    if model.config.positions == "rotary":
        assert difference < TOLERANCE
    else:
        assert difference > 1e-3
    np.testing.assert_allclose(
        logits[0], apply({"params": params}, tokens)[0], rtol=0, atol=TOLERANCE
    )


def test_trunk_and_head_compose_to_the_model(decoder):
    model, params, apply = decoder
    tokens = jnp.array([random_tokens(7)] * 2)
    apply_method = jax.jit(model.apply, static_argnames="method")
    hidden = apply_method({"params": params}, tokens, method="hidden")
    assert hidden.shape == (2, 7, model.config.width)
    logits = apply_method({"params": params}, hidden, method="head")
    expected = apply({"params": params}, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_reading_on_from_a_cache_equals_reading_all_at_once(decoder):
    model, params, _ = decoder
    rows = [padded(random_tokens(3, s), left=2 - s, length=5) for s in range(3)]
    tokens, mask = (jnp.array(np.stack(part)) for part in zip(*rows, strict=True))
    later = jnp.array([random_tokens(4, seed) for seed in range(3)])
    later_mask = jnp.array([[True] * 4, [True, True, False, False], [True] * 4])

    @jax.jit
    def in_pieces(params):
        variables = {"params": params}
        first, cache = model.apply(
            variables, tokens, mask, cache_length=11, method=model.prefill
        )
        second, cache = model.apply(
            variables, later[:, :3], cache, later_mask[:, :3], method=model.extend
        )
        third, cache = model.apply(
            variables, later[:, 3:], cache, later_mask[:, 3:], method=model.extend
        )
        return jnp.concatenate([first, second, third], axis=1), cache

    hidden, cache = in_pieces(params)
    all_tokens = jnp.concatenate([tokens, later], axis=1)
    all_mask = jnp.concatenate([mask, later_mask], axis=1)
    expected = jax.jit(model.apply, static_argnames="method")(
        {"params": params}, all_tokens, all_mask, method="hidden"
    )
    real = all_mask[:, :, None]
    difference = jnp.where(real, hidden - expected, 0)
    assert abs(difference).max() < TOLERANCE
    np.testing.assert_array_equal(cache.mask[:, :9], all_mask)
    assert not cache.mask[:, 9:].any()


@pytest.mark.slow
def test_remat_equals_plain():
    model, params = make_decoder("gpt2")
    remat = Transformer(dataclasses.replace(model.config, remat=True))
    tokens = jnp.array([random_tokens(6)])

    def loss(params, model):
        return (model.apply({"params": params}, tokens) ** 2).sum()

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = step(params, model)
    value_remat, gradient_remat = step(params, remat)
    np.testing.assert_allclose(value, value_remat, rtol=1e-13)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE),
        gradient,
        gradient_remat,
    )


@pytest.mark.slow
def test_logits_are_linearised_and_transposed_consistently():
    model, params = make_decoder("neox", num_layers=1)
    tokens = jnp.array([random_tokens(4)])
    direction = random_params(model, seed=3)

    def logits_fn(params):
        return model.apply({"params": params}, tokens)

    logits, moved = jax.jit(lambda p, t: jax.jvp(logits_fn, (p,), (t,)))(
        params, direction
    )
    pulled = jax.jit(lambda p, g: jax.vjp(logits_fn, p)[1](g)[0])(params, logits)
    inner = jax.tree.map(jnp.vdot, pulled, direction)
    np.testing.assert_allclose(
        sum(jax.tree.leaves(inner)), jnp.vdot(logits, moved), rtol=1e-10
    )


@pytest.mark.parametrize("style", STYLES)
def test_every_matrix_lives_in_a_standard_layer_and_nothing_is_mutable(style):
    model = Transformer(CONFIGS[style])
    paths = set()

    def record(call, args, kwargs, context):
        if type(context.module) in (nn.Dense, nn.Embed):
            paths.add(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            model.init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, 2), jnp.int32),
        )
    assert set(variables) == {"params"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        module = tuple(part.key for part in path[:-1])
        assert leaf.dtype == jnp.float32
        assert leaf.ndim < 2 or module in paths, module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "hidden_dtype", "logits_dtype"),
    [
        (None, "float32", jnp.float32, jnp.float32),
        ("bfloat16", "float32", jnp.bfloat16, jnp.float32),
        ("bfloat16", "bfloat16", jnp.bfloat16, jnp.float32),
        ("float32", "float64", jnp.float32, jnp.float64),
    ],
)
def test_dtypes(dtype, param_dtype, hidden_dtype, logits_dtype):
    exact, exact_params = make_decoder("qwen2", num_layers=1)
    config = dataclasses.replace(exact.config, dtype=dtype, param_dtype=param_dtype)
    model = Transformer(config)
    params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), exact_params)
    tokens = jnp.array([random_tokens(7)] * 2)
    variables = {"params": params}
    apply = jax.jit(model.apply, static_argnames=("method", "cache_length"))
    hidden = apply(variables, tokens, method="hidden")
    cached, _ = apply(variables, tokens, cache_length=8, method="prefill")
    logits = apply(variables, hidden, method="head")
    assert (hidden.dtype, cached.dtype) == (hidden_dtype, hidden_dtype)
    assert logits.dtype == logits_dtype
    exact_logits = jax.jit(exact.apply)({"params": exact_params}, tokens)
    tolerance = 0.3 if dtype == "bfloat16" else 1e-4
    assert abs(logits - exact_logits).max() < tolerance * abs(exact_logits).max()


@pytest.mark.parametrize(
    ("config", "num_params"),
    [
        (
            gpt2_config(
                vocab_size=50257,
                num_layers=12,
                width=768,
                num_heads=12,
                max_positions=1024,
            ),
            124_439_808,
        ),
        (
            neox_config(vocab_size=50304, num_layers=24, width=1024, num_heads=16),
            405_334_016,
        ),
        (
            qwen2_config(
                vocab_size=151936,
                num_layers=24,
                width=1024,
                num_heads=16,
                num_kv_heads=16,
                mlp_width=2816,
            ),
            463_987_712,
        ),
        (
            llama_config(
                vocab_size=128256,
                num_layers=16,
                width=2048,
                num_heads=32,
                num_kv_heads=8,
                mlp_width=8192,
                tied_head=True,
            ),
            1_235_814_400,
        ),
    ],
    ids=["gpt2", "pythia-410m", "qwen1.5-0.5b", "llama-3.2-1b"],
)
def test_published_models_have_their_published_number_of_parameters(config, num_params):
    assert count_params(config) == num_params


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"toy"}))
def test_presets_have_the_size_they_are_named_after(name):
    size = float(name.removesuffix("M")) * 1e6
    assert 0.85 * size < count_params(preset(name)) < 1.15 * size


def test_the_toy_preset_has_the_size_that_was_asked_of_it():
    config = preset("toy", vocab_size=276, max_positions=128)
    assert (config.width, config.num_layers, config.num_heads) == (96, 3, 4)
    assert 0.38e6 < count_params(config) < 0.42e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "`num_layers` must be positive, got 0"),
        ({"norm_epsilon": 0.0}, "`norm_epsilon` must be positive"),
        ({"num_kv_heads": 3}, "`num_kv_heads` must divide `num_heads`, got 3 and 4"),
        ({"rotary_fraction": 0.4}, "even number of features"),
        ({"rotary_fraction": 2.0}, "`rotary_fraction` of `head_dim`"),
        ({"head_bias": True, "tied_head": True}, "A tied head has no bias"),
        ({"activation": "tanh"}, "`activation` must be one of"),
        ({"positions": "alibi"}, "`positions` must be one of"),
        ({"norm": "batch"}, "`norm` must be one of"),
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"param_dtype": "float8"}, "`param_dtype` must be one of"),
    ],
)
def test_contradictory_configurations_are_refused(changes, message):
    config = copy.copy(CONFIGS["llama"])
    for name, value in changes.items():
        # Past `__init__`, whose annotations the test run checks before the values.
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_other_mistakes_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="`width` must be a multiple"):
        gpt2_config(vocab_size=10, width=30)
    with pytest.raises(ValueError, match=r"one of 0.1M, 0.4M, 1M, 4M, toy, got '2M'"):
        preset("2M")
    model = Transformer(CONFIGS["gpt2"])
    tokens = jnp.zeros((1, 65), int)
    with pytest.raises(ValueError, match="65 positions but the model learned 64"):
        model.init(jax.random.key(0), tokens)
    with pytest.raises(ValueError, match="got 64 slots"):
        model.init(
            jax.random.key(0), tokens, cache_length=64, method=Transformer.prefill
        )


def test_a_configuration_is_hashable_and_survives_json():
    config = CONFIGS["neox"]
    assert TransformerConfig.of(dataclasses.asdict(config)) == config
    assert TransformerConfig.of(json.loads(json.dumps(config.settings()))) == config
    assert hash(Transformer(config)) == hash(Transformer(config))


#: What runs kept of a model before there were more fields; such a run can go on only
#: if that is still what they keep.
FIRST_FIELDS = {
    *("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "head_dim"),
    *("mlp_width", "max_positions", "positions", "rotary_fraction", "rotary_theta"),
    *("rotary_scaling", "norm", "norm_epsilon", "parallel_residual", "activation"),
    *("gated_mlp", "qkv_bias", "attention_out_bias", "mlp_bias", "head_bias"),
    *("tied_head", "adapters", "remat", "dtype", "param_dtype"),
}


@pytest.mark.parametrize("style", ["gpt2", "neox", "qwen2", "llama"])
def test_a_run_keeps_of_a_model_what_runs_before_it_kept(style):
    assert CONFIGS[style].settings().keys() == FIRST_FIELDS


def test_equal_shapes_compile_once():
    model, params = make_decoder("llama", num_layers=1)
    traces = []

    @jax.jit
    def logits_fn(params, tokens, mask):
        traces.append(tokens.shape)
        return model.apply({"params": params}, tokens, mask)

    for seed in range(3):
        tokens = jnp.array([random_tokens(6, seed)])
        logits_fn(params, tokens, jnp.arange(6)[None] >= seed)
    assert traces == [(1, 6)]
