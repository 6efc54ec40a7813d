"""Adapters (LoRA) put into a model and merged into its matrices."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from ldjax.equation.subset import split
from ldjax.files.whole import whole_folder
from ldjax.models.decoder.low_rank import TOGETHER, LowRank, Target, is_adapter
from ldjax.models.decoder.transformer import Transformer
from ldjax.models.hub.parameters import abstract_params
from ldjax.models.hub.peft import write_adapters
from ldjax.models.hub.tensors import leaf_names, nested
from ldjax.models.pretrained import Pretrained, with_adapters

__all__ = ["add_adapters", "merge_adapters", "save_adapters"]


def add_adapters(
    pretrained: Pretrained, adapters: LowRank, *, key: jax.Array
) -> Pretrained:
    """A model with fresh adapters, which change nothing yet.

    `ldjax.make_step(..., where=is_adapter)` trains them alone, and
    `ldjax.empirical_ntk(..., where=is_adapter)` is their kernel.

    Args:
      pretrained: A model without adapters.
      adapters: The adapters, by what they stand beside and their rank.
      key: The key of the draw of `A`; `B` is zero.

    Returns:
      The same model with adapters.

    Raises:
      ValueError: If it has adapters, or not the layers that are asked for.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> key, tokens = jax.random.key(0), jnp.zeros((1, 1), int)
      >>> params = Transformer(config).init(key, tokens)
      >>> base = Pretrained(Transformer(config), params["params"], config, None)
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> sorted(add_adapters(base, adapters, key=key).params["blocks_0"]["mlp"])
      ['down', 'up', 'up_lora_a', 'up_lora_b']
    """
    config = dataclasses.replace(pretrained.config, adapters=adapters)
    fresh, _ = split(abstract_params(config), is_adapter)
    names = leaf_names(fresh)
    keys = jax.random.split(key, len(names))

    def drawn(name: str, shape: Any, key: jax.Array) -> jax.Array:
        if name.endswith("_lora_b/kernel"):
            return jnp.zeros(shape.shape, shape.dtype)
        bound = shape.shape[0] ** -0.5
        return jax.random.uniform(key, shape.shape, shape.dtype, -bound, bound)

    leaves = {
        name: drawn(name, shape, key)
        for (name, shape), key in zip(names.items(), keys, strict=True)
    }
    return with_adapters(pretrained, adapters, nested(leaves))


def merge_adapters(pretrained: Pretrained) -> Pretrained:
    r"""The same function without adapters: they are added to their matrices.

    .. math:: W + s B A

    Args:
      pretrained: A model, with or without adapters.

    Returns:
      A model without, whose logits are the same but for rounding.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> params = Transformer(config).init(jax.random.key(0), jnp.zeros((1, 1), int))
      >>> adapted = Pretrained(Transformer(config), params["params"], config, None)
      >>> sorted(merge_adapters(adapted).params["blocks_0"]["mlp"])
      ['down', 'up']
    """
    adapters = pretrained.config.adapters
    if adapters is None:
        return pretrained
    chosen, base = split(pretrained.params, is_adapter)
    found, leaves = leaf_names(chosen), leaf_names(base)
    for name in found:
        if not name.endswith("_lora_a/kernel"):
            continue
        place = name.removesuffix("_lora_a/kernel")
        change = _scale(place, adapters) * found[name] @ found[f"{place}_lora_b/kernel"]
        for matrix, part in _by_matrix(place, change, leaves):
            leaves[matrix] = leaves[matrix] + part
    config = dataclasses.replace(pretrained.config, adapters=None)
    return Pretrained(Transformer(config), nested(leaves), config, pretrained.tokenizer)


def save_adapters(
    folder: str | Path, pretrained: Pretrained, *, base: str | Path
) -> None:
    """Write a model's adapters in PEFT's layout.

    `PeftModel.from_pretrained(base_model, folder)` computes the same logits, and `load`
    reads the folder back, base model and all. (PEFT cannot read a base that is a run of
    ldjax: `save` it as a folder first.)

    Args:
      folder: A folder that does not exist yet, or is empty.
      pretrained: A model with adapters.
      base: Folder or hub id of the model without them, which is written down.

    Raises:
      FileExistsError: If the folder holds something; it is left as it is.
      ValueError: If there are no adapters, or PEFT has no such ones: query, key and
        value on their own where the hub stores them as one matrix (GPT-2, GPT-NeoX), or
        together where it does not (Llama, Qwen2).

    Examples:
      >>> import tempfile
      >>> from ldjax.models import gpt2_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("qkv",))
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> params = Transformer(config).init(jax.random.key(0), jnp.zeros((1, 1), int))
      >>> adapted = Pretrained(Transformer(config), params["params"], config, None)
      >>> folder = Path(tempfile.mkdtemp())
      >>> save_adapters(folder, adapted, base="openai-community/gpt2")
      >>> sorted(file.name for file in folder.iterdir())
      ['adapter_config.json', 'adapter_model.safetensors']
    """
    with whole_folder(Path(folder)) as partial:
        write_adapters(partial, pretrained.params, pretrained.config, base=base)


def _scale(place: str, adapters: LowRank) -> float:
    """The factor of the adapter at `blocks_I/.../TARGET`."""
    block, *_, target = place.split("/")
    return adapters.at(int(block.removeprefix("blocks_")))[cast(Target, target)].scale


def _by_matrix(
    place: str, change: jax.Array, leaves: Mapping[str, jax.Array]
) -> Iterator[tuple[str, jax.Array]]:
    """The matrices that an adapter stands beside, and what it adds to each."""
    *path, target = place.split("/")
    names = TOGETHER.get(target, (target,))
    matrices = ["/".join((*path, name, "kernel")) for name in names]
    ends = itertools.accumulate(leaves[matrix].shape[1] for matrix in matrices)
    parts = jnp.split(change, list(ends)[:-1], axis=1)
    yield from zip(matrices, parts, strict=True)
