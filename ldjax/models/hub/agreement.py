"""What a `config.json` says of sizes, against the tensors beside it.

The headers of the files are read in no time, so a number that is out of all proportion
is found before anything of its size is made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.config import Family, family_of
from ldjax.models.hub.tensors import PREFIXES

__all__ = [
    "Contradiction",
    "block_names",
    "contradictions",
    "refuse_contradictions",
]

Shapes = Mapping[str, Sequence[int]]


class Contradiction(NamedTuple):
    """A setting that a tensor gives the lie.

    Attributes:
      key: The name of the setting in `config.json`.
      value: The value that the setting has.
      found: The value that the tensors tell.
      evidence: The tensors that tell it, in words.

    Examples:
      >>> str(Contradiction("n_embd", 10**6, 64, "wte.weight is [10, 64]"))
      '`n_embd` is 1000000, but wte.weight is [10, 64]'
    """

    key: str
    value: int
    found: int
    evidence: str

    def __str__(self) -> str:
        return f"`{self.key}` is {self.value}, but {self.evidence}"

    @property
    def is_gross(self) -> bool:
        """Whether a list of all that does not fit would be of no use, or no end."""
        return self.value > 16 * (self.found + 1)


#: In a block, a tensor whose axis has the size of a setting.
_BLOCK: dict[Family, dict[str, tuple[str, int]]] = {
    "gpt2": {"n_inner": ("mlp.c_fc.weight", 1)},
    "gpt_neox": {"intermediate_size": ("mlp.dense_h_to_4h.weight", 0)},
    "llama": {
        "intermediate_size": ("mlp.up_proj.weight", 0),
        "num_attention_heads` times `head_dim": ("self_attn.q_proj.weight", 0),
        "num_key_value_heads` times `head_dim": ("self_attn.k_proj.weight", 0),
    },
}
_BLOCK["qwen2"] = _BLOCK["llama"]
_BLOCKS: dict[Family, str] = {
    "gpt2": "h",
    "gpt_neox": "layers",
    "llama": "layers",
    "qwen2": "layers",
}
_EMBEDDINGS: dict[Family, tuple[str, str, str]] = {
    "gpt2": ("wte.weight", "vocab_size", "n_embd"),
    "gpt_neox": ("embed_in.weight", "vocab_size", "hidden_size"),
    "llama": ("embed_tokens.weight", "vocab_size", "hidden_size"),
    "qwen2": ("embed_tokens.weight", "vocab_size", "hidden_size"),
}


def block_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """A tensor's name for each block that has one, by the block's number.

    Args:
      family: The family of the model.
      names: The names of all tensors.

    Examples:
      >>> block_names("gpt2", ["wte.weight", "h.0.ln_1.weight", "h.0.ln_1.bias"])
      {'0': 'h.0.ln_1.bias'}
    """
    blocks = rf"({re.escape(PREFIXES[family])})?{_BLOCKS[family]}\.(\d+)\."
    matches = ((re.match(blocks, name), name) for name in names)
    return {match[2]: name for match, name in matches if match}


def contradictions(config: TransformerConfig, shapes: Shapes) -> list[Contradiction]:
    """The settings that the tensors contradict; those that are not there say nothing.

    Args:
      config: The architecture.
      shapes: The shape of each tensor, from the headers of the files.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> shapes = {"wte.weight": (10, 64), "h.0.ln_1.bias": (64,)}
      >>> for found in contradictions(gpt2_config(vocab_size=12), shapes):
      ...     print(found)
      `vocab_size` is 12, but wte.weight is [10, 64]
      `n_layer` is 2, but there are tensors of 1, such as h.0.ln_1.bias
    """
    return [claim for claim in _claims(config, shapes) if claim.value != claim.found]


def refuse_contradictions(
    folder: Path, config: TransformerConfig, shapes: Shapes, *, gross: bool
) -> None:
    """Refuses settings that the tensors contradict.

    Args:
      folder: The folder that holds both.
      config: The architecture.
      shapes: The shape of each tensor.
      gross: Whether only what is out of proportion is refused: the rest is left to a
        comparison of all.

    Raises:
      ValueError: If there are, with settings and tensors.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config, shapes = gpt2_config(vocab_size=10**6), {"wte.weight": (10, 64)}
      >>> refuse_contradictions(Path("a"), config, shapes, gross=True)
      Traceback (most recent call last):
        ...
      ValueError: a/config.json does not fit the tensors beside it: `vocab_size` is
      1000000, but wte.weight is [10, 64]. Is one of the two from another model?
    """
    found = contradictions(config, shapes)
    if found and (not gross or any(claim.is_gross for claim in found)):
        raise ValueError(
            f"{folder / 'config.json'} does not fit the tensors beside it: "
            f"{'; '.join(map(str, found))}. Is one of the two from another model?"
        )


def _claims(config: TransformerConfig, shapes: Shapes) -> Iterator[Contradiction]:
    family = family_of(config)
    prefix = PREFIXES[family]
    # Where the trunk is stored alone, its tensors lack the prefix.
    named = {name.removeprefix(prefix): name for name in shapes}
    embedding, *keys = _EMBEDDINGS[family]
    sizes = [(key, embedding, axis) for axis, key in enumerate(keys)]
    values = {
        keys[0]: config.vocab_size,
        keys[1]: config.width,
        "n_inner": config.mlp_width,
        "intermediate_size": config.mlp_width,
        "n_positions": config.max_positions,
        "num_attention_heads` times `head_dim": config.num_heads * config.head_dim,
        "num_key_value_heads` times `head_dim": config.num_kv_heads * config.head_dim,
    }
    if family == "gpt2":
        sizes.append(("n_positions", "wpe.weight", 0))
    sizes += [
        (key, f"{_BLOCKS[family]}.0.{tensor}", axis)
        for key, (tensor, axis) in _BLOCK[family].items()
    ]
    for key, tensor, axis in sizes:
        if tensor in named and len(shape := shapes[named[tensor]]) > axis:
            evidence = f"{named[tensor]} is {list(shape)}"
            yield Contradiction(key, values[key], shape[axis], evidence)
    names = block_names(family, shapes)
    if names:
        yield Contradiction(
            "n_layer" if family == "gpt2" else "num_hidden_layers",
            config.num_layers,
            len(names),
            f"there are tensors of {len(names)}, such as {[*names.values()][-1]}",
        )
