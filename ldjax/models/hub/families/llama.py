"""Llama, and what its kin share with it."""

import dataclasses
from typing import Any, NamedTuple

from ldjax.models.decoder.config import MOST_LAYERS, TransformerConfig
from ldjax.models.decoder.families import llama_config
from ldjax.models.hub.families.record import Family, write_sizes
from ldjax.models.hub.families.rotary import read_rotary, write_rotary
from ldjax.models.hub.settings import Settings

__all__ = ["LLAMA", "Defaults", "read_biases", "read_llama_like", "write_llama_like"]


class Defaults(NamedTuple):
    """What `transformers` takes where a family's file is silent.

    Attributes:
      max_positions: The length that the model is meant for, in tokens.
      num_kv_heads: The heads of keys; None for as many as of queries.
      head_dim: The width of a head; None for an even part of the stream's.
      norm_epsilon: The number added to the mean square.
      tied_head: Whether the head is the embedding.
      activation: The name of the setting of the activation, and its value.

    Examples:
      >>> Defaults(max_positions=2048).norm_epsilon
      1e-06
    """

    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm_epsilon: float = 1e-6
    tied_head: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")


def read_llama_like(settings: Settings, defaults: Defaults) -> TransformerConfig:
    """What Llama and its kin have in common, rotary settings left out.

    Args:
      settings: The content of a `config.json`.
      defaults: What the family takes where the file is silent.
    """
    width, heads = (
        settings.whole(name) for name in ("hidden_size", "num_attention_heads")
    )
    kv_heads = heads  # where it is null
    if "num_key_value_heads" not in settings.content:
        kv_heads = defaults.num_kv_heads or heads
    config = llama_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("num_hidden_layers", most=MOST_LAYERS),
        width=2 * heads,  # the true width need not be a multiple of the heads
        num_heads=heads,
        num_kv_heads=settings.whole("num_key_value_heads", kv_heads),
        mlp_width=settings.whole("intermediate_size"),
        max_positions=settings.whole("max_position_embeddings", defaults.max_positions),
        norm_epsilon=settings.positive("rms_norm_eps", defaults.norm_epsilon),
        tied_head=settings.flag("tie_word_embeddings", defaults.tied_head),
    )
    head_dim = defaults.head_dim or max(1, width // heads)
    return dataclasses.replace(
        config,
        width=width,
        head_dim=settings.whole("head_dim", head_dim),
        activation=settings.activation(*defaults.activation),
    )


def read_biases(settings: Settings) -> dict[str, bool]:
    """The fields of attention's biases, which are all there or none.

    Args:
      settings: The content of a `config.json`.
    """
    bias = settings.flag("attention_bias", False)
    return {"qkv_bias": bias, "attention_out_bias": bias}


def write_llama_like(
    config: TransformerConfig, *, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The settings of what Llama and its kin have in common.

    Args:
      config: The architecture.
      activation: The name of the setting of the activation.
    """
    return {
        **write_sizes(config, activation=activation),
        **write_rotary(config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.attention_out_bias,
    }


def _read(settings: Settings) -> TransformerConfig:
    config = read_llama_like(settings, Defaults(max_positions=2048))
    return dataclasses.replace(
        config,
        mlp_bias=settings.flag("mlp_bias", False),
        **read_rotary(settings, config),
        **read_biases(settings),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return write_llama_like(config) | {"mlp_bias": config.mlp_bias}


LLAMA = Family("llama", "LlamaForCausalLM", _read, _write)
