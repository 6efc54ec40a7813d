"""OLMo 2 and 3: norms after attention and MLP, and of queries and keys."""

from dataclasses import replace

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families.llama import llama_config

__all__ = ["olmo2_config", "olmo3_config"]


def olmo2_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 4,
    mlp_width: int | None = None,
    max_positions: int = 4096,
    rotary_theta: float = 500000.0,
    norm_epsilon: float = 1e-6,
    tied_head: bool = False,
) -> TransformerConfig:
    """OLMo 2: `x + norm(attention(x))`, queries and keys normed over all heads.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`. OLMo 2 1B is 16 layers of width 2048 with 16 heads, `mlp_width` 8192
    and 100 352 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> config = olmo2_config(vocab_size=100)
      >>> config.norm_placement, config.qk_norm
      ('post', 'projection')
    """
    config = llama_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(config, norm_placement="post", qk_norm="projection")


def olmo3_config(
    *,
    vocab_size: int,
    num_layers: int = 4,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 4,
    mlp_width: int | None = None,
    max_positions: int = 8192,
    rotary_theta: float = 500000.0,
    sliding_window: int = 4096,
    norm_epsilon: float = 1e-6,
    tied_head: bool = False,
) -> TransformerConfig:
    """OLMo 3: OLMo 2 within a window in all blocks but every fourth.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`. A `rotary_scaling` set later changes the full blocks alone. OLMo 3
    7B is 32 layers of width 4096 with 32 heads, `mlp_width` 11 008 and 100 278 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> olmo3_config(vocab_size=100).sliding_layers
      (0, 1, 2)
    """
    config = olmo2_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(
        config,
        family="olmo3",
        local_rotary_theta=rotary_theta,
        sliding_window=sliding_window,
        sliding_layers=tuple(i for i in range(num_layers) if i % 4 != 3),
    )
