"""What a finetuning run starts from: base model, data, training rows and probes."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ldjax.command.options import COUNT
from ldjax.data.batches import Example
from ldjax.data.preferences import PreferenceRow
from ldjax.data.reference import fingerprint
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.responses import to_examples
from ldjax.data.world.world import make_world
from ldjax.finetune.budget import Plan, plan_memory
from ldjax.finetune.rows import (
    Data,
    Encoder,
    add_initial,
    file_data,
    hub_data,
    make_probes,
    toy_data,
    training_rows,
)
from ldjax.finetune.settings import HUB_DATA, Config
from ldjax.finetune.start import Base, find_regime, find_start, load_base
from ldjax.progress import progress
from ldjax.watch.probes import Probe, ProbeSet
from ldjax.watch.record import TEST, TRACKED, TRAIN

__all__ = [
    "Lengths",
    "Setup",
    "check_fits",
    "describe",
    "make_encoder",
    "make_setup",
    "notes",
]

_LONGEST_SAMPLE = 64
_LONGEST_CUT_PROMPT = 256


class Lengths(NamedTuple):
    """How long texts may be, and are, in tokens.

    Attributes:
      limit: Of prompt and response together.
      prompt_limit: Of a prompt that has to be cut.
      given: Of the longest prompt and response of the data.
      sample: Of a response that is sampled, without its END.
      bound: Of the longest prompt and response with those that are still to be sampled,
        at most.
    """

    limit: int
    prompt_limit: int
    given: int
    sample: int
    bound: int


class Setup(NamedTuple):
    """What the updates and the observations need.

    Attributes:
      base: The model the run starts from.
      source: Where it is, as `ldjax.models.load` takes it.
      regime: Which published signatures the run is to be compared with, if any.
      data: The texts, with `chosen_initial` where they are watched.
      rows: Training rows.
      max_length: Of the longest prompt and response, in tokens.
      lengths: What it was decided by.
      num_steps: Number of updates.
      observed: Probes of the schedule.
      tracked: Probes of every update.
      everything: All there is, if asked for.
      memory: What the run takes, and how many probes at a time.
      counts: How many texts there are and how many were cut.
      left_out: Response types that could not be made, and of how many prompts.
      fingerprints: Of parameters and training rows.
    """

    base: Base
    source: str
    regime: str | None
    data: Data
    rows: Any
    max_length: int
    lengths: Lengths
    num_steps: int
    observed: ProbeSet
    tracked: ProbeSet
    everything: ProbeSet | None
    memory: Plan
    counts: dict[str, int]
    left_out: dict[str, int]
    fingerprints: dict[str, str]


def make_setup(config: Config) -> Setup:
    """Everything a run needs, as its settings say; nothing is written but the cache.

    Raises:
      MemoryError: Before any weights are read, if the run does not fit.
    """
    data = load_data(config)
    source = find_start(config)
    encode, lengths, memory = check_fits(config, data, source)
    base = load_base(config, source)
    train_places = choose(data.train, config.probe_prompts, config.seed)
    test_places = choose(data.test, (config.probe_prompts + 1) // 2, config.seed)
    sampler = base
    if config.initial_from:
        sampler = load_base(config, config.initial_from)
    max_length = lengths.given

    def with_initial(rows: list[PreferenceRow], places: Sequence[int]) -> Any:
        nonlocal max_length
        watched = range(len(rows)) if config.observe_all else places
        model = sampler.model.config
        room = model.max_positions - lengths.sample + 1
        if model.positions == "learned":
            watched = [i for i in watched if prompt_length(rows[i], encode) <= room]
        with progress("sampling chosen_initial"):
            filled = add_initial(
                [rows[i] for i in watched],
                sampler,
                encode,
                max_new_tokens=lengths.sample,
                batch_size=memory.probes,
                seed=config.seed,
            )
        max_length = max(max_length, longest(filled, encode))
        return _replaced(rows, dict(zip(watched, filled, strict=True)))

    data = data._replace(
        train=with_initial(data.train, train_places),
        test=with_initial(data.test, test_places),
    )
    watched = [
        *(data.train[place] for place in train_places),
        *(data.test[place] for place in test_places),
    ]
    count = sum("chosen_initial" not in row.responses for row in watched)
    not_sampled = {"chosen_initial": count} if count else {}
    rows, counts = training_rows(
        data.train,
        encode,
        target=None if config.has_pairs else config.target,
        also=data.test,
        max_length=max_length,
    )
    num_steps = count_steps(config, len(jax.tree.leaves(rows)[0]))

    def probes(name: str, rows: Any, places: Sequence[int]) -> list[Probe]:
        return make_probes(name, rows, places, encode, RESPONSE_TYPES)

    make_set = functools.partial(ProbeSet.of, max_length=max_length)
    observed = probes(TRAIN, data.train, train_places)
    observed += probes(TEST, data.test, test_places)
    tracked = probes(TRACKED, data.train, train_places[: config.tracked])
    everything = []
    if config.observe_all:
        everything += probes(TRAIN, data.train, range(len(data.train)))
        everything += probes(TEST, data.test, range(len(data.test)))
    return Setup(
        base=base,
        source=source,
        regime=find_regime(config, source),
        data=data,
        rows=rows,
        max_length=max_length,
        lengths=lengths,
        num_steps=num_steps,
        observed=make_set(observed, batch_size=memory.probes),
        tracked=make_set(tracked, batch_size=None),
        everything=make_set(everything, batch_size=memory.probes)
        if config.observe_all
        else None,
        memory=memory,
        counts=counts,
        left_out=data.summary.get("left_out", {}) | not_sampled,
        fingerprints={"start": fingerprint(base.params), "rows": fingerprint(rows)},
    )


def check_fits(
    config: Config, data: Data, source: str
) -> tuple[Encoder, Lengths, Plan]:
    """How texts are read, how long they are, and the memory that a run will take.

    Raises:
      FileNotFoundError: If there is no such model.
      MemoryError: If the run does not fit; no weights have been read yet.
      ValueError: If the model, or its tokenizer, cannot be read.
    """
    shapes = load_base(config, source, shapes_only=True)
    encode = make_encoder(config, shapes)
    lengths = find_lengths(config, shapes, data, encode)
    memory = plan_memory(
        config,
        shapes,
        max_length=lengths.bound,
        num_tracked=config.tracked * len(RESPONSE_TYPES),
    )
    return encode, lengths, memory


def count_steps(config: Config, num_rows: int) -> int:
    """The updates of a run.

    Raises:
      ValueError: If there are no rows for one, or more of them than can be counted.
    """
    if config.batch_size > num_rows:
        raise ValueError(
            f"--batch-size must be at most the number of training examples, {num_rows},"
            f" got {config.batch_size}"
        )
    num_steps = max(1, round(config.epochs * (num_rows // config.batch_size)))
    if num_steps > COUNT.most:
        raise ValueError(
            f"--epochs {config.epochs:g} of {num_rows} examples are {num_steps:.3g} "
            f"updates; there can be at most {COUNT.most:g}"
        )
    return num_steps


def describe(config: Config, setup: Setup) -> str:
    """One line before the training starts."""
    counts = setup.counts
    memory = f"{setup.memory}\n" if setup.memory.parts else ""
    line = (
        f"{memory}{config.loss} of {setup.base.num_params:,} parameters on "
        f"{counts['num_prompts']:,} prompts ({counts['num_prompts_cut']} cut, "
        f"{counts['num_responses_cut']} responses cut to {setup.max_length} tokens): "
        f"{setup.num_steps} updates; "
        f"{len(setup.observed.probes):,} responses observed, "
        f"{len(setup.tracked.probes)} tracked"
    )
    return "\n".join([line, *(f"note: {note}" for note in notes(config, setup))])


def notes(config: Config, setup: Setup) -> list[str]:
    """Where a run is not quite what was asked for, since its data do not allow it."""
    num_train, num_steps = len(setup.data.train), setup.num_steps
    model = setup.base.model.config
    left_out = [f"{type_} of {count}" for type_, count in setup.left_out.items()]
    positions = f"the model has {model.max_positions} positions"
    found = {
        f"cannot be made and are left out: {', '.join(left_out)} prompts": left_out,
        f"--probe-prompts {config.probe_prompts}: there are {num_train} to watch": (
            config.probe_prompts > num_train
        ),
        f"--tracked {config.tracked}: there are {num_train} to track": (
            config.tracked > num_train
        ),
        f"--evaluations {config.evaluations}: there are {num_steps} updates": (
            config.evaluations > num_steps
        ),
        f"--token-maps {config.token_maps}: there are {num_steps} updates": (
            config.token_maps > num_steps
        ),
        f"--warmup-steps {config.warmup_steps}: the run ends before, after {num_steps} "
        "updates": config.warmup_steps > num_steps,
        f"--max-length {config.max_length}: {positions}": (
            setup.lengths.limit < config.max_length
            and bool(setup.counts["num_prompts_cut"])
        ),
    }
    return [note for note, applies in found.items() if applies]


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


def make_encoder(config: Config, base: Base) -> Encoder:
    """The tokenisation protocol."""
    limit, prompt_limit = _limits(config, base)
    return functools.partial(
        to_examples,
        tokenizer=base.tokenizer,
        max_length=limit,
        max_prompt_length=prompt_limit,
        start_document=config.document_start,
        leading_space=config.leading_space,
        special_tokens=config.special_tokens,
        keep=config.keep,
    )


def find_lengths(config: Config, base: Base, data: Data, encode: Encoder) -> Lengths:
    """How long texts may be and are, before `chosen_initial` has been sampled."""
    limit, prompt_limit = _limits(config, base)
    encoded = [encode(row).examples for row in (*data.train, *data.test)]
    given = max(_length(example) for row in encoded for example in row.values())
    prompts = [
        len(next(iter(row.values())).prompt_ids)
        for row in encoded
        if "chosen_initial" not in row
    ]
    sample = min(_LONGEST_SAMPLE, given // 2)
    with_sample = max(prompts, default=0) + sample + 1
    bound = max(given, min(limit, with_sample)) if prompts else given
    return Lengths(limit, prompt_limit, given, sample, bound)


def longest(rows: Sequence[PreferenceRow], encode: Encoder) -> int:
    """Tokens of the longest prompt and response."""
    return max(
        (_length(e) for row in rows for e in encode(row).examples.values()), default=0
    )


def prompt_length(row: PreferenceRow, encode: Encoder) -> int:
    """Tokens of the prompt as it is read."""
    return len(next(iter(encode(row).examples.values())).prompt_ids)


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.response_ids)


def _limits(config: Config, base: Base) -> tuple[int, int]:
    """Most tokens of prompt and response, and of a prompt that has to be cut."""
    model, limit = base.model.config, config.max_length
    if model.positions == "learned":  # the last token is not read
        limit = min(limit, model.max_positions + 1)
    prompt_limit = config.max_prompt_length or min(_LONGEST_CUT_PROMPT, limit // 2)
    if prompt_limit >= limit:
        raise ValueError(
            f"--max-prompt-length must be less than {limit}, the most tokens of prompt "
            f"and response that the model has positions for, got {prompt_limit}"
        )
    return limit, prompt_limit


def choose(rows: Sequence[Any], count: int, seed: int) -> list[int]:
    """The places of the rows whose responses are watched."""
    return (
        np.random.default_rng((seed, len(rows))).permutation(len(rows))[:count].tolist()
    )


def _replaced(rows: Sequence[Any], replacements: dict[int, Any]) -> list[Any]:
    return [replacements.get(place, row) for place, row in enumerate(rows)]
