"""GGUF files as llama.cpp's converter writes them, of models laid out as the hub's."""

import numpy as np

#: The names of the hub's tensors in the file.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
#: Gemma has norms behind attention and MLP as well.
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
#: The names of the settings of a `config.json` in the file.
SETTINGS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
#: Types that the package writes; of the others blocks are drawn.
WRITTEN = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def write_gguf(
    path, architecture, settings, tensors, *, kind="F32", metadata=None, extra=None
):
    """A file of a model.

    Args:
      path: The file.
      architecture: Such as `"llama"`.
      settings: Of its `config.json`, and of the file by the file's own names.
      tensors: By the hub's names.
      kind: The type of its matrices.
      metadata: Whatever else there is, such as the tokenizer.
      extra: Tensors by their names in the file.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    for name, value in settings.items():
        put(writer, f"{architecture}.{SETTINGS.get(name, name)}", value)
    for name, value in (metadata or {}).items():
        put(writer, name, value)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    for name, tensor in tensors.items():
        add(
            writer,
            stored_name(name, architecture),
            tensor,
            architecture,
            settings,
            kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def put(writer, name, value):
    """A setting, of the type that converters give it."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def stored_name(name, architecture):
    """The name of a tensor in the file."""
    stem, suffix = name.rsplit(".", 1)
    names = GEMMA_NAMES if architecture.startswith("gemma") else NAMES
    if not stem.startswith("model.layers."):
        return f"{names[stem]}.{suffix}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{names[part]}.{suffix}"


def add(writer, name, tensor, architecture, settings, kind):
    """A tensor in the layout of the file."""
    from gguf import GGMLQuantizationType, quantize

    tensor = np.asarray(tensor, np.float32)
    heads = {
        "attn_q": int(np.ravel(settings["num_attention_heads"])[0]),
        "attn_k": settings["num_key_value_heads"],
    }
    part = name.split(".")[-2]
    if architecture == "llama" and part in heads:
        halves = tensor.reshape(heads[part], 2, -1, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        tensor = tensor + 1
    if tensor.ndim == 1 or kind == "F32":  # norms and biases are never quantised
        writer.add_tensor(name, tensor)
    elif kind == "F16":
        writer.add_tensor(name, tensor.astype(np.float16))
    elif kind in WRITTEN:
        number = GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(tensor, number), raw_dtype=number)
    else:
        number = GGMLQuantizationType[kind]
        writer.add_tensor(
            name, drawn_blocks(name, tensor.shape, kind), raw_dtype=number
        )


def drawn_blocks(name, shape, kind):
    """Bytes that mean small finite numbers, wherever the scales of a block are."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    shape = quant_shape_to_byte_shape(shape, GGMLQuantizationType[kind])
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 0x28, size=shape, dtype=np.uint8)
