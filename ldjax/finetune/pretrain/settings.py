"""The settings of a pretraining."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE, Range, check_numbers
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.models import PRESETS

__all__ = ["Config", "Training"]

_RANGES = {
    "documents": Range(2, COUNT.most, "at least 2"),
    "vocab_size": COUNT,
    # Of more no model holds the positions, and no text fills one row.
    "context": Range(1, 2**20, f"at least 1 and at most {2**20}"),
    "batch_size": COUNT,
    "epochs": POSITIVE,
    "steps": COUNT,
    "learning_rate": POSITIVE,
    "betas": Range(0, 1 - 2**-24, "in [0, 1)"),
    "weight_decay": POSITIVE._replace(also=(0,)),
    "clip": Range(0, float("inf"), "positive; 0 or inf for none"),
    "warmup_steps": SIZE,
    "held_out_share": Range(1.2e-38, 1 - 2**-24, "between 0 and 1"),
    "evaluate_every": COUNT,
    "checkpoint_every": COUNT,
    "seed": SEED,
}


class Training(NamedTuple):
    """How a model is pretrained.

    Attributes:
      preset: Size of the model.
      batch_size: Rows of a batch.
      epochs: Passes over the training rows.
      learning_rate: Rate of AdamW after the warm-up.
      weight_decay: Decay of matrices, multiplied by the rate.
      held_out_share: Share of the documents that is held out.
    """

    preset: str
    batch_size: int
    epochs: float
    learning_rate: float
    weight_decay: float
    held_out_share: float


# A small text is read many times; the toy world writes as much as is asked for.
_OF_TEXT = Training("0.4M", 8, 10.0, 4e-3, 1.0, 0.1)
_OF_TOY_WORLD = Training("toy", 12, 1.0, 1e-3, 0.01, 0.02)


@dataclasses.dataclass(frozen=True)
class Config:
    """Pretrain a small language model on local text."""

    out: Path = Path("runs/pretrain")
    """Run folder to write."""
    text: tuple[Path, ...] = ()
    """Files to train on: .txt, .jsonl, also with .gz. Without them the corpus of the
    built-in toy world is used."""
    world: str = "demo"
    """Preset of the toy world, where it is used: demo, small or paper."""
    documents: int = 25_000
    """Documents of the toy world, where it is used."""
    field: str = "text"
    """Field of the objects of .jsonl files."""
    tokenizer: str = "bpe"
    """`bpe` or `words` to train one, or a tokenizer.json, or the folder it is in. The
    toy world has its own."""
    vocab_size: int = 2048
    """Of a BPE tokenizer that is trained, in tokens."""
    preset: str | None = None
    """Size of the model, one of 0.1M, 0.4M, 1M, 4M (parameters), or toy. By default
    0.4M for text, toy for the toy world."""
    context: int = 128
    """Length of a training row, in tokens."""
    batch_size: int | None = None
    """Rows of a batch; by default 8 for text, 12 for the toy world."""
    epochs: float | None = None
    """Passes over the training rows; by default 10 for text, 1 for the toy world."""
    steps: int | None = None
    """Number of updates; by default `--epochs` decides."""
    learning_rate: float | None = None
    """Of AdamW, after the warm-up; a cosine to a tenth of it follows. By default 4e-3
    for text, 1e-3 for the toy world."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's moments, per update."""
    weight_decay: float | None = None
    """Of AdamW, of matrices only; multiplied by the learning rate. By default 1 for
    text (strong, because a small text is read many times), 0.01 for the toy world."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 or inf for no limit."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0; at most half of the run."""
    held_out_share: float | None = None
    """Share of the documents that is held out; by default 0.1 for text, 0.02 for the
    toy world."""
    evaluate_every: int = 50
    """Updates between two evaluations on the held-out documents."""
    checkpoint_every: int = 200
    """Updates between two checkpoints."""
    seed: int = 0
    """Of the split, the initial parameters and the order of the data."""
    resume: bool = False
    """Go on from the newest checkpoint of the run in `--out`."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claim."""

    @property
    def training(self) -> Training:
        """How it is trained: what is said, and else what suits the text."""
        said = {name: getattr(self, name) for name in Training._fields}
        default = _OF_TEXT if self.text else _OF_TOY_WORLD
        return default._replace(**{k: v for k, v in said.items() if v is not None})

    def resolved(self) -> "Config":
        """With every default filled in, at the size of a smoke test if it is one.

        Raises:
          ValueError: If a number is none that it may be.
        """
        check_numbers(self, _RANGES)  # those that a smoke test does not take, too
        filled = dataclasses.replace(self, **self.training._asdict())
        if not self.smoke:
            return filled
        return dataclasses.replace(
            filled,
            preset="0.1M",
            documents=200,
            vocab_size=300,
            context=32,
            batch_size=4,
            steps=12 if self.steps is None else self.steps,
            warmup_steps=2,
            evaluate_every=5,
            checkpoint_every=4,
        )

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        problems = {
            f"--preset must be one of {', '.join(PRESETS)}": self.preset not in PRESETS,
            "--resume and --overwrite contradict each other": (
                self.resume and self.overwrite
            ),
            f"--world must be one of {', '.join(WORLDS)}": self.world not in WORLDS,
            "--field is of .jsonl files, of which --text names none": (
                self.field != "text"
                and bool(self.text)
                and not any(".jsonl" in path.suffixes for path in self.text)
            ),
        }
        wrong = [problem for problem, applies in problems.items() if applies]
        if wrong:
            raise ValueError("; ".join(wrong))
