"""Flax Linen networks: LeNet and the MLP of images, and the decoder of language.

`load` and `save` take decoders from and to Hugging Face folders, with or without
adapters (LoRA).
"""

from ldjax.models.adapters import add_adapters, merge_adapters, save_adapters
from ldjax.models.lenet import LeNet
from ldjax.models.low_rank import LowRank, is_adapter
from ldjax.models.mlp import MLP
from ldjax.models.presets import PRESETS, preset
from ldjax.models.pretrained import Pretrained, load, save
from ldjax.models.rotary import RotaryScaling
from ldjax.models.transformer import Transformer
from ldjax.models.transformer_config import (
    TransformerConfig,
    gpt2_config,
    llama_config,
    neox_config,
    qwen2_config,
)

__all__ = [
    "MLP",
    "PRESETS",
    "LeNet",
    "LowRank",
    "Pretrained",
    "RotaryScaling",
    "Transformer",
    "TransformerConfig",
    "add_adapters",
    "gpt2_config",
    "is_adapter",
    "llama_config",
    "load",
    "merge_adapters",
    "neox_config",
    "preset",
    "qwen2_config",
    "save",
    "save_adapters",
]
