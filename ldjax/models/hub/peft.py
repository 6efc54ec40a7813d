"""Low-rank adapters in PEFT's layout: `adapter_config.json` and their tensors."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldjax.files.whole import read_json_object
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.low_rank import Target
from ldjax.models.hub.config import family_of
from ldjax.models.hub.files import TensorFiles, refuse_misfits, write_tensors
from ldjax.models.hub.parameters import abstract_params
from ldjax.models.hub.peft_choice import Matrix, read_choice, write_choice
from ldjax.models.hub.tensors import Rule, fused_rows, leaf_names

__all__ = [
    "AdapterFolder",
    "adapter_rules",
    "adapter_targets",
    "is_adapter_folder",
    "write_adapters",
]

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_IN_MLP = ("gate", "up", "gate_up", "down")


class _Layout(NamedTuple):
    """Where PEFT finds the matrices of a family.

    Attributes:
      blocks: The full name of the list of blocks.
      modules: The name in a block of each matrix, by its name in ldjax; a fused one has
        one adapter.
      beside: The full names of further modules that PEFT would adapt.
    """

    blocks: str
    modules: dict[Target, str]
    beside: tuple[str, ...]


_LLAMA = _Layout(
    "model.layers",
    {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    ("model.embed_tokens", "lm_head"),
)
_LAYOUTS: dict[str, _Layout] = {
    "gpt2": _Layout(
        "transformer.h",
        {
            "qkv": "attn.c_attn",
            "out": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        ("transformer.wte", "transformer.wpe", "lm_head"),
    ),
    "gpt_neox": _Layout(
        "gpt_neox.layers",
        {
            "qkv": "attention.query_key_value",
            "out": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        ("gpt_neox.embed_in", "embed_out"),
    ),
    "phi3": _LLAMA._replace(
        modules={
            "qkv": "self_attn.qkv_proj",
            "out": "self_attn.o_proj",
            "gate_up": "mlp.gate_up_proj",
            "down": "mlp.down_proj",
        }
    ),
    **dict.fromkeys(
        (
            *("llama", "qwen2", "qwen3", "mistral", "smollm3"),
            *("olmo2", "olmo3", "gemma2", "gemma3_text"),
        ),
        _LLAMA,
    ),
}
#: What changes the function that adapters compute, its usual value, and what another
#: makes of them; anything else of PEFT's settings is about how they are trained.
_PLAIN: dict[str, tuple[Any, str]] = {
    "peft_type": ("LORA", "adapters of another kind"),
    "bias": ("none", "trained biases of the model beside the adapters"),
    "use_dora": (False, "DoRA, which gives every column of a matrix a length"),
    "lora_bias": (False, "adapters with a bias"),
    "modules_to_save": (None, "whole modules trained beside the adapters"),
    "layer_replication": (None, "a model some of whose layers are repeated"),
    "megatron_config": (None, "adapters of Megatron's layers"),
    "alora_invocation_tokens": (None, "adapters that act after some tokens only"),
    "trainable_token_indices": (None, "trained rows of the embedding"),
    "target_parameters": (None, "adapters of bare parameters, as of experts"),
    "use_qalora": (False, "QALoRA, whose adapters read pooled inputs"),
    "use_bdlora": (None, "block-diagonal adapters"),
    "kasa_config": (None, "KaSA, which truncates the model's matrices"),
    "arrow_config": (None, "a router of many adapters"),
    "monteclora_config": (None, "adapters that are drawn anew in each pass"),
}
# Starts that leave the base model as it is; others (pissa, olora, ...) change its
# matrices, and only PEFT can tell how.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class AdapterFolder:
    """A folder of adapters.

    Attributes:
      folder: The folder that they are in.
      base: The folder or hub id of the model that they belong to.

    Args:
      folder: A folder in PEFT's layout.

    Raises:
      FileNotFoundError: If it has no settings.
      ValueError: If the settings are damaged, or of adapters that ldjax does not
        compute.

    Examples:
      >>> AdapterFolder(Path("/nowhere"))
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere has no adapter_config.json.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / _CONFIG
        if not self._file.is_file():
            raise FileNotFoundError(f"{folder} has no {_CONFIG}.")
        self._content = read_json_object(self._file)
        for name, (usual, what) in _PLAIN.items():
            found = self._content.get(name, usual)
            if found and found != usual:
                raise ValueError(
                    f"{self._file}: `{name}` is {found!r}: {what}. ldjax computes "
                    "plain LoRA. If PEFT can merge them into their model "
                    "(`merge_and_unload`), save that and load it instead."
                )
        start = self._content.get("init_lora_weights")
        if start not in _STARTS:
            raise ValueError(
                f"{self._file}: `init_lora_weights` is {start!r}, which changed the "
                "base model's matrices as well. Save it merged "
                "(`merge_and_unload` in PEFT) and load the result."
            )
        base = self._content.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ValueError(
                f"{self._file} does not name its base model: "
                f"`base_model_name_or_path` is {base!r}."
            )
        self.base: str = base

    def config(self, base: TransformerConfig) -> TransformerConfig:
        """The architecture with the adapters.

        Args:
          base: The architecture of the model that they belong to.

        Raises:
          ValueError: If it has not the layers they stand beside.
        """
        try:
            adapters = read_choice(
                self._content, _matrices(base), beside=_layout(base).beside
            )
            return dataclasses.replace(base, adapters=adapters)
        except ValueError as error:
            raise ValueError(f"{self._file}: {error}") from error

    def leaves(self, config: TransformerConfig) -> dict[str, np.ndarray]:
        """Their parameters by name.

        Args:
          config: The architecture of the model with them.

        Raises:
          FileNotFoundError: If there are no tensors.
          ValueError: If the tensors do not fit.
        """
        files = TensorFiles.of(self.folder, name=_TENSORS)
        shapes = leaf_names(abstract_params(config))
        expected = {name: (leaf, is_b) for name, leaf, is_b in _names(config)}
        refuse_misfits(
            f"The tensors in {self.folder} do not fit its {_CONFIG} and base model",
            found=files.shapes,
            expected={
                name: shapes[leaf].shape[::-1] for name, (leaf, _) in expected.items()
            },
        )
        files.refuse_codes(expected)
        return {
            leaf: _from_file(files.read(name), leaf, config, is_b)
            for name, (leaf, is_b) in expected.items()
        }


def adapter_targets(
    config: TransformerConfig, asked: Sequence[Target] = ()
) -> tuple[Target, ...]:
    """Which matrices of a model are to have adapters.

    Args:
      config: The architecture of the model.
      asked: The matrices that are wanted; by default those of PEFT.

    Returns:
      Targets that PEFT has, too.

    Raises:
      ValueError: If it has not.

    Examples:
      >>> from ldjax.models import llama_config
      >>> adapter_targets(llama_config(vocab_size=10))
      ('query', 'value')
    """
    modules = _layout(config).modules
    default: tuple[Target, ...] = ("qkv",) if "qkv" in modules else ("query", "value")
    impossible = [name for name in asked if name not in modules]
    if impossible:
        raise ValueError(
            f"PEFT has no adapters of {', '.join(impossible)} in {family_of(config)}, "
            f"only of {', '.join(modules)}."
        )
    return tuple(asked) or default


def adapter_rules(config: TransformerConfig) -> list[Rule]:
    """Every tensor of an adapter folder, and the parameter in it.

    Args:
      config: The architecture of a model with adapters.

    Examples:
      >>> from ldjax.models import LowRank, llama_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> config = llama_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> adapter_rules(config)[0].name
      'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """

    def rule(name: str, leaf: str, is_b: bool) -> Rule:
        return Rule(
            *(name, (leaf,), lambda part: _to_file(part, leaf, config, is_b)),
            lambda rows: (_from_file(rows, leaf, config, is_b),),
            lambda shape: shape[::-1],
        )

    return [rule(*of) for of in _names(config)]


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds adapters in PEFT's layout.

    Args:
      folder: Any path.

    Examples:
      >>> is_adapter_folder(Path("/nowhere"))
      False
    """
    return (folder / _CONFIG).is_file()


def write_adapters(
    folder: Path, params: Any, config: TransformerConfig, *, base: str | Path
) -> None:
    """Write adapters in PEFT's layout.

    Args:
      folder: A folder that exists.
      params: The adapters, or all parameters of the model.
      config: The architecture of the model.
      base: The folder or hub id of the model without them, which is written down.

    Raises:
      ValueError: If PEFT has no such adapters.

    Examples:
      >>> import dataclasses, tempfile
      >>> import jax
      >>> from ldjax.models import LowRank, gpt2_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("qkv",))
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> params = jax.tree.map(lambda x: np.zeros(x.shape), abstract_params(config))
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_adapters(folder, params, config, base="openai-community/gpt2")
      >>> AdapterFolder(folder).config(config).adapters == adapters
      True
    """
    adapters = config.adapters
    if adapters is None:
        raise ValueError("The model has no adapters; `save` writes whole models.")
    adapter_targets(config, adapters.targets)
    content = {
        **{name: usual for name, (usual, _) in _PLAIN.items()},
        **write_choice(adapters, _matrices(config)),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "lora_dropout": 0.0,
        "fan_in_fan_out": family_of(config) == "gpt2",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    leaves = leaf_names(params)
    tensors = [
        (name, _to_file(np.asarray(leaves[leaf]), leaf, config, is_b))
        for name, leaf, is_b in _names(config)
    ]
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    write_tensors(folder, tensors, name=_TENSORS)


def _layout(config: TransformerConfig) -> _Layout:
    return _LAYOUTS[family_of(config)]


def _matrices(config: TransformerConfig) -> list[Matrix]:
    blocks, modules, _ = _layout(config)
    return [
        Matrix(i, target, f"{blocks}.{i}.{module}")
        for i in range(config.num_layers)
        for target, module in modules.items()
    ]


def _names(config: TransformerConfig) -> Iterator[tuple[str, str, bool]]:
    """Tensor, parameter and whether it is a `B`, of each adapter."""
    assert config.adapters is not None
    for i, target, module in _matrices(config):
        if target not in config.adapters.at(i):
            continue
        inner = "mlp" if target in _IN_MLP else "attention"
        ours, theirs = f"blocks_{i}/{inner}/{target}", f"base_model.model.{module}"
        yield f"{theirs}.lora_A.weight", f"{ours}_lora_a/kernel", False
        yield f"{theirs}.lora_B.weight", f"{ours}_lora_b/kernel", True


def _is_fused_by_head(leaf: str, config: TransformerConfig, is_b: bool) -> bool:
    return is_b and "/qkv_" in leaf and family_of(config) == "gpt_neox"


def _to_file(
    array: np.ndarray, leaf: str, config: TransformerConfig, is_b: bool
) -> np.ndarray:
    rows = array.T
    if not _is_fused_by_head(leaf, config, is_b):
        return rows
    pack, _ = fused_rows(config)
    return pack(*np.split(rows, 3))


def _from_file(
    rows: np.ndarray, leaf: str, config: TransformerConfig, is_b: bool
) -> np.ndarray:
    if _is_fused_by_head(leaf, config, is_b):
        _, unpack = fused_rows(config)
        rows = np.concatenate(unpack(rows))
    return rows.T
