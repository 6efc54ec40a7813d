"""Tiny decoders of all styles, every parameter away from its initial value."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldjax.models import (
    Pretrained,
    Transformer,
    gemma2_config,
    gemma3_config,
    gpt2_config,
    llama_config,
    mistral_config,
    neox_config,
    olmo2_config,
    olmo3_config,
    phi3_config,
    qwen2_config,
    qwen3_config,
    smollm3_config,
)

VOCAB = 23

_SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "width": 32,
    "mlp_width": 24,
    "max_positions": 64,
}

CONFIGS = {
    "gpt2": gpt2_config(**_SIZE),
    "neox": neox_config(**_SIZE),
    "qwen2": qwen2_config(**_SIZE),
    "llama": llama_config(**_SIZE),
}

STYLES = sorted(CONFIGS)

#: The families that came later, with windows that short rows are longer than.
LATER_CONFIGS = {
    "gemma2": gemma2_config(
        **_SIZE,
        head_dim=6,
        sliding_window=3,
        attention_softcap=2.0,
        logit_softcap=3.0,
    ),
    "gemma3": dataclasses.replace(
        gemma3_config(
            **_SIZE,
            num_layers=2,
            head_dim=6,
            rotary_theta=50.0,
            local_rotary_theta=9.0,
            sliding_window=3,
        ),
        sliding_layers=(0,),
    ),
    "mistral": mistral_config(**_SIZE, sliding_window=3),
    "olmo2": olmo2_config(**_SIZE),
    "olmo3": dataclasses.replace(
        olmo3_config(**_SIZE, num_layers=2, sliding_window=3), sliding_layers=(1,)
    ),
    "phi3": phi3_config(**_SIZE, rotary_fraction=0.5, sliding_window=3),
    "qwen3": qwen3_config(**_SIZE, head_dim=6),
    "smollm3": smollm3_config(**_SIZE, num_layers=2, unrotated_layers=(1,)),
}

LATER_STYLES = sorted(LATER_CONFIGS)
ALL_CONFIGS = CONFIGS | LATER_CONFIGS


def make_decoder(style, **changes):
    """A model in float64 and its parameters."""
    config = dataclasses.replace(ALL_CONFIGS[style], param_dtype="float64", **changes)
    model = Transformer(config)
    return model, random_params(model)


def pretrained(style="gpt2", *, tokenizer=None, **changes):
    """A drawn model."""
    config = dataclasses.replace(ALL_CONFIGS[style], **changes)
    model = Transformer(config)
    return Pretrained(model, random_params(model), config, tokenizer)


def random_params(model, seed=0):
    """Draws for every leaf, so that no bias is zero and no scale is one."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape) * (0.3 if leaf.ndim == 1 else 0.2)
        is_scale = path[-1].key == "scale"
        return jnp.asarray(values + is_scale, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_tokens(num, seed=0):
    """Ids as a list."""
    return np.random.default_rng(seed).integers(VOCAB, size=num).tolist()


def count_traces(function):
    """How often a model is traced (not run) by `function`."""
    calls = []

    def record(call, args, kwargs, context):
        if context.module.name == "final_norm":
            calls.append(context)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        function()
    return len(calls)
