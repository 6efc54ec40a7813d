"""The settings of a finetuning run: all its records, and what they are by default.

On the command line the options of all records stand side by side, and so they do in
`config.json`.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ldjax import command
from ldjax.command.options import (
    COUNT,
    POSITIVE,
    SEED,
    SIZE,
    Range,
    changed,
    check_numbers,
    flat,
)
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.finetune.recipes import Recipe
from ldjax.finetune.settings.records import (
    Model,
    Objective,
    Optimizer,
    Texts,
    Tokens,
    Watch,
)
from ldjax.losses import make_loss
from ldjax.models import PRESETS as MODELS
from ldjax.models.hub.smollm2 import SMOLLM2
from ldjax.runs.sinks import SinkName, check_sinks

__all__ = [
    "HUB_DATA",
    "PRESETS_OF_THE_PAPER",
    "UNSAID",
    "Config",
    "PresetName",
    "from_command_line",
    "kept",
]

#: Anthropic's pairs, downloaded when they are asked for.
HUB_DATA = "hh-helpful-base"

_PAPER: dict[str, Any] = {
    "data": HUB_DATA,
    "max_rows": 5000,
    # Blank answers are the authors' too; rows that are no pair of answers are not.
    "blank": "keep",
    "on_bad_row": "skip",
    "recipe": "paper",
    "dtype": "bfloat16",
    # The authors' protocol of tokens, and one prompt accounted for at every update.
    "document_start": False,
    "leading_space": "raw",
    "tracked": 1,
}
#: The paper's runs that fit one GPU of 80 GB, as options.
PRESETS_OF_THE_PAPER: dict[str, dict[str, Any]] = {
    "pythia-410m": {"model": "EleutherAI/pythia-410m", **_PAPER},
    "qwen1.5-0.5b": {"model": "Qwen/Qwen1.5-0.5B", **_PAPER},
}
PresetName = Literal["pythia-410m", "qwen1.5-0.5b"]

_RANGES = {
    "max_rows": COUNT,
    "lora_rank": COUNT,
    "lora_alpha": POSITIVE,
    "learning_rate": POSITIVE,
    "batch_size": COUNT,
    "epochs": POSITIVE,
    "warmup_steps": SIZE,
    "clip": Range(0, float("inf"), "positive; 0 or inf for none"),
    "probe_prompts": COUNT,
    "tracked": COUNT,
    "token_maps": SIZE,
    "nodes": Range(0, 20, "at least 0 and at most 20"),
    "tolerance": Range(1e-6, 1),
    "evaluations": COUNT,
    "max_length": Range(2, COUNT.most, "at least 2"),
    "max_prompt_length": COUNT,
    "checkpoint_every": COUNT,
    "seed": SEED,
}

#: What `config.json` has for an option that is not said, as in runs made before.
UNSAID: dict[str, Any] = {
    "max_rows": 0,
    "model": "",
    "lora_rank": 0,
    "lora_alpha": 0.0,
    "preset": "",
    "split": "",
    "max_prompt_length": 0,
    "initial_from": "",
    "steps": 0,
    "sft_epochs": 0.0,
    "dpo_epochs": 0.0,
}


def from_command_line(
    config_type: Any,
    description: str | None,
    words: Sequence[str] | None = None,
    called: str | None = None,
) -> Any:
    """The settings of a command; with `--preset` its values are the defaults.

    Args:
      config_type: A dataclass with an option `preset`, and `of` as that of `Config`.
      description: What the command does.
      words: What was given; by default to this process.
      called: What the user typed to start it, for the help.
    """
    given = command.parse(config_type, description, words, called)
    if not given.preset:
        return given
    preset = dict(PRESETS_OF_THE_PAPER[given.preset])
    if getattr(given, "init", None):  # another start is given
        del preset["model"]
    default = config_type.of(**preset)
    return command.parse(config_type, description, words, called, default=default)


def kept(settings: Any) -> dict[str, Any]:
    """The options of some settings, as `config.json` has them."""
    options = flat(settings)
    unsaid = {k: v for k, v in UNSAID.items() if k in options and options[k] is None}
    return options | unsaid


@dataclasses.dataclass(frozen=True)
class Config:
    """Finetune a language model, with an exact account of every response."""

    out: Path = Path("runs/finetune")
    """Run folder to write."""
    objective: Objective = dataclasses.field(default_factory=Objective)
    texts: Texts = dataclasses.field(default_factory=Texts)
    model: Model = dataclasses.field(default_factory=Model)
    init: Path | None = None
    """Run folder of `pretrain.py` or `finetune.py` to start from, instead of
    `--model`."""
    initial_from: str | None = None
    """Model (as `--model`) that `chosen_initial` is sampled from where the data has
    none; by default the one the run starts from."""
    preset: PresetName | None = None
    """A run of the paper: its model from the hub, Anthropic-HH helpful-base, its
    optimizer, in bfloat16; fits one GPU of 80 GB. Sets the defaults of other options,
    which `--help` behind it shows."""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    tokens: Tokens = dataclasses.field(default_factory=Tokens)
    watch: Watch = dataclasses.field(default_factory=Watch)
    checkpoint_every: int = 100
    """Updates between two checkpoints."""
    cache: Path = Path("runs/cache")
    """Where base models and reference log-probs are kept."""
    log: tuple[SinkName, ...] = ()
    """Also show the run while it goes on, in TensorBoard (`tensorboard`, files in the
    run folder) or Weights & Biases (`wandb`; offline unless one is logged in)."""
    seed: int = 0
    """Of the toy world, the base model, the choice of probes and the order of data."""
    resume: bool = False
    """Go on from the newest checkpoint of the run in `--out`."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claims."""

    @classmethod
    def of(cls, **options: Any) -> "Config":
        """Settings from options by their names on the command line.

        Raises:
          TypeError: If there is no such option.
        """
        return changed(cls(), **options)

    @property
    def recipe(self) -> Recipe:
        """What `make_optimizer` takes."""
        return self.optimizer.filled(has_pairs=self.objective.has_pairs)

    def resolved(self) -> "Config":
        """With every default filled in, at the size of a smoke test if it is one.

        Raises:
          ValueError: If a number is none that it may be, or a sink is not there.
        """
        check_sinks(self.log)
        check_numbers(self, _RANGES)  # those that a smoke test does not take, too
        model = self.model.model or ("toy" if self.texts.data == "toy" else "0.4M")
        optimizer = dataclasses.replace(self.optimizer, **self.recipe._asdict())
        filled = dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, model=model),
            optimizer=optimizer,
        )
        if not self.smoke:
            return filled
        epochs = 0.05 if self.optimizer.epochs is None else self.optimizer.epochs
        return dataclasses.replace(
            filled,
            optimizer=dataclasses.replace(optimizer, batch_size=4, epochs=epochs),
            watch=dataclasses.replace(
                self.watch,
                probe_prompts=2,
                tracked=1,
                token_maps=1
                if self.watch.token_maps is None
                else min(self.watch.token_maps, 1),
                evaluations=3,
            ),
            checkpoint_every=2,
        )

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        objective, model, tokens = self.objective, self.model, self.tokens
        try:
            make_loss(objective.loss, **objective.coefficients)
        except ValueError as mistake:
            raise ValueError(f"--coefficients: {mistake}") from None
        name, template = model.model or "", tokens.chat_template
        is_size = name in ("", *MODELS)
        problems = {
            f"--world must be one of {', '.join(WORLDS)}": (
                self.texts.world not in WORLDS
            ),
            f"--model must be one of {', '.join(MODELS)}, a folder, a GGUF file, "
            f"{SMOLLM2}, or the id of a model on the hub such as "
            "EleutherAI/pythia-410m or openai-community/gpt2; "
            f"got {name}": (not is_size and not _is_a_place(name)),
            "--model and --init both say where to start: give one": (
                not is_size and self.init is not None
            ),
            "--data hh-helpful-base needs a --model that has learned to read": (
                self.texts.data == HUB_DATA and is_size and self.init is None
            ),
            "--lora-alpha and --lora-targets need --lora-rank": (
                model.lora_rank is None
                and (model.lora_alpha is not None or bool(model.lora_targets))
            ),
            f"--target must be of {', '.join(RESPONSE_TYPES)}": (
                not objective.target or not set(objective.target) <= set(RESPONSE_TYPES)
            ),
            f"--target: {objective.loss} trains on chosen and rejected": (
                objective.has_pairs and objective.target != ("chosen",)
            ),
            "--resume and --overwrite contradict each other": (
                self.resume and self.overwrite
            ),
            "--max-prompt-length must be less than --max-length": (
                (tokens.max_prompt_length or 0) >= tokens.max_length > 1
            ),
            "--tracked must be at most --probe-prompts": (
                self.watch.tracked > self.watch.probe_prompts
            ),
            f"--chat-template must be auto, none or a file, got {template}": (
                template not in ("auto", "none") and not Path(template).is_file()
            ),
            f"--chat-date must be a date such as 2024-07-26, got {tokens.chat_date}": (
                re.fullmatch(r"\d{4}-\d\d-\d\d", tokens.chat_date) is None
            ),
        }
        wrong = [problem for problem, applies in problems.items() if applies]
        if wrong:
            raise ValueError("; ".join(wrong))


def _is_a_place(model: str) -> bool:
    """Whether a model is to be found somewhere, and not pretrained."""
    is_named = model == SMOLLM2 or "/" in model or model.endswith(".gguf")
    return is_named or Path(model).is_dir()
