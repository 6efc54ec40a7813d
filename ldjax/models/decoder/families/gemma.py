"""Gemma 2 and 3: scaled embeddings, norms of scale `1 + w` before and after."""

from dataclasses import replace

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families.llama import llama_config

__all__ = ["gemma2_config", "gemma3_config"]


def gemma2_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    mlp_width: int | None = None,
    max_positions: int = 8192,
    rotary_theta: float = 10000.0,
    sliding_window: int = 4096,
    attention_softcap: float | None = 50.0,
    logit_softcap: float | None = 30.0,
    norm_epsilon: float = 1e-6,
    tied_head: bool = True,
) -> TransformerConfig:
    """Gemma 2: bounded scores and logits, a window in every other block.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default
    `4 * width`. Gemma 2 2B is 26 layers of width 2304 with 8 heads of 256, 4 for keys,
    `mlp_width` 9216 and 256 000 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> config = gemma2_config(vocab_size=100)
      >>> config.norm_placement, config.sliding_layers
      ('both', (0,))
    """
    config = llama_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=num_heads * head_dim,  # whatever the true width
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=4 * width if mlp_width is None else mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(
        config,
        width=width,
        embedding_scale=width**0.5,
        norm_offset=1.0,
        norm_placement="both",
        activation="gelu_tanh",
        sliding_window=sliding_window,
        sliding_layers=tuple(range(0, num_layers, 2)),
        attention_softcap=attention_softcap,
        logit_softcap=logit_softcap,
    )


def gemma3_config(
    *,
    vocab_size: int,
    num_layers: int = 6,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 1,
    head_dim: int = 32,
    mlp_width: int | None = None,
    max_positions: int = 32768,
    rotary_theta: float = 1e6,
    local_rotary_theta: float = 10000.0,
    sliding_window: int = 512,
    norm_epsilon: float = 1e-6,
    tied_head: bool = True,
) -> TransformerConfig:
    """Gemma 3: queries and keys normed, a window in five of six blocks.

    The blocks with a window have a rotary base of their own. The arguments are fields
    of `TransformerConfig`; `mlp_width` is by default `4 * width`. Gemma 3 1B is 26
    layers of width 1152 with 4 heads of 256, 1 for keys, `mlp_width` 6912 and 262 144
    tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> gemma3_config(vocab_size=100).sliding_layers
      (0, 1, 2, 3, 4)
    """
    config = gemma2_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        sliding_window=sliding_window,
        attention_softcap=None,
        logit_softcap=None,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(
        config,
        qk_norm="head",
        local_rotary_theta=local_rotary_theta,
        sliding_layers=tuple(i for i in range(num_layers) if i % 6 != 5),
    )
