"""Pretrain a small decoder on local text: the base model of the later experiments.

Claim, checked on a full run (exit status 1 if it does not hold): on held-out documents
the model's loss is below that of an add-k bigram model of the same training half, both
in nats per token. k is chosen inside the training half.

    python experiments/pretrain.py --out runs/base              (toy world; ~2 min)
    python experiments/pretrain.py --text prompts.jsonl.gz --field prompt --out runs/hh

`--text` reads .txt (documents separated by blank lines) and .jsonl files, also with
.gz. The tokenizer is trained on the training half only. A run that was stopped, even
killed, goes on with `--resume` and ends with the same bits as one that was not; where
there is nothing to resume, `--resume` starts. `ldjax.models.load`
opens the result.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import optax

from ldjax import command
from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE, Range, wrong_numbers
from ldjax.data.text import read_documents
from ldjax.data.tokenizers import train_word_level
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.data.world.world import make_world
from ldjax.finetune.pretrain.corpus import Corpus, make_corpus
from ldjax.finetune.pretrain.held_out import Watch, make_held_out_loss
from ldjax.finetune.recipes import make_clip
from ldjax.linen import apply_fn as make_apply_fn
from ldjax.models import PRESETS, Transformer, load, preset
from ldjax.progress import progress
from ldjax.report.figures import COLORS, figure
from ldjax.runs.checkpoints import Checkpoints, Table
from ldjax.runs.folder import Run, start_run
from ldjax.runs.loop import (
    NonFiniteError,
    Observer,
    every,
    make_batch_fn,
    make_train_step,
    mean_token_loss,
    train,
)

# What may differ when a run is resumed: where things are, and what the numbers do not
# depend on. The content of text and tokenizer is compared by hash.
FREE = {"out", "resume", "overwrite", "checkpoint_every", "text", "field", "tokenizer"}

_RANGES = {
    "documents": Range(2, COUNT.most, "at least 2"),
    "vocab_size": COUNT,
    # Of more no model holds the positions, and no text fills one row.
    "context": Range(1, 2**20, f"at least 1 and at most {2**20}"),
    "batch_size": COUNT,
    "epochs": POSITIVE,
    "steps": SIZE,
    "learning_rate": POSITIVE,
    "betas": Range(0, 1 - 2**-24, "in [0, 1)"),
    "weight_decay": POSITIVE._replace(also=(0,)),
    "clip": POSITIVE._replace(most=float("inf"), words="positive; inf for none"),
    "warmup_steps": SIZE,
    "held_out_share": Range(1.2e-38, 1 - 2**-24, "between 0 and 1"),
    "evaluate_every": COUNT,
    "checkpoint_every": COUNT,
    "seed": SEED,
}


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
    preset: str = ""
    """Size of the model, one of 0.1M, 0.4M, 1M, 4M (parameters), or toy. By default
    0.4M for text, toy for the toy world."""
    context: int = 128
    """Length of a training row, in tokens."""
    batch_size: int = 0
    """Rows of a batch; 0 stands for 8 for text, 12 for the toy world."""
    epochs: float = 0.0
    """Passes over the training rows; 0 stands for 10 for text, 1 for the toy world."""
    steps: int = 0
    """Number of updates; 0 lets `--epochs` decide."""
    learning_rate: float = 0.0
    """Of AdamW, after the warm-up; a cosine to a tenth of it follows. 0 stands for 4e-3
    for text, 1e-3 for the toy world."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's moments, per update."""
    weight_decay: float = -1.0
    """Of AdamW, of matrices only; multiplied by the learning rate. -1 stands for 1 for
    text (strong, because a small text is read many times), 0.01 for the toy world."""
    clip: float = 1.0
    """Largest norm of the gradient; inf for no limit."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0; at most half of the run."""
    held_out_share: float = 0.0
    """Share of the documents that is held out; 0 stands for 0.1 for text, 0.02 for the
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

    def resolved(self) -> "Config":
        """With every default filled in, at the size of a smoke test if it is one."""
        preset, batch_size, epochs, learning_rate, weight_decay, held_out_share = (
            ("0.4M", 8, 10.0, 4e-3, 1.0, 0.1)
            if self.text
            else ("toy", 12, 1.0, 1e-3, 0.01, 0.02)
        )
        filled = dataclasses.replace(
            self,
            preset=self.preset or preset,
            batch_size=self.batch_size or batch_size,
            epochs=self.epochs or epochs,
            learning_rate=self.learning_rate or learning_rate,
            weight_decay=weight_decay if self.weight_decay == -1 else self.weight_decay,
            held_out_share=self.held_out_share or held_out_share,
        )
        if not self.smoke:
            return filled
        return dataclasses.replace(
            filled,
            preset="0.1M",
            documents=200,
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
        wrong += wrong_numbers(self, _RANGES)
        if wrong:
            raise ValueError("; ".join(wrong))


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config = config.resolved()
        config.check()
        with progress("reading the text and its tokens"):
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
        run = start_run(
            config.out,
            settings,
            resume=config.resume,
            overwrite=config.overwrite,
            free=FREE,
        )
    corpus.tokenizer.save(run.path)

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
        for stage in train(
            init(params),
            num_steps=settings["num_steps"],
            step_fn=step_fn,
            batch_fn=batch_fn,
            save_every=config.checkpoint_every,
            checkpoints=Checkpoints(run.path / "checkpoints"),
            observers={
                "speed": Observer(watch.speed, every(config.evaluate_every)),
                "held_out": Observer(watch.held_out, every(config.evaluate_every)),
            },
            tokens_per_step=tokens_per_step,
            on_table=lambda table: run.write_metrics(
                metric_rows(table, config.batch_size)
            ),
        ):
            table = stage.table
    except NonFiniteError as error:
        sys.exit(f"pretrain: {error}")
    return report(config, run, corpus, table, held_out_loss, num_params)


def load_corpus(config: Config) -> Corpus:
    """The text that is asked for; that of the toy world has a tokenizer of its own."""
    if config.text:
        documents = read_documents(config.text, field=config.field)
        tokenizer = config.tokenizer
    else:
        world = make_world(config.world, seed=config.seed)
        documents = world.corpus(config.documents)
        tokenizer = train_word_level([" ".join(["", *world.words, "\n"])])
    return make_corpus(
        documents,
        tokenizer=tokenizer,
        vocab_size=config.vocab_size,
        context=config.context,
        held_out_share=config.held_out_share,
        seed=config.seed,
    )


def all_settings(config: Config, corpus: Corpus, model: Transformer) -> dict[str, Any]:
    """What `config.json` says of the run."""
    num_rows = len(corpus.train.tokens)
    if config.batch_size > num_rows:
        raise ValueError(
            f"--batch-size must be at most the number of rows of {config.context} "
            f"tokens, {num_rows}, got {config.batch_size}"
        )
    steps_per_epoch = num_rows // config.batch_size
    num_steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
    if num_steps > COUNT.most:
        raise ValueError(
            f"--epochs {config.epochs:g} are {num_steps:.3g} updates; there can be at "
            f"most {COUNT.most:g}"
        )
    return dataclasses.asdict(config) | {
        "num_steps": num_steps,
        "warmup_steps": warmup_steps(config, num_steps),
        "model": dataclasses.asdict(model.config),
        "fingerprints": corpus.fingerprints,
        "reductions": {"loss": "mean over tokens"},
    }


def warmup_steps(config: Config, num_steps: int) -> int:
    """As many as are asked for, but half of the run at most."""
    return min(config.warmup_steps, num_steps // 2)


def optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip, with a warm-up and a cosine to a tenth."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps(config, num_steps),
        decay_steps=num_steps,
        end_value=config.learning_rate / 10,
    )
    beta1, beta2 = config.betas
    return optax.chain(
        make_clip(config.clip),
        optax.adamw(
            schedule,
            b1=beta1,
            b2=beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


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
    count = sizes["special_as_text"]
    note = f"\nnote: {count:,} documents spell special tokens, which are taken as text"
    note = note if count else ""
    return (
        f"{num_params:,} parameters, {corpus.tokenizer.vocab_size} tokens in the "
        f"vocabulary; {sizes['train_tokens']:,} training tokens of "
        f"{sizes['train_documents']} documents, {num_steps} updates{note}"
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
    loaded = held_out_loss(load(run.path).params)
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


parse = functools.partial(command.parse, Config, __doc__)
