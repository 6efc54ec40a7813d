"""The `config.json` of a Hugging Face folder: to a `TransformerConfig` and back."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ldjax.files.whole import read_json_object
from ldjax.models.decoder.config import (
    MOST_LAYERS,
    TransformerConfig,
    gpt2_config,
    llama_config,
    neox_config,
)
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.hub.settings import Settings

__all__ = [
    "FAMILIES",
    "Family",
    "family_of",
    "from_hub",
    "read_config",
    "to_hub",
]

Family = Literal["gpt2", "gpt_neox", "llama", "qwen2"]

#: Values of `model_type` that ldjax reads and writes.
FAMILIES: tuple[Family, ...] = get_args(Family)

_ARCHITECTURES: dict[Family, str] = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_HUB_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
}
# How the computation is carried out; no folder says it.
_OWN = ("remat", "dtype", "param_dtype", "adapters")


def read_config(folder: Path) -> TransformerConfig:
    """The architecture that a folder's `config.json` describes.

    Args:
      folder: A Hugging Face folder.

    Returns:
      The configuration, with the defaults of ldjax where no folder says it (dtypes).

    Raises:
      FileNotFoundError: If it has no `config.json`.
      ValueError: If ldjax does not compute such a model; the message says what of it.

    Examples:
      >>> read_config(Path("/nowhere"))
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere has no config.json: it is no folder of a model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: it is no folder of a model."
        )
    content = read_json_object(file)
    try:
        return from_hub(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def from_hub(content: Mapping[str, Any]) -> TransformerConfig:
    """The architecture that the content of a `config.json` describes.

    Settings that are left out have the defaults of the `transformers` library, and so
    have numbers that are null; but the sizes of the matrices must be given. Dropout is
    not read: ldjax trains without.

    Args:
      content: The JSON object.

    Returns:
      The configuration.

    Raises:
      ValueError: If a setting is missing, or is one that ldjax does not compute.

    Examples:
      >>> from_hub({"model_type": "bert"})
      Traceback (most recent call last):
        ...
      ValueError: `model_type` is 'bert'; ldjax reads gpt2, gpt_neox, llama, qwen2.
    """
    family = content.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"`model_type` is {family!r}; ldjax reads {', '.join(FAMILIES)}."
        )
    settings = Settings(content)
    settings.require("quantization_config", None)
    read = {
        "gpt2": _read_gpt2,
        "gpt_neox": _read_neox,
        "llama": _read_llama,
        "qwen2": _read_qwen2,
    }
    return read[family](settings)


def family_of(config: TransformerConfig) -> Family:
    """The family whose folders hold models of this architecture.

    Args:
      config: The architecture.

    Returns:
      A `model_type`.

    Raises:
      ValueError: If there is none; the message says what stands in the way.

    Examples:
      >>> family_of(neox_config(vocab_size=100))
      'gpt_neox'
    """
    return to_hub(config)["model_type"]


def to_hub(config: TransformerConfig) -> dict[str, Any]:
    """The content of the `config.json` of such a model.

    Args:
      config: The architecture; adapters and dtypes are not part of it.

    Returns:
      What `from_hub` and the `transformers` library read.

    Raises:
      ValueError: If no family has this architecture.

    Examples:
      >>> to_hub(gpt2_config(vocab_size=100))["n_embd"]
      64
    """
    if config.positions == "learned":
        family, settings = "gpt2", _write_gpt2(config)
    elif config.norm == "layer":
        family, settings = "gpt_neox", _write_neox(config)
    elif config.qkv_bias and not config.attention_out_bias:
        family, settings = "qwen2", _write_llama(config)
    else:
        family, settings = "llama", _write_llama(config)
    family = cast(Family, family)
    content = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
    } | settings
    wanted, found = map(dataclasses.asdict, (config, from_hub(content)))
    differing = [
        name for name in wanted if name not in _OWN and wanted[name] != found[name]
    ]
    if differing:
        described = ", ".join(f"{name}={wanted[name]!r}" for name in differing)
        raise ValueError(
            f"No model of the hub has this architecture: {family} comes closest, but "
            f"not with {described}."
        )
    return content


def _read_gpt2(settings: Settings) -> TransformerConfig:
    settings.require("scale_attn_weights", True)
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("add_cross_attention", False)
    width = settings.whole("n_embd")
    config = gpt2_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("n_layer", most=MOST_LAYERS),
        width=width,
        num_heads=settings.whole("n_head"),
        mlp_width=settings.whole("n_inner", 4 * width),
        max_positions=settings.whole("n_positions"),
        tied_head=settings.flag("tie_word_embeddings", True),
    )
    return dataclasses.replace(
        config,
        norm_epsilon=settings.positive("layer_norm_epsilon", 1e-5),
        activation=settings.activation("activation_function", "gelu_new"),
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "activation_function": _HUB_ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        # ldjax trains without; the library's defaults are 0.1.
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _read_neox(settings: Settings) -> TransformerConfig:
    rope = _rope(settings.content)
    bias = settings.flag("attention_bias", True)
    heads, width = (
        settings.whole(name) for name in ("num_attention_heads", "hidden_size")
    )
    theta = rope.positive("rope_theta", settings.positive("rotary_emb_base", 1e4))
    fraction = rope.positive(
        "partial_rotary_factor", settings.positive("rotary_pct", 0.25)
    )
    config = neox_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("num_hidden_layers", most=MOST_LAYERS),
        width=width,
        num_heads=heads,
        mlp_width=settings.whole("intermediate_size"),
        max_positions=settings.whole("max_position_embeddings", 2048),
        rotary_fraction=fraction,
        parallel_residual=settings.flag("use_parallel_residual", True),
        tied_head=settings.flag("tie_word_embeddings", False),
    )
    return dataclasses.replace(
        config,
        rotary_theta=theta,
        rotary_scaling=_scaling(rope, config.max_positions),
        norm_epsilon=settings.positive("layer_norm_eps", 1e-5),
        activation=settings.activation("hidden_act", "gelu"),
        qkv_bias=bias,
        attention_out_bias=bias,
    )


def _write_neox(config: TransformerConfig) -> dict[str, Any]:
    return _write_sizes(config) | {
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_theta,
        "rope_scaling": _write_scaling(config),
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
    }


def _read_llama(settings: Settings) -> TransformerConfig:
    bias = settings.flag("attention_bias", False)
    mlp_bias = settings.flag("mlp_bias", False)
    config = _read_llama_like(settings, max_positions=2048)
    return dataclasses.replace(
        config, qkv_bias=bias, attention_out_bias=bias, mlp_bias=mlp_bias
    )


def _read_qwen2(settings: Settings) -> TransformerConfig:
    settings.require("use_sliding_window", False)
    kinds = settings.content.get("layer_types") or []
    if kinds != ["full_attention"] * len(kinds if isinstance(kinds, list) else ()):
        raise ValueError(
            f"`layer_types` is {kinds!r}; ldjax computes only full_attention."
        )
    if "num_key_value_heads" not in settings.content:  # null: as many as heads
        settings = Settings({**settings.content, "num_key_value_heads": 32})
    config = _read_llama_like(settings, max_positions=32768)
    return dataclasses.replace(config, qkv_bias=True)


def _read_llama_like(settings: Settings, *, max_positions: int) -> TransformerConfig:
    """Llama and Qwen2, which differ in their biases and in some defaults."""
    rope = _rope(settings.content)
    rope.require("partial_rotary_factor", 1.0)
    heads, width = (
        settings.whole(name) for name in ("num_attention_heads", "hidden_size")
    )
    max_positions = settings.whole("max_position_embeddings", max_positions)
    config = llama_config(
        vocab_size=settings.whole("vocab_size"),
        num_layers=settings.whole("num_hidden_layers", most=MOST_LAYERS),
        width=2 * heads,  # the true width need not be a multiple of the heads
        num_heads=heads,
        num_kv_heads=settings.whole("num_key_value_heads", heads),
        mlp_width=settings.whole("intermediate_size"),
        max_positions=max_positions,
        rotary_theta=rope.positive("rope_theta", settings.positive("rope_theta", 1e4)),
        norm_epsilon=settings.positive("rms_norm_eps", 1e-6),
        tied_head=settings.flag("tie_word_embeddings", False),
    )
    return dataclasses.replace(
        config,
        width=width,
        head_dim=settings.whole("head_dim", max(1, width // heads)),
        rotary_scaling=_scaling(rope, max_positions),
        activation=settings.activation("hidden_act", "silu"),
    )


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    return _write_sizes(config) | {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rotary_theta,
        "rope_scaling": _write_scaling(config),
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.attention_out_bias,
        "mlp_bias": config.mlp_bias,
        "use_sliding_window": False,
    }


def _write_sizes(config: TransformerConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": _HUB_ACTIVATIONS[config.activation],
    }


def _rope(content: Mapping[str, Any]) -> Settings:
    """Rotary settings: `rope_parameters` since transformers 5, else `rope_scaling`."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or any(
        isinstance(value, Mapping) for value in rope.values()
    ):
        raise ValueError(
            f"the rotary settings are {rope!r}; ldjax computes one set for all layers."
        )
    return Settings(rope)


def _scaling(settings: Settings, max_positions: int) -> RotaryScaling | None:
    rope = settings.content
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"the rotary scaling is {kind!r}; ldjax computes linear, llama3 and yarn."
        )
    original = settings.whole("original_max_position_embeddings", max_positions)
    # Yarn's may be left out.
    ratio = max_positions / original if kind == "yarn" else None
    factor = settings.positive("factor", ratio)
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=factor)
    if kind == "llama3":
        return RotaryScaling(
            kind="llama3",
            factor=factor,
            original_max_positions=original,
            slow=settings.positive("low_freq_factor"),
            fast=settings.positive("high_freq_factor"),
        )
    return RotaryScaling(
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        slow=settings.positive("beta_slow", 1),
        fast=settings.positive("beta_fast", 32),
        amplitude=_yarn_amplitude(settings, factor),
        whole_indices=settings.flag("truncate", True),
    )


def _yarn_amplitude(settings: Settings, factor: float) -> float:
    if settings.content.get("attention_factor") is not None:
        return settings.positive("attention_factor")

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if settings.content.get("mscale") and settings.content.get("mscale_all_dim"):
        weights = (settings.positive(name) for name in ("mscale", "mscale_all_dim"))
        above, below = map(of, weights)
        return above / below
    return of(1.0)


def _write_scaling(config: TransformerConfig) -> dict[str, Any] | None:
    scaling = config.rotary_scaling
    if scaling is None:
        return None
    content = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return content
    content["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        return content | {
            "low_freq_factor": scaling.slow,
            "high_freq_factor": scaling.fast,
        }
    return content | {
        "beta_slow": scaling.slow,
        "beta_fast": scaling.fast,
        "attention_factor": scaling.amplitude,
        "truncate": scaling.whole_indices,
    }
