"""What a comparison watches: responses of a file, of a run, or of the toy world."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.tokenizers import Tokenizer
from ldjax.finetune.probes import make_probes
from ldjax.finetune.settings.records import Objective, Texts, Tokens
from ldjax.finetune.start import Base
from ldjax.finetune.texts import Encoder, load_texts
from ldjax.models import Transformer
from ldjax.watch.probes import Probe, ProbeSet
from ldjax.watch.record import (
    PROBES_FILE,
    TRACKED,
    TRAIN,
    probe_line,
    prompt_of,
    read_probe_lines,
    set_of,
    tracked_name,
)

__all__ = ["Watched", "given_ids", "own_texts", "tracked", "watched_texts"]


class Watched(NamedTuple):
    """What is watched.

    Attributes:
      probes: The responses.
      lines: What they say, as the lines of `probes.jsonl`.
      encode: How texts are read; None where token ids were given.
      source: Where they were found, in words.

    Examples:
      >>> from ldjax.data.batches import Example
      >>> print(given_ids([Probe("0", "chosen", Example((1,), (2,)))], batch_size=8))
      1 responses to 1 prompts, given as token ids
    """

    probes: ProbeSet
    lines: tuple[str, ...]
    encode: Encoder | None
    source: str

    def __str__(self) -> str:
        probes = self.probes.probes
        prompts = len({probe.prompt_name for probe in probes})
        return f"{len(probes)} responses to {prompts} prompts, {self.source}"


def watched_texts(
    source: Path | None,
    *,
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Texts,
    tokens: Tokens,
    prompts: int,
    batch_size: int,
    seed: int,
) -> Watched:
    """The responses that are watched.

    Args:
      source: A file of responses, or the folder of a run, whose own are taken; None for
        those of the toy world.
      model: What reads them.
      tokenizer: That of the model.
      texts: How a file is read.
      tokens: How texts are read as tokens.
      prompts: Most prompts that are watched, the first ones.
      batch_size: Responses that are computed at a time.
      seed: Of the toy world.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If there are no responses in it, or one cannot be read.
    """
    base = Base(model, model, None, tokenizer)
    encode = Encoder.of(tokens, base)
    rows, where = _rows(source, texts, encode, seed)
    rows = rows[:prompts]
    probes = make_probes(TRAIN, rows, range(len(rows)), encode, RESPONSE_TYPES)
    said = [(*encode.texts(row), row.source) for row in rows]
    lines = [
        probe_line(named, prompt, responses[probe.type], source=source)
        for probe in probes
        for prompt, responses, source in [said[int(prompt_of(probe.prompt_name))]]
        for named in (probe, tracked(probe))
    ]
    return Watched(_batches(probes, batch_size), tuple(lines), encode, where)


def given_ids(probes: Sequence[Probe], *, batch_size: int) -> Watched:
    """Responses that are token ids already.

    Args:
      probes: The responses.
      batch_size: Responses that are computed at a time.

    Raises:
      ValueError: If there are none, or one cannot be scored.
    """
    if not probes:
        raise ValueError("`probes` are none: give at least one response to watch.")
    return Watched(_batches(probes, batch_size), (), None, "given as token ids")


def own_texts(model: Path) -> Path | None:
    """The run that a model comes from, if it says what it watched.

    Args:
      model: A folder, such as that of a run or of one of its checkpoints.
    """
    near = (model.expanduser(), *model.expanduser().parents[:2])
    return next((path for path in near if (path / PROBES_FILE).is_file()), None)


def tracked(probe: Probe) -> Probe:
    """A response under the name by which changes are recorded."""
    return probe._replace(prompt_name=tracked_name(probe.prompt_name))


def _batches(probes: Sequence[Probe], batch_size: int) -> ProbeSet:
    longest = max(probe.example.check() for probe in probes)
    size = min(batch_size, len(probes))
    return ProbeSet.of(probes, max_length=longest, batch_size=size)


def _rows(
    source: Path | None, texts: Texts, encode: Encoder, seed: int
) -> tuple[list[PreferenceRow], str]:
    if source is None:
        return load_texts(texts, Objective(), seed=seed).train, "the toy world"
    if source.is_dir() and (source / PROBES_FILE).is_file():
        return _of_run(source), f"the responses that {source} watches"
    of_file = dataclasses.replace(texts, data=str(source))
    found = load_texts(of_file, Objective(), seed=seed).read_by(encode)
    return found.train, str(source)


def _of_run(run: Path) -> list[PreferenceRow]:
    """The prompts that a run watched, each with its responses."""
    try:
        lines = read_probe_lines(run)
    except (ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{run / PROBES_FILE}: {error}") from error
    prompts: dict[str, tuple[str, dict[str, str]]] = {}
    for line in lines:
        if set_of(name := line["probe"]) != TRACKED:
            _, responses = prompts.setdefault(name, (line["prompt"], {}))
            responses[line["type"]] = line["text"]
    return [
        PreferenceRow(prompt, responses, f"{run / PROBES_FILE}:{name}")
        for name, (prompt, responses) in prompts.items()
    ]
