"""Phi-3, whose heads may be rotated in part."""

import dataclasses
from typing import Any

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.families.llama import (
    Defaults,
    read_llama_like,
    write_llama_like,
)
from ldjax.models.hub.families.mistral import read_window_of_all
from ldjax.models.hub.families.record import Family
from ldjax.models.hub.families.rotary import rope_of
from ldjax.models.hub.settings import Settings, shown

__all__ = ["PHI3"]


def _read(settings: Settings) -> TransformerConfig:
    settings.require("attention_bias", False)
    rope = rope_of(settings)
    kind = rope.content.get("rope_type", rope.content.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"the rotary scaling is {shown(kind)}; of Phi-3 ldjax computes the models "
            "of short contexts (4k), which have none. longrope changes the wavelengths "
            "in the middle of a text."
        )
    fraction = rope.positive(
        "partial_rotary_factor", settings.positive("partial_rotary_factor", 1.0)
    )
    config = read_llama_like(settings, Defaults(max_positions=4096, norm_epsilon=1e-5))
    return dataclasses.replace(
        config,
        rotary_fraction=fraction,
        rotary_theta=rope.positive("rope_theta", settings.positive("rope_theta", 1e4)),
        **read_window_of_all(settings, config, None),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return write_llama_like(config) | {
        "partial_rotary_factor": config.rotary_fraction,
        "original_max_position_embeddings": config.max_positions,
        "sliding_window": config.sliding_window,
        "attention_bias": False,
        "rope_scaling": None,
    }


PHI3 = Family("phi3", "Phi3ForCausalLM", _read, _write)
