"""The next update of a Hugging Face Trainer's checkpoint, accounted for.

Takes the update that `Trainer` or TRL would take next on given rows: its AdamW with the
moments of `optimizer.pt`, its schedule, its clip. Says what it does to every watched
response, by first order and as measured, and what that is the sum of: this update's own
gradients side by side, the optimizer's history, weight decay; and where in the model.

Writes a folder like that of a run, with a page. Claim (exit status 1 if it does not
hold): the account closes, up to `--tolerance`. `training_args.bin` is a pickled object,
which is not read: loss, clip and what is trained on are options.

    ldjax next out/checkpoint-500 --data rows.jsonl --loss dpo --reference ./start
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ldjax import command, linen
from ldjax.command.options import check_numbers, flat
from ldjax.compare.difference import Difference, checks
from ldjax.compare.folder import write_folder
from ldjax.compare.pair import Pair, pair_of, silenced, untied
from ldjax.compare.run import divide_pair
from ldjax.compare.settings import RANGES, Training
from ldjax.compare.settings import NextConfig as Config
from ldjax.compare.texts import Watched, watched_texts
from ldjax.compare.trainer import Moments, read_moments
from ldjax.compare.update import Update, take
from ldjax.compare.words import balance, sentences
from ldjax.data.reference import add_reference
from ldjax.equation.sequences import LossFn
from ldjax.finetune.rows import training_rows
from ldjax.finetune.settings.records import Objective, Texts
from ldjax.finetune.texts import load_texts
from ldjax.models import Pretrained, load
from ldjax.progress import progress
from ldjax.runs.folder import create_run
from ldjax.theory.claims import failures, told

__all__ = ["Config", "loss_of", "main", "next_update", "parse", "rows_of", "texts_of"]


def next_update(
    config: Config, *, tell: Callable[[str], None] = lambda text: None
) -> tuple[Difference, Update]:
    """Take the next update of a checkpoint, and account for it.

    Args:
      config: The checkpoint, the rows, and what is watched.
      tell: Is told what is done, before it is.

    Returns:
      What the update changed, and the update with its parts.

    Raises:
      FileExistsError: If there is something in `out`.
      FileNotFoundError: If there is no such checkpoint or file.
      ValueError: If the optimizer cannot be read as AdamW of this model, if the
        schedule is over, or if rows cannot be read.

    Examples:
      >>> next_update(Config("/nowhere", Path("rows.jsonl")))
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no folder /nowhere.
    """
    training, watch = config.training, config.watch
    with command.set_up():
        check_numbers(config, RANGES)
        with progress("reading the checkpoint"):
            model = load(config.checkpoint)
            folder = Path(config.checkpoint)
            moments = read_moments(folder, model.config, model.params)
        rate = _rate(training, moments)
        texts = texts_of(config, model)
        rows = rows_of(config, model, texts)
        run = create_run(
            config.out,
            flat(config) | {"model": model.config.settings(), "learning_rate": rate},
            overwrite=config.overwrite,
        )
    count = jax.tree.leaves(rows)[0].shape[0]
    tell(
        f"update {moments.num_steps + 1} of {config.checkpoint}, {count} rows at a "
        f"learning rate of {rate:g}: {texts}"
    )
    with progress("taking the update"):
        update = take(
            model.model,
            model.params,
            moments,
            jax.tree.map(jnp.asarray, rows),
            texts.probes,
            loss_fn=loss_of(training),
            clip=training.clip,
            learning_rate=rate,
            nodes=watch.nodes or 3,
        )
    found = divide_pair(_pair(model, update), texts.probes, watch)
    write_folder(
        run,
        found,
        checks(found, watch.tolerance),
        watched=texts,
        told={
            "headline": f"the next update of {config.checkpoint}, at {rate:g}",
            "sentences": sentences(found),
            "loss": update.loss,
        },
        parts=update.parts,
    )
    run.release()
    return found, update


@command.experiment
def main(config: Config) -> int:
    """Run the program; the exit status."""
    found, update = next_update(config, tell=command.teller(config))
    claims = checks(found, config.watch.tolerance)
    print("\n".join([*balance(found, update.parts), "", told(claims), ""]))
    print(f"the numbers: {config.out}")
    print(f"the report, for a browser: {config.out / 'report.html'}")
    return 1 if failures(claims) else 0


def _rate(training: Training, moments: Moments) -> float:
    """The learning rate of the update."""
    rate = training.learning_rate
    rate = moments.learning_rate if rate is None else rate
    if not rate:
        raise ValueError(
            "The schedule of this checkpoint is over: its learning rate is 0, and the "
            "next update none. Say `learning_rate`."
        )
    return rate


def texts_of(config: Config, model: Pretrained) -> Watched:
    """What is watched; by default the rows that the update is made on."""
    if model.tokenizer is None:
        raise ValueError(
            f"{config.checkpoint} has no tokenizer.json to read texts with"
        )
    watch = config.watch
    return watched_texts(
        watch.probes or config.data,
        model=model.model,
        tokenizer=model.tokenizer,
        texts=Texts(on_bad_row=watch.on_bad_row, blank=watch.blank),
        tokens=config.tokens,
        prompts=watch.prompts,
        batch_size=watch.batch_size,
        seed=config.seed,
    )


def rows_of(config: Config, model: Pretrained, texts: Watched) -> Any:
    """The rows of the update, with what the loss needs of them."""
    watch, objective = config.watch, _objective(config.training)
    read = Texts(str(config.data), on_bad_row=watch.on_bad_row, blank=watch.blank)
    if objective.named.trains_on == "samples":
        raise ValueError(f"`loss` {objective.loss} needs samples, which no file has")
    assert texts.encode is not None
    data = load_texts(read, objective, seed=config.seed)
    found = data.read_by(texts.encode).train
    target = None if objective.has_pairs else objective.target
    rows, _ = training_rows(found, texts.encode, target=target, max_length=2)
    if not objective.named.has_reference:
        return rows
    with progress("scoring the reference"):
        reference = _reference(config, model)
        apply_fn = linen.apply_fn(model.model)
        size = min(config.watch.batch_size, len(found))
        return add_reference(apply_fn, reference, rows, batch_size=size)


def _reference(config: Config, model: Pretrained) -> Any:
    """The parameters of the reference, in the architecture of the checkpoint."""
    given = config.training.reference
    if model.config.adapters is not None and given is None:
        return silenced(model).params
    if given is None:
        raise ValueError(
            f"`loss` {config.training.loss} compares with a reference, which no file "
            "of the checkpoint names: say `reference` and the model that the training "
            "started from."
        )
    return pair_of(given, model, is_untied=False).before


def loss_of(training: Training) -> LossFn:
    """`(logits, batch) -> scalar`, in TRL's reduction if that is asked for."""
    objective = _objective(training)
    loss_fn = objective.loss_fn
    if objective.has_pairs or training.reduction == "rows":
        return loss_fn

    def of_tokens(logits: Any, batch: Any) -> Any:
        rows = batch.mask.shape[0]
        return loss_fn(logits, batch) * (rows / batch.mask.sum()).astype(logits.dtype)

    return of_tokens


def _objective(training: Training) -> Objective:
    return Objective(training.loss, training.coefficients, training.target)


def _pair(model: Pretrained, update: Update) -> Pair:
    """The model before and after the update."""
    ends = [model, model._replace(params=update.params)]
    if model.config.tied_head:
        ends = [untied(end) for end in ends]
    return Pair(ends[0].model, ends[0].params, ends[1].params, model.tokenizer, ())


parse = functools.partial(command.parse, Config, __doc__)
