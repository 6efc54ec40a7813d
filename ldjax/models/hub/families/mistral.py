"""Mistral, all of whose blocks have the window or none."""

import dataclasses
from typing import Any

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.families.layers import read_sliding, read_window
from ldjax.models.hub.families.llama import (
    Defaults,
    read_llama_like,
    write_llama_like,
)
from ldjax.models.hub.families.record import Family
from ldjax.models.hub.families.rotary import read_rotary
from ldjax.models.hub.settings import Settings

__all__ = ["MISTRAL", "read_window_of_all"]


def read_window_of_all(
    settings: Settings, config: TransformerConfig, default: int | None
) -> dict[str, Any]:
    """The fields of a window that all blocks have.

    Args:
      settings: The content of a `config.json`.
      config: The architecture without it.
      default: The window where it is left out, in tokens; None for none.
    """
    window = read_window(settings, default)
    layers = () if window is None else tuple(range(config.num_layers))
    fields = read_sliding(settings, config, window=window, default=layers)
    if fields.get("sliding_layers", ()) != layers:
        raise ValueError(
            "`layer_types` gives the window to some blocks; in this family all have "
            "it, or none."
        )
    return fields


def _read(settings: Settings) -> TransformerConfig:
    settings.require("attention_bias", False)
    config = read_llama_like(settings, Defaults(max_positions=131072, num_kv_heads=8))
    return dataclasses.replace(
        config,
        **read_rotary(settings, config),
        **read_window_of_all(settings, config, 4096),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return write_llama_like(config) | {
        "sliding_window": config.sliding_window,
        "attention_bias": False,
    }


MISTRAL = Family("mistral", "MistralForCausalLM", _read, _write)
