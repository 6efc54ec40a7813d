"""Llama and its nearest kin: Qwen, Mistral, Phi-3, SmolLM3."""

from dataclasses import replace

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.families.sizes import even_split

__all__ = [
    "llama_config",
    "mistral_config",
    "phi3_config",
    "qwen2_config",
    "qwen3_config",
    "smollm3_config",
]


def llama_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    mlp_width: int | None = None,
    max_positions: int = 2048,
    rotary_theta: float = 10000.0,
    norm_epsilon: float = 1e-5,
    tied_head: bool = False,
) -> TransformerConfig:
    """Llama: RMSNorm, SwiGLU, rotary positions, grouped queries, no biases.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default about
    `8/3 * width`, which has the parameters of an MLP of `4 * width` without a gate.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> llama_config(vocab_size=100).mlp_width
      176
    """
    return TransformerConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=even_split(width, num_heads),
        mlp_width=8 * -(-width // 3) if mlp_width is None else mlp_width,
        max_positions=max_positions,
        positions="rotary",
        rotary_theta=rotary_theta,
        norm="rms",
        norm_epsilon=norm_epsilon,
        activation="silu",
        gated_mlp=True,
        qkv_bias=False,
        attention_out_bias=False,
        mlp_bias=False,
        tied_head=tied_head,
    )


def qwen2_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    mlp_width: int | None = None,
    max_positions: int = 32768,
    rotary_theta: float = 1e6,
    norm_epsilon: float = 1e-6,
    tied_head: bool = True,
) -> TransformerConfig:
    """Qwen2 and Qwen1.5: Llama with biases on query, key and value.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> config = qwen2_config(vocab_size=100)
      >>> config.qkv_bias, config.attention_out_bias
      (True, False)
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
    return replace(config, qkv_bias=True)


def qwen3_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    mlp_width: int | None = None,
    max_positions: int = 40960,
    rotary_theta: float = 1e6,
    norm_epsilon: float = 1e-6,
    tied_head: bool = True,
) -> TransformerConfig:
    """Qwen3: Llama with heads of their own width, each normed before it is rotated.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`. Qwen3-0.6B is 28 layers of width 1024 with 16 heads of 128, 8 for
    keys, `mlp_width` 3072 and 151 936 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> qwen3_config(vocab_size=100).qk_norm
      'head'
    """
    config = llama_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=num_heads * head_dim,  # whatever the true width
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=8 * -(-width // 3) if mlp_width is None else mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(config, width=width, qk_norm="head")


def mistral_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    mlp_width: int | None = None,
    max_positions: int = 32768,
    rotary_theta: float = 10000.0,
    sliding_window: int | None = 4096,
    norm_epsilon: float = 1e-5,
    tied_head: bool = False,
) -> TransformerConfig:
    """Mistral: Llama within a window, in its first version; None for the later ones.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> mistral_config(vocab_size=100).sliding_layers
      (0, 1)
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
    if sliding_window is None:
        return replace(config, family="mistral")
    return replace(
        config,
        family="mistral",
        sliding_window=sliding_window,
        sliding_layers=tuple(range(num_layers)),
    )


def phi3_config(
    *,
    vocab_size: int,
    num_layers: int = 2,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 4,
    mlp_width: int | None = None,
    max_positions: int = 4096,
    rotary_theta: float = 10000.0,
    rotary_fraction: float = 1.0,
    sliding_window: int | None = None,
    norm_epsilon: float = 1e-5,
    tied_head: bool = False,
) -> TransformerConfig:
    """Phi-3: Mistral with heads that may be rotated in part.

    Its folders have query, key and value as one matrix, and gate and up as another; a
    model has them apart. The arguments are fields of `TransformerConfig`; `mlp_width`
    is by default as in `llama_config`. Phi-3-mini is 32 layers of width 3072 with 32
    heads, `mlp_width` 8192, a window of 2047 and 32 064 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> phi3_config(vocab_size=100, rotary_fraction=0.5).rotary_dim
      8
    """
    config = mistral_config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        max_positions=max_positions,
        rotary_theta=rotary_theta,
        sliding_window=sliding_window,
        norm_epsilon=norm_epsilon,
        tied_head=tied_head,
    )
    return replace(config, family="phi3", rotary_fraction=rotary_fraction)


def smollm3_config(
    *,
    vocab_size: int,
    num_layers: int = 4,
    width: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    mlp_width: int | None = None,
    max_positions: int = 65536,
    rotary_theta: float = 5e6,
    unrotated_layers: tuple[int, ...] | None = None,
    norm_epsilon: float = 1e-6,
    tied_head: bool = True,
) -> TransformerConfig:
    """SmolLM3: Llama with blocks that know no positions, by default every fourth.

    The arguments are fields of `TransformerConfig`; `mlp_width` is by default as in
    `llama_config`. SmolLM3-3B is 36 layers of width 2048 with 16 heads, 4 for keys,
    `mlp_width` 11 008 and 128 256 tokens.

    Returns:
      The configuration.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> smollm3_config(vocab_size=100, num_layers=8).unrotated_layers
      (3, 7)
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
    if unrotated_layers is None:
        unrotated_layers = tuple(range(3, num_layers, 4))
    return replace(config, family="smollm3", unrotated_layers=unrotated_layers)
