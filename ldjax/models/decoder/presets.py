"""Small architectures by name."""

from typing import Literal, NamedTuple

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families import gpt2_config, llama_config

__all__ = ["PRESETS", "preset"]


class _Size(NamedTuple):
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    style: Literal["llama", "gpt2"] = "llama"
    tied_head: bool = True


#: Sizes for work on two cores, by their number of parameters; see `preset`.
PRESETS: dict[str, _Size] = {
    "0.1M": _Size(num_layers=3, width=32, num_heads=2, mlp_width=88),
    "0.4M": _Size(num_layers=4, width=64, num_heads=4, mlp_width=256),
    "1M": _Size(num_layers=4, width=128, num_heads=4, mlp_width=344),
    "4M": _Size(num_layers=4, width=256, num_heads=8, mlp_width=768),
    "toy": _Size(
        3, width=96, num_heads=4, mlp_width=384, style="gpt2", tied_head=False
    ),
}


def preset(
    name: str, *, vocab_size: int = 2048, max_positions: int = 512
) -> TransformerConfig:
    """A small model of a named size.

    Args:
      name: One of `PRESETS`: the number of parameters with 2 048 tokens, within 15 %
        (Llama style, tied head), or `"toy"` for the toy world (GPT-2 style, untied
        head, 0.4 million with its 355 words).
      vocab_size: The number of tokens; each adds `width` parameters.
      max_positions: The length the model is meant for, in tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: If there is no such preset.

    Examples:
      >>> preset("1M").width
      128
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {', '.join(PRESETS)}, got {name!r}.")
    size = PRESETS[name]
    shape = {
        "vocab_size": vocab_size,
        "num_layers": size.num_layers,
        "width": size.width,
        "num_heads": size.num_heads,
        "mlp_width": size.mlp_width,
        "max_positions": max_positions,
        "tied_head": size.tied_head,
    }
    if size.style == "gpt2":
        return gpt2_config(**shape)
    return llama_config(**shape, num_kv_heads=size.num_heads)
