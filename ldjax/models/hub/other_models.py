"""What a `config.json` describes where ldjax does not read it, and what to do then."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ldjax.models.hub.settings import shown

__all__ = ["refuse_other_models"]

#: What people call the models of a `model_type` that ldjax reads.
_NAMES: dict[str, str] = {
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "llama": "Llama (SmolLM2)",
    "qwen2": "Qwen2 (Qwen1.5, Qwen2.5)",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "smollm3": "SmolLM3",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (its texts)",
    "gemma3": "Gemma 3 (its texts)",
}

_EXPERTS = (
    "a mixture of experts: which matrices a token meets depends on the token, which "
    "ldjax does not compute"
)
# By words in the name of the type; the first that fits counts. What a mixture of
# experts is, or a model of images, the settings say.
_KINDS: tuple[tuple[str, str], ...] = (
    (r"moe|mixtral|dbrx|deepseek_v[2-9]|gpt_oss|llama4|grok|arctic|longcat", _EXPERTS),
    (
        r"mamba|rwkv|jamba|zamba|bamba|recurrent|xlstm|nemotron_h|falcon_h|lfm|hybrid|"
        r"_next$|linear|retnet|hyena",
        "a state-space or recurrent model; ldjax computes attention in every block",
    ),
    (
        r"(^|_|-)(t5|mt5|umt5|byt5|led|m2m_100|fsmt|mvp|nllb)|t5gemma|bart|pegasus|"
        r"marian|blenderbot|prophetnet|switch_transformers|encoder-decoder",
        "an encoder-decoder, which reads one text and writes another; ldjax reads "
        "decoders alone",
    ),
    (
        r"bert(?!-decoder)|electra|ernie$|xlnet|xlm|longformer|big_bird|mpnet|funnel|reformer|"
        r"roformer|canine|esm|luke|nystromformer|data2vec-text|xmod|eurobert",
        "an encoder, which reads in both directions and predicts no next token",
    ),
    (
        r"whisper|wav2vec|hubert|speech|audio|musicgen|encodec|moshi|bark|parakeet",
        "a model of sound",
    ),
    (
        r"^vit|_vit|clip|siglip|dino|convnext|resnet|swin|detr|sam|deit|beit",
        "a model of images",
    ),
)
_OTHER_HEADS = re.compile(r"(Classification|Answering|RewardModel|MultipleChoice)$")
_NUM_EXPERTS = re.compile(r"experts$")
#: Beside a language model's own settings.
_SENSES = ("vision_config", "audio_config", "image_token_id", "image_token_index")


def refuse_other_models(content: Mapping[str, Any], families: Sequence[str]) -> None:
    """Refuses a model that ldjax does not read, in words that say what it is.

    Args:
      content: The content of its `config.json`.
      families: The values of `model_type` that ldjax reads.

    Raises:
      ValueError: If it is one.

    Examples:
      >>> refuse_other_models({"model_type": "bert"}, ["gpt2"])
      Traceback (most recent call last):
        ...
      ValueError: `model_type` is 'bert', an encoder, which reads in both directions and
      predicts no next token. ...
      >>> refuse_other_models({"model_type": "gpt2", "num_experts": 8}, ["gpt2"])
      Traceback (most recent call last):
        ...
      ValueError: `model_type` is 'gpt2', a mixture of experts: which matrices a token
      meets depends on the token, which ldjax does not compute (`num_experts` is 8). ...
    """
    family = content.get("model_type")
    what = f"`model_type` is {shown(family)}"
    if (experts := _experts(content)) is not None:
        raise ValueError(f"{what}, {_EXPERTS} ({experts}). {_advice(families)}")
    if not isinstance(family, str) or family not in families:
        raise ValueError(f"{what}, {_kind(content, families)}. {_advice(families)}")
    _refuse_codes(content)
    _refuse_other_heads(content)


def _kind(content: Mapping[str, Any], families: Sequence[str]) -> str:
    """What a model is that no family is."""
    text = content.get("text_config")
    if isinstance(text, Mapping) or any(name in content for name in _SENSES):
        inner = text.get("model_type") if isinstance(text, Mapping) else None
        alone = (
            f" (ldjax reads its text model alone, {inner}, from a folder of its own)"
        )
        return "a model of images or sound beside text" + alone * (inner in families)
    family = content.get("model_type")
    if not isinstance(family, str) or not family:
        return "so that it is not known what model it is of"
    for pattern, kind in _KINDS:
        if re.search(pattern, family):
            return kind
    if content.get("is_encoder_decoder") is True:
        return "an encoder-decoder; ldjax reads decoders alone"
    return "whose blocks ldjax does not compute"


def _experts(content: Mapping[str, Any]) -> str | None:
    """The setting that tells of more than one expert, if there is one."""
    for where in (content, *_inner(content)):
        for name, value in where.items():
            counts = value if isinstance(value, list) else [value]
            if _NUM_EXPERTS.search(name) and any(_is_many(count) for count in counts):
                return f"`{name}` is {shown(value)}"
    return None


def _inner(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Settings of a part, as dbrx has its experts and wrappers their text model."""
    for name in ("ffn_config", "text_config"):
        if isinstance(part := content.get(name), Mapping):
            yield part


def _is_many(count: Any) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and count > 1


def _refuse_codes(content: Mapping[str, Any]) -> None:
    """Refuses quantized weights."""
    for name in ("quantization_config", "quantization"):  # the second is MLX's
        if (scheme := content.get(name)) is not None:
            raise ValueError(
                f"`{name}` says that the weights are quantized ({_scheme(scheme)}), "
                "which ldjax does not read from safetensors. Load the model that they "
                "were made from, or a GGUF file of it."
            )


def _scheme(scheme: Any) -> str:
    if not isinstance(scheme, Mapping):
        return shown(scheme)
    bits = scheme.get("bits")
    for number in (4, 8):
        bits = number if scheme.get(f"load_in_{number}bit") else bits
    method = scheme.get("quant_method")
    told = [str(method)] if isinstance(method, str) else []
    return ", ".join(told + [f"{bits} bits"] * _is_many(bits)) or shown(dict(scheme))


def _refuse_other_heads(content: Mapping[str, Any]) -> None:
    """Refuses classifiers and reward models, which have no logits of tokens."""
    heads = content.get("architectures")
    for head in heads if isinstance(heads, list) else ():
        if isinstance(head, str) and _OTHER_HEADS.search(head):
            raise ValueError(
                f"`architectures` has {head}: instead of logits of tokens the model "
                "gives scores, as classifiers and reward models do. Load the language "
                "model that it was made from."
            )


def _advice(families: Sequence[str]) -> str:
    names = dict.fromkeys(_NAMES.get(family, family) for family in families)
    return f"ldjax reads {', '.join(names)}. A small one is HuggingFaceTB/SmolLM2-135M."
