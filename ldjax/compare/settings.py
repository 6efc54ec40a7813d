"""The settings of a comparison of two checkpoints."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE, Range
from ldjax.finetune.settings.records import Tokens

__all__ = ["RANGES", "Config", "NextConfig", "Training", "Watch"]

#: What the numbers of the settings may be.
RANGES = {
    "nodes": COUNT,
    "tolerance": Range(1e-9, 1),
    "by_layer": SIZE,
    "prompts": COUNT,
    "batch_size": COUNT,
    "max_length": COUNT,
    "max_prompt_length": COUNT,
    "seed": SEED,
    "clip": Range(0, float("inf"), "positive; 0 or inf for none"),
    "learning_rate": POSITIVE,
}


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is watched, and how its change is divided."""

    probes: Path | None = None
    """File of prompts and responses to watch, of any kind that `--data` of a run
    reads, or the folder of a run, whose own are taken. By default those of AFTER, where
    it is a run, else the toy world."""
    prompts: int = 20
    """Most prompts whose responses are watched, the first ones."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row of the file, or leave it out and count it."""
    blank: Literal["bad", "keep"] = "keep"
    """What a blank chosen response is."""
    nodes: int | None = None
    """Places along the straight line where derivatives are taken (Gauss and
    Legendre's); by default as many as --tolerance needs, up to 12."""
    tolerance: float = 0.01
    """Most that they may leave of what was measured, as a share (norms over all
    responses)."""
    by_layer: int = 0
    """Responses, the first ones, of which each token is divided by layer, too
    (`layers_K` in `tokens.npz`); a forward-mode pass for each layer and node."""
    batch_size: int = 8
    """Responses that are read at a time."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Divide what changed between two checkpoints among the parts of the model."""

    before: tyro.conf.Positional[str]
    """The first model: a folder in the layout of Hugging Face, of a model or of
    adapters; the id of one on the hub; the folder of a run, or one of its checkpoints
    (RUN/checkpoints/100)."""
    after: tyro.conf.Positional[str]
    """The second one, of the same architecture."""
    out: Path = Path("runs/diff")
    """Folder to write, like that of a run."""
    watch: Watch = dataclasses.field(default_factory=Watch)
    tokens: Tokens = dataclasses.field(default_factory=Tokens)
    tokenizer: Path | None = None
    """Folder with a `tokenizer.json` that reads the texts of both, instead of their
    own."""
    cache: Path = Path("runs/cache")
    """Where compiled functions are kept."""
    seed: int = 0
    """Of the toy world, and of the responses that are drawn from others."""
    overwrite: bool = False
    """Replace what is in `--out`."""

    smoke: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Training:
    """What the next update is made of, as far as no file of the checkpoint says it."""

    loss: str = "sft"
    """As `--loss` of a run: sft, dpo and others."""
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the loss, by name, such as `--coefficients beta 0.5`."""
    target: tuple[str, ...] = ("chosen",)
    """Response types that a loss of responses trains on."""
    reduction: Literal["tokens", "rows"] = "tokens"
    """Of a loss of responses: TRL's mean over all scored tokens, or the sum over the
    tokens of a row and the mean over rows."""
    reference: str | None = None
    """Model that a loss with a reference compares with, such as the one the training
    started from. Of adapters it is their base model."""
    clip: float = 1.0
    """Largest norm of the gradient (`max_grad_norm`); 0 for none."""
    learning_rate: float | None = None
    """Of the update; by default what the schedule has come to."""


@dataclasses.dataclass(frozen=True)
class NextConfig:
    """Account for the next update of a Hugging Face Trainer's checkpoint."""

    checkpoint: tyro.conf.Positional[str]
    """Folder `checkpoint-N` of `Trainer` or TRL, with its `optimizer.pt`."""
    data: Path
    """File of the rows that the update is made on, all of them together."""
    out: Path = Path("runs/next")
    """Folder to write, like that of a run."""
    training: Training = dataclasses.field(default_factory=Training)
    watch: Watch = dataclasses.field(default_factory=Watch)
    tokens: Tokens = dataclasses.field(default_factory=Tokens)
    cache: Path = Path("runs/cache")
    """Where compiled functions are kept."""
    seed: int = 0
    """Of the responses that are drawn from others."""
    overwrite: bool = False
    """Replace what is in `--out`."""

    smoke: ClassVar[bool] = False
