"""A tiny model in a GGUF file, for a smoke test that downloads nothing."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.data.everyday import everyday_pairs
from ldjax.data.preferences import read_preferences
from ldjax.data.tokenizers import Tokenizer, train_bpe
from ldjax.files.whole import whole_file, writing
from ldjax.models import Transformer, llama_config
from ldjax.models.hub.config import to_hub
from ldjax.models.hub.parameters import packed

__all__ = ["write_tiny"]

_SETTINGS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


def write_tiny(path: Path, *, seed: int) -> Path:
    """Write a drawn model of Llama's architecture, with a tokenizer of everyday words.

    Args:
      path: The file, replaced if it is there.
      seed: The seed of its parameters.

    Returns:
      The file.
    """
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    rows = read_preferences(everyday_pairs()[0]).rows
    texts = [
        text
        for row in rows
        for text in (row.prompt, *row.responses.values())
        if isinstance(text, str)
    ]
    tokenizer = train_bpe(texts, vocab_size=512)
    config = llama_config(vocab_size=tokenizer.vocab_size, tied_head=True)
    params = Transformer(config).init(jax.random.key(seed), jnp.zeros((1, 1), int))
    content, names = to_hub(config), get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, is_shared=True) as partial:
        writer = GGUFWriter(partial, "llama")
        for theirs, ours in _SETTINGS.items():
            writer.add_uint32(f"llama.{ours}", content[theirs])
        writer.add_layer_norm_rms_eps(config.norm_epsilon)
        writer.add_rope_freq_base(config.rotary_theta)
        for name, value in _tokenizer(tokenizer).items():
            add = (
                writer.add_array if isinstance(value, list) else _add_one(writer, value)
            )
            add(f"tokenizer.ggml.{name}", value)
        # The rows of queries and keys are drawn, so that any order will do.
        for name, tensor in packed(params["params"], config):
            stem, suffix = name.rsplit(".", 1)
            stored = np.asarray(tensor, np.float32)
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _add_one(writer: Any, value: str | int) -> Any:
    return writer.add_string if isinstance(value, str) else writer.add_uint32


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    content = json.loads(tokenizer.to_json())
    vocab = content["model"]["vocab"]
    special = {token["id"] for token in content["added_tokens"]}
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": sorted(vocab, key=vocab.__getitem__),
        "token_type": [3 if i in special else 1 for i in range(len(vocab))],
        "merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "eos_token_id": tokenizer.end_id,
        "padding_token_id": tokenizer.padding_id,
    }
