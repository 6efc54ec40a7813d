"""Gemma 2 and the text part of Gemma 3."""

import dataclasses
from typing import Any

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.families.layers import (
    read_sliding,
    read_window,
    write_layer_types,
)
from ldjax.models.hub.families.llama import (
    Defaults,
    read_biases,
    read_llama_like,
    write_llama_like,
)
from ldjax.models.hub.families.record import Family
from ldjax.models.hub.families.rotary import (
    read_by_kind,
    read_rotary,
    write_by_kind,
)
from ldjax.models.hub.settings import Settings, shown

__all__ = ["GEMMA2", "GEMMA3", "text_part"]

_ACTIVATION = "hidden_activation"
_GEMMA2 = Defaults(
    max_positions=8192,
    num_kv_heads=4,
    head_dim=256,
    tied_head=True,
    activation=(_ACTIVATION, "gelu_pytorch_tanh"),
)
_GEMMA3 = _GEMMA2._replace(max_positions=131072)
#: Sizes that Google's own folders of Gemma 3 leave out.
_GEMMA3_SIZES = {"vocab_size": 262208, "num_attention_heads": 8}


def text_part(settings: Settings) -> Settings:
    """The settings of the language model in those of Gemma 3 with its eyes.

    Args:
      settings: The content of a `config.json` whose `model_type` is gemma3.
    """
    text = settings.content.get("text_config")
    if not isinstance(text, dict):
        raise ValueError(f"`text_config` must be a set of settings, got {shown(text)}.")
    is_tied = settings.flag("tie_word_embeddings", True)
    return Settings(text | {"tie_word_embeddings": is_tied})


def _read(settings: Settings, defaults: Defaults) -> TransformerConfig:
    """What Gemma 2 and 3 have in common."""
    settings.require("use_bidirectional_attention", False)
    config = read_llama_like(settings, defaults)
    scale = settings.whole("query_pre_attn_scalar", 256)
    return dataclasses.replace(
        config,
        embedding_scale=config.width**0.5,
        norm_offset=1.0,
        norm_placement="both",
        attention_scale=None if scale == config.head_dim else scale**-0.5,
        **read_biases(settings),
    )


def _read_gemma2(settings: Settings) -> TransformerConfig:
    config = _read(settings, _GEMMA2)
    window = read_window(settings, 4096)
    half = tuple(range(0, config.num_layers, 2))
    return dataclasses.replace(
        config,
        attention_softcap=settings.optional("attn_logit_softcapping", 50.0),
        logit_softcap=settings.optional("final_logit_softcapping", 30.0),
        **read_rotary(settings, config),
        **read_sliding(settings, config, window=window, default=half),
    )


def _read_gemma3(settings: Settings) -> TransformerConfig:
    # The library has the setting and does not compute it.
    settings.require("attn_logit_softcapping", None)
    settings = Settings({**_GEMMA3_SIZES, **settings.content})
    config = _read(settings, _GEMMA3)
    window = read_window(settings, 4096)
    period = settings.whole("sliding_window_pattern", 6)
    most = tuple(i for i in range(config.num_layers) if (i + 1) % period)
    config = dataclasses.replace(
        config,
        qk_norm="head",
        logit_softcap=settings.optional("final_logit_softcapping", None),
        **read_sliding(settings, config, window=window, default=most),
    )
    rotary = read_by_kind(settings, config, theta=1e6, local_theta=1e4)
    return dataclasses.replace(config, **rotary)


def _write_gemma2(config: TransformerConfig) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    return {
        **write_llama_like(config, activation=_ACTIVATION),
        **write_layer_types(config),
        "query_pre_attn_scalar": max(1, round(scale**-2)),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    unbounded = {"attn_logit_softcapping": None}
    return _write_gemma2(config) | write_by_kind(config) | unbounded


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _read_gemma2, _write_gemma2)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3)
