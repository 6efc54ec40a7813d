"""A finetuning run that is taken again, from its folder: the same bits or a reason.

What it was made of is read anew and compared with what the run says of it: the texts it
watched, the digests of its parameters and training rows, what its program depends on.
That the updates are the same is then proved by its checkpoints (see
`ldjax.origins.account`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldjax.finetune.conclude import probe_lines
from ldjax.finetune.ledger.settings import Places, settings_of
from ldjax.finetune.prepare import Prepared, prepare
from ldjax.finetune.run import make_batches, make_updates, program_of
from ldjax.finetune.settings.config import Config
from ldjax.finetune.start import base_settings
from ldjax.models import PRESETS as MODELS
from ldjax.origins import Known, Training, Trajectory
from ldjax.progress import progress
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import Run
from ldjax.runs.loop import make_batch_fn
from ldjax.watch.probes import Probe
from ldjax.watch.record import (
    PROBES_FILE,
    TRAIN,
    observed_name,
    read_probe_lines,
    row_name,
)

__all__ = ["Replay", "rebuild"]


class Replay(NamedTuple):
    """A run that can be taken again.

    Attributes:
      training: How it was trained.
      trajectory: Its updates.
      probes: All responses that it watched.
      tracked: The names of the prompts whose responses it tracked.
      max_length: Length of the longest prompt and response, in tokens.
      examples: By name what is trained on: `prompt`, and under `sides` the texts.
    """

    training: Training
    trajectory: Trajectory
    probes: Sequence[Probe]
    tracked: frozenset[str]
    max_length: int
    examples: Mapping[str, Mapping[str, Any]]


def rebuild(run: Run, places: Places, updates: int | None) -> Replay:
    """A finetuning run as it was before its first update.

    Args:
      run: The run.
      places: Where things are that were moved.
      updates: How many of its updates to take again; None for all.

    Raises:
      FileNotFoundError: If something that it was made of is not there.
      MemoryError: If the run does not fit.
      ValueError: If it is no finetuning run, has not come so far, or is not what it was
        any more.
    """
    kept = run.config["settings"]
    settings = settings_of(run, places)
    program = kept.get("program", {})
    _refuse_elsewhere(run, program)
    num_steps, known = _how_far(run, kept["num_steps"], updates)
    _refuse_without_base(run, settings)
    with progress("reading the data and the model"):
        prepared = prepare(settings)
    _refuse_changed(run, settings, prepared)
    batch_fn, _ = make_batches(settings, prepared)
    probes_at_a_time = program.get("probes", prepared.plan.probes)
    init, step_fn, made_of = make_updates(settings, prepared, probes_at_a_time)
    start = init(prepared.base.params, batch_fn(0))
    examples = _examples(settings, prepared)
    names = np.array([*examples])
    places_of = make_batch_fn(
        np.arange(len(names)), batch_size=settings.recipe.batch_size, seed=settings.seed
    )
    checkpoints = Checkpoints(run.path / "checkpoints")
    for step in known:  # a damaged one is told now, not when the replay comes to it
        checkpoints.read(step, start)
    trajectory = Trajectory(
        num_steps=num_steps,
        start=start,
        step_fn=step_fn,
        batch_fn=batch_fn,
        training_of=lambda state: state.training,
        names_of=lambda step: names[places_of(step)].tolist(),
        known=Known(known, lambda step: checkpoints.read(step, start).state),
    )
    watched = prepared.watched
    return Replay(
        Training(**made_of),
        trajectory,
        watched.observed.probes,
        frozenset(observed_name(p.prompt_name) for p in watched.tracked.probes),
        watched.max_length,
        examples,
    )


def _refuse_elsewhere(run: Run, program: Mapping[str, Any]) -> None:
    """Refuse to take a run again where other bits would come out."""
    here = program_of(program.get("probes", 0))
    differences = [
        f"{name} was {program[name]!r} and is {here[name]!r}"
        for name in here
        if name in program and program[name] != here[name]
    ]
    if differences:
        raise ValueError(
            f"{run.path} was computed another way: {'; '.join(differences)}. A ledger "
            "needs the bits of the run: start it on as many devices, with the settings "
            "of JAX and the environment that the run had"
        )


def _how_far(run: Run, whole: int, asked: int | None) -> tuple[int, list[int]]:
    """How many updates to take again, and the checkpoints among them."""
    steps = Checkpoints(run.path / "checkpoints").steps()
    newest = max(steps, default=0)
    go_on = "to finish it, finetune again with `resume=True`"
    if asked is None and newest < whole:
        part = f"; `updates={newest}` accounts for these alone" if newest else ""
        raise ValueError(
            f"the run in {run.path} has checkpoints of {newest} of its {whole} updates:"
            f" {go_on}{part}"
        )
    num_steps = whole if asked is None else asked
    if num_steps > newest:
        raise ValueError(
            f"`updates` must be at most {newest}, which the checkpoints of {run.path} "
            f"come to, got {asked}; {go_on}"
        )
    return num_steps, [step for step in steps if step <= num_steps]


def _refuse_without_base(run: Run, settings: Config) -> None:
    """Refuse to pretrain a base model: it would take long, and be another one."""
    size = settings.model.model
    if settings.init is not None or size not in MODELS:
        return
    folder = base_settings(
        size,
        settings.texts,
        seed=settings.seed,
        cache=settings.cache,
        smoke=settings.smoke,
    ).out
    if not folder.is_dir():
        of_texts = ""
        if settings.texts.data != "toy":
            of_texts = f", or {settings.texts.data} has changed since"
        raise FileNotFoundError(
            f"the base model that {run.path} started from is not in {settings.cache} "
            f"({folder.name}): say with `cache` where it is{of_texts}"
        )


def _refuse_changed(run: Run, settings: Config, prepared: Prepared) -> None:
    """Refuse what is not, to the bit, what the run was made of."""
    kept = run.config["settings"]
    found, then = prepared.fingerprints, kept["fingerprints"]
    if found["start"] != then["start"]:
        raise ValueError(
            f"{prepared.base.source} holds other parameters than {run.path} started "
            "from: say with `init`, or `model`, where these are"
        )
    is_same = found["rows"] == then["rows"] and prepared.num_steps == kept["num_steps"]
    if not is_same:
        raise ValueError(
            f"the training rows of {run.path} are not what they were: "
            f"{settings.texts.data} has changed since. Put it back, or say with `data` "
            "where the rows are"
        )
    there, here = read_probe_lines(run.path), [*map(json.loads, probe_lines(prepared))]
    texts = there and [{name: line[name] for name in there[0]} for line in here]
    if there != texts:
        raise ValueError(
            f"{run.path / PROBES_FILE} has other responses than would be watched now: "
            "held-out prompts (`test_data`) or the model that chosen_initial is "
            "sampled from (`initial_from`) have changed since. Put them back, or say "
            "where they are"
        )


def _examples(settings: Config, prepared: Prepared) -> dict[str, dict[str, Any]]:
    """What the training rows say, in their order, by the names of their prompts."""
    objective, texts = settings.objective, prepared.watched.texts.train
    sides = {"chosen": "chosen", "rejected": "rejected"}
    examples = {}
    for place, row in enumerate(texts):
        name = row_name(TRAIN, place)
        prompt, texts_of = prepared.encode.texts(row)
        of_sides = {name: sides}
        if not objective.has_pairs:
            several = len(objective.target) > 1
            of_sides = {
                f"{name}:{type_}" if several else name: {"update": type_}
                for type_ in objective.target
            }
        for name, types in of_sides.items():
            said = {side: texts_of[type_] for side, type_ in types.items()}
            examples[name] = {"prompt": prompt, "sides": said}
    return examples
