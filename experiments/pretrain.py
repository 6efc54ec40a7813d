"""Pretrain a small decoder on local text: the base model of the later experiments.

Claim, checked on a full run (exit status 1 if it does not hold): on held-out documents
the model's loss is below that of an add-k bigram model of the same training half, both
in nats per token. k is chosen inside the training half.

    python experiments/pretrain.py --out runs/base              (built-in text; ~1 min)
    python experiments/pretrain.py --text prompts.jsonl.gz --field prompt --out runs/hh

`--text` reads .txt (documents separated by blank lines) and .jsonl files, also with
.gz. The tokenizer is trained on the training half only. A run that was stopped, even
killed, goes on with `--resume` and ends with the same bits as one that was not; where
there is nothing to resume, `--resume` starts. `ldjax.models.pretrained.load_pretrained`
opens the result.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from pretrain_bigram import bigram_loss, choose_k, fit_bigram

from ldjax import Sequences, StepState
from ldjax.checkpoints import Checkpoints, Table
from ldjax.data.text import pack_documents, read_documents, split_documents
from ldjax.data.tokenizers import (
    Tokenizer,
    load_tokenizer,
    train_bpe,
    train_word_level,
)
from ldjax.linen import apply_fn as make_apply_fn
from ldjax.models import PRESETS, Transformer, preset
from ldjax.models.pretrained import load_pretrained
from ldjax.report.figures import COLORS, figure
from ldjax.runs import Run, create_run, open_run
from ldjax.scoring import make_score_fn
from ldjax.training import (
    NonFiniteError,
    Observer,
    make_batch_fn,
    make_train_step,
    mean_token_loss,
    train,
)

# What may differ when a run is resumed: where things are, and what the numbers do not
# depend on. The content of text and tokenizer is compared by hash.
FREE = {"out", "resume", "overwrite", "checkpoint_every", "text", "field", "tokenizer"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Pretrain a small language model on local text."""

    out: Path = Path("runs/pretrain")
    """Run folder to write."""
    text: tuple[Path, ...] = ()
    """Files to train on: .txt, .jsonl, also with .gz. Without them a built-in text of
    simple questions and answers is used."""
    field: str = "text"
    """Field of the objects of .jsonl files."""
    tokenizer: str = "bpe"
    """`bpe` or `words` to train one, or a tokenizer.json, or the folder it is in."""
    vocab_size: int = 2048
    """Of a BPE tokenizer that is trained, in tokens."""
    preset: str = "0.4M"
    """Size of the model, one of 0.1M, 0.4M, 1M, 4M (parameters)."""
    context: int = 128
    """Length of a training row, in tokens."""
    batch_size: int = 8
    """Rows of a batch."""
    epochs: float = 10.0
    """Passes over the training rows."""
    steps: int = 0
    """Number of updates; 0 lets `--epochs` decide."""
    learning_rate: float = 4e-3
    """Of AdamW, after the warm-up; a cosine to a tenth of it follows."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's moments, per update."""
    weight_decay: float = 1.0
    """Of AdamW, of matrices only; multiplied by the learning rate. Strong, because a
    small text is read many times."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0."""
    held_out_share: float = 0.1
    """Share of the documents that is held out."""
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

    def resolved(self) -> "Config":
        """At the size of a smoke test if it is one."""
        if not self.smoke:
            return self
        return dataclasses.replace(
            self,
            preset="0.1M",
            vocab_size=300,
            context=32,
            batch_size=4,
            steps=self.steps or 12,
            warmup_steps=2,
            evaluate_every=5,
            checkpoint_every=4,
        )

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        counts = ("context", "batch_size", "evaluate_every", "checkpoint_every")
        problems = {
            f"--preset must be one of {', '.join(PRESETS)}": self.preset not in PRESETS,
            "--resume and --overwrite contradict each other": (
                self.resume and self.overwrite
            ),
            "--epochs must be positive": self.epochs <= 0,
            "--steps must not be negative": self.steps < 0,
            "--warmup-steps must not be negative": self.warmup_steps < 0,
            "--learning-rate must be positive": not self.learning_rate > 0,
            "--clip must be positive": not self.clip > 0,
            "--weight-decay must not be negative": self.weight_decay < 0,
            "--betas must lie in [0, 1)": not all(0 <= b < 1 for b in self.betas),
            "--seed must not be negative": self.seed < 0,
        } | {
            f"--{name.replace('_', '-')} must be at least 1": getattr(self, name) < 1
            for name in counts
        }
        wrong = [problem for problem, applies in problems.items() if applies]
        if wrong:
            raise ValueError("; ".join(wrong))


class Corpus(NamedTuple):
    """The text as the model sees it."""

    tokenizer: Tokenizer
    train: Sequences
    held_out: Sequences
    sizes: dict[str, int]
    bigram: dict[str, float]
    fingerprints: dict[str, str]


def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    try:
        config = config.resolved()
        config.check()
        corpus = load_corpus(config)
        model = Transformer(
            preset(
                config.preset,
                vocab_size=corpus.tokenizer.vocab_size,
                max_positions=config.context,
            )
        )
        settings = all_settings(config, corpus, model)
        batch_fn = make_batch_fn(
            corpus.train, batch_size=config.batch_size, seed=config.seed
        )
        run = start_run(config, settings)
    except (OSError, ValueError) as mistake:
        sys.exit(f"pretrain.py: {mistake}")
    corpus.tokenizer.save(run.path / "tokenizer.json")

    apply_fn = make_apply_fn(model)
    held_out_loss = make_held_out_loss(apply_fn, corpus.held_out, config.batch_size)
    tokens_per_step = config.batch_size * config.context
    watch = Watch(held_out_loss, tokens_per_step)
    init, step_fn = make_train_step(
        apply_fn, mean_token_loss, optimizer(config, settings["num_steps"])
    )
    tokens = jax.numpy.zeros((1, config.context), jax.numpy.int32)
    params = jax.jit(model.init)(jax.random.key(config.seed), tokens)["params"]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(describe(corpus, num_params, settings["num_steps"]), flush=True)
    table: Table = {}
    try:
        for progress in train(
            init(params),
            num_steps=settings["num_steps"],
            step_fn=step_fn,
            batch_fn=batch_fn,
            save_every=config.checkpoint_every,
            checkpoints=Checkpoints(run.path / "checkpoints"),
            observers={
                "speed": Observer(watch.speed, config.evaluate_every),
                "held_out": Observer(watch.held_out, config.evaluate_every),
            },
            tokens_per_step=tokens_per_step,
        ):
            table = progress.table
            run.write_metrics(metric_rows(table, config.batch_size))
    except NonFiniteError as error:
        sys.exit(f"pretrain.py: {error}")
    return report(config, run, corpus, table, held_out_loss, num_params)


def load_corpus(config: Config) -> Corpus:
    """Read, split, tokenize and pack the text, and fit the bigram model."""
    if config.text:
        documents = read_documents(config.text, field=config.field)
    else:
        documents = built_in_documents()
    split = {"held_out_share": config.held_out_share, "seed": config.seed}
    halves = split_documents(documents, **split)
    tokenizer = make_tokenizer(config, halves[0])

    def pack(texts: list[str]) -> Sequences:
        return pack_documents(
            tokenizer.encode_batch(texts),
            length=config.context,
            end_id=tokenizer.end_id,
            padding_id=tokenizer.padding_id,
        )

    train_rows, held_out_rows = map(pack, halves)
    vocab_size = tokenizer.vocab_size
    k = choose_k(*map(pack, split_documents(halves[0], **split)), vocab_size=vocab_size)
    bigram = fit_bigram(train_rows, vocab_size=vocab_size)
    return Corpus(
        tokenizer,
        train_rows,
        held_out_rows,
        sizes={
            "train_documents": len(halves[0]),
            "train_tokens": int(train_rows.mask.sum()),
            "held_out_documents": len(halves[1]),
            "held_out_tokens": int(held_out_rows.mask.sum()),
        },
        bigram={"k": k, "loss": bigram_loss(bigram, held_out_rows, k=k)},
        fingerprints={
            "text": fingerprint(json.dumps(documents)),
            "tokenizer": fingerprint(tokenizer.to_json()),
        },
    )


def make_tokenizer(config: Config, texts: list[str]) -> Tokenizer:
    """The tokenizer that is asked for; a trained one sees the training half only."""
    if config.tokenizer == "bpe":
        return train_bpe(texts, vocab_size=config.vocab_size)
    if config.tokenizer == "words":
        return train_word_level(texts)
    return load_tokenizer(Path(config.tokenizer))


def built_in_documents() -> list[str]:
    """Text for a run without `--text`; a stand-in until ldjax has its toy world."""
    names = [
        "Anna",
        "Ben",
        "Carla",
        "David",
        "Emma",
        "Felix",
        "Greta",
        "Hugo",
        "Ida",
        "Jonas",
    ]
    animals = ["cat", "dog", "horse", "goat", "duck", "mouse", "owl", "fox"]
    places = ["barn", "garden", "kitchen", "field", "pond", "cellar", "tree", "forest"]
    foods = ["fish", "meat", "hay", "grass", "bread", "cheese", "mice", "berries"]
    documents = []
    for asker, other in itertools.permutations(names, 2):
        for i, animal in enumerate(animals):
            documents += [
                f"{asker} asks {other}: Where is the {animal}?\n"
                f"{other} answers: The {animal} is in the {places[i]}, {asker}.",
                f"{asker} asks {other}: What does the {animal} eat?\n"
                f"{other} answers: The {animal} eats {foods[i]}, {asker}.",
                f"{asker} asks {other}: Does the {animal} eat {foods[i - 1]}?\n"
                f"{other} answers: No, {asker}, the {animal} eats {foods[i]}.",
            ]
    return documents


def fingerprint(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def all_settings(config: Config, corpus: Corpus, model: Transformer) -> dict[str, Any]:
    """What `config.json` says of the run."""
    steps_per_epoch = len(corpus.train.tokens) // config.batch_size
    num_steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
    settings = dataclasses.asdict(config) | {
        "num_steps": num_steps,
        "model": dataclasses.asdict(model.config),
        "fingerprints": corpus.fingerprints,
        "reductions": {"loss": "mean over tokens"},
    }
    return json.loads(json.dumps(settings, default=str))  # as it will be read


def start_run(config: Config, settings: dict[str, Any]) -> Run:
    """A new run folder, or with `--resume` the one that is there if it fits."""
    if not (config.resume and (config.out / "config.json").is_file()):
        return create_run(config.out, settings, overwrite=config.overwrite)
    run = open_run(config.out)
    there = run.config["settings"]
    names = [name for name in {**there, **settings} if name not in FREE]
    changes = [
        f"{name} was {there.get(name)}, now {settings.get(name)}"
        for name in names
        if there.get(name) != settings.get(name)
    ]
    if changes:
        raise ValueError(
            f"cannot resume {config.out} with other settings: {'; '.join(changes)}."
        )
    return run


def optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip, with a warm-up and a cosine to a tenth."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, num_steps // 2),
        decay_steps=num_steps,
        end_value=config.learning_rate / 10,
    )
    beta1, beta2 = config.betas
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            b1=beta1,
            b2=beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def make_held_out_loss(apply_fn: Any, rows: Sequences, batch_size: int) -> Any:
    """A function from parameters to the held-out loss, in nats per token."""
    score_fn = make_score_fn(apply_fn)
    batches = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + batch_size], rows)
        for i in range(0, len(rows.tokens), batch_size)
    ]
    num_tokens = int(rows.mask.sum())

    def held_out_loss(params: Any) -> float:
        scores = [np.asarray(score_fn(params, batch), float) for batch in batches]
        return -sum(float(score.sum()) for score in scores) / num_tokens

    return held_out_loss


class Watch:
    """Measures speed and held-out loss, and keeps the latter out of the former."""

    def __init__(self, held_out_loss: Any, tokens_per_step: int) -> None:
        self._held_out_loss = held_out_loss
        self._tokens_per_step = tokens_per_step
        self._since: tuple[int, float] | None = None

    def speed(self, state: StepState) -> dict[str, float]:
        """Tokens per second since the last evaluation; compilation included."""
        step = int(state.step)  # waits for the device
        if self._since is None:
            return {}
        since, start = self._since
        seconds = time.perf_counter() - start
        return {"tokens_per_second": (step - since) * self._tokens_per_step / seconds}

    def held_out(self, state: StepState) -> dict[str, float]:
        """The held-out loss in nats per token."""
        loss = self._held_out_loss(state.params)
        self._since = int(state.step), time.perf_counter()
        return {"held_out_loss": loss}


def metric_rows(table: Table, batch_size: int) -> list[tuple[Any, ...]]:
    """The table as rows of `metrics.parquet`."""
    probes = {"train": "train", "held_out": "held_out", "speed": "train"}
    return [
        (
            int(step),
            int(step) * batch_size,
            probes[name],
            "text",
            quantity,
            float(value),
        )
        for name, series in sorted(table.items())
        for quantity in sorted(set(series) - {"step"})
        for step, value in zip(series["step"], series[quantity], strict=True)
    ]


def describe(corpus: Corpus, num_params: int, num_steps: int) -> str:
    """One line before the training starts."""
    sizes = corpus.sizes
    return (
        f"{num_params:,} parameters, {corpus.tokenizer.vocab_size} tokens in the "
        f"vocabulary; {sizes['train_tokens']:,} training tokens of "
        f"{sizes['train_documents']} documents, {num_steps} updates"
    )


def report(
    config: Config,
    run: Run,
    corpus: Corpus,
    table: Table,
    held_out_loss: Any,
    num_params: int,
) -> int:
    """Write the summary and the figure, print the numbers; the exit status."""
    model_loss = float(table["held_out"]["held_out_loss"][-1])
    claim = {
        "text": f"held-out loss of the model, {model_loss:.4f} nats/token, below the "
        f"bigram model's, {corpus.bigram['loss']:.4f}",
        "holds": model_loss < corpus.bigram["loss"],
        "value": model_loss,
        "bound": corpus.bigram["loss"],
    }
    loaded = held_out_loss(load_pretrained(run.path).params)
    steps = table["train"]["step"].tolist()
    identities = [
        {
            "text": "the saved model has the held-out loss that was measured",
            "holds": loaded == model_loss,
        },
        {
            "text": "the table has one loss for each update",
            "holds": steps == list(range(run.config["settings"]["num_steps"])),
        },
    ]
    claims = [] if config.smoke else [claim]
    run.write_summary(
        {
            "claims": claims,
            "identities": identities,
            "held_out_loss": {"model": model_loss, "bigram": corpus.bigram["loss"]},
            "bigram_k": corpus.bigram["k"],
            "num_params": num_params,
            **corpus.sizes,
        }
    )
    draw_loss(run)
    print(
        f"held-out loss ({corpus.sizes['held_out_tokens']:,} tokens of "
        f"{corpus.sizes['held_out_documents']} documents), nats/token:\n"
        f"  model   {model_loss:.4f}\n"
        f"  bigram  {corpus.bigram['loss']:.4f}  (add-k, k = {corpus.bigram['k']:.2g} "
        "chosen inside the training half)"
    )
    checks = [*identities, *claims]
    for check in checks:
        print(f"{'holds' if check['holds'] else 'FAILS'}: {check['text']}")
    print(f"\nfigures:\n{run.figure_path('loss')}\nrun folder: {run.path}")
    return 0 if all(check["holds"] for check in checks) else 1


def draw_loss(run: Run) -> None:
    """`figures/loss.png`, from the run folder alone."""
    metrics, summary = run.metrics(), run.summary
    with figure(run.figure_path("loss"), "Pretraining", figsize=(6, 4)) as axes:
        ax = axes[0, 0]
        for quantity, label, color in (
            ("loss", "training batch", COLORS["before"]),
            ("held_out_loss", "held out", COLORS["measured"]),
        ):
            chosen = metrics.filter(metrics["quantity"] == quantity)
            ax.plot(chosen["step"], chosen["value"], label=label, color=color)
        bigram = summary["held_out_loss"]["bigram"]
        ax.axhline(bigram, label="bigram, held out", color=COLORS["negative"], ls="--")
        ax.set(xlabel="update", ylabel="loss [nats/token]")
        ax.legend()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
