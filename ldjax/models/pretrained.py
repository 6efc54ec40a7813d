"""Models that were trained before: loaded from runs, folders and the hub, and saved."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldjax.data.tokenizers import Tokenizer, load_tokenizer
from ldjax.equation.subset import merge
from ldjax.files.whole import whole_folder
from ldjax.models.decoder.config import FloatName, TransformerConfig
from ldjax.models.decoder.low_rank import LowRank
from ldjax.models.decoder.transformer import Transformer
from ldjax.models.hub.agreement import refuse_contradictions
from ldjax.models.hub.config import read_config, to_hub
from ldjax.models.hub.files import (
    TensorFiles,
    find_folder,
    has_weights,
    write_tensors,
)
from ldjax.models.hub.gguf.config import read_gguf_config
from ldjax.models.hub.gguf.file import GgufFile, find_gguf
from ldjax.models.hub.gguf.tensors import GgufTensors
from ldjax.models.hub.gguf.tokenizer import read_gguf_tokenizer
from ldjax.models.hub.parameters import abstract_params, packed, read_params
from ldjax.models.hub.peft import AdapterFolder, is_adapter_folder
from ldjax.models.hub.settings import Settings
from ldjax.models.hub.tensors import nested

__all__ = ["Pretrained", "is_run", "load", "save", "with_adapters"]


class Pretrained(NamedTuple):
    """A language model with what reads and writes its tokens.

    Attributes:
      model: The decoder as a Linen module.
      params: The decoder's parameters (`variables["params"]`).
      config: The decoder's architecture, `model.config`.
      tokenizer: The tokenizer that it was trained with; None where there is none.

    Examples:
      >>> from ldjax.models import preset
      >>> model, tokens = Transformer(preset("0.1M")), jnp.zeros((1, 3), int)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> base = Pretrained(model, params, model.config, tokenizer=None)
      >>> base.model.apply({"params": base.params}, tokens).shape
      (1, 3, 2048)
    """

    model: Transformer
    params: Any
    config: TransformerConfig
    tokenizer: Tokenizer | None


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: FloatName | None = None,
    param_dtype: FloatName = "float32",
    shapes_only: bool = False,
) -> Pretrained:
    """A trained language model: from a Hugging Face folder, the hub, or a run.

    GPT-2, GPT-NeoX (Pythia), Llama, Qwen2 (Qwen1.5, Qwen2.5), Qwen3, Mistral, Phi-3,
    SmolLM3, OLMo 2 and 3, Gemma 2 and the language model of Gemma 3, from
    `safetensors`, without PyTorch. A folder with low-rank adapters in PEFT's layout
    gives the model that they belong to with the adapters in place.

    Args:
      source: A folder with `config.json` and `model.safetensors` (or shards and their
        index), the id of a repository on the hub such as `"EleutherAI/pythia-410m"`, or
        the run folder of `ldjax pretrain` or `ldjax finetune`, or a checkpoint of one
        (`RUN/checkpoints/100`).
      revision: The branch, tag or commit on the hub.
      dtype: The dtype of the computation; None for that of the parameters.
      param_dtype: The dtype of the parameters, whatever the files have.
      shapes_only: Whether no weights are read: `params` are `jax.ShapeDtypeStruct`s,
        which is what a plan of the memory needs.

    Returns:
      `(model, params, config, tokenizer)`; `model.apply({"params": params}, tokens,
      mask)` are logits `[batch, pos, vocab]`.

    Raises:
      FileNotFoundError: If there is no such folder, nor a repository that can be
        reached; or if files are missing.
      ValueError: If the files are damaged, do not fit each other, or describe a model
        that ldjax does not compute; the message says which and what.

    Examples:
      >>> load("/nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no folder /nowhere.
    """
    dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    files: TensorFiles | GgufTensors | None = None
    if (path := find_gguf(source)) is not None:
        if revision is not None:
            raise ValueError(
                f"`revision` is of a repository on the hub, not of {path}."
            )
        file = GgufFile.of(path)
        config = dataclasses.replace(read_gguf_config(file), **dtypes)
        files = GgufTensors.of(file, config)
        read_tokenizer = functools.partial(read_gguf_tokenizer, file)
    else:
        folder = find_folder(source, revision=revision, weights=not shapes_only)
        if is_run(folder):
            return _load_run(folder, dtypes, shapes_only)
        if is_run(run := folder.absolute().parent.parent) and folder.name.isdigit():
            return _load_run(run, dtypes, shapes_only, step=int(folder.name))
        if is_adapter_folder(folder):
            return _load_adapters(folder, dtypes, shapes_only)
        config = dataclasses.replace(read_config(folder), **dtypes)
        if not shapes_only or has_weights(folder):
            files = TensorFiles.of(folder)
        read_tokenizer = functools.partial(_tokenizer_of, folder)
    if shapes_only and files is not None:
        refuse_contradictions(files.settings, config, files.shapes, gross=False)
        files.refuse_codes(files.shapes)
    # Before the weights, which take long.
    tokenizer = read_tokenizer(vocab_size=config.vocab_size)
    if files is None or shapes_only:
        params = abstract_params(config)
    else:
        params = read_params(files, config)
    return Pretrained(Transformer(config), params, config, tokenizer)


def save(
    folder: str | Path, pretrained: Pretrained, *, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write a model as a Hugging Face folder.

    `transformers` loads it back with the same logits; so does `load`. Of the
    tokenizer's settings the special tokens and the chat templates are kept.

    Args:
      folder: A folder that does not exist yet, or is empty.
      pretrained: The model; adapters must have been merged into it (`merge_adapters`)
        or are saved on their own (`save_adapters`).
      max_shard_bytes: The largest size of a file of weights, in bytes.

    Raises:
      FileExistsError: If the folder holds something; it is left as it is.
      ValueError: If no model of the hub has this architecture, or it has adapters.

    Examples:
      >>> import tempfile
      >>> from ldjax.models import gpt2_config
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> model = Transformer(config)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> folder = Path(tempfile.mkdtemp()) / "tiny"
      >>> save(folder, Pretrained(model, params, config, None))
      >>> load(folder).config == config
      True
    """
    config = pretrained.config
    if config.adapters is not None:
        raise ValueError(
            "The model has adapters, which this layout does not hold: merge them "
            "(`merge_adapters`), or save them alone (`save_adapters`)."
        )
    content = to_hub(config) | {"torch_dtype": config.param_dtype}
    if pretrained.tokenizer is not None:
        end, *others = pretrained.tokenizer.end_ids
        content["eos_token_id"] = [end, *others] if others else end
    with whole_folder(Path(folder)) as partial:
        text = json.dumps(content, indent=2) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
        if pretrained.tokenizer is not None:
            pretrained.tokenizer.save(partial)
        tensors = packed(pretrained.params, config)
        write_tensors(partial, tensors, max_shard_bytes=max_shard_bytes)


def with_adapters(
    base: Pretrained, adapters: LowRank | None, params: Any = None
) -> Pretrained:
    """A model with given adapters.

    Args:
      base: The model without adapters.
      adapters: The adapters, by what they stand beside and their rank.
      params: The adapters' parameters, nested dicts; None for shapes only, as those of
        `base` then are.

    Returns:
      The model with them.

    Raises:
      ValueError: If the model has not the layers they stand beside, or has adapters.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> base = Pretrained(Transformer(config), abstract_params(config), config, None)
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> with_adapters(base, adapters).params["blocks_0"]["mlp"]["up_lora_a"]
      {'kernel': ShapeDtypeStruct(shape=(64, 2), dtype=float32)}
    """
    if base.config.adapters is not None:
        raise ValueError("The model has adapters already: merge them first.")
    config = dataclasses.replace(base.config, adapters=adapters)
    if params is None:
        merged = abstract_params(config)
    else:
        cast = jax.tree.map(lambda x: jnp.asarray(x, config.param_dtype), params)
        merged = merge(cast, base.params)
    return Pretrained(Transformer(config), merged, config, base.tokenizer)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of an experiment; a model's has other settings.

    Args:
      folder: Any path.

    Examples:
      >>> is_run(Path("/nowhere"))
      False
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "settings" in content


def _tokenizer_of(folder: Path, *, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a folder, if it has one."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder, vocab_size=vocab_size)
    return None


def _load_adapters(
    folder: Path, dtypes: dict[str, Any], shapes_only: bool
) -> Pretrained:
    """The model that adapters belong to, with them in place."""
    found = AdapterFolder(folder)
    try:
        base = load(found.base, **dtypes, shapes_only=shapes_only)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The base model of {folder}: {error}") from error
    config = found.config(base.config)
    leaves = None if shapes_only else nested(found.leaves(config))
    return with_adapters(base, config.adapters, leaves)


def _load_run(
    path: Path, dtypes: dict[str, Any], shapes_only: bool, *, step: int | None = None
) -> Pretrained:
    """The model of a run that is complete, or of one of its checkpoints."""
    # Orbax, which reads checkpoints, takes a second to import.
    from ldjax.runs.checkpoints import Checkpoints
    from ldjax.runs.folder import open_run

    settings = open_run(path).config["settings"]
    is_read = isinstance(settings, dict) and "num_steps" in settings
    if not is_read or not isinstance(settings.get("model"), dict):
        raise ValueError(
            f"{path} is not a run of `ldjax pretrain` or `ldjax finetune`."
        )
    with _settings_of(path):
        num_steps = Settings(settings).whole("num_steps")
    checkpoints = Checkpoints(path / "checkpoints")
    newest = checkpoints.newest_step() or 0
    if step is None and newest < num_steps:
        raise ValueError(
            f"The training in {path} stopped at step {newest} of {num_steps}; go on "
            "with it by `resume=True`."
        )
    with _settings_of(path):
        config = TransformerConfig.of(settings["model"])
    config = dataclasses.replace(config, **dtypes)
    tokenizer = load_tokenizer(path, vocab_size=config.vocab_size)
    model = Transformer(config)
    if shapes_only:
        return Pretrained(model, abstract_params(config), config, tokenizer)
    progress = checkpoints.restore() if step is None else checkpoints.read(step)
    assert progress is not None  # its step was read
    if step is None and progress.step < settings["num_steps"]:
        raise ValueError(
            f"The last checkpoint in {path} is damaged, of step {newest}; that of step "
            f"{progress.step} is not: go on from there by `resume=True`."
        )
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, config.param_dtype), progress.state["params"]
    )
    return Pretrained(model, params, config, tokenizer)


@contextmanager
def _settings_of(path: Path) -> Iterator[None]:
    """Says where a setting of a run is wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'config.json'} has no settings of a model: {error}"
        ) from error
