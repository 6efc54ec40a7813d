"""The metadata of a GGUF file, as the `config.json` of the model in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.hub.config import from_hub
from ldjax.models.hub.gguf.file import GgufFile
from ldjax.models.hub.settings import Settings

__all__ = ["hub_settings", "read_gguf_config"]

_Content = dict[str, Any]

#: Settings that say nothing that is computed, or say again what tensors do.
_TOLD = ("vocab_size", "tensor_data_layout", "expert_used_count")
#: What the wavelengths of Llama 3.1 to 3.3 were changed by, but for their factor.
_LLAMA3 = {
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_LLAMA3_FACTORS = "rope_freqs.weight"
_ROTARY_KEYS = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def read_gguf_config(file: GgufFile) -> TransformerConfig:
    """The architecture that a GGUF file describes.

    Args:
      file: The file.

    Returns:
      The configuration, with the defaults of ldjax where no file says it (dtypes).

    Raises:
      ValueError: If ldjax does not compute such a model; the message says what of it.

    Examples:
      >>> from pathlib import Path
      >>> read_gguf_config(GgufFile(Path("a.gguf"), {"general.architecture": "t5"}, {}))
      Traceback (most recent call last):
        ...
      ValueError: a.gguf: the architecture is 't5'; of GGUF files ldjax reads ...
    """
    try:
        return from_hub(hub_settings(file))
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def hub_settings(file: GgufFile) -> dict[str, Any]:
    """The content of the `config.json` of the model in a GGUF file.

    Args:
      file: The file.

    Returns:
      What `ldjax.models.hub.config.from_hub` reads.

    Raises:
      ValueError: If the architecture is another one, or a setting is missing, or one
        that ldjax does not know.

    Examples:
      >>> from pathlib import Path
      >>> hub_settings(GgufFile(Path("a.gguf"), {}, {}))
      Traceback (most recent call last):
        ...
      ValueError: the architecture is None; of GGUF files ldjax reads ...
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in _FAMILIES:
        raise ValueError(
            f"the architecture is {architecture!r}; of GGUF files ldjax reads "
            f"{', '.join(_FAMILIES)}."
        )
    settings = _Settings.of(file, architecture)
    if settings.take("expert_count", 0):
        raise ValueError(
            f"`{architecture}.expert_count` is set: the model is a mixture of experts, "
            "which ldjax does not compute."
        )
    content = _common(settings)
    content |= _FAMILIES[architecture](settings, content)
    settings.refuse_the_rest()
    return content


class _Settings(NamedTuple):
    """The settings of the model: each is taken once, and none may be left over."""

    file: GgufFile
    architecture: str
    left: dict[str, Any]

    @classmethod
    def of(cls, file: GgufFile, architecture: str) -> "_Settings":
        prefix = f"{architecture}."
        # What says nothing that is computed, or says again what tensors do.
        told = {f"{prefix}{name}" for name in _TOLD}
        found = {
            name: value
            for name, value in file.metadata.items()
            if name.startswith(prefix) and name not in told
        }
        return cls(file, architecture, found)

    def take(self, name: str, default: Any = None) -> Any:
        return self.left.pop(f"{self.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        value = Settings(self.left).whole(f"{self.architecture}.{name}", default)
        self.take(name)
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = Settings(self.left).positive(f"{self.architecture}.{name}", default)
        self.take(name)
        # The shortest number that float32 stores as this one: 1e-5, not 9.9999997e-6.
        return float(str(np.float32(value)))

    def refuse_the_rest(self) -> None:
        if self.left:
            raise ValueError(
                "it has settings that ldjax does not know, so that its logits may be "
                f"others: {', '.join(self.left)}."
            )


def _common(settings: _Settings) -> dict[str, Any]:
    """What all architectures have; see `_FAMILIES` for the rest."""
    tensors = settings.file.tensors
    if "token_embd.weight" not in tensors:
        raise ValueError(
            "it has no `token_embd.weight`: it is no whole language model but a part, "
            "such as a vocabulary, an adapter or the eyes of one."
        )
    heads = settings.whole("attention.head_count")
    width = settings.whole("embedding_length")
    content = {
        "num_attention_heads": heads,
        "hidden_size": width,
        "max_position_embeddings": settings.take("context_length"),
        "num_key_value_heads": settings.whole("attention.head_count_kv", heads),
        "num_hidden_layers": settings.whole("block_count"),
        "intermediate_size": settings.whole("feed_forward_length"),
        "rms_norm_eps": settings.positive("attention.layer_norm_rms_epsilon"),
    }
    head_dim = settings.whole("attention.key_length", max(1, width // heads))
    if settings.take("attention.value_length", head_dim) != head_dim:
        raise ValueError(
            f"`{settings.architecture}.attention.value_length` is not key_length, "
            f"{head_dim}; ldjax computes heads of one width."
        )
    return content | {
        # The rows there are: the tokenizer's tokens may be fewer.
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "head_dim": head_dim,
        "rope_parameters": _rotary(settings, head_dim),
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }


def _rotary(settings: _Settings, head_dim: int) -> dict[str, Any]:
    theta = settings.positive("rope.freq_base", 10000.0)
    rotated = settings.whole("rope.dimension_count", head_dim)
    kind = settings.take("rope.scaling.type", "none")
    settings.take("rope.scaling.finetuned")
    rope: dict[str, Any] = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": theta,
    }
    for ours, theirs in _ROTARY_KEYS.items():
        value = settings.take(f"rope.scaling.{ours}")
        if value is not None and kind != "none":
            rope[theirs] = value
    if rotated != head_dim:
        rope["partial_rotary_factor"] = rotated / head_dim
    if _LLAMA3_FACTORS in settings.file.tensors:
        rope |= _llama3(settings.file, theta, head_dim)
    return rope


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's wavelengths: the file has what they are multiplied by, as a tensor.

    The rule that the factors follow is known, but for the largest of them.
    """
    file.refuse_kinds([_LLAMA3_FACTORS])
    factors = file.read(_LLAMA3_FACTORS)
    factor = float(np.round(factors.max(initial=1.0)))
    if np.all(factors == 1):
        return {}
    scaling = RotaryScaling(
        kind="llama3",
        factor=factor,
        original_max_positions=_LLAMA3["original_max_position_embeddings"],
        slow=_LLAMA3["low_freq_factor"],
        fast=_LLAMA3["high_freq_factor"],
    )
    waves = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    kept = scaling.kept(waves, theta)
    expected = 1 / (kept + (1 - kept) / factor)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"its rotary wavelengths are multiplied by {_LLAMA3_FACTORS}, which are "
            "not the factors of Llama 3.1 to 3.3; ldjax does not compute others."
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama(settings: _Settings, content: _Content) -> _Content:
    del content
    window = settings.take("attention.sliding_window")
    if window:  # Mistral is stored under the name of Llama
        return {"model_type": "mistral", "sliding_window": window}
    return {"model_type": "llama"}


def _qwen2(settings: _Settings, content: _Content) -> _Content:
    del settings, content
    return {"model_type": "qwen2"}


def _qwen3(settings: _Settings, content: _Content) -> _Content:
    del settings, content
    return {"model_type": "qwen3"}


def _gemma2(settings: _Settings, content: _Content) -> _Content:
    return {
        "model_type": "gemma2",
        "sliding_window": settings.take("attention.sliding_window"),
        "query_pre_attn_scalar": _scored_width(content, largest=46),
        "attn_logit_softcapping": settings.take("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": settings.take("final_logit_softcapping", 30.0),
    }


def _gemma3(settings: _Settings, content: _Content) -> _Content:
    local = settings.positive("rope.freq_base_swa", 10000.0)
    return {
        "model_type": "gemma3_text",
        "sliding_window": settings.take("attention.sliding_window"),
        "sliding_window_pattern": settings.whole("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": _scored_width(content, largest=62),
        "final_logit_softcapping": settings.take("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": content["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _scored_width(content: _Content, *, largest: int) -> int:
    """What scores are divided by the root of; no file says it.

    It is the width of a head, but in the largest model, which is told by its blocks.
    """
    if content["num_hidden_layers"] == largest:
        return content["hidden_size"] // content["num_attention_heads"]
    return content["head_dim"]


#: What each architecture adds to the settings of all.
_FAMILIES: dict[str, Callable[[_Settings, _Content], _Content]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
