"""GPT-2 and GPT-NeoX: LayerNorm, biases, an MLP without a gate."""

from dataclasses import replace

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families.sizes import even_split

__all__ = ["gpt2_config", "neox_config"]


def gpt2_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    mlp_width: int | None = None,
    max_positions: int = 512,
    tied_head: bool = True,
) -> TransformerConfig:
    """GPT-2: learned positions, LayerNorm, tanh-GELU, biases everywhere.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default
    `4 * width`. GPT-2 itself is 12 layers of width 768 with 12 heads, 1024 positions
    and 50 257 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> gpt2_config(vocab_size=100).positions
      'learned'
    """
    return TransformerConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=even_split(width, num_heads),
        mlp_width=4 * width if mlp_width is None else mlp_width,
        max_positions=max_positions,
        positions="learned",
        norm="layer",
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_head=tied_head,
    )


def neox_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    mlp_width: int | None = None,
    max_positions: int = 2048,
    rotary_fraction: float = 0.25,
    parallel_residual: bool = True,
    tied_head: bool = False,
) -> TransformerConfig:
    """GPT-NeoX and Pythia: parallel residual, partial rotary positions, exact GELU.

    LayerNorm, biases everywhere but in the head. The arguments are fields of
    `TransformerConfig`; `mlp_width` is by default `4 * width`. Pythia-410M is 24 layers
    of width 1024 with 16 heads and 50 304 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> neox_config(vocab_size=100).rotary_dim
      4
    """
    gpt2 = gpt2_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        max_positions=max_positions,
        tied_head=tied_head,
    )
    return replace(
        gpt2,
        positions="rotary",
        rotary_fraction=rotary_fraction,
        parallel_residual=parallel_residual,
        activation="gelu",
    )
