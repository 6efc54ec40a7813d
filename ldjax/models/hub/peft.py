"""Low-rank adapters in PEFT's layout: `adapter_config.json` and their tensors."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldjax.files.whole import read_json_object
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.low_rank import LowRank, Target
from ldjax.models.hub.config import family_of
from ldjax.models.hub.files import TensorFiles, refuse_misfits, write_tensors
from ldjax.models.hub.parameters import abstract_params
from ldjax.models.hub.settings import Settings
from ldjax.models.hub.tensors import fused_rows, leaf_names

__all__ = ["AdapterFolder", "adapter_targets", "is_adapter_folder", "write_adapters"]

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"

#: PEFT's `target_modules` by family; a fused layer has one adapter.
_MODULES: dict[str, dict[str, str]] = {
    "gpt2": {
        "qkv": "attn.c_attn",
        "out": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "gpt_neox": {
        "qkv": "attention.query_key_value",
        "out": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "llama": {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
}
_MODULES["qwen2"] = _MODULES["llama"]
_BLOCKS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "llama": "model.layers",
    "qwen2": "model.layers",
}
# What changes the function that adapters compute; anything else of PEFT's settings is
# about how they are trained.
_REQUIRED: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
    "megatron_config": None,
    "alora_invocation_tokens": None,
    "exclude_modules": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "use_qalora": False,
    "use_bdlora": None,
    "kasa_config": None,
    "arrow_config": None,
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
        for name, value in _REQUIRED.items():
            found = self._content.get(name, value)
            if found != value and found:
                only = f"only {value!r}" if value else "without"
                raise ValueError(
                    f"{self._file}: `{name}` is {found!r}; ldjax computes {only}."
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
            adapters = _read_settings(self._content, base)
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
    modules = _modules(config)
    default: tuple[Target, ...] = ("qkv",) if "qkv" in modules else ("query", "value")
    impossible = [name for name in asked if name not in modules]
    if impossible:
        raise ValueError(
            f"PEFT has no adapters of {', '.join(impossible)} in {family_of(config)}, "
            f"only of {', '.join(modules)}."
        )
    return tuple(asked) or default


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
      >>> from ldjax.models import gpt2_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("qkv",))
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> params = jax.tree.map(lambda x: np.zeros(x.shape), abstract_params(config))
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_adapters(folder, params, config, base="openai-community/gpt2")
      >>> AdapterFolder(folder).config(config).adapters == adapters
      True
    """
    adapters, modules = config.adapters, _modules(config)
    if adapters is None:
        raise ValueError("The model has no adapters; `save` writes whole models.")
    adapter_targets(config, adapters.targets)
    content = {
        **_REQUIRED,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "target_modules": [modules[name] for name in adapters.targets],
        "layers_to_transform": adapters.layers and list(adapters.layers),
        "layers_pattern": None,
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


def _modules(config: TransformerConfig) -> dict[str, str]:
    return _MODULES[family_of(config)]


def _names(config: TransformerConfig) -> Iterator[tuple[str, str, bool]]:
    """Tensor, parameter and whether it is a `B`, of each adapter."""
    adapters, modules = config.adapters, _modules(config)
    assert adapters is not None
    blocks = _BLOCKS[family_of(config)]
    for i in range(config.num_layers):
        if adapters.at(i) is None:
            continue
        for target in adapters.targets:
            inner = "mlp" if target in ("gate", "up", "down") else "attention"
            theirs = f"base_model.model.{blocks}.{i}.{modules[target]}"
            ours = f"blocks_{i}/{inner}/{target}"
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


def _read_settings(content: dict[str, Any], config: TransformerConfig) -> LowRank:
    modules = _modules(config)
    settings = Settings(content)
    targets = []
    for module in settings.names("target_modules"):
        fitting = [
            name
            for name, full in modules.items()
            # As PEFT: the end of the module's name.
            if full == module or full.endswith(f".{module}")
        ]
        if not fitting:
            raise ValueError(
                f"`target_modules` has {module!r}; ldjax adapts "
                f"{', '.join(modules.values())}."
            )
        targets += fitting
    ordered = [name for name in modules if name in targets]
    return LowRank(
        rank=settings.whole("r"),
        alpha=settings.positive("lora_alpha"),
        targets=tuple(ordered),  # type: ignore[arg-type]
        layers=settings.layers("layers_to_transform"),
    )
