"""Qwen2 and Qwen3."""

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
from ldjax.models.hub.families.rotary import read_rotary
from ldjax.models.hub.settings import Settings

__all__ = ["QWEN2", "QWEN3"]

_QWEN2 = Defaults(max_positions=32768, num_kv_heads=32)
_QWEN3 = _QWEN2._replace(head_dim=128)


def _read_qwen2(settings: Settings) -> TransformerConfig:
    return dataclasses.replace(_read(settings, _QWEN2), qkv_bias=True)


def _read_qwen3(settings: Settings) -> TransformerConfig:
    config = _read(settings, _QWEN3)
    return dataclasses.replace(config, qk_norm="head", **read_biases(settings))


def _read(settings: Settings, defaults: Defaults) -> TransformerConfig:
    config = read_llama_like(settings, defaults)
    window, late = None, ()
    if settings.flag("use_sliding_window", False):
        window = read_window(settings, 4096)
    if window is not None:
        first = settings.number("max_window_layers", 28)
        late = tuple(layer for layer in range(config.num_layers) if layer >= first)
    return dataclasses.replace(
        config,
        **read_rotary(settings, config),
        **read_sliding(settings, config, window=window, default=late),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_llama_like(config),
        **write_layer_types(config),
        "use_sliding_window": bool(config.sliding_layers),
        # Older readers know no `layer_types`; the first blocks are without a window.
        "max_window_layers": min(config.sliding_layers, default=config.num_layers),
    }


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write)
