"""Flax Linen networks: LeNet and the MLP of images, and the decoder of language.

`load` and `save` take decoders from and to Hugging Face folders, with or without
adapters (LoRA).
"""

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
from ldjax.models.images import MLP, LeNet
from ldjax.models.lora import add_adapters, merge_adapters, save_adapters
from ldjax.models.pretrained import Pretrained, load, save

__all__ = [
    "MLP",
    "PRESETS",
    "LeNet",
    "LowRank",
    "OtherAdapter",
    "Pretrained",
    "RotaryScaling",
    "Transformer",
    "TransformerConfig",
    "add_adapters",
    "gemma2_config",
    "gemma3_config",
    "gpt2_config",
    "is_adapter",
    "llama_config",
    "load",
    "merge_adapters",
    "mistral_config",
    "neox_config",
    "olmo2_config",
    "olmo3_config",
    "phi3_config",
    "preset",
    "qwen2_config",
    "qwen3_config",
    "save",
    "save_adapters",
    "smollm3_config",
]
