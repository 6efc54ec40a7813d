"""The `config.json` of a Hugging Face folder: to a `TransformerConfig` and back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldjax.files.whole import read_json_object
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.families import FAMILIES
from ldjax.models.hub.families.gemma import text_part
from ldjax.models.hub.other_folders import without_config
from ldjax.models.hub.other_models import refuse_other_models
from ldjax.models.hub.settings import Settings

__all__ = ["family_of", "from_hub", "read_config", "to_hub"]

# How the computation is carried out, and what it is called; no part of the function.
_OWN = ("remat", "dtype", "param_dtype", "adapters", "family")
# Blocks are compared one by one, whatever says what they are.
_BY_BLOCK = (
    *("sliding_window", "sliding_layers", "unrotated_layers"),
    *("rotary_theta", "rotary_scaling", "local_rotary_theta"),
)
#: A model of images and texts, of which the language model is read.
_GEMMA3_WITH_EYES = "gemma3"


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
        raise FileNotFoundError(without_config(folder))
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
      ValueError: `model_type` is 'bert', an encoder, which ...
    """
    refuse_other_models(content, (*FAMILIES, _GEMMA3_WITH_EYES))
    settings, name = Settings(content), content["model_type"]
    if name == _GEMMA3_WITH_EYES:
        settings, name = text_part(settings), "gemma3_text"
        refuse_other_models({**settings.content, "model_type": name}, tuple(FAMILIES))
    config = FAMILIES[name].read(settings)
    is_told = _told(config) == name
    return config if is_told else dataclasses.replace(config, family=name)


def family_of(config: TransformerConfig) -> str:
    """The family whose folders hold models of this architecture.

    Args:
      config: The architecture.

    Returns:
      A `model_type`.

    Raises:
      ValueError: If there is none; the message says what stands in the way.

    Examples:
      >>> from ldjax.models import neox_config
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
      >>> from ldjax.models import gpt2_config
      >>> to_hub(gpt2_config(vocab_size=100))["n_embd"]
      64
    """
    name = config.family or _told(config)
    if name not in FAMILIES:
        raise ValueError(f"`family` is {name!r}; ldjax writes {', '.join(FAMILIES)}.")
    content = {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        # Some families' own is none of a small vocabulary.
        "pad_token_id": None,
    } | FAMILIES[name].write(config)
    wanted, found = map(_function, (config, from_hub(content)))
    differing = [field for field in wanted if wanted[field] != found[field]]
    if differing:
        described = ", ".join(
            f"{field}={getattr(config, field)!r}" for field in differing
        )
        raise ValueError(
            f"No model of the hub has this architecture: {name} comes closest, but "
            f"not with {described}."
        )
    return content


def _told(config: TransformerConfig) -> str:
    """The first family that may have an architecture."""
    if config.positions == "learned":
        return "gpt2"
    if config.norm == "layer":
        return "gpt_neox"
    if config.norm_placement == "both":
        return "gemma3_text" if config.qk_norm else "gemma2"
    if config.norm_placement == "post":
        return "olmo3" if config.sliding_layers else "olmo2"
    if config.qk_norm:
        return "qwen3"
    if config.unrotated_layers:
        return "smollm3"
    if config.rotary_fraction < 1:
        return "phi3"
    if config.qkv_bias and not config.attention_out_bias:
        return "qwen2"
    return "mistral" if config.sliding_layers else "llama"


def _function(config: TransformerConfig) -> dict[str, Any]:
    """What an architecture computes, by field; of the blocks, by what makes them."""
    fields = dataclasses.asdict(config)
    for name in (*_OWN, *_BY_BLOCK):
        del fields[name]
    fields["attention_scale"] = config.attention_scale or config.head_dim**-0.5
    blocks = range(config.num_layers)
    window = config.sliding_window
    rotated = [bool(config.rotated_at(layer)) for layer in blocks]
    return fields | {
        "sliding_layers": [(i in config.sliding_layers and window) for i in blocks],
        "unrotated_layers": rotated,
        "rotary_theta": [config.rotary_at(i) if rotated[i] else None for i in blocks],
    }
