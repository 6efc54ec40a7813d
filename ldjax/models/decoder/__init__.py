"""The decoder of language: its parts, its sizes, what it samples and scores."""

from ldjax.models.decoder.config import (
    TransformerConfig,
    gpt2_config,
    llama_config,
    neox_config,
    qwen2_config,
)
from ldjax.models.decoder.low_rank import LowRank, is_adapter
from ldjax.models.decoder.presets import PRESETS, preset
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.decoder.transformer import Transformer

__all__ = [
    "PRESETS",
    "LowRank",
    "RotaryScaling",
    "Transformer",
    "TransformerConfig",
    "gpt2_config",
    "is_adapter",
    "llama_config",
    "neox_config",
    "preset",
    "qwen2_config",
]
