"""What a `config.json` says of sizes, against the tensors beside it.

The headers of the files are read in no time, so a number that is out of all proportion
is found before anything of its size is made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.layout import Layout, layout_of

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


def block_names(layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """A tensor's name for each block that has one, by the block's number.

    Args:
      layout: Where the family has its tensors.
      names: The names of all tensors.

    Examples:
      >>> from ldjax.models.hub.layout import LAYOUTS
      >>> names = ["wte.weight", "h.0.ln_1.weight", "h.0.ln_1.bias"]
      >>> block_names(LAYOUTS["gpt2"], names)
      {'0': 'h.0.ln_1.bias'}
    """
    blocks = rf"{layout.blocks}\.(\d+)\."
    matches = ((re.match(blocks, layout.below(name)), name) for name in names)
    return {match[1]: name for match, name in matches if match}


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
    settings: str, config: TransformerConfig, shapes: Shapes, *, gross: bool
) -> None:
    """Refuses settings that the tensors contradict.

    Args:
      settings: Where the settings are, in words.
      config: The architecture.
      shapes: The shape of each tensor.
      gross: Whether only what is out of proportion is refused: the rest is left to a
        comparison of all.

    Raises:
      ValueError: If there are, with settings and tensors.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config, shapes = gpt2_config(vocab_size=10**6), {"wte.weight": (10, 64)}
      >>> refuse_contradictions("a/config.json", config, shapes, gross=True)
      Traceback (most recent call last):
        ...
      ValueError: a/config.json does not fit the tensors beside it: `vocab_size` is
      1000000, but wte.weight is [10, 64]. Is one of the two from another model?
    """
    found = contradictions(config, shapes)
    if found and (not gross or any(claim.is_gross for claim in found)):
        raise ValueError(
            f"{settings} does not fit the tensors beside it: "
            f"{'; '.join(map(str, found))}. Is one of the two from another model?"
        )


def _claims(config: TransformerConfig, shapes: Shapes) -> Iterator[Contradiction]:
    layout = layout_of(config)
    named = {layout.below(name): name for name in shapes}
    sizes = [(key, layout.embedding, axis) for axis, key in enumerate(layout.sizes)]
    values = {
        layout.sizes[0]: config.vocab_size,
        layout.sizes[1]: config.width,
        "n_inner": config.mlp_width,
        "intermediate_size": config.mlp_width,
        "n_positions": config.max_positions,
        "num_attention_heads` times `head_dim": config.num_heads * config.head_dim,
        "num_key_value_heads` times `head_dim": config.num_kv_heads * config.head_dim,
    }
    if config.positions == "learned":
        sizes.append(("n_positions", "wpe.weight", 0))
    sizes += [
        (key, f"{layout.blocks}.0.{tensor}", axis)
        for key, (tensor, axis) in layout.block_sizes.items()
    ]
    for key, tensor, axis in sizes:
        if tensor in named and len(shape := shapes[named[tensor]]) > axis:
            evidence = f"{named[tensor]} is {list(shape)}"
            yield Contradiction(key, values[key], shape[axis], evidence)
    names = block_names(layout, shapes)
    if names:
        yield Contradiction(
            layout.num_blocks,
            config.num_layers,
            len(names),
            f"there are tensors of {len(names)}, such as {[*names.values()][-1]}",
        )
