"""SmolLM3, some of whose blocks know no positions."""

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
from ldjax.models.hub.settings import Settings, shown

__all__ = ["SMOLLM3"]

_DEFAULTS = Defaults(max_positions=32768, num_kv_heads=4, tied_head=True)


def _read(settings: Settings) -> TransformerConfig:
    config = read_llama_like(settings, _DEFAULTS)
    unrotated = _read_unrotated(settings, config.num_layers)
    window = None
    if settings.flag("use_sliding_window", False):
        window = read_window(settings)
    default = () if window is None else unrotated
    return dataclasses.replace(
        config,
        unrotated_layers=unrotated,
        mlp_bias=settings.flag("mlp_bias", False),
        **read_rotary(settings, config, theta=2e6),
        **read_biases(settings),
        **read_sliding(settings, config, window=window, default=default),
    )


def _read_unrotated(settings: Settings, num_layers: int) -> tuple[int, ...]:
    rotated = settings.content.get("no_rope_layers")
    if rotated is None:
        interval = settings.whole("no_rope_layer_interval", 4)
        return tuple(range(interval - 1, num_layers, interval))
    is_list = isinstance(rotated, list) and len(rotated) >= num_layers
    if not is_list or any(type(one) is not int or one not in (0, 1) for one in rotated):
        raise ValueError(
            "`no_rope_layers` must be 0 (without positions) or 1 for each of the "
            f"{num_layers} blocks, got {shown(rotated)}."
        )
    return tuple(i for i in range(num_layers) if not rotated[i])


def _write(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_llama_like(config),
        **write_layer_types(config),
        "use_sliding_window": bool(config.sliding_layers),
        "no_rope_layers": [
            int(layer not in config.unrotated_layers)
            for layer in range(config.num_layers)
        ],
        "mlp_bias": config.mlp_bias,
    }


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", _read, _write)
