"""What a finetuning run needs before its first update, from its settings."""

from typing import Any, NamedTuple

import jax

from ldjax.data.reference import fingerprint
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.templates.shown import ShownExample
from ldjax.finetune.budget import Plan, Work, fits
from ldjax.finetune.probes import Watched, choose_probes
from ldjax.finetune.recipes import WITH_MOMENTUM
from ldjax.finetune.rows import count_steps, shown_first, told_of, training_rows
from ldjax.finetune.settings.config import Config
from ldjax.finetune.settings.records import Model
from ldjax.finetune.start import Base, find_regime, find_start, load_base, load_shapes
from ldjax.finetune.texts import Data, Encoder, Lengths, find_lengths, load_texts
from ldjax.finetune.track.nodes import MOST_NODES

__all__ = ["Fit", "Prepared", "check_fits", "prepare", "read_texts", "start_of"]


class Fit(NamedTuple):
    """A model and texts that fit each other, and the memory.

    Attributes:
      texts: The texts, as the model's chat template has them read.
      base: The model; of its parameters the shapes.
      encode: How texts are read.
      lengths: How long they are.
      plan: The memory that a run takes, and how many probes are computed at a time.
      is_dated: Whether it has room to split history by where it comes from.
    """

    texts: Data
    base: Base
    encode: Encoder
    lengths: Lengths
    plan: Plan
    is_dated: bool


class Prepared(NamedTuple):
    """What the updates and the observations need.

    Attributes:
      base: The model that the run starts from.
      watched: The texts, and who is watched.
      encode: How texts are read.
      rows: Training rows, without what a reference says of them.
      num_steps: Number of updates.
      lengths: How long texts are.
      plan: The memory that the run takes, and how many probes are computed at a time.
      regime: Published signatures that the run is to be compared with, if any.
      counts: How many texts there are and how many were cut.
      shown: The first training examples, decoded, with what is scored marked.
      notes: Where the run is not quite what was asked for, since its data do not allow
        it.
      fingerprints: Digests of parameters and training rows.
      is_dated: Whether history is split by where it comes from.
    """

    base: Base
    watched: Watched
    encode: Encoder
    rows: Any
    num_steps: int
    lengths: Lengths
    plan: Plan
    regime: str | None
    counts: dict[str, int]
    shown: list[ShownExample]
    notes: list[str]
    fingerprints: dict[str, str]
    is_dated: bool

    def without_params(self) -> "Prepared":
        """The same with the shapes of the model's parameters only."""
        return self._replace(base=self.base.without_params())

    @property
    def max_length(self) -> int:
        """Length of the longest prompt and response, in tokens."""
        return self.watched.max_length

    @property
    def left_out(self) -> dict[str, int]:
        """Response types that could not be made, and of how many prompts."""
        return self.watched.texts.summary.get("left_out", {}) | self.watched.left_out

    def told(self, loss: str) -> str:
        """One line before the training starts, and the notes."""
        counts = self.counts
        memory = f"{self.plan}\n" if self.plan.parts else ""
        line = (
            f"{memory}{loss} of {self.base.num_params:,} parameters on "
            f"{counts['num_prompts']:,} prompts ({counts['num_prompts_cut']} cut, "
            f"{counts['num_responses_cut']} responses cut to {self.max_length} tokens):"
            f" {self.num_steps} updates; "
            f"{len(self.watched.observed.probes):,} responses observed, "
            f"{len(self.watched.tracked.probes)} tracked"
        )
        notes = "\n".join(
            [*self.watched.texts.told, line, *(f"note: {n}" for n in self.notes)]
        )
        return notes + told_of(counts)


def start_of(settings: Config) -> str:
    """What `ldjax.models.load` is to load; a base model is pretrained if need be.

    Args:
      settings: Resolved ones.
    """
    assert settings.model.model is not None
    return find_start(
        settings.model.model,
        settings.init,
        settings.texts,
        seed=settings.seed,
        cache=settings.cache,
        smoke=settings.smoke,
    )


def read_texts(settings: Config) -> Data:
    """The texts that are asked for."""
    return load_texts(settings.texts, settings.objective, seed=settings.seed)


def check_fits(settings: Config, texts: Data, source: str) -> Fit:
    """How texts are read, how long they are, and the memory that a run will take.

    Args:
      settings: Resolved ones.
      texts: All texts.
      source: Where the model is.

    Raises:
      FileNotFoundError: If there is no such model.
      MemoryError: If the run does not fit; no weights have been read yet.
      ValueError: If the model, or its tokenizer, cannot be read.
    """
    shapes = load_shapes(source, settings.model)
    encode = Encoder.of(settings.tokens, shapes)
    texts = texts.read_by(encode)
    lengths = find_lengths(texts, encode)
    watch = settings.watch
    work = Work(
        settings.objective,
        settings.recipe,
        max_length=lengths.bound,
        max_response=lengths.response,
        num_tracked=watch.tracked * len(RESPONSE_TYPES),
        watched=None
        if watch.observe_all
        else watch.probe_prompts * len(RESPONSE_TYPES),
        has_sampler=settings.initial_from is not None,
        nodes=(MOST_NODES if watch.nodes is None else watch.nodes) or None,
        is_dated=_wants_dates(settings),
    )
    try:
        plan = fits(shapes, work)
    except MemoryError:
        if watch.history == "dated" or not work.is_dated:
            raise
        work = work._replace(is_dated=False)
        plan = fits(shapes, work)
    return Fit(texts, shapes, encode, lengths, plan, work.is_dated)


def _wants_dates(settings: Config) -> bool:
    """Whether history is split by where it comes from, if there is room."""
    if settings.watch.history != "auto":
        return settings.watch.history == "dated"
    has_momentum = settings.recipe.optimizer in WITH_MOMENTUM
    return settings.objective.has_pairs and has_momentum


def prepare(settings: Config) -> Prepared:
    """Everything a run needs, as its settings say; nothing is written but the cache.

    Args:
      settings: Resolved and checked ones.

    Raises:
      FileNotFoundError: If there is no such model or file.
      MemoryError: If the run does not fit, before any weights are read.
      ValueError: If texts, model or settings cannot be used.
    """
    fit = check_fits(settings, read_texts(settings), start_of(settings))
    shapes, encode, lengths, plan = fit.base, fit.encode, fit.lengths, fit.plan
    base = sampler = load_base(shapes, seed=settings.seed)
    if settings.initial_from is not None:
        there = load_shapes(settings.initial_from, Model())
        sampler = load_base(there, seed=settings.seed)
    watched = choose_probes(
        settings.watch,
        fit.texts,
        encode,
        lengths,
        sampler,
        batch_size=plan.probes,
        seed=settings.seed,
    )
    objective, recipe = settings.objective, settings.recipe
    rows, counts = training_rows(
        watched.texts.train,
        encode,
        target=None if objective.has_pairs else objective.target,
        also=watched.texts.test,
        max_length=watched.max_length,
    )
    prepared = Prepared(
        base=base,
        watched=watched,
        encode=encode,
        rows=rows,
        num_steps=count_steps(
            len(jax.tree.leaves(rows)[0]),
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
        ),
        lengths=lengths,
        plan=plan,
        regime=find_regime(objective, base.source),
        counts=counts,
        shown=shown_first(watched.texts.train, encode, objective.trained),
        notes=[],
        fingerprints={"start": fingerprint(base.params), "rows": fingerprint(rows)},
        is_dated=fit.is_dated,
    )
    return prepared._replace(notes=_notes(settings, prepared))


def _notes(settings: Config, prepared: Prepared) -> list[str]:
    """Where the run is not quite what was asked for."""
    num_train, num_steps = len(prepared.watched.texts.train), prepared.num_steps
    watch, asked = settings.watch, settings.tokens.max_length
    warmup = settings.recipe.warmup_steps
    left_out = [f"{type_} of {count}" for type_, count in prepared.left_out.items()]
    positions = f"the model has {prepared.base.model.config.max_positions} positions"
    found = {
        f"cannot be made and are left out: {', '.join(left_out)} prompts": left_out,
        f"`probe_prompts={watch.probe_prompts}`: there are {num_train} to watch": (
            watch.probe_prompts > num_train
        ),
        f"`tracked={watch.tracked}`: there are {num_train} to track": (
            watch.tracked > num_train
        ),
        f"`evaluations={watch.evaluations}`: there are {num_steps} updates": (
            watch.evaluations > num_steps
        ),
        f"`token_maps={watch.token_maps}`: there are {num_steps} updates": (
            (watch.token_maps or 0) > num_steps
        ),
        "no token maps, each of which takes minutes (`token_maps` asks for them)": (
            watch.token_maps is None and bool(prepared.plan.parts)
        ),
        f"`warmup_steps={warmup}`: the run ends before, after {num_steps} updates": (
            warmup > num_steps
        ),
        f"`max_length={asked}`: {positions}": (
            prepared.encode.max_length < asked
            and bool(prepared.counts["num_prompts_cut"])
        ),
    }
    return [note for note, applies in found.items() if applies]
