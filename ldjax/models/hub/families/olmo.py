"""OLMo 2 and 3, whose norms come after attention and MLP."""

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
from ldjax.models.hub.settings import Settings

__all__ = ["OLMO2", "OLMO3"]

_THETA = 500000.0


def _read(settings: Settings) -> TransformerConfig:
    """What OLMo 2 and 3 have in common."""
    return dataclasses.replace(
        read_llama_like(settings, Defaults(max_positions=2048, norm_epsilon=1e-5)),
        norm_placement="post",
        qk_norm="projection",
        **read_biases(settings),
    )


def _read_olmo2(settings: Settings) -> TransformerConfig:
    config = _read(settings)
    return dataclasses.replace(config, **read_rotary(settings, config))


def _read_olmo3(settings: Settings) -> TransformerConfig:
    config = _read(settings)
    window = read_window(settings, 4096)
    most = tuple(layer for layer in range(config.num_layers) if layer % 4 != 3)
    sliding = read_sliding(settings, config, window=window, default=most)
    config = dataclasses.replace(config, **sliding)
    rotary = read_by_kind(settings, config, theta=_THETA, local_theta=_THETA)
    return dataclasses.replace(config, **rotary)


def _write_olmo3(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_llama_like(config),
        **write_layer_types(config),
        **write_by_kind(config),
    }


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", _read_olmo2, write_llama_like)
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", _read_olmo3, _write_olmo3)
