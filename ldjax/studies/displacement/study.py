"""Why did the chosen answer fall? An exact account of it along preference optimisation.

Trains on pairs three times from the same policy: by plain gradient descent at a small
rate, where first order says everything, and at one that moves answers by nats, and with
the optimizer that one trains with, whose history then has most of the say. At every
update the measured change of each
watched chosen answer is split into what its own pair did to it (chosen side, rejected
side), what the other pairs of the batch did, the optimizer's history, weight decay and
the remainder. Along the way it is measured which labels an update lifts in the contexts
of the chosen and of the rejected answer, and where the mass goes (squeezing).

Exit status 1 if an identity fails (the parts sum to the prediction, the measured
changes to that of the whole run) or a claim, of the small rate: the parts without the
remainder explain R2 >= 0.95 of the measured changes of single updates; and, of losses
that push both sides equally, a step that is really taken on a pair alone lowers its
chosen answer where, and only where, <g+, g-> > |g+|^2, wherever first order is the
larger part.

With an optimizer that rescales (Adam), <g+, g-> > |g+|^2 is about the pair's own two
sides *as the batch's step scaled them*, without momentum: alone the pair would have
been scaled otherwise. How often a step on the pair alone agrees is reported beside it.

    python experiments/displacement.py --out runs/displacement     (toy world; ~6 min)
    python experiments/displacement.py --init runs/sft --loss ipo --out runs/ipo
    python experiments/displacement.py --data pairs.jsonl.gz --out runs/mine
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import polars as pl

from ldjax import command, linen, losses
from ldjax.data.reference import add_reference
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.files.whole import whole_file
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.rows import training_rows
from ldjax.finetune.settings import Config as FinetuneConfig
from ldjax.finetune.setup import Setup, choose, make_encoder, make_setup
from ldjax.losses import make_loss
from ldjax.runs.folder import Run, create_run
from ldjax.runs.loop import Observer, every, make_batch_fn, make_train_step, train
from ldjax.studies.displacement.figures import draw_criterion, draw_labels, draw_why
from ldjax.studies.displacement.measure import (
    SIDES,
    Batch,
    make_alone_fn,
    make_labels_fn,
    make_origin_step,
)
from ldjax.studies.displacement.results import (
    RATES,
    Account,
    RateName,
    check_claims,
    check_identities,
    explained,
    print_why,
)
from ldjax.theory.claims import failures, stored, told
from ldjax.watch.record import series_rows


@dataclasses.dataclass(frozen=True)
class Config:
    """Why did the chosen answer fall?"""

    out: Path = Path("runs/displacement")
    """Run folder to write."""
    loss: str = "dpo"
    """A loss of pairs (see `finetune.py --help`)."""
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the loss, by name, instead of its defaults."""
    data: str = "toy"
    """`toy`, or a file of JSON lines (see `finetune.py`)."""
    blank: Literal["bad", "keep"] = "bad"
    """What a blank chosen or rejected response is."""
    world: str = "demo"
    """Preset of the toy world: demo, small or paper."""
    model: str = ""
    """What to start from: the size of a base model, a folder or an id on the hub (see
    `finetune.py`); by default toy for the toy world, 0.4M for a file."""
    rates: tuple[RateName, ...] = ("slow", "plain", "small")
    """Recipes of `finetune.py` to train by: plain gradient descent at a small rate and
    at one that moves answers by nats, and Adam at the training rate."""
    init: Path | None = None
    """Run folder of `finetune.py` to start from; by default the base model (pretrained
    if the cache has none) is finetuned on the chosen answers first."""
    sft_epochs: float = 0.0
    """Passes of that over the training prompts, instead of the recipe's, if not 0."""
    epochs: float = 0.0
    """Passes over the pairs, instead of the recipe's, if not 0."""
    tracked: int = 8
    """Pairs that are accounted for at every update."""
    observations: int = 10
    """Updates, in equal intervals, of which every label is measured, and beside which a
    step is taken on each watched pair alone."""
    max_length: int = 512
    """Of prompt and response together, in tokens."""
    max_prompt_length: int = 0
    """Of a prompt that has to be cut, in tokens (see `finetune.py`)."""
    cache: Path = Path("runs/cache")
    """Where base models and compiled functions are kept."""
    seed: int = 0
    """Of the world, the base model, the choice of pairs and the order of data."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not R2."""

    def resolved(self) -> "Config":
        """At the size of a smoke test if it is one."""
        if not self.smoke:
            return self
        return dataclasses.replace(self, rates=("small",), observations=2)

    def stage(self, recipe: RateName, loss: str) -> FinetuneConfig:
        """The settings of a training as `finetune.py` has them."""
        is_sft = loss == "sft"
        stage = FinetuneConfig(
            loss=loss,
            coefficients={} if is_sft else self.coefficients,
            recipe=recipe,
            epochs=self.sft_epochs if is_sft else self.epochs,
            data=self.data,
            blank=self.blank,
            world=self.world,
            model=self.model,
            init=self.init,
            tracked=self.tracked,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            cache=self.cache,
            seed=self.seed,
            smoke=self.smoke,
        ).resolved()
        stage.check()
        return stage


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config = config.resolved()
        stages: dict[RateName, FinetuneConfig] = {
            name: config.stage(name, config.loss) for name in config.rates
        }
        if not stages:
            raise ValueError("--rates must name at least one")
        stage = next(iter(stages.values()))
        if stage.named_loss.trains_on != "pairs":
            raise ValueError(f"--loss {config.loss} is not a loss of pairs")
        if config.observations < 1:
            raise ValueError("--observations must be at least 1")
        setup = make_setup(stage)
        run = create_run(
            config.out, dataclasses.asdict(config), overwrite=config.overwrite
        )
    start = setup.base.params
    if config.init is None:
        print("finetuning the base model on the chosen answers", flush=True)
        start = finetuned(config.stage("small", "sft"), setup)
    accounts: dict[RateName, Account] = {}
    for name, stage in stages.items():
        print(f"{config.loss}: {RATES[name]}", flush=True)
        accounts[name] = account_for(config, stage, setup, start)
    return report(config, run, setup, accounts)


def finetuned(stage: FinetuneConfig, setup: Setup) -> Any:
    """Parameters after SFT on the chosen answers."""
    encode = make_encoder(stage, setup.base)
    rows, _ = training_rows(
        setup.data.train, encode, target=("chosen",), max_length=setup.max_length
    )
    init, step = make_train_step(
        linen.apply_fn(setup.base.model),
        losses.sft,
        make_optimizer(stage.as_recipe()),
    )
    num_steps = updates(stage, setup)
    (last,) = train(
        init(setup.base.params),
        num_steps=num_steps,
        step_fn=step,
        batch_fn=make_batch_fn(rows, batch_size=stage.batch_size, seed=stage.seed),
        save_every=num_steps,
    )
    return last.state.params


def updates(stage: FinetuneConfig, setup: Setup) -> int:
    """Of a training on one row for each prompt."""
    return max(1, round(stage.epochs * (len(setup.data.train) // stage.batch_size)))


def account_for(
    config: Config, stage: FinetuneConfig, setup: Setup, start: Any
) -> Account:
    """Train on the pairs, with an account of the watched ones."""
    apply_fn = linen.apply_fn(setup.base.model)
    rows = setup.rows
    if stage.named_loss.has_reference:
        rows = add_reference(apply_fn, start, rows, batch_size=stage.batch_size)
    num_rows = len(setup.data.train)
    places = np.array(choose(setup.data.train, stage.tracked, config.seed))
    watched = Batch(jax.tree.map(lambda leaf: leaf[places], rows), places)
    batch_fn = make_batch_fn(
        Batch(rows, np.arange(num_rows)), batch_size=stage.batch_size, seed=stage.seed
    )
    loss_fn = make_loss(stage.loss, **stage.coefficients)
    optimizer = make_optimizer(stage.as_recipe())
    init, step_fn = make_origin_step(apply_fn, loss_fn, optimizer, watched)
    labels_fn = make_labels_fn(apply_fn, loss_fn, optimizer, watched)
    alone_fn = make_alone_fn(apply_fn, loss_fn, optimizer, watched)
    num_steps = updates(stage, setup)

    def labels(state: Any) -> dict[str, Any]:
        step = int(state.step)
        if step == num_steps:  # no update follows
            return {}
        found = labels_fn(state, batch_fn(step))
        return {
            name: np.packbits(values, axis=-1) if name.endswith(":rises") else values
            for name, values in found.items()
        }

    def alone(state: Any) -> dict[str, Any]:
        return {} if int(state.step) == num_steps else alone_fn(state)

    is_due = every(max(1, num_steps // config.observations))
    (last,) = train(
        init(start),
        num_steps=num_steps,
        step_fn=step_fn,
        batch_fn=batch_fn,
        save_every=num_steps,
        observers={
            "labels": Observer(labels, is_due),
            "alone": Observer(alone, is_due),
        },
    )
    # The whole change, by two forward passes that no step has seen.
    chosen = watched.pairs["chosen"].plain
    before, after = (
        sequence_log_probs(apply_fn(params, chosen), chosen.targets, chosen.mask)
        for params in (start, last.state.params)
    )
    return Account(last.table, np.asarray(after - before), stage.batch_size)


def report(
    config: Config, run: Run, setup: Setup, accounts: dict[RateName, Account]
) -> int:
    """Write and print what was found; the exit status."""
    watched = {
        side: [probe for probe in setup.tracked.probes if probe.type == side]
        for side in SIDES
    }
    checks, found, frames = [], {}, []
    for name, account in accounts.items():
        steps, labels = account.table["train"], account.table["labels"]
        found[name] = explained(account)
        checks += check_identities(name, account)
        if name == "slow" and not config.smoke:
            checks += check_claims(name, account, loss=config.loss)
        by_side = {
            side: {
                f"labels:{k.partition(':')[2]}": v
                for k, v in labels.items()
                if k.startswith(side) and not k.endswith(":rises")
            }
            | {"step": labels["step"]}
            for side in SIDES
        }
        alone = {
            k if k == "step" else f"alone:{k}": v
            for k, v in account.table["alone"].items()
        }
        found[name]["labels"] = {
            side: {k: float(v.mean()) for k, v in numbers.items() if k != "step"}
            for side, numbers in by_side.items()
        }
        frame = series_rows(
            {"chosen:steps": steps, "alone": alone, **by_side},
            dict.fromkeys(("chosen:steps", "alone"), watched["chosen"]) | watched,
            examples_per_step=account.batch_size,
        )
        named = pl.concat_str(pl.lit(f"{name}/"), "probe").alias("probe")
        frames.append(frame.with_columns(named))
        write_labels(run, name, labels)
    run.write_metrics(pl.concat(frames))
    run.write_summary({"rates": found, "checks": stored(checks)})
    figures = [
        draw_why(run, accounts, RATES),
        draw_criterion(run, accounts, RATES),
        draw_labels(run, accounts, RATES),
    ]
    for name, numbers in found.items():
        print_why(RATES[name], numbers)
    print(told(checks))
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures(checks) else 0


def write_labels(run: Run, name: str, labels: dict[str, np.ndarray]) -> None:
    """`labels_RATE.npz`: which labels rise, as bits, at each observed update."""
    arrays: dict[str, Any] = {"step": labels["step"]} | {
        k.replace(":", "_"): v for k, v in labels.items() if k.endswith(":rises")
    }
    path = run.path / f"labels_{name}.npz"
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


parse = functools.partial(command.parse, Config, __doc__)
