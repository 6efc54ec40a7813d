"""The model a run starts from: pretrained here, of a run, of a folder or the hub."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldjax.data.tokenizers import Tokenizer
from ldjax.files.digests import digest
from ldjax.finetune.pretrain import run as pretrain
from ldjax.finetune.settings import Config
from ldjax.memory import default_limit, human_bytes
from ldjax.models import PRESETS, LowRank, Pretrained, Transformer, add_adapters, load
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
    "cached_base",
    "find_regime",
    "find_start",
    "load_base",
]


class Base(NamedTuple):
    """A model with a tokenizer, ready to be trained and watched.

    Attributes:
      model: The decoder; it computes in float32, as everything that is watched does.
      trained_model: The same decoder with the run's `--dtype`.
      params: All its parameters.
      tokenizer: Its tokenizer.
    """

    model: Transformer
    trained_model: Transformer
    params: Any
    tokenizer: Tokenizer

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


def find_start(config: Config) -> str:
    """What `ldjax.models.load` is to load; a base model is pretrained if need be."""
    if config.init is not None:
        if not config.init.is_dir():
            raise FileNotFoundError(f"there is no folder {config.init}")
        return str(config.init)
    return str(cached_base(config)) if config.model in PRESETS else config.model


def load_base(config: Config, source: str, *, shapes_only: bool = False) -> Base:
    """The model a run starts from, with fresh adapters if they are asked for.

    Raises:
      FileNotFoundError: If there is no such model.
      MemoryError: If its parameters alone do not fit.
      ValueError: If it has no tokenizer, cannot be read, or is not of finite numbers.
    """
    if not shapes_only:
        _refuse_too_large(source)
    found = load(source, shapes_only=shapes_only)
    tokenizer = found.tokenizer
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer.json to read texts with")
    if not shapes_only:
        _refuse_not_finite(source, found.params)
    if config.lora_rank:
        found = _adapted(config, found, shapes_only=shapes_only)
    trained = Transformer(dataclasses.replace(found.config, dtype=config.dtype))
    return Base(found.model, trained, found.params, tokenizer)


def _refuse_too_large(source: str) -> None:
    shapes = jax.tree.leaves(load(source, shapes_only=True).params)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    if needed > (limit := default_limit()):
        raise MemoryError(
            f"the parameters of {source} take {human_bytes(needed)}; there are "
            f"{human_bytes(limit)} to use. Choose a smaller --model"
        )


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


def find_regime(config: Config, start: str) -> str | None:
    """Which published signatures a run of these settings is to be compared with."""
    regimes = {("chosen",): "sft", ("chosen", "rejected"): "sft_extend"}
    if config.loss == "sft":
        return regimes.get(config.target)
    if config.loss not in ("dpo", "sigmoid"):
        return None
    folder = Path(start)
    before = open_run(folder).config["settings"] if is_run(folder) else {}
    if "loss" not in before:
        return "dpo_from_base"
    after = {"sft": "dpo_after_sft", "sft_extend": "dpo_after_extend"}
    return after.get(before.get("regime") or "")


def cached_base(config: Config) -> Path:
    """The folder of the pretrained base model; pretrains it if it is not there."""
    settings = pretrain.Config(
        text=() if config.data == "toy" else (Path(config.data),),
        field="prompt",
        world=config.world,
        preset=config.model,
        seed=config.seed,
        resume=True,
        smoke=config.smoke,
    ).resolved()
    # Everything the model depends on, the text by its content.
    key = dataclasses.asdict(settings) | {"out": "", "text": ""}
    asked = json.dumps(key, default=str, sort_keys=True)
    name = digest([asked, *(path.read_bytes() for path in settings.text)])[:16]
    folder = config.cache / f"base-{name}"
    try:
        load(folder)  # all of it: a base that is damaged is made anew
    except FileNotFoundError:
        pretrain.main(dataclasses.replace(settings, out=folder))
    except ValueError as error:
        print(f"{error} It is pretrained, from where it can go on.", flush=True)
        if not _can_go_on(folder):
            shutil.rmtree(folder)
        pretrain.main(dataclasses.replace(settings, out=folder))
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
    if not folder.is_dir():
        return source
    for place in (folder, folder / "adapter"):
        if is_adapter_folder(place):
            return AdapterFolder(place).base
    return str(folder.resolve())


def _adapted(config: Config, base: Pretrained, *, shapes_only: bool) -> Pretrained:
    if (found := base.config.adapters) is not None:
        raise ValueError(
            f"the model has adapters of rank {found.rank} already, which are trained "
            "without --lora-rank"
        )
    adapters = LowRank(
        rank=config.lora_rank,
        alpha=config.lora_alpha or config.lora_rank,
        targets=adapter_targets(base.config, config.lora_targets),
    )
    if shapes_only:
        return with_adapters(base, adapters)
    return add_adapters(base, adapters, key=jax.random.key(config.seed))
