"""The families: each settles how a block is built and leaves its size open.

The arguments of `gpt2_config` and its like are the fields of `TransformerConfig` by
these names, with the defaults of a small model. Anything else is changed by
`dataclasses.replace`.
"""

from ldjax.models.decoder.families.gemma import gemma2_config, gemma3_config
from ldjax.models.decoder.families.gpt import gpt2_config, neox_config
from ldjax.models.decoder.families.llama import (
    llama_config,
    mistral_config,
    phi3_config,
    qwen2_config,
    qwen3_config,
    smollm3_config,
)
from ldjax.models.decoder.families.olmo import olmo2_config, olmo3_config

__all__ = [
    "gemma2_config",
    "gemma3_config",
    "gpt2_config",
    "llama_config",
    "mistral_config",
    "neox_config",
    "olmo2_config",
    "olmo3_config",
    "phi3_config",
    "qwen2_config",
    "qwen3_config",
    "smollm3_config",
]
