"""The architecture of a decoder as one record, and the four families that fill it.

A family settles how a block is built and leaves its size open. The arguments of
`gpt2_config` and its like are the fields of `TransformerConfig` by these names, with
the defaults of a small model; `width` must be a multiple of `num_heads`. Anything else
is changed by `dataclasses.replace`.
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ldjax.models.decoder.low_rank import LowRank
from ldjax.models.decoder.rotary import RotaryScaling

__all__ = [
    "TransformerConfig",
    "gpt2_config",
    "llama_config",
    "neox_config",
    "qwen2_config",
]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
FloatName = Literal["bfloat16", "float16", "float32", "float64"]

#: Far above every published model; so many blocks take minutes to trace.
MOST_LAYERS = 1024
_SIZES = (
    *("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads"),
    *("head_dim", "mlp_width", "max_positions"),
)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a decoder; `gpt2_config` and its like fill it in.

    Attributes:
      vocab_size: The number of tokens.
      num_layers: The number of blocks, at most 1024.
      width: The number of features of the residual stream.
      num_heads: The number of query heads.
      num_kv_heads: The number of key and value heads, a divisor of `num_heads`
        (equal to it where queries are not grouped).
      head_dim: The number of features of a head; `num_heads * head_dim` need not be
        `width`.
      mlp_width: The number of features inside the MLP.
      max_positions: The rows of the learned position table, in tokens. Rotary models
        state the length they are meant for; it is not enforced.
      positions: Learned absolute positions, or rotary ones.
      rotary_fraction: The part of each head that is rotated, from its first feature.
      rotary_theta: Base of the rotary wavelengths, at least 1.
      rotary_scaling: A change of the wavelengths for longer contexts, if any.
      norm: LayerNorm (scale and bias) or RMSNorm (scale).
      norm_epsilon: The number added to the variance, or to the mean square.
      parallel_residual: Whether attention and MLP read the same stream, each through
        its own norm: `x + attention(norm(x)) + mlp(norm(x))`.
      activation: The nonlinearity of the MLP; `gelu` is the exact one (erf),
        `gelu_tanh` its tanh approximation.
      gated_mlp: Whether the MLP is `down(activation(gate(x)) * up(x))`; with `silu`
        this is SwiGLU. Otherwise it is `down(activation(up(x)))`.
      qkv_bias: Whether query, key and value have a bias.
      attention_out_bias: Whether the attention's output has a bias.
      mlp_bias: Whether the MLP's matrices have a bias.
      head_bias: Whether the head has a bias (not with `tied_head`).
      tied_head: Whether the head is the transposed token embedding.
      adapters: Low-rank adapters (LoRA) beside its matrices, if any.
      remat: Whether backward passes recompute each block instead of storing it.
      dtype: Dtype of the computation; None to infer it from the parameters. Norms,
        softmax, rotary angles and the head are float32 or better in any case.
      param_dtype: Dtype of fresh parameters.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> llama_config(vocab_size=100).rotary_dim
      16
      >>> llama_config(vocab_size=100, width=96, num_heads=3)
      Traceback (most recent call last):
        ...
      ValueError: `num_kv_heads` must divide `num_heads`, got 2 and 3.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    positions: Literal["learned", "rotary"]
    rotary_fraction: float = 1.0
    rotary_theta: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    norm: Literal["layer", "rms"]
    norm_epsilon: float
    parallel_residual: bool = False
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    head_bias: bool = False
    tied_head: bool
    adapters: LowRank | None = None
    remat: bool = False
    dtype: FloatName | None = None
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, choices in (
            ("positions", ("learned", "rotary")),
            ("norm", ("layer", "rms")),
            ("activation", get_args(Activation)),
            ("dtype", (None, *get_args(FloatName))),
            ("param_dtype", get_args(FloatName)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {choices}, got {getattr(self, name)!r}."
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                "`num_kv_heads` must divide `num_heads`, "
                f"got {self.num_kv_heads} and {self.num_heads}."
            )
        if self.positions == "rotary" and (
            self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim
        ):
            raise ValueError(
                "`rotary_fraction` of `head_dim` must be an even number of features "
                f"between 2 and `head_dim`, got {self.rotary_fraction} of "
                f"{self.head_dim}, which is {self.rotary_dim}."
            )
        if self.tied_head and self.head_bias:
            raise ValueError("A tied head has no bias: `tied_head` or `head_bias`.")
        if self.rotary_scaling is not None and self.positions == "learned":
            raise ValueError("`rotary_scaling` needs rotary `positions`.")
        is_yarn = self.rotary_scaling is not None and self.rotary_scaling.kind == "yarn"
        if is_yarn and not self.rotary_theta > 1:
            raise ValueError(
                f"yarn needs a `rotary_theta` above 1, got {self.rotary_theta}."
            )
        self._check_adapters()

    def _check_numbers(self) -> None:
        for name in (*_SIZES, "rotary_fraction", "rotary_theta", "norm_epsilon"):
            value: Any = getattr(self, name)
            kind: Any = numbers.Integral if name in _SIZES else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind):
                whole = "whole " * (name in _SIZES)
                raise ValueError(f"`{name}` must be a {whole}number, got {value!r}.")
            if not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if self.rotary_fraction > 1:
            raise ValueError(
                "`rotary_fraction` of `head_dim` must be at most 1, got "
                f"{self.rotary_fraction}."
            )
        if self.rotary_theta < 1:  # waves would be shorter than a token
            raise ValueError(
                f"`rotary_theta` must be at least 1, got {self.rotary_theta}."
            )
        if self.num_layers > MOST_LAYERS:
            raise ValueError(
                f"`num_layers` must be at most {MOST_LAYERS}, got {self.num_layers}. "
                "Each block is traced by itself."
            )

    def _check_adapters(self) -> None:
        if self.adapters is None:
            return
        if "gate" in self.adapters.targets and not self.gated_mlp:
            raise ValueError("`adapters`: gate is a target, but the MLP has no gate.")
        beyond = [
            i for i in self.adapters.layers or () if i not in range(self.num_layers)
        ]
        if beyond:
            raise ValueError(
                f"`adapters`: layers {beyond} are none of the {self.num_layers}, "
                "which count from 0."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TransformerConfig":
        """What `dataclasses.asdict` (and JSON) made of a configuration.

        Args:
          settings: The fields by name.

        Examples:
          >>> import dataclasses
          >>> config = gpt2_config(vocab_size=100)
          >>> TransformerConfig.of(dataclasses.asdict(config)) == config
          True
        """
        records = {"rotary_scaling": RotaryScaling, "adapters": LowRank}
        given = {
            name: record.of(settings[name])
            for name, record in records.items()
            if settings.get(name) is not None
        }
        return cls(**{**settings, **given})

    @property
    def rotary_dim(self) -> int:
        """Features of each head that are rotated; 0 for learned positions."""
        if self.positions == "learned":
            return 0
        return int(self.head_dim * self.rotary_fraction)


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
        head_dim=_even_split(width, num_heads),
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
        head_dim=_even_split(width, num_heads),
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


def _even_split(width: int, num_heads: int) -> int:
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"`width` must be a multiple of `num_heads`, got {width} and {num_heads}."
        )
    return width // num_heads
