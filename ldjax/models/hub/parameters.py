"""A decoder's parameters, from the tensors of a folder and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.transformer import Transformer
from ldjax.models.hub.agreement import (
    block_names,
    contradictions,
    refuse_contradictions,
)
from ldjax.models.hub.files import TensorFiles, refuse_misfits
from ldjax.models.hub.gguf.tensors import GgufTensors
from ldjax.models.hub.layout import layout_of
from ldjax.models.hub.tensors import Rule, leaf_names, nested, rules

__all__ = ["abstract_params", "packed", "read_params"]

#: Tensors under the hub's names.
Files = TensorFiles | GgufTensors

_EMBEDDING = "token_embedding/embedding"
_MISSING_BLOCKS = 8


def abstract_params(config: TransformerConfig) -> Any:
    """Shapes and dtypes of a decoder's parameters; nothing is allocated.

    Args:
      config: The architecture.

    Returns:
      `jax.ShapeDtypeStruct` in the structure of the parameters.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> shapes = abstract_params(gpt2_config(vocab_size=10))
      >>> shapes["token_embedding"]["embedding"].shape
      (10, 64)
    """
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]


def read_params(files: Files, config: TransformerConfig) -> Any:
    """The parameters in a model's files, of the dtype `config.param_dtype`.

    Tensors are read one by one, so that memory holds little more than the parameters.

    Args:
      files: The tensors, of a folder or of a GGUF file.
      config: The architecture; adapters are not in the files and not returned.

    Returns:
      The parameters.

    Raises:
      ValueError: If tensors are missing, extra or of another shape, all in one message;
        if a file is damaged; or if JAX's 64-bit mode is off and float64 asked for.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> import tempfile
      >>> from pathlib import Path
      >>> from ldjax.models.hub.files import write_tensors
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_tensors(folder, [("wte.weight", np.ones((10, 64)))])
      >>> config = gpt2_config(vocab_size=10)
      >>> read_params(TensorFiles.of(folder), config)
      Traceback (most recent call last):
        ...
      ValueError: ...config.json does not fit the tensors beside it: missing: ...
    """
    dtype = jnp.dtype(config.param_dtype)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(
            "float64 parameters need JAX's 64-bit mode: "
            '`jax.config.update("jax_enable_x64", True)` before anything else.'
        )
    named = _matched(files, config)
    files.refuse_codes(named.values())
    _check_tied(files, named, config)
    leaves: dict[str, Any] = {}
    # Largest first: the copies of a tensor on its way are gone before the rest comes.
    for rule in sorted(named, key=lambda r: -math.prod(files.shapes[named[r]])):
        parts = rule.unpack(files.read(named[rule]))
        for leaf, part in zip(rule.leaves, parts, strict=True):
            # Waits: copies that lag behind would hold what they are made from.
            leaves[leaf] = jnp.asarray(part, dtype).block_until_ready()
    return nested(dict(sorted(leaves.items())))


def packed(params: Any, config: TransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a folder, one by one.

    Args:
      params: Parameters, without adapters.
      config: The architecture.

    Yields:
      Name and content.

    Raises:
      ValueError: If the hub has no such architecture.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> params = jax.tree.map(lambda x: np.zeros(x.shape), abstract_params(config))
      >>> next(packed(params, config))[1].shape
      (10, 64)
    """
    leaves = leaf_names(params)
    for rule in rules(config):
        yield rule.name, rule.pack(*(np.asarray(leaves[name]) for name in rule.leaves))


def _matched(files: Files, config: TransformerConfig) -> dict[Rule, str]:
    """Each rule's tensor in the file; refuses a file that does not fit."""
    found = files.shapes
    refuse_contradictions(files.settings, config, found, gross=True)
    layout = layout_of(config)
    # Some of the blocks that are missing show as well as all of them.
    most = len(block_names(layout, found)) + _MISSING_BLOCKS
    config = config.first(min(config.num_layers, most))
    shapes = leaf_names(abstract_params(config))
    matched, expected = {}, {}
    for rule in rules(config):
        spellings = layout.spellings(rule.name)
        name = next((name for name in spellings if name in found), rule.name)
        matched[rule] = name
        expected[name] = rule.shape(*(shapes[leaf].shape for leaf in rule.leaves))
    known = layout.unread(tied_head=config.tied_head)
    refuse_misfits(
        f"{files.settings} does not fit the tensors beside it",
        found={name: x for name, x in found.items() if not known.fullmatch(name)},
        expected=expected,
        why=list(map(str, contradictions(config, found))),
    )
    return matched


def _check_tied(files: Files, named: Mapping[Rule, str], config: Any) -> None:
    """A tied model may store its head too, but then as it is tied."""
    spellings = layout_of(config).spellings(layout_of(config).head)
    head = next((name for name in spellings if name in files.shapes), None)
    if not config.tied_head or head is None:
        return
    (embedding,) = (
        name for rule, name in named.items() if rule.leaves == (_EMBEDDING,)
    )
    if not np.array_equal(files.read(head), files.read(embedding)):
        raise ValueError(
            f"{files.place} has `tie_word_embeddings` in its config.json, but {head} "
            f"is not {embedding}. If the head is its own, set the first to false; if "
            "not, take the second out of the file."
        )
