"""The architecture of a decoder as one record; families fill it in."""

import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ldjax.models.decoder.low_rank import LowRank
from ldjax.models.decoder.rotary import RotaryScaling

__all__ = ["TransformerConfig"]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
FloatName = Literal["bfloat16", "float16", "float32", "float64"]
Placement = Literal["pre", "post", "both"]
QKNorm = Literal["head", "projection"]

#: Far above every published model; so many blocks take minutes to trace.
MOST_LAYERS = 1024
_SIZES = (
    *("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads"),
    *("head_dim", "mlp_width", "max_positions"),
)
_POSITIVE = (
    *("rotary_fraction", "rotary_theta", "local_rotary_theta", "norm_epsilon"),
    *("embedding_scale", "attention_scale", "attention_softcap", "logit_softcap"),
)
#: Positive where they are given.
_OPTIONAL = (
    *("sliding_window", "local_rotary_theta"),
    *("attention_scale", "attention_softcap", "logit_softcap"),
)
_LAYERS = ("sliding_layers", "unrotated_layers")

#: Fields that came when there were runs without them.
_LATER = frozenset(
    {
        *("embedding_scale", "norm_offset", "norm_placement", "qk_norm", "family"),
        *("attention_scale", "attention_softcap", "logit_softcap", "sliding_window"),
        *("sliding_layers", "unrotated_layers", "local_rotary_theta"),
    }
)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a decoder; `gpt2_config` and its like fill it in.

    Blocks count from 0. Where a default is None, nothing is computed for it.

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
      local_rotary_theta: Base of the rotary wavelengths in `sliding_layers`, which
        `rotary_scaling` then leaves alone; None for those of the other blocks.
      unrotated_layers: The blocks without positions (SmolLM3), in order.
      sliding_window: The number of tokens that a query of `sliding_layers` sees, its
        own and the last before it; None where there are no such blocks.
      sliding_layers: The blocks whose attention is within the window, in order.
      embedding_scale: The factor of the token embeddings where they enter the residual
        stream (Gemma: the root of `width`); the head has none.
      norm: LayerNorm (scale and bias) or RMSNorm (scale).
      norm_epsilon: The number added to the variance, or to the mean square.
      norm_offset: The number added to the scales of all norms (Gemma: 1).
      norm_placement: Where the norms of a block are: before attention and MLP, after
        them (`x + norm(attention(x))`, OLMo 2), or both (Gemma 2).
      qk_norm: The norm of queries and keys before they are rotated, if any: over each
        head's features (Qwen3, Gemma 3) or over those of all heads (OLMo 2).
      attention_scale: The factor of query times key; None for the inverse root of
        `head_dim`.
      attention_softcap: The bound `c` of attention's scores, `c tanh(score / c)`
        (Gemma 2); None for no bound.
      logit_softcap: The bound `c` of the logits, `c tanh(logit / c)` (Gemma 2); None
        for no bound.
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
      family: The `model_type` of its folder on the hub, where the architecture is that
        of several; None for the first of them.
      adapters: Low-rank adapters (LoRA) beside its matrices, if any.
      remat: Whether backward passes recompute each block instead of storing it.
      dtype: Dtype of the computation; None to infer it from the parameters. Norms,
        softmax, rotary angles and the head are float32 or better in any case.
      param_dtype: Dtype of fresh parameters.

    Raises:
      ValueError: Where the settings contradict each other.

    Examples:
      >>> from ldjax.models import llama_config
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
    local_rotary_theta: float | None = None
    unrotated_layers: tuple[int, ...] = ()
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    norm: Literal["layer", "rms"]
    norm_epsilon: float
    norm_offset: float = 0.0
    norm_placement: Placement = "pre"
    qk_norm: QKNorm | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    parallel_residual: bool = False
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    head_bias: bool = False
    tied_head: bool
    family: str | None = None
    adapters: LowRank | None = None
    remat: bool = False
    dtype: FloatName | None = None
    param_dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, choices in (
            ("positions", ("learned", "rotary")),
            ("norm", ("layer", "rms")),
            ("norm_placement", get_args(Placement)),
            ("qk_norm", (None, *get_args(QKNorm))),
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
        self._check_layers()
        is_yarn = self.rotary_scaling is not None and self.rotary_scaling.kind == "yarn"
        if is_yarn and not self.rotary_theta > 1:
            raise ValueError(
                f"yarn needs a `rotary_theta` above 1, got {self.rotary_theta}."
            )
        self._check_adapters()

    def _check_numbers(self) -> None:
        for name in (*_SIZES, "sliding_window", *_POSITIVE):
            if getattr(self, name) is None and name in _OPTIONAL:
                continue
            value: Any = getattr(self, name)
            kind: Any = numbers.Real if name in _POSITIVE else numbers.Integral
            if isinstance(value, bool) or not isinstance(value, kind):
                whole = "whole " * (name not in _POSITIVE)
                raise ValueError(f"`{name}` must be a {whole}number, got {value!r}.")
            if not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if self.rotary_fraction > 1:
            raise ValueError(
                "`rotary_fraction` of `head_dim` must be at most 1, got "
                f"{self.rotary_fraction}."
            )
        if not abs(self.norm_offset) < float("inf"):
            raise ValueError(f"`norm_offset` must be finite, got {self.norm_offset}.")
        for name in ("rotary_theta", "local_rotary_theta"):
            value = getattr(self, name)
            if value is not None and value < 1:  # waves shorter than a token
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.num_layers > MOST_LAYERS:
            raise ValueError(
                f"`num_layers` must be at most {MOST_LAYERS}, got {self.num_layers}. "
                "Each block is traced by itself."
            )

    def _check_layers(self) -> None:
        for name in _LAYERS:
            layers = getattr(self, name)
            if not isinstance(layers, tuple) or list(layers) != [
                layer for layer in range(self.num_layers) if layer in layers
            ]:
                raise ValueError(
                    f"`{name}` must be some of the {self.num_layers} blocks, which "
                    f"count from 0, in order; got {layers}."
                )
        if (self.sliding_window is None) != (not self.sliding_layers):
            raise ValueError(
                "`sliding_window` and `sliding_layers` need each other, got "
                f"{self.sliding_window} and {self.sliding_layers}."
            )
        if self.local_rotary_theta is not None and not self.sliding_layers:
            raise ValueError("`local_rotary_theta` needs `sliding_layers`.")
        if self.positions == "learned" and self.unrotated_layers:
            raise ValueError("`unrotated_layers` need rotary `positions`.")

    def _check_adapters(self) -> None:
        if self.adapters is None:
            return
        gates = {"gate", "gate_up"} & {*self.adapters.targets}
        if gates and not self.gated_mlp:
            raise ValueError(
                f"`adapters`: {min(gates)} is a target, but the MLP has no gate."
            )
        others = (other.layer for other in self.adapters.others)
        named = (*(self.adapters.layers or ()), *others)
        beyond = sorted({*named} - {*range(self.num_layers)})
        if beyond:
            raise ValueError(
                f"`adapters`: layers {beyond} are none of the {self.num_layers}, "
                "which count from 0."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TransformerConfig":
        """What `settings` (and JSON) made of a configuration.

        Args:
          settings: The fields by name.

        Examples:
          >>> from ldjax.models import gpt2_config
          >>> config = gpt2_config(vocab_size=100)
          >>> TransformerConfig.of(config.settings()) == config
          True
        """
        readers = {
            "rotary_scaling": RotaryScaling.of,
            "adapters": LowRank.of,
            **dict.fromkeys(_LAYERS, tuple),
        }
        given = {
            name: read(settings[name])
            for name, read in readers.items()
            if settings.get(name) is not None
        }
        return cls(**{**settings, **given})

    def settings(self) -> dict[str, Any]:
        """What `of` reads, and a run keeps.

        Without later fields that have their defaults, so that it is the same as what
        runs kept before there were any.

        Examples:
          >>> from ldjax.models import gpt2_config
          >>> gpt2_config(vocab_size=100).settings()["positions"]
          'learned'
        """
        content = asdict(self)
        if self.adapters is not None:
            content["adapters"] = self.adapters.settings()
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in content.items()
            if name not in _LATER or value != defaults[name]
        }

    @property
    def rotary_dim(self) -> int:
        """Features of each head that are rotated; 0 for learned positions."""
        if self.positions == "learned":
            return 0
        return int(self.head_dim * self.rotary_fraction)

    def rotated_at(self, layer: int) -> int:
        """Features of each head that a block rotates.

        Args:
          layer: The number of the block.
        """
        return 0 if layer in self.unrotated_layers else self.rotary_dim

    def rotary_at(self, layer: int) -> tuple[float, RotaryScaling | None]:
        """Base and scaling of the rotary wavelengths of a block.

        Args:
          layer: The number of the block.
        """
        if self.local_rotary_theta is not None and layer in self.sliding_layers:
            return self.local_rotary_theta, None
        return self.rotary_theta, self.rotary_scaling

    def first(self, num_layers: int) -> "TransformerConfig":
        """The same architecture with its first blocks alone.

        Args:
          num_layers: The number of the blocks that are left.

        Examples:
          >>> from ldjax.models import mistral_config
          >>> mistral_config(vocab_size=9, sliding_window=4).first(1).sliding_layers
          (0,)
        """
        kept = {
            name: tuple(layer for layer in getattr(self, name) if layer < num_layers)
            for name in _LAYERS
        }
        changes: dict[str, Any] = {"num_layers": num_layers, **kept}
        if not kept["sliding_layers"]:
            changes |= {"sliding_window": None, "local_rotary_theta": None}
        return replace(self, **changes)
