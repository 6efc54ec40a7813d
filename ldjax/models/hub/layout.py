"""Where a folder of each family has its tensors, by the parts of their names."""

import re
from typing import NamedTuple

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.config import family_of

__all__ = ["LAYOUTS", "Layout", "layout_of"]


class Layout(NamedTuple):
    """The parts of tensors' names, and what their shapes tell.

    Attributes:
      trunk: What stands before the names of all but the head. Folders of the trunk
        alone leave it off.
      blocks: What stands before the number of a block.
      head: The name of the output matrix, where it is stored.
      embedding: The name of the embedding.
      sizes: The settings that are the two axes of the embedding.
      num_blocks: The setting that is the number of blocks.
      block_sizes: By setting, a tensor of a block and its axis of that size.
      buffers: The names, below the trunk, of tensors that older folders store though
        they follow from the configuration.
      others: What folders of a larger model have before the names, trunk or head.
      foreign: The names of tensors of the larger model that are not read.

    Examples:
      >>> LAYOUTS["llama"].below("model.layers.0.mlp.up_proj.weight")
      'layers.0.mlp.up_proj.weight'
    """

    trunk: str
    blocks: str
    head: str
    embedding: str
    sizes: tuple[str, str]
    num_blocks: str
    block_sizes: dict[str, tuple[str, int]]
    buffers: str
    others: tuple[str, ...] = ()
    foreign: str = "(?!)"  # none

    def below(self, name: str) -> str:
        """A tensor's name without what stands before the trunk.

        Args:
          name: A name as it is in a file.
        """
        for prefix in (*self.others, self.trunk):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name

    def spellings(self, name: str) -> tuple[str, ...]:
        """The names that a tensor may have in a file, the usual one first.

        Args:
          name: Its full name.
        """
        if name.startswith(self.trunk):
            bare = name.removeprefix(self.trunk)
            return name, bare, *(other + bare for other in self.others)
        return name, *(other.removesuffix(self.trunk) + name for other in self.others)

    def unread(self, *, tied_head: bool) -> re.Pattern[str]:
        """Names of tensors that may be in the file and are not read.

        Args:
          tied_head: Whether the head is the embedding; a head that is stored all the
            same is one of them.
        """
        trunks = "|".join(map(re.escape, (self.trunk, *self.others)))
        pattern = rf"({trunks})?({self.buffers})|{self.foreign}"
        if tied_head:
            pattern += "|" + "|".join(map(re.escape, self.spellings(self.head)))
        return re.compile(pattern)


_QUERIES = "num_attention_heads` times `head_dim"
_KEYS = "num_key_value_heads` times `head_dim"
_GPT2 = Layout(
    trunk="transformer.",
    blocks="h",
    head="lm_head.weight",
    embedding="wte.weight",
    sizes=("vocab_size", "n_embd"),
    num_blocks="n_layer",
    block_sizes={"n_inner": ("mlp.c_fc.weight", 1)},
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
)
_NEOX = Layout(
    trunk="gpt_neox.",
    blocks="layers",
    head="embed_out.weight",
    embedding="embed_in.weight",
    sizes=("vocab_size", "hidden_size"),
    num_blocks="num_hidden_layers",
    block_sizes={"intermediate_size": ("mlp.dense_h_to_4h.weight", 0)},
    buffers=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)
_LLAMA = Layout(
    trunk="model.",
    blocks="layers",
    head="lm_head.weight",
    embedding="embed_tokens.weight",
    sizes=("vocab_size", "hidden_size"),
    num_blocks="num_hidden_layers",
    block_sizes={
        "intermediate_size": ("mlp.up_proj.weight", 0),
        _QUERIES: ("self_attn.q_proj.weight", 0),
        _KEYS: ("self_attn.k_proj.weight", 0),
    },
    buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
_PHI3 = _LLAMA._replace(
    block_sizes={
        "intermediate_size": ("mlp.down_proj.weight", 1),
        _QUERIES: ("self_attn.o_proj.weight", 1),
    }
)
_GEMMA3 = _LLAMA._replace(
    others=("language_model.model.", "model.language_model."),
    foreign=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
)

#: By `model_type`.
LAYOUTS: dict[str, Layout] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "smollm3"), _LLAMA),
    **dict.fromkeys(("olmo2", "olmo3", "gemma2"), _LLAMA),
    "phi3": _PHI3,
    "gemma3_text": _GEMMA3,
}


def layout_of(config: TransformerConfig) -> Layout:
    """Where the folder of a model has its tensors.

    Args:
      config: The architecture, one that the hub has.

    Raises:
      ValueError: If the hub has no such architecture.
    """
    return LAYOUTS[family_of(config)]
