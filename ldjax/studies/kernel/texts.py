"""The two texts of a kernel, and the model that reads them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ldjax.data.batches import Example, to_sequences
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import to_examples
from ldjax.data.tokenizers import train_word_level
from ldjax.data.world.world import make_world
from ldjax.equation.sequences import Sequences
from ldjax.finetune.prepare import start_of
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.finetune.start import Base, load_base, load_shapes
from ldjax.models import Transformer, TransformerConfig, gpt2_config
from ldjax.studies.kernel.settings import SIDES, Config

__all__ = [
    "Text",
    "describe",
    "load_model",
    "longest_input",
    "make_text",
    "random_model",
]

_UNLIMITED = 2**30


class Text(NamedTuple):
    """A text that is scored after a prompt.

    Attributes:
      prompt: Its prompt, maybe empty.
      text: The text.
      example: Both as token ids.
      sequences: What the model reads, `[1, pos]`.
      positions: Where a token of the text is predicted.
      notes: Of how the texts were read.
    """

    prompt: str
    text: str
    example: Example
    sequences: Sequences
    positions: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, prompt: str, text: str, example: Example, notes: Sequence[str] = ()
    ) -> "Text":
        """With its arrays, without padding."""
        length = len(example.prompt_ids) + len(example.response_ids) - 1
        padded = to_sequences([example])
        sequences = jax.tree.map(lambda leaf: leaf[:, :length], padded)
        positions = np.flatnonzero(np.asarray(sequences.mask[0]))
        return cls(prompt, text, example, sequences, positions, tuple(notes))

    @property
    def scored(self) -> Sequences:
        """Targets of the positions alone."""
        whole = self.sequences
        return whole._replace(
            targets=whole.targets[:, self.positions],
            mask=whole.mask[:, self.positions],
        )


def load_model(config: Config) -> Base:
    """The model that is asked for."""
    if config.smoke and config.model is None:
        return random_model(config.seed)
    settings = FinetuneConfig.of(
        model=config.model, cache=config.cache, seed=config.seed
    ).resolved()
    settings.check()
    shapes = load_shapes(start_of(settings), settings.model)
    return load_base(shapes, seed=settings.seed)


def random_model(seed: int) -> Base:
    """A tiny model that has learned nothing, with the toy world's tokenizer."""
    words = make_world("demo", seed=seed).words
    tokenizer = train_word_level([" ".join(["", *words, "\n"])])
    model = Transformer(
        gpt2_config(
            vocab_size=tokenizer.vocab_size,
            width=16,
            num_layers=1,
            num_heads=2,
            mlp_width=32,
            max_positions=32,
            tied_head=False,
        )
    )
    tokens = jax.numpy.zeros((1, 2), jax.numpy.int32)
    params = jax.jit(model.init)(jax.random.key(seed), tokens)["params"]
    return Base(model, model, params, tokenizer)


def make_text(config: Config, side: str, base: Base) -> Text:
    """One side's prompt and text as token ids, by the protocol of `finetune.py`."""
    prompt, text = getattr(config, f"{side}_prompt"), getattr(config, f"{side}_text")
    if text is None:
        row = make_world("demo", seed=config.seed).train[0]
        type_ = {"probe": "rejected", "update": "chosen"}[side]
        prompt, text = row["prompt"], row[type_]
        if config.smoke:
            prompt, text = " question :", " ".join(text.split(" ")[:6])
    read = to_examples(
        PreferenceRow(prompt, {"chosen": text}, f"`{side}_text`"),
        base.tokenizer,
        max_length=_UNLIMITED,
        max_prompt_length=1,
        start_document=True,
        leading_space="single",
        special_tokens=config.special_tokens,
    )
    arguments = {"prompt": f"`{side}_prompt`", "chosen": f"`{side}_text`"}
    notes = list(read.notes)
    for name, argument in arguments.items():
        notes = [note.replace(repr(name), argument) for note in notes]
    example = read.examples["chosen"]
    length = len(example.prompt_ids) + len(example.response_ids) - 1
    longest = longest_input(base.model.config)
    if length > longest:
        raise ValueError(
            f"`{side}_text`: prompt and text have {length} tokens but the model reads "
            f"at most {longest}; shorten them"
        )
    return Text.of(prompt, text, example, notes)


def longest_input(model: TransformerConfig) -> int:
    """How many tokens the model can read."""
    return model.max_positions if model.positions == "learned" else _UNLIMITED


def describe(base: Base, texts: Mapping[str, Text]) -> str:
    """One line before the work starts."""
    probe, update = (len(texts[side].positions) for side in SIDES)
    vocab = base.model.config.vocab_size
    unknown = {
        side: sum(
            i == base.tokenizer.unknown_id
            for i in (*text.example.prompt_ids, *text.example.response_ids)
        )
        for side, text in texts.items()
    }
    warnings = [
        f"; {count} tokens of the {side} are unknown to the model"
        for side, count in unknown.items()
        if count
    ]
    return (
        f"K of {probe} x {update} tokens, {vocab:,} x {vocab:,} logits each"
        f"{''.join(warnings)}"
        + "".join(f"\nnote: {note}" for side in SIDES for note in texts[side].notes)
    )
