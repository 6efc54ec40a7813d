r"""The tensors of a Hugging Face folder and the parameters they hold, family by family.

A `Rule` stands for one tensor of the file. PyTorch's linear layers are stored
transposed; GPT-2's are not. GPT-2, GPT-NeoX and Phi-3 store query, key and value as one
tensor, GPT-NeoX head by head; Phi-3 gate and up, too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.config import family_of

__all__ = ["Rule", "fused_rows", "leaf_names", "nested", "rules"]

Leaves = tuple[np.ndarray, ...]
Shape = tuple[int, ...]


class Rule(NamedTuple):
    """One tensor of a file, and the parameters in it.

    Attributes:
      name: The name of the tensor in the file.
      leaves: The names of the parameters, such as `"blocks_0/attention/query/kernel"`.
      pack: The function from the parameters to the tensor.
      unpack: The function from the tensor to the parameters.
      shape: The function from the parameters' shapes to the tensor's.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> rules(gpt2_config(vocab_size=9, num_layers=1))[0].leaves
      ('token_embedding/embedding',)
    """

    name: str
    leaves: tuple[str, ...]
    pack: Callable[..., np.ndarray]
    unpack: Callable[[np.ndarray], Leaves]
    shape: Callable[..., Shape]


def rules(config: TransformerConfig) -> list[Rule]:
    """Every tensor of a model's folder, under its full name.

    Args:
      config: The architecture, one that the hub has.

    Returns:
      The rules; together they have every parameter but adapters, once.

    Raises:
      ValueError: If the hub has no such architecture.

    Examples:
      >>> from ldjax.models import llama_config
      >>> len(rules(llama_config(vocab_size=9, num_layers=2)))
      21
    """
    build = {"gpt2": _gpt2, "gpt_neox": _neox, "phi3": _phi3}
    return list(build.get(family_of(config), _llama)(config))


def _gpt2(config: TransformerConfig) -> Iterator[Rule]:
    yield _as_is("transformer.wte.weight", "token_embedding/embedding")
    yield _as_is("transformer.wpe.weight", "position_embedding/embedding")
    for i in range(config.num_layers):
        ours, theirs = f"blocks_{i}", f"transformer.h.{i}"
        yield from _norm(f"{theirs}.ln_1", f"{ours}/attention_norm", config)
        yield from _norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", config)
        for theirs_, ours_ in (("weight", "kernel"), ("bias", "bias")):
            yield Rule(
                f"{theirs}.attn.c_attn.{theirs_}",
                _qkv(f"{ours}/attention", ours_),
                lambda *parts: np.concatenate(parts, axis=-1),
                lambda whole: tuple(np.split(whole, 3, axis=-1)),
                lambda *shapes: (*shapes[0][:-1], sum(shape[-1] for shape in shapes)),
            )
        for theirs_, ours_ in (
            ("attn.c_proj", "attention/out"),
            ("mlp.c_fc", "mlp/up"),
            ("mlp.c_proj", "mlp/down"),
        ):
            yield _as_is(f"{theirs}.{theirs_}.weight", f"{ours}/{ours_}/kernel")
            yield _as_is(f"{theirs}.{theirs_}.bias", f"{ours}/{ours_}/bias")
    yield from _norm("transformer.ln_f", "final_norm", config)
    if not config.tied_head:
        yield from _dense("lm_head", "unembedding", bias=config.head_bias)


def _neox(config: TransformerConfig) -> Iterator[Rule]:
    yield _as_is("gpt_neox.embed_in.weight", "token_embedding/embedding")
    for i in range(config.num_layers):
        ours, theirs = f"blocks_{i}", f"gpt_neox.layers.{i}"
        yield from _norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm", config)
        yield from _norm(
            f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm", config
        )
        attention = f"{theirs}.attention"
        pack, unpack = fused_rows(config)
        yield Rule(
            f"{attention}.query_key_value.weight",
            _qkv(f"{ours}/attention", "kernel"),
            lambda *parts, pack=pack: pack(*(part.T for part in parts)),
            lambda whole, unpack=unpack: tuple(part.T for part in unpack(whole)),
            lambda *shapes: (sum(shape[1] for shape in shapes), shapes[0][0]),
        )
        if config.qkv_bias:
            yield Rule(
                f"{attention}.query_key_value.bias",
                _qkv(f"{ours}/attention", "bias"),
                pack,
                unpack,
                lambda *shapes: (sum(shape[0] for shape in shapes),),
            )
        for name, module, bias in (
            (f"{attention}.dense", "attention/out", config.attention_out_bias),
            (f"{theirs}.mlp.dense_h_to_4h", "mlp/up", config.mlp_bias),
            (f"{theirs}.mlp.dense_4h_to_h", "mlp/down", config.mlp_bias),
        ):
            yield from _dense(name, f"{ours}/{module}", bias=bias)
    yield from _norm("gpt_neox.final_layer_norm", "final_norm", config)
    if not config.tied_head:
        yield from _dense("embed_out", "unembedding", bias=config.head_bias)


def _llama(config: TransformerConfig) -> Iterator[Rule]:
    yield _as_is("model.embed_tokens.weight", "token_embedding/embedding")
    for i in range(config.num_layers):
        ours, theirs = f"blocks_{i}", f"model.layers.{i}"
        yield from _block_norms(theirs, ours, config)
        for name, module, bias in (
            ("self_attn.q_proj", "attention/query", config.qkv_bias),
            ("self_attn.k_proj", "attention/key", config.qkv_bias),
            ("self_attn.v_proj", "attention/value", config.qkv_bias),
            ("self_attn.o_proj", "attention/out", config.attention_out_bias),
            ("mlp.gate_proj", "mlp/gate", config.mlp_bias),
            ("mlp.up_proj", "mlp/up", config.mlp_bias),
            ("mlp.down_proj", "mlp/down", config.mlp_bias),
        ):
            yield from _dense(f"{theirs}.{name}", f"{ours}/{module}", bias=bias)
    yield from _llama_end(config)


def _phi3(config: TransformerConfig) -> Iterator[Rule]:
    wide, narrow = (
        heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads)
    )
    yield _as_is("model.embed_tokens.weight", "token_embedding/embedding")
    for i in range(config.num_layers):
        ours, theirs = f"blocks_{i}", f"model.layers.{i}"
        yield from _block_norms(theirs, ours, config)
        for name, leaves, cuts in (
            (
                "self_attn.qkv_proj",
                _qkv(f"{ours}/attention", "kernel"),
                (wide, wide + narrow),
            ),
            (
                "mlp.gate_up_proj",
                (f"{ours}/mlp/gate/kernel", f"{ours}/mlp/up/kernel"),
                (config.mlp_width,),
            ),
        ):
            yield _stacked(f"{theirs}.{name}.weight", leaves, cuts)
        yield _transposed(
            f"{theirs}.self_attn.o_proj.weight", f"{ours}/attention/out/kernel"
        )
        yield _transposed(f"{theirs}.mlp.down_proj.weight", f"{ours}/mlp/down/kernel")
    yield from _llama_end(config)


#: By where the norms of a block are, and as the folders call them.
_BLOCK_NORMS = {
    "pre": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    },
    "post": {
        "post_attention_layernorm": "attention_out_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
    "both": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_out_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
}


def _block_norms(theirs: str, ours: str, config: TransformerConfig) -> Iterator[Rule]:
    for name, module in _BLOCK_NORMS[config.norm_placement].items():
        yield from _norm(f"{theirs}.{name}", f"{ours}/{module}", config)
    if config.qk_norm:
        for name, module in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
            full = f"{theirs}.self_attn.{name}"
            yield from _norm(full, f"{ours}/attention/{module}", config)


def _llama_end(config: TransformerConfig) -> Iterator[Rule]:
    yield from _norm("model.norm", "final_norm", config)
    if not config.tied_head:
        yield from _dense("lm_head", "unembedding", bias=config.head_bias)


def _as_is(name: str, leaf: str) -> Rule:
    return Rule(
        name, (leaf,), lambda part: part, lambda whole: (whole,), lambda shape: shape
    )


def _transposed(name: str, leaf: str) -> Rule:
    return Rule(
        *(name, (leaf,), lambda part: part.T, lambda whole: (whole.T,)),
        lambda shape: shape[::-1],
    )


def _stacked(name: str, leaves: tuple[str, ...], cuts: tuple[int, ...]) -> Rule:
    """Matrices whose rows stand one above the other in the file."""
    return Rule(
        name,
        leaves,
        lambda *parts: np.concatenate([part.T for part in parts]),
        lambda whole: tuple(part.T for part in np.split(whole, cuts)),
        lambda *shapes: (sum(shape[1] for shape in shapes), shapes[0][0]),
    )


def _dense(name: str, module: str, *, bias: bool) -> Iterator[Rule]:
    yield _transposed(f"{name}.weight", f"{module}/kernel")
    if bias:
        yield _as_is(f"{name}.bias", f"{module}/bias")


def _norm(name: str, module: str, config: TransformerConfig) -> Iterator[Rule]:
    yield _as_is(f"{name}.weight", f"{module}/scale")
    if config.norm == "layer":
        yield _as_is(f"{name}.bias", f"{module}/bias")


def _qkv(attention: str, leaf: str) -> tuple[str, ...]:
    return tuple(f"{attention}/{name}/{leaf}" for name in ("query", "key", "value"))


def fused_rows(
    config: TransformerConfig,
) -> tuple[Callable[..., np.ndarray], Callable[[np.ndarray], Leaves]]:
    """GPT-NeoX's order of query, key and value rows in one tensor, and its inverse.

    The rows of the first head's query, key and value come first, then those of the
    second head.

    Args:
      config: The architecture.

    Returns:
      `pack(query, key, value)` and `unpack(whole)`, on the first axis.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> pack, _ = fused_rows(gpt2_config(vocab_size=9, width=8, num_heads=2))
      >>> pack(*np.arange(24).reshape(3, 8)).tolist()[:12]
      [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    """
    heads, size = config.num_heads, config.head_dim

    def pack(*parts: np.ndarray) -> np.ndarray:
        rest = parts[0].shape[1:]
        by_head = [part.reshape(heads, size, *rest) for part in parts]
        return np.stack(by_head, axis=1).reshape(-1, *rest)

    def unpack(whole: np.ndarray) -> Leaves:
        rest = whole.shape[1:]
        by_head = whole.reshape(heads, 3, size, *rest)
        return tuple(by_head[:, i].reshape(-1, *rest) for i in range(3))

    return pack, unpack


def leaf_names(params: Any) -> dict[str, Any]:
    """Parameters by name, such as `"blocks_0/mlp/up/kernel"`.

    Args:
      params: Nested dicts of arrays.

    Examples:
      >>> leaf_names({"up": {"kernel": 1.0}})
      {'up/kernel': 1.0}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `leaf_names`.

    Args:
      leaves: Parameters by name.

    Examples:
      >>> nested({"up/kernel": 1.0})
      {'up': {'kernel': 1.0}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split("/")
        branch = tree
        for key in above:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    return tree
