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

import collections
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from ldjax import command
from ldjax.command.options import COUNT
from ldjax.data.corpus.packed import Corpus, load_corpus
from ldjax.finetune.pretrain.held_out import Watch, make_held_out_loss
from ldjax.finetune.pretrain.settings import Config
from ldjax.finetune.recipes import make_clip
from ldjax.finetune.settings.config import kept
from ldjax.linen import apply_fn as make_apply_fn
from ldjax.models import Pretrained, Transformer, load, preset
from ldjax.progress import progress
from ldjax.report.figures import COLORS, figure
from ldjax.runs.checkpoints import Checkpoints, Table
from ldjax.runs.folder import Run, start_run
from ldjax.runs.loop import (
    Observer,
    every,
    make_batch_fn,
    make_train_step,
    mean_token_loss,
    train,
)
from ldjax.theory.claims import Claim, failures, stored, told

__all__ = ["Config", "PretrainedRun", "main", "parse", "pretrain"]

# What may differ when a run is resumed: where things are, and what the numbers do not
# depend on. The content of text and tokenizer is compared by hash.
FREE = {"out", "resume", "overwrite", "checkpoint_every", "text", "field", "tokenizer"}


class PretrainedRun(NamedTuple):
    """A base model that is pretrained.

    Attributes:
      run: The run folder.
      summary: What came out, as in its `summary.json`.
      checks: Identities, which hold of any run, and the claims of this one.
      figure: Picture of its losses.
    """

    run: Run
    summary: dict[str, Any]
    checks: list[Claim]
    figure: Path

    @property
    def holds(self) -> bool:
        """Whether all identities and claims hold."""
        return not failures(self.checks)

    def load(self) -> Pretrained:
        """The model after the last update."""
        return load(self.run.path)

    def __str__(self) -> str:
        """What a terminal shows."""
        found, loss = self.summary, self.summary["held_out_loss"]
        return "\n".join(
            [
                f"held-out loss ({found['held_out_tokens']:,} tokens of "
                f"{found['held_out_documents']} documents), nats/token:",
                f"  model   {loss['model']:.4f}",
                f"  bigram  {loss['bigram']:.4f}  (add-k, k = "
                f"{found['bigram_k']:.2g} chosen inside the training half)",
                told(self.checks),
                f"\nfigures:\n{self.figure}\nrun folder: {self.run.path}",
            ]
        )


def pretrain(
    settings: Config, *, tell: Callable[[str], None] = lambda text: None
) -> PretrainedRun:
    """Pretrain a small decoder on local text.

    Args:
      settings: What is trained on what.
      tell: Is told, before the first update, what will be done.

    Returns:
      The run, complete.

    Raises:
      FileExistsError: If there is a run already, which is neither resumed nor replaced.
      FileNotFoundError: If there is no such text.
      NonFiniteError: If a loss is not finite.
      ValueError: If settings or texts cannot be used.
    """
    with command.set_up():
        settings = settings.resolved()
        settings.check()
        training = settings.training
        with progress("reading the text and its tokens"):
            corpus = load_corpus(
                settings.text,
                field=settings.field,
                world=settings.world,
                num_documents=settings.documents,
                tokenizer=settings.tokenizer,
                vocab_size=settings.vocab_size,
                context=settings.context,
                held_out_share=training.held_out_share,
                seed=settings.seed,
            )
        model = Transformer(
            preset(
                training.preset,
                vocab_size=corpus.tokenizer.vocab_size,
                max_positions=settings.context,
            )
        )
        all_of_them = all_settings(settings, corpus, model)
        batch_fn = make_batch_fn(
            corpus.train, batch_size=training.batch_size, seed=settings.seed
        )
        run = start_run(
            settings.out,
            all_of_them,
            resume=settings.resume,
            overwrite=settings.overwrite,
            free=FREE,
        )
    corpus.tokenizer.save(run.path)

    num_steps = all_of_them["num_steps"]
    apply_fn = make_apply_fn(model)
    held_out_loss = make_held_out_loss(apply_fn, corpus.held_out, training.batch_size)
    tokens_per_step = training.batch_size * settings.context
    watch = Watch(held_out_loss, tokens_per_step)
    init, step_fn = make_train_step(
        apply_fn, mean_token_loss, optimizer(settings, num_steps)
    )
    tokens = jax.numpy.zeros((1, settings.context), jax.numpy.int32)
    params = jax.jit(model.init)(jax.random.key(settings.seed), tokens)["params"]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    tell(describe(corpus, num_params, num_steps))
    is_due = every(settings.evaluate_every)
    stages = train(
        init(params),
        num_steps=num_steps,
        step_fn=step_fn,
        batch_fn=batch_fn,
        save_every=settings.checkpoint_every,
        checkpoints=Checkpoints(run.path / "checkpoints"),
        observers={
            "speed": Observer(watch.speed, is_due),
            "held_out": Observer(watch.held_out, is_due),
        },
        tokens_per_step=tokens_per_step,
        on_table=lambda table: run.write_metrics(
            metric_rows(table, training.batch_size)
        ),
    )
    (last,) = collections.deque(stages, maxlen=1)
    identities = check_run(run, last.table, held_out_loss)
    claims = [] if settings.smoke else [check_loss(last.table, corpus)]
    summary = {
        "claims": stored(claims),
        "identities": stored(identities),
        "held_out_loss": {
            "model": final_loss(last.table),
            "bigram": corpus.bigram["loss"],
        },
        "bigram_k": corpus.bigram["k"],
        "num_params": num_params,
        **corpus.sizes,
    }
    run.write_summary(summary)
    return PretrainedRun(run, summary, [*identities, *claims], draw_loss(run))


@command.experiment
def main(config: Config) -> int:
    """Run the program; the exit status."""
    done = pretrain(config, tell=command.teller(config))
    print(done)
    return 0 if done.holds else 1


def all_settings(config: Config, corpus: Corpus, model: Transformer) -> dict[str, Any]:
    """What `config.json` says of the run."""
    num_rows = len(corpus.train.tokens)
    batch_size, epochs = config.training.batch_size, config.training.epochs
    if batch_size > num_rows:
        raise ValueError(
            f"`batch_size` must be at most the number of rows of {config.context} "
            f"tokens, {num_rows}, got {batch_size}"
        )
    steps_per_epoch = num_rows // batch_size
    num_steps = config.steps or max(1, round(epochs * steps_per_epoch))
    if num_steps > COUNT.most:
        raise ValueError(
            f"`epochs={epochs:g}` are {num_steps:.3g} updates; there can be at "
            f"most {COUNT.most:g}"
        )
    return kept(config) | {
        "num_steps": num_steps,
        "warmup_steps": warmup_steps(config, num_steps),
        "model": model.config.settings(),
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
        peak_value=config.training.learning_rate,
        warmup_steps=warmup_steps(config, num_steps),
        decay_steps=num_steps,
        end_value=config.training.learning_rate / 10,
    )
    beta1, beta2 = config.betas
    return optax.chain(
        make_clip(config.clip),
        optax.adamw(
            schedule,
            b1=beta1,
            b2=beta2,
            weight_decay=config.training.weight_decay,
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


def final_loss(table: Table) -> float:
    """The last held-out loss, in nats per token."""
    return float(table["held_out"]["held_out_loss"][-1])


def check_run(run: Run, table: Table, held_out_loss: Any) -> list[Claim]:
    """What holds of any run."""
    loaded = held_out_loss(load(run.path).params)
    steps = table["train"]["step"].tolist()
    return [
        Claim(
            "the saved model has the held-out loss that was measured",
            loaded == final_loss(table),
            "identity",
        ),
        Claim(
            "the table has one loss for each update",
            steps == list(range(run.config["settings"]["num_steps"])),
            "identity",
        ),
    ]


def check_loss(table: Table, corpus: Corpus) -> Claim:
    """Whether the model beats the bigram model."""
    loss, bound = final_loss(table), corpus.bigram["loss"]
    return Claim(
        f"held-out loss of the model, {loss:.4f} nats/token, below the "
        f"bigram model's, {bound:.4f}",
        loss < bound,
        numbers={"value": loss, "bound": bound},
    )


def draw_loss(run: Run) -> Path:
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
    return run.figure_path("loss")


parse = functools.partial(command.parse, Config, __doc__)
