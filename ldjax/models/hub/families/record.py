"""What the hub knows of a family."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.settings import Settings

__all__ = ["Family", "write_sizes"]

_HUB_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
}


class Family(NamedTuple):
    """A family of decoders on the hub.

    Attributes:
      model_type: Its name in a `config.json`.
      architecture: The class of `transformers` that its folders name.
      read: The function from settings to an architecture.
      write: The function from an architecture to settings, those left out that all
        families share.

    Examples:
      >>> from ldjax.models.hub.families import FAMILIES
      >>> FAMILIES["qwen3"].architecture
      'Qwen3ForCausalLM'
    """

    model_type: str
    architecture: str
    read: Callable[[Settings], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, Any]]


def write_sizes(
    config: TransformerConfig, *, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The settings that all families but GPT-2 name alike.

    Args:
      config: The architecture.
      activation: The name of the setting of the activation.
    """
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        activation: _HUB_ACTIVATIONS[config.activation],
    }
