"""GPT-2, whose settings have names of their own, and GPT-NeoX."""

import dataclasses
from typing import Any

from ldjax.models.decoder.config import MOST_LAYERS, TransformerConfig
from ldjax.models.decoder.families import gpt2_config, neox_config
from ldjax.models.hub.families.record import Family, write_sizes
from ldjax.models.hub.families.rotary import read_scaling, rope_of, write_scaling
from ldjax.models.hub.settings import Settings

__all__ = ["GPT2", "NEOX"]


def _read_gpt2(settings: Settings) -> TransformerConfig:
    settings.require("scale_attn_weights", True)
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("add_cross_attention", False)
    width = settings.whole("n_embd")
    config = gpt2_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("n_layer", most=MOST_LAYERS),
        width=width,
        num_heads=settings.whole("n_head"),
        mlp_width=settings.whole("n_inner", 4 * width),
        max_positions=settings.whole("n_positions"),
        tied_head=settings.flag("tie_word_embeddings", True),
    )
    return dataclasses.replace(
        config,
        norm_epsilon=settings.positive("layer_norm_epsilon", 1e-5),
        activation=settings.activation("activation_function", "gelu_new"),
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    sizes = write_sizes(config, activation="activation_function")
    return {
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "activation_function": sizes["activation_function"],
        "layer_norm_epsilon": config.norm_epsilon,
        # ldjax trains without; the library's defaults are 0.1.
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _read_neox(settings: Settings) -> TransformerConfig:
    rope = rope_of(settings)
    bias = settings.flag("attention_bias", True)
    heads, width = (
        settings.whole(name) for name in ("num_attention_heads", "hidden_size")
    )
    theta = rope.positive("rope_theta", settings.positive("rotary_emb_base", 1e4))
    fraction = rope.positive(
        "partial_rotary_factor", settings.positive("rotary_pct", 0.25)
    )
    config = neox_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("num_hidden_layers", most=MOST_LAYERS),
        width=width,
        num_heads=heads,
        mlp_width=settings.whole("intermediate_size"),
        max_positions=settings.whole("max_position_embeddings", 2048),
        rotary_fraction=fraction,
        parallel_residual=settings.flag("use_parallel_residual", True),
        tied_head=settings.flag("tie_word_embeddings", False),
    )
    return dataclasses.replace(
        config,
        rotary_theta=theta,
        rotary_scaling=read_scaling(rope, config.max_positions),
        norm_epsilon=settings.positive("layer_norm_eps", 1e-5),
        activation=settings.activation("hidden_act", "gelu"),
        qkv_bias=bias,
        attention_out_bias=bias,
    )


def _write_neox(config: TransformerConfig) -> dict[str, Any]:
    return write_sizes(config) | {
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_theta,
        "rope_scaling": write_scaling(config.rotary_scaling),
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
    }


GPT2 = Family("gpt2", "GPT2LMHeadModel", _read_gpt2, _write_gpt2)
NEOX = Family("gpt_neox", "GPTNeoXForCausalLM", _read_neox, _write_neox)
