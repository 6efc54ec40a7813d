"""Tiny decoders of the four styles, every parameter away from its initial value."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldjax.models import (
    Pretrained,
    Transformer,
    gpt2_config,
    llama_config,
    neox_config,
    qwen2_config,
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


def make_decoder(style, **changes):
    """A model in float64 and its parameters."""
    config = dataclasses.replace(CONFIGS[style], param_dtype="float64", **changes)
    model = Transformer(config)
    return model, random_params(model)


def pretrained(style="gpt2", *, tokenizer=None, **changes):
    """A drawn model."""
    config = dataclasses.replace(CONFIGS[style], **changes)
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
