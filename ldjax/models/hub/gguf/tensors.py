"""The tensors of a GGUF file, under the hub's names and in the hub's layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.gguf.file import GgufFile
from ldjax.models.hub.tensors import rules

__all__ = ["GgufTensors"]

#: Tensors that are read as settings.
_SETTINGS = ("rope_freqs.weight",)


class GgufTensors(NamedTuple):
    """What `TensorFiles` is for safetensors.

    Attributes:
      file: The file.
      names: The name in the file of each tensor, by the name that the hub has for it;
        a tensor that no model of the architecture has keeps its own.
      config: The architecture.

    Examples:
      >>> from ldjax.models import llama_config
      >>> file = GgufFile(Path("a.gguf"), {"general.architecture": "llama"}, {})
      >>> GgufTensors.of(file, llama_config(vocab_size=9)).shapes
      {}
    """

    file: GgufFile
    names: Mapping[str, str]
    config: TransformerConfig

    @classmethod
    def of(cls, file: GgufFile, config: TransformerConfig) -> "GgufTensors":
        """Of a file, whose architecture was read from it.

        Args:
          file: The file.
          config: The architecture.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = file.metadata["general.architecture"]
        (number,) = (k for k, v in MODEL_ARCH_NAMES.items() if v == architecture)
        known = get_tensor_name_map(number, config.num_layers)
        stored = {}
        for rule in rules(config):
            stem, suffix = rule.name.rsplit(".", 1)
            stored[f"{known.get_name(stem)}.{suffix}"] = rule.name
        found = (name for name in file.tensors if name not in _SETTINGS)
        return cls(file, {stored.get(name, name): name for name in found}, config)

    @property
    def place(self) -> Path:
        """The file, for messages."""
        return self.file.path

    @property
    def settings(self) -> str:
        """Where the settings are that the tensors must fit, for messages."""
        return f"The metadata of {self.file.path}"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        stored = self.file.tensors
        return {name: stored[theirs].shape for name, theirs in self.names.items()}

    def refuse_codes(self, names: Iterable[str]) -> None:
        """Refuses tensors that cannot be dequantised.

        Args:
          names: The names of tensors.

        Raises:
          ValueError: If one cannot be, with the first one's name and type.
        """
        self.file.refuse_kinds(self.names[name] for name in names)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in float32.

        Args:
          name: The name of the tensor.
        """
        stored = self.names[name]
        tensor = self.file.read(stored)
        architecture = self.file.metadata["general.architecture"]
        if architecture == "llama" and ".attn_q." in stored:
            return _halves(tensor, self.config.num_heads)
        if architecture == "llama" and ".attn_k." in stored:
            return _halves(tensor, self.config.num_kv_heads)
        if architecture.startswith("gemma") and stored.endswith("norm.weight"):
            return tensor - 1  # the hub has what is added to one
        return tensor


def _halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, whose rotated pairs the file has side by side.

    The hub has the first of all pairs in the first half of a head, the second ones in
    the second half.
    """
    rest = tensor.shape[1:]
    pairs = tensor.reshape(heads, -1, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(-1, *rest)
