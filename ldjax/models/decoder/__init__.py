"""The decoder of language: its parts, its sizes, what it samples and scores."""

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families import (
    gemma2_config,
    gemma3_config,
    gpt2_config,
    llama_config,
    mistral_config,
    neox_config,
    olmo2_config,
    olmo3_config,
    phi3_config,
    qwen2_config,
    qwen3_config,
    smollm3_config,
)
from ldjax.models.decoder.low_rank import LowRank, OtherAdapter, is_adapter
from ldjax.models.decoder.presets import PRESETS, preset
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.decoder.transformer import Transformer

__all__ = [
    "PRESETS",
    "LowRank",
    "OtherAdapter",
    "RotaryScaling",
    "Transformer",
    "TransformerConfig",
    "gemma2_config",
    "gemma3_config",
    "gpt2_config",
    "is_adapter",
    "llama_config",
    "mistral_config",
    "neox_config",
    "olmo2_config",
    "olmo3_config",
    "phi3_config",
    "preset",
    "qwen2_config",
    "qwen3_config",
    "smollm3_config",
]
