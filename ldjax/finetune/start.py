"""The model a run starts from: pretrained here, of a run, of a folder or the hub."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldjax.data.files.folders import find_files
from ldjax.data.files.reading import open_data
from ldjax.data.tokenizers import Tokenizer
from ldjax.files.digests import digest
from ldjax.finetune.pretrain import run as pretraining
from ldjax.finetune.settings.config import kept
from ldjax.finetune.settings.records import Model, Objective, Texts
from ldjax.memory import default_limit, human_bytes
from ldjax.models import PRESETS, LowRank, Transformer, add_adapters, load
from ldjax.models.hub.peft import (
    AdapterFolder,
    adapter_targets,
    is_adapter_folder,
)
from ldjax.models.pretrained import is_run, with_adapters
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import open_run

__all__ = [
    "Base",
    "base_of",
    "base_settings",
    "cached_base",
    "find_regime",
    "find_start",
    "load_base",
    "load_shapes",
]

_log = logging.getLogger(__name__)


class Base(NamedTuple):
    """A model with a tokenizer, ready to be trained and watched.

    Attributes:
      model: The decoder; it computes in float32, as everything that is watched does.
      trained_model: The same decoder, which computes updates in the run's precision.
      params: All its parameters, or their shapes.
      tokenizer: Its tokenizer.
      source: Where it was found, as `ldjax.models.load` takes it.
    """

    model: Transformer
    trained_model: Transformer
    params: Any
    tokenizer: Tokenizer
    source: str = ""

    @property
    def is_adapted(self) -> bool:
        """Whether it has adapters, which then are all that is trained."""
        return self.model.config.adapters is not None

    def without_params(self) -> "Base":
        """The same with the shapes of its parameters only."""
        return self._replace(params=jax.eval_shape(lambda: self.params))

    @property
    def num_params(self) -> int:
        """How many numbers its parameters are."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def find_start(
    model: str,
    init: Path | None,
    texts: Texts,
    *,
    seed: int,
    cache: Path,
    smoke: bool,
) -> str:
    """What `ldjax.models.load` is to load; a base model is pretrained if need be.

    Args:
      model: The size of a base model, a folder, or the id of a model on the hub.
      init: Run folder to start from instead.
      texts: What a base model is pretrained on.
      seed: Seed of a base model and of the toy world.
      cache: Where base models are kept.
      smoke: Whether a base model is pretrained at tiny size.

    Raises:
      FileNotFoundError: If there is no such folder.
    """
    if init is not None:
        if not init.is_dir():
            raise FileNotFoundError(f"there is no folder {init}")
        return str(init)
    if model not in PRESETS:
        return model
    return str(cached_base(model, texts, seed=seed, cache=cache, smoke=smoke))


def load_shapes(source: str, model: Model) -> Base:
    """A model with the shapes of its parameters: nothing large is read.

    Raises:
      FileNotFoundError: If there is no such model.
      ValueError: If it has no tokenizer, cannot be read, or has adapters where fresh
        ones are asked for.
    """
    found = load(source, shapes_only=True)
    tokenizer = found.tokenizer
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer to read texts with")
    if (rank := model.lora_rank) is not None:
        if (there := found.config.adapters) is not None:
            raise ValueError(
                f"the model has adapters of rank {there.rank} already, which are "
                "trained without `lora_rank`"
            )
        adapters = LowRank(
            rank=rank,
            alpha=rank if model.lora_alpha is None else model.lora_alpha,
            targets=adapter_targets(found.config, model.lora_targets),
        )
        found = with_adapters(found, adapters)
    trained = Transformer(dataclasses.replace(found.config, dtype=model.dtype))
    return Base(found.model, trained, found.params, tokenizer, source)


def load_base(shapes: Base, *, seed: int) -> Base:
    """The same model with its parameters, and fresh adapters if it is to have some.

    Args:
      shapes: From `load_shapes`.
      seed: Seed of fresh adapters.

    Raises:
      MemoryError: If its parameters alone do not fit.
      ValueError: If they are not finite numbers.
    """
    source = shapes.source
    leaves = jax.tree.leaves(shapes.params)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if needed > (limit := default_limit()):
        raise MemoryError(
            f"the parameters of {source} take {human_bytes(needed)}; there are "
            f"{human_bytes(limit)} to use. Choose a smaller `model`"
        )
    found = load(source)
    _refuse_not_finite(source, found.params)
    adapters = shapes.model.config.adapters
    if adapters is not None and found.config.adapters is None:
        found = add_adapters(found, adapters, key=jax.random.key(seed))
    return shapes._replace(params=found.params)


def _refuse_not_finite(source: str, params: Any) -> None:
    """A rate cannot be the reason for what the parameters already are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (is_finite := jnp.isfinite(leaf)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the model in {source} has parameters that are no numbers: {name} has "
                f"{int((~is_finite).sum())} of {leaf.size} that are NaN or infinite. "
                "Get or make it anew"
            )


def find_regime(objective: Objective, source: str) -> str | None:
    """Which published signatures a run is to be compared with, by loss and start."""
    regimes = {("chosen",): "sft", ("chosen", "rejected"): "sft_extend"}
    if objective.loss == "sft":
        return regimes.get(objective.target)
    if objective.loss not in ("dpo", "sigmoid"):
        return None
    folder = Path(source)
    before = open_run(folder).config["settings"] if is_run(folder) else {}
    if "loss" not in before:
        return "dpo_from_base"
    after = {"sft": "dpo_after_sft", "sft_extend": "dpo_after_extend"}
    return after.get(before.get("regime") or "")


def base_settings(
    size: str, texts: Texts, *, seed: int, cache: Path, smoke: bool
) -> pretraining.Config:
    """How a base model is pretrained, and in `out` where it is kept."""
    files, field = _pretraining_text(texts)
    settings = pretraining.Config(
        text=files,
        field=field,
        world=texts.world,
        preset=size,
        seed=seed,
        resume=True,
        smoke=smoke,
    ).resolved()
    # Everything the model depends on, the text by its content.
    key = kept(settings) | {"out": "", "text": ""}
    asked = json.dumps(key, default=str, sort_keys=True)
    name = digest([asked, *(path.read_bytes() for path in settings.text)])[:16]
    return dataclasses.replace(settings, out=cache / f"base-{name}")


def _pretraining_text(texts: Texts) -> tuple[tuple[Path, ...], str]:
    """The files that a base model is pretrained on, and the column in them."""
    if texts.data == "toy":
        return (), "prompt"
    path = Path(texts.data)
    data = open_data(path, split=texts.split)
    field = "prompt" if any("prompt" in row.content for row in data.records) else "text"
    values = [row.content.get(field) for row in data.records]
    if not any(isinstance(value, str) for value in values):
        raise ValueError(
            f"a base model is pretrained on the prompts of {path}, which are no texts "
            "of their own: they are messages, or stand in the responses. Say with "
            "`model` what to start from"
        )
    return find_files(path, split=texts.split).files, field


def cached_base(
    size: str, texts: Texts, *, seed: int, cache: Path, smoke: bool
) -> Path:
    """The folder of the pretrained base model; pretrains it if it is not there."""
    settings = base_settings(size, texts, seed=seed, cache=cache, smoke=smoke)
    folder = settings.out
    try:
        load(folder)  # all of it: a base that is damaged is made anew
    except FileNotFoundError:
        pretraining.pretrain(settings)
    except ValueError as error:
        _log.warning("%s It is pretrained, from where it can go on.", error)
        if not _can_go_on(folder):
            shutil.rmtree(folder)
        pretraining.pretrain(settings)
    return folder


def _can_go_on(folder: Path) -> bool:
    """Whether settings and checkpoints of a base model in the cache can be read."""
    try:
        run = open_run(folder)
        Checkpoints(run.path / "checkpoints").restore()
        return bool(run.config)
    except (OSError, ValueError):
        return False


def base_of(source: str) -> str:
    """Where the model without adapters is, as PEFT's layout has it."""
    folder = Path(source)
    if folder.is_file():
        return str(folder.resolve())
    if not folder.is_dir():
        return source
    for place in (folder, folder / "adapter"):
        if is_adapter_folder(place):
            return AdapterFolder(place).base
    return str(folder.resolve())
