"""What a finetuning run starts from: base model, data, training rows and probes."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from finetune_config import HUB_DATA, Config
from finetune_data import (
    Data,
    Encoder,
    add_initial,
    file_data,
    hub_data,
    make_probes,
    toy_data,
    training_rows,
)
from finetune_memory import Plan, plan_memory
from finetune_start import Base, find_regime, find_start, load_base

from ldjax.data.preferences import RESPONSE_TYPES, PreferenceRow
from ldjax.data.responses import to_examples
from ldjax.data.world import make_world
from ldjax.probes import Probe, ProbeSet
from ldjax.reference import fingerprint

__all__ = ["Setup", "check_fits", "make_encoder", "make_setup"]

_LONGEST_SAMPLE = 64


class Setup(NamedTuple):
    """What the updates and the observations need.

    Attributes:
      base: The model the run starts from.
      source: Where it is, as `ldjax.models.load` takes it.
      regime: Which published signatures the run is to be compared with, if any.
      data: The texts, with `chosen_initial` where they are watched.
      rows: Training rows.
      max_length: Of the longest prompt and response, in tokens.
      num_steps: Number of updates.
      observed: Probes of the schedule.
      tracked: Probes of every update.
      everything: All there is, if asked for.
      memory: What the run takes, and how many probes at a time.
      counts: How many texts there are and how many were cut.
      fingerprints: Of parameters and training rows.
    """

    base: Base
    source: str
    regime: str | None
    data: Data
    rows: Any
    max_length: int
    num_steps: int
    observed: ProbeSet
    tracked: ProbeSet
    everything: ProbeSet | None
    memory: Plan
    counts: dict[str, int]
    fingerprints: dict[str, str]


def make_setup(config: Config) -> Setup:
    """Everything a run needs, as its settings say; nothing is written but the cache.

    Raises:
      MemoryError: Before any weights are read, if the run does not fit.
    """
    data = load_data(config)
    source = find_start(config)
    encode, max_length, memory = check_fits(config, data, source)
    base = load_base(config, source)
    train_places = choose(data.train, config.probe_prompts, config.seed)
    test_places = choose(data.test, (config.probe_prompts + 1) // 2, config.seed)
    sampler = base
    if config.initial_from:
        sampler = load_base(config, config.initial_from)

    def with_initial(rows: list[PreferenceRow], places: Sequence[int]) -> Any:
        watched = range(len(rows)) if config.observe_all else places
        filled = add_initial(
            [rows[i] for i in watched],
            sampler,
            encode,
            max_new_tokens=min(_LONGEST_SAMPLE, max_length // 2),
            batch_size=memory.probes,
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
        also=data.test,
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
        source=source,
        regime=find_regime(config, source),
        data=data,
        rows=rows,
        max_length=max_length,
        num_steps=max(1, round(config.epochs * steps_per_epoch)),
        observed=make_set(observed, batch_size=memory.probes),
        tracked=make_set(tracked, batch_size=None),
        everything=make_set(everything, batch_size=memory.probes)
        if config.observe_all
        else None,
        memory=memory,
        counts=counts,
        fingerprints={"start": fingerprint(base.params), "rows": fingerprint(rows)},
    )


def check_fits(config: Config, data: Data, source: str) -> tuple[Encoder, int, Plan]:
    """How texts are read, the longest example, and the memory that a run will take.

    Raises:
      FileNotFoundError: If there is no such model.
      MemoryError: If the run does not fit; no weights have been read yet.
      ValueError: If the model, or its tokenizer, cannot be read.
    """
    shapes = load_base(config, source, shapes_only=True)
    encode, max_length = make_encoder(config, shapes, data)
    memory = plan_memory(
        config,
        shapes,
        max_length=max_length,
        num_tracked=config.tracked * len(RESPONSE_TYPES),
    )
    return encode, max_length, memory


def load_data(config: Config) -> Data:
    """The texts that are asked for."""
    if config.data == "toy":
        return toy_data(make_world(config.world, seed=config.seed))
    required = {"chosen", *config.target} | (
        {"rejected"} if config.has_pairs else set()
    )
    train, test = Path(config.data), config.test_data
    if config.data == HUB_DATA:
        # Rows that are left out must be the same ones whatever is trained.
        required |= {"chosen", "rejected"}
        train, its_test = hub_data()
        test = test or its_test
    return file_data(
        train,
        test,
        max_rows=config.max_rows,
        required=tuple(name for name in RESPONSE_TYPES if name in required),
        on_bad_row=config.on_bad_row,
        blank=config.blank,
        seed=config.seed,
    )


def make_encoder(config: Config, base: Base, data: Data) -> tuple[Encoder, int]:
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
        start_document=config.document_start,
        leading_space=config.leading_space,
        special_tokens=config.special_tokens,
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


def _replaced(rows: Sequence[Any], replacements: dict[int, Any]) -> list[Any]:
    return [replacements.get(place, row) for place, row in enumerate(rows)]
