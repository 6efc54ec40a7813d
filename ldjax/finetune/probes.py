"""Who is watched: the typed responses to some prompts, sampled ones among them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.finetune.settings.records import Watch
from ldjax.finetune.start import Base
from ldjax.finetune.texts import Data, Encoder, Lengths
from ldjax.models.decoder.sampling import generate_sampled
from ldjax.progress import progress
from ldjax.watch.probes import Probe, ProbeSet
from ldjax.watch.record import TEST, TRACKED, TRAIN, row_name

__all__ = ["Watched", "add_initial", "choose", "choose_probes", "make_probes"]


class Watched(NamedTuple):
    """Who is watched.

    Attributes:
      texts: The texts, with `chosen_initial` where they are watched.
      observed: Probes of the schedule.
      tracked: Probes of every update.
      everything: Probes of all texts, if asked for.
      max_length: Length of the longest prompt and response, in tokens.
      left_out: Response types that could not be made, and of how many prompts.
    """

    texts: Data
    observed: ProbeSet
    tracked: ProbeSet
    everything: ProbeSet | None
    max_length: int
    left_out: dict[str, int]


def choose_probes(
    watch: Watch,
    texts: Data,
    encode: Encoder,
    lengths: Lengths,
    sampler: Base,
    *,
    batch_size: int,
    seed: int,
) -> Watched:
    """The probes that are asked for, with `chosen_initial` sampled where it lacks.

    Args:
      watch: How many prompts are watched, and how.
      texts: All texts.
      encode: How they are read.
      lengths: How long they are.
      sampler: The model that `chosen_initial` is sampled from.
      batch_size: Responses that are computed at a time.
      seed: Seed of the choice, and of what is sampled.
    """
    of_train = choose(texts.train, watch.probe_prompts, seed)
    of_test = choose(texts.test, (watch.probe_prompts + 1) // 2, seed)

    def with_initial(
        rows: list[PreferenceRow], places: Sequence[int]
    ) -> list[PreferenceRow]:
        watched = range(len(rows)) if watch.observe_all else places
        model = sampler.model.config
        room = model.max_positions - lengths.sample + 1
        if model.positions == "learned":
            watched = [i for i in watched if len(encode.prompt_ids(rows[i])) <= room]
        with progress("sampling chosen_initial"):
            filled = add_initial(
                [rows[i] for i in watched],
                sampler,
                encode,
                max_new_tokens=lengths.sample,
                batch_size=batch_size,
                seed=seed,
            )
        new = dict(zip(watched, filled, strict=True))
        return [new.get(place, row) for place, row in enumerate(rows)]

    texts = texts._replace(
        train=with_initial(texts.train, of_train),
        test=with_initial(texts.test, of_test),
    )
    watched = [
        *(texts.train[place] for place in of_train),
        *(texts.test[place] for place in of_test),
    ]
    lacking = sum("chosen_initial" not in row.responses for row in watched)
    sampled = [row for row in (*texts.train, *texts.test) if _is_sampled(row)]
    max_length = max(lengths.given, encode.longest(sampled))

    def probes(
        name: str, rows: list[PreferenceRow], places: Sequence[int]
    ) -> list[Probe]:
        return make_probes(name, rows, places, encode, RESPONSE_TYPES)

    make_set = functools.partial(ProbeSet.of, max_length=max_length)
    observed = probes(TRAIN, texts.train, of_train)
    observed += probes(TEST, texts.test, of_test)
    everything = None
    if watch.observe_all:
        all_probes = probes(TRAIN, texts.train, range(len(texts.train)))
        all_probes += probes(TEST, texts.test, range(len(texts.test)))
        everything = make_set(all_probes, batch_size=batch_size)
    return Watched(
        texts=texts,
        observed=make_set(observed, batch_size=batch_size),
        tracked=make_set(
            probes(TRACKED, texts.train, of_train[: watch.tracked]), batch_size=None
        ),
        everything=everything,
        max_length=max_length,
        left_out={"chosen_initial": lacking} if lacking else {},
    )


def choose(rows: Sequence[PreferenceRow], count: int, seed: int) -> list[int]:
    """The places of the rows whose responses are watched."""
    return (
        np.random.default_rng((seed, len(rows))).permutation(len(rows))[:count].tolist()
    )


def _is_sampled(row: PreferenceRow) -> bool:
    return isinstance(row.responses.get("chosen_initial"), DrawnText)


def add_initial(
    rows: Sequence[PreferenceRow],
    base: Base,
    encode: Encoder,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[PreferenceRow]:
    """Rows with `chosen_initial`, sampled from the model where they lack it.

    The samples keep the ids that were drawn, and end where the model ends them.
    """
    lacking = [row for row in rows if "chosen_initial" not in row.responses]
    if not lacking:
        return list(rows)
    prompts = [
        list(encode.prompt_ids(row, tokenizer=base.tokenizer)) for row in lacking
    ]
    # A key for each row: what it gets does not depend on how many are drawn at a time.
    rows_of = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = rows_of(jax.random.key(seed), jnp.arange(len(prompts)))
    texts: list[DrawnText] = []
    for start in range(0, len(prompts), batch_size):
        drawn = generate_sampled(
            base.model,
            base.params,
            prompts[start : start + batch_size],
            key=keys[start : start + batch_size],
            max_new_tokens=max_new_tokens,
            eos_id=base.tokenizer.end_ids,
        )
        texts += [DrawnText(ids, base.tokenizer) for ids in drawn.responses()]
    sampled = iter(texts)
    return [
        row
        if "chosen_initial" in row.responses
        else row._replace(responses=row.responses | {"chosen_initial": next(sampled)})
        for row in rows
    ]


def make_probes(
    set_name: str,
    rows: Sequence[PreferenceRow],
    places: Sequence[int],
    encode: Encoder,
    types: Sequence[str],
) -> list[Probe]:
    """The probes of some rows; a row's name is its place in the file."""
    return [
        Probe(row_name(set_name, place), type_, example)
        for place in places
        for type_, example in encode(rows[place]).examples.items()
        if type_ in types
    ]
