r"""The exact empirical NTK between two texts, and what a step on one does to the other.

K(probe, update) of the model's logits, at every pair of scored tokens, exactly and at
the full vocabulary: how large its V x V blocks are, which layers they come from, how
much of them is the head's multiple of the identity, and how far they are from any
multiple of it (the assumption behind the squeezing effect). Then a step of gradient
descent on the update text: the first-order change -rate A K G of every log-prob along
the probe text, the tokens pushed up and down, and the contribution of each update token
to each probe token.

Claims, checked on every run (exit status 1 if one does not hold), are identities, up to
rounding: the factored kernel predicts what a backward and a forward-mode pass predict;
the groups of parameters sum to the whole; the parts of each block sum to it; the
summary of a block is that of the block written out (small vocabularies); the token map
sums to the prediction.

    python experiments/kernel.py --out runs/kernel            (toy world)
    python experiments/kernel.py --model runs/pipeline/sft --out runs/kernel-sft
    python experiments/kernel.py --model runs/hh --update-prompt "Who?" \
        --update-text "I." --probe-prompt "Who?" --probe-text "You."
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ldjax import command
from ldjax.command.options import COUNT, POSITIVE, SEED, wrong_numbers
from ldjax.data.preferences import PreferenceRow
from ldjax.data.responses import to_examples
from ldjax.data.tokenizers import Tokenizer, train_word_level
from ldjax.data.world.world import make_world
from ldjax.finetune import settings as finetune_config
from ldjax.finetune.start import Base, find_start, load_base
from ldjax.models import (
    Transformer,
    TransformerConfig,
    gpt2_config,
)
from ldjax.progress import progress
from ldjax.runs.folder import Run, create_run
from ldjax.studies.kernel.figures import draw_figures
from ldjax.studies.kernel.results import (
    Analysis,
    Text,
    analyse,
    check_identities,
    metric_rows,
)
from ldjax.theory.claims import failures, stored, told

SIDES = ("probe", "update")
_UNLIMITED = 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    """The exact kernel between two texts under a language model."""

    out: Path = Path("runs/kernel")
    """Run folder to write."""
    model: str = ""
    """Model to look into: the folder of a run or in the layout of Hugging Face, or an
    id on the hub such as EleutherAI/pythia-70m. By default the base model of the toy
    world, which is pretrained once and cached (2 minutes)."""
    probe_prompt: str = ""
    """What comes before the watched text. Prompts are read and not scored."""
    probe_text: str | None = None
    """The watched text; like every answer in `finetune.py` it begins with one space and
    ends with the END token. By default a rejected answer of the toy world, with its
    prompt."""
    update_prompt: str = ""
    """What comes before the trained text."""
    update_text: str | None = None
    """The trained text. By default the preferred answer to the same prompt."""
    special_tokens: Literal["auto", "read", "text"] = "auto"
    """What special tokens that a text spells are (see `finetune.py`)."""
    learning_rate: float = 1e-5
    """Of the step of gradient descent that is predicted; its loss is the sum over the
    tokens of the update text, in nats."""
    top: int = 3
    """Tokens that are listed at each position as pushed up, and as pushed down."""
    cache: Path = Path("runs/cache")
    """Where the base model is kept."""
    seed: int = 0
    """Of the toy world, its base model and the drawn vectors of the checks."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: a random model, short texts."""

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        problems: dict[str, bool] = {}
        for side in SIDES:
            text = getattr(self, f"{side}_text")
            prompt = getattr(self, f"{side}_prompt")
            problems |= {
                f"--{side}-text is empty: give it at least one word": (
                    text is not None and not text.strip()
                ),
                f"--{side}-prompt needs --{side}-text": text is None and prompt != "",
            }
        wrong = [problem for problem, applies in problems.items() if applies]
        ranges = {"learning_rate": POSITIVE, "top": COUNT, "seed": SEED}
        wrong += wrong_numbers(self, ranges)
        if wrong:
            raise ValueError("; ".join(wrong))


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config.check()
        base = load_model(config)
        texts = {side: make_text(config, side, base) for side in SIDES}
        run = create_run(
            config.out, all_settings(config, base, texts), overwrite=config.overwrite
        )
    print(describe(base, texts), flush=True)
    if config.smoke:  # compiling takes far longer than running
        jax.config.update("jax_disable_most_optimizations", True)
    with progress("computing the kernel and its checks"):
        analysis = analyse(
            base, **texts, learning_rate=config.learning_rate, seed=config.seed
        )
    run.write_metrics(metric_rows(analysis))
    return report(config, run, base.tokenizer, texts, analysis)


def load_model(config: Config) -> Base:
    """The model that is asked for."""
    if config.smoke and not config.model:
        return random_model(config.seed)
    settings = finetune_config.Config(
        model=config.model, cache=config.cache, seed=config.seed
    ).resolved()
    settings.check()
    return load_base(settings, find_start(settings))


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
        PreferenceRow(prompt, {"chosen": text}, f"--{side}-text"),
        base.tokenizer,
        max_length=_UNLIMITED,
        max_prompt_length=1,
        start_document=True,
        leading_space="single",
        special_tokens=config.special_tokens,
    )
    flags = {"prompt": f"--{side}-prompt", "chosen": f"--{side}-text"}
    notes = list(read.notes)
    for name, flag in flags.items():
        notes = [note.replace(repr(name), flag) for note in notes]
    example = read.examples["chosen"]
    length = len(example.prompt_ids) + len(example.response_ids) - 1
    longest = longest_input(base.model.config)
    if length > longest:
        raise ValueError(
            f"--{side}-text: prompt and text have {length} tokens but the model reads "
            f"at most {longest}; shorten them"
        )
    return Text.of(prompt, text, example, notes)


def longest_input(model: TransformerConfig) -> int:
    """How many tokens the model can read."""
    return model.max_positions if model.positions == "learned" else _UNLIMITED


def all_settings(config: Config, base: Base, texts: dict[str, Text]) -> dict[str, Any]:
    """What `config.json` says of the run."""
    filled = {
        f"{side}_{name}": getattr(text, name)
        for side, text in texts.items()
        for name in ("prompt", "text")
    }
    return (
        dataclasses.asdict(config)
        | filled
        | {
            "model": dataclasses.asdict(base.model.config),
            "reductions": {"loss": "sum over tokens", "changes": "each token"},
        }
    )


def describe(base: Base, texts: dict[str, Text]) -> str:
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


def report(
    config: Config,
    run: Run,
    tokenizer: Tokenizer,
    texts: dict[str, Text],
    analysis: Analysis,
) -> int:
    """Write the summary and the figures, print the numbers; the exit status."""
    identities = check_identities(analysis)
    names = {
        side: [tokenizer.decode([i]) for i in text.example.response_ids]
        for side, text in texts.items()
    }
    pushes = [
        pushed(analysis, place, config.top, tokenizer)
        for place in range(len(names["probe"]))
    ]
    numbers = headline(analysis)
    run.write_summary(
        {
            "tokens": names,
            "notes": {side: list(text.notes) for side, text in texts.items()},
            "pushed": pushes,
            "numbers": numbers,
            "identities": stored(identities),
        }
    )
    figures = draw_figures(run)
    print_pushes(names["probe"], pushes)
    print_headline(numbers)
    print(told(identities))
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures(identities) else 0


def headline(analysis: Analysis) -> dict[str, float]:
    """The numbers of the whole kernel."""
    blocks = analysis.blocks

    def total(norms: np.ndarray) -> float:
        return float(np.sqrt((norms**2).sum()))

    whole = total(blocks["norm"])
    return {
        "norm": whole,
        "head_norm": total(blocks["head"]) * analysis.vocab**0.5,
        "body_norm": total(blocks["body_norm"]),
        "distance_from_identity": total(blocks["distance"]),
        "predicted_change": float(analysis.token_map.sum()),
    }


def print_headline(numbers: dict[str, float]) -> None:
    """What they are, norms relative to that of the whole."""
    whole = numbers["norm"]
    head, body, distance = (
        numbers[name] / whole
        for name in ("head_norm", "body_norm", "distance_from_identity")
    )
    print(
        f"|K|_F = {whole:.4g}; relative to it: the head's multiple of the identity "
        f"{head:.3f}, the body {body:.3f}, the distance from k I {distance:.3f}\n"
        f"first-order change of the probe text: {numbers['predicted_change']:+.4g} nats"
    )


def pushed(
    analysis: Analysis, place: int, top: int, tokenizer: Tokenizer
) -> dict[str, list[dict[str, Any]]]:
    """The tokens whose probability moves most at a probe position, both ways.

    By change of probability: by that of the log-prob they would be tokens that the
    model never says.
    """
    change, probs = analysis.change[place], analysis.probs[place]
    order = np.argsort(probs * change)

    def entry(token: int) -> dict[str, Any]:
        return {
            "token": tokenizer.decode([token]),
            "change": float(change[token]),
            "prob": float(probs[token]),
        }

    tokens = order.tolist()
    up = [entry(token) for token in tokens[::-1][:top] if change[token] > 0]
    down = [entry(token) for token in tokens[:top] if change[token] < 0]
    return {"up": up, "down": down}


def print_pushes(
    tokens: list[str], pushes: list[dict[str, list[dict[str, Any]]]]
) -> None:
    """The table of what is pushed where."""
    print("\nPushed up and down along the probe text (nats):")
    for token, both in zip(tokens, pushes, strict=True):
        up, down = (
            ", ".join(f"{entry['token'].strip()} {entry['change']:+.2g}" for entry in v)
            for v in (both["up"], both["down"])
        )
        print(f"{token!r:>20}  up: {up}; down: {down}")
    print()


parse = functools.partial(command.parse, Config, __doc__)
