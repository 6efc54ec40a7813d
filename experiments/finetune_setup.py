"""What a finetuning run starts from: base model, data, training rows and probes."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pretrain
from finetune_config import Config
from finetune_data import (
    Data,
    Encoder,
    add_initial,
    file_data,
    make_probes,
    toy_data,
    training_rows,
)

from ldjax.data.preferences import RESPONSE_TYPES, PreferenceRow
from ldjax.data.responses import to_examples
from ldjax.data.world import make_world
from ldjax.models.pretrained import Pretrained, load_pretrained
from ldjax.probes import Probe, ProbeSet
from ldjax.reference import fingerprint
from ldjax.runs import open_run

__all__ = ["Setup", "cached_base", "make_setup"]

_BATCH_OF_PROBES = 96
_LONGEST_SAMPLE = 64


class Setup(NamedTuple):
    """What the updates and the observations need.

    Attributes:
      base: The model the run starts from.
      regime: Which published signatures the run is to be compared with, if any.
      data: The texts, with `chosen_initial` where they are watched.
      rows: Training rows.
      max_length: Of the longest prompt and response, in tokens.
      num_steps: Number of updates.
      observed: Probes of the schedule.
      tracked: Probes of every update.
      everything: All there is, if asked for.
      counts: How many texts there are and how many were cut.
      fingerprints: Of parameters and training rows.
    """

    base: Pretrained
    regime: str | None
    data: Data
    rows: Any
    max_length: int
    num_steps: int
    observed: ProbeSet
    tracked: ProbeSet
    everything: ProbeSet | None
    counts: dict[str, int]
    fingerprints: dict[str, str]


def make_setup(config: Config) -> Setup:
    """Everything a run needs, as its settings say; nothing is written but the cache."""
    data = load_data(config)
    folder = find_start(config)
    base = load_pretrained(folder)
    encode, max_length = make_encoder(config, base, data)
    train_places = choose(data.train, config.probe_prompts, config.seed)
    test_places = choose(data.test, (config.probe_prompts + 1) // 2, config.seed)
    sampler = load_pretrained(config.initial_from) if config.initial_from else base

    def with_initial(rows: list[PreferenceRow], places: Sequence[int]) -> Any:
        watched = range(len(rows)) if config.observe_all else places
        filled = add_initial(
            [rows[i] for i in watched],
            sampler,
            encode,
            max_new_tokens=min(_LONGEST_SAMPLE, max_length // 2),
            seed=config.seed,
        )
        return _replaced(rows, dict(zip(watched, filled, strict=True)))

    data = data._replace(
        train=with_initial(data.train, train_places),
        test=with_initial(data.test, test_places),
    )
    rows, counts = training_rows(
        data.train,
        encode,
        target=None if config.has_pairs else config.target,
        max_length=max_length,
    )
    num_rows = len(jax.tree.leaves(rows)[0])
    steps_per_epoch = num_rows // config.batch_size

    def probes(name: str, rows: Any, places: Sequence[int]) -> list[Probe]:
        return make_probes(name, rows, places, encode, RESPONSE_TYPES)

    make_set = functools.partial(ProbeSet.of, max_length=max_length)
    observed = probes("train", data.train, train_places)
    observed += probes("test", data.test, test_places)
    tracked = probes("tracked", data.train, train_places[: config.tracked])
    everything = []
    if config.observe_all:
        everything += probes("train", data.train, range(len(data.train)))
        everything += probes("test", data.test, range(len(data.test)))
    return Setup(
        base=base,
        regime=find_regime(config, folder),
        data=data,
        rows=rows,
        max_length=max_length,
        num_steps=max(1, round(config.epochs * steps_per_epoch)),
        observed=make_set(observed, batch_size=_BATCH_OF_PROBES),
        tracked=make_set(tracked, batch_size=None),
        everything=make_set(everything, batch_size=_BATCH_OF_PROBES)
        if config.observe_all
        else None,
        counts=counts,
        fingerprints={"start": fingerprint(base.params), "rows": fingerprint(rows)},
    )


def load_data(config: Config) -> Data:
    """The texts that are asked for."""
    if config.data == "toy":
        return toy_data(make_world(config.world, seed=config.seed))
    required = {"chosen", *config.target} | (
        {"rejected"} if config.has_pairs else set()
    )
    return file_data(
        Path(config.data),
        config.test_data,
        required=tuple(name for name in RESPONSE_TYPES if name in required),
        on_bad_row=config.on_bad_row,
        blank=config.blank,
        seed=config.seed,
    )


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
    digest = hashlib.sha256(json.dumps(key, default=str, sort_keys=True).encode())
    for path in settings.text:
        digest.update(path.read_bytes())
    folder = config.cache / f"base-{digest.hexdigest()[:16]}"
    try:
        load_pretrained(folder)
    except (FileNotFoundError, ValueError):  # not there, or not complete
        pretrain.main(dataclasses.replace(settings, out=folder))
    return folder


def make_encoder(config: Config, base: Pretrained, data: Data) -> tuple[Encoder, int]:
    """The tokenisation protocol, and the length of the longest example under it."""
    model = base.model.config
    limit = config.max_length
    if model.positions == "learned":  # the last token is not read
        limit = min(limit, model.max_positions + 1)
    encode = functools.partial(
        to_examples,
        tokenizer=base.tokenizer,
        max_length=limit,
        max_prompt_length=min(config.max_prompt_length, limit // 2),
        start_with_end=config.document_start,
        leading_space=config.leading_space,
        keep=config.keep,
    )
    longest = max(
        len(example.prompt_ids) + len(example.response_ids)
        for row in (*data.train, *data.test)
        for example in encode(row).examples.values()
    )
    return encode, longest


def choose(rows: Sequence[Any], count: int, seed: int) -> list[int]:
    """The places of the rows whose responses are watched."""
    return (
        np.random.default_rng((seed, len(rows))).permutation(len(rows))[:count].tolist()
    )


def find_start(config: Config) -> Path:
    """The folder of the run to start from; a base model is pretrained if need be."""
    if config.init is not None:
        return config.init
    given = Path(config.model)
    return given if given.is_dir() else cached_base(config)


def find_regime(config: Config, start: Path) -> str | None:
    """Which published signatures a run of these settings is to be compared with."""
    regimes = {("chosen",): "sft", ("chosen", "rejected"): "sft_extend"}
    if config.loss == "sft":
        return regimes.get(config.target)
    if config.loss not in ("dpo", "sigmoid"):
        return None
    before = open_run(start).config["settings"]
    if "loss" not in before:
        return "dpo_from_base"
    after = {"sft": "dpo_after_sft", "sft_extend": "dpo_after_extend"}
    return after.get(before["regime"])


def _replaced(rows: Sequence[Any], replacements: dict[int, Any]) -> list[Any]:
    return [replacements.get(place, row) for place, row in enumerate(rows)]
