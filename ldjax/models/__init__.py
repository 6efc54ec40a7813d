"""Flax Linen networks: LeNet and the MLP of images, and the decoder of language."""

from ldjax.models.lenet import LeNet
from ldjax.models.mlp import MLP
from ldjax.models.transformer import Transformer
from ldjax.models.transformer_config import (
    PRESETS,
    TransformerConfig,
    gpt2_config,
    llama_config,
    neox_config,
    preset,
    qwen2_config,
)

__all__ = [
    "MLP",
    "PRESETS",
    "LeNet",
    "Transformer",
    "TransformerConfig",
    "gpt2_config",
    "llama_config",
    "neox_config",
    "preset",
    "qwen2_config",
]
