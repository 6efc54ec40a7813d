"""Is the kernel relatively stable in finetuning, and what do the proxies say of it?

The paper's accumulation argument rests on an assumption (its appendix C): for a fixed
update example the order of the responses by |K|_F changes slowly. For language models
it could only show proxies. Here the norm is exact: along SFT and DPO, for some trained
prompts and the responses of all 12 types to each, of plain gradient descent (K) and of
the run's own optimizer (K_P, with its preconditioner); and beside it the proxies, LBK
of equation 26, LBK and SignDelta as the authors' code computes them.

Exit status 1 only if an identity fails: what the kernel's factors make of a learned
token's residual is the derivative along that token's step; the block norms are those of
the kernel's own columns and of the transposed kernel. Whether the assumption holds and
the proxies are any good (LBK is below the squared norm, but how far?) is what the
experiment is to find out, and is reported with its number.

    python experiments/kernel_stability.py --out runs/stability      (toy world; ~8 min)
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import polars as pl

from ldjax import command, losses
from ldjax.command.options import COUNT, POSITIVE, SEED, wrong_numbers
from ldjax.data.reference import add_reference
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.rows import cropped
from ldjax.finetune.settings import Config as StageConfig
from ldjax.finetune.setup import Setup, make_setup
from ldjax.finetune.start import find_start, load_base
from ldjax.linen import apply_fn, logits_fn
from ldjax.losses import make_loss
from ldjax.runs.checkpoints import Table
from ldjax.runs.folder import create_run
from ldjax.runs.loop import Observer, make_batch_fn, make_train_step, train
from ldjax.studies.scored import make_update_examples
from ldjax.studies.stability.figures import draw_figures
from ldjax.studies.stability.measure import make_evaluate, make_measure
from ldjax.studies.stability.results import (
    check_identities,
    study,
    tightness,
    verdicts,
)
from ldjax.theory.claims import failures, stored, told
from ldjax.watch.record import probe_name, series_rows

#: What a step learns, by stage.
SIDES = {"sft": ("chosen",), "dpo": ("chosen", "rejected")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Exact kernel norms and the paper's proxies of them along SFT and DPO."""

    out: Path = Path("runs/kernel_stability")
    """Run folder to write."""
    data: str = "toy"
    """`toy`, or a file of JSON lines (see `finetune.py`)."""
    world: str = "demo"
    """Preset of the toy world: demo, small or paper."""
    model: str = ""
    """What to start from: the size of a base model, a folder or an id on the hub (see
    `finetune.py`); by default toy for the toy world, 0.4M for a file."""
    sft_epochs: float = 0.0
    """Passes of SFT over the training prompts, instead of the recipe's, if not 0."""
    dpo_epochs: float = 0.0
    """Passes of DPO, instead of the recipe's, if not 0."""
    updates: int = 2
    """Update examples: trained prompts whose kernels are computed."""
    update_tokens: int = 2
    """Tokens of an update's response that its loss is restricted to, evenly spread; 0
    for all. The cost is in proportion to it; probes always have all their tokens."""
    times: int = 8
    """Moments of each run, both ends included; dense early."""
    preconditioned: bool = True
    """Also the kernel of the run's optimizer; doubles the time."""
    probe_prompts: int = 20
    """Trained prompts over which the authors' code evaluates its proxies."""
    step_norm: float = 0.01
    """Length of the gradient steps whose measured change the proxies are made of."""
    cache: Path = Path("runs/cache")
    """Where base models and compiled functions are kept."""
    seed: int = 0
    """Of everything."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size."""

    def resolved(self) -> "Config":
        """At the size of a smoke test if it is one."""
        if not self.smoke:
            return self
        return dataclasses.replace(self, updates=1, update_tokens=2, times=2)

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        problems = {
            "--updates must be at least 1": self.updates < 1,
            "--updates must be at most --probe-prompts": (
                self.updates > self.probe_prompts
            ),
            "--update-tokens must not be negative": self.update_tokens < 0,
            "--times must be at least 2": self.times < 2,
        }
        wrong = [problem for problem, applies in problems.items() if applies]
        epochs = POSITIVE._replace(also=(0,))
        wrong += wrong_numbers(
            self,
            {
                "sft_epochs": epochs,
                "dpo_epochs": epochs,
                "probe_prompts": COUNT,
                "step_norm": POSITIVE,
                "seed": SEED,
            },
        )
        if wrong:
            raise ValueError("; ".join(wrong))

    def stage(self, loss: Any, *, base: str = "") -> StageConfig:
        """The settings of one run, from a base that was found if it is given."""
        return StageConfig(
            loss=loss,
            data=self.data,
            world=self.world,
            epochs=self.sft_epochs if loss == "sft" else self.dpo_epochs,
            probe_prompts=self.probe_prompts,
            tracked=self.updates,
            cache=self.cache,
            seed=self.seed,
            smoke=self.smoke,
            model=base or self.model,
        )


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    config = config.resolved()
    with command.set_up():
        config.check()
        base = find_start(config.stage("sft").resolved())
        stages = {loss: config.stage(loss, base=base).resolved() for loss in SIDES}
        load_base(stages["sft"], base, shapes_only=True)  # is there such a model?
        for stage in stages.values():
            stage.check()
        run = create_run(
            config.out, dataclasses.asdict(config), overwrite=config.overwrite
        )
    tables: dict[str, Table] = {}
    studies, frames, params = {}, [], None
    for name, stage in stages.items():
        setup = make_setup(stage)
        print(f"=== {name}: {setup.num_steps} updates ===", flush=True)
        # DPO starts where SFT ended.
        start = setup.base.params if params is None else params
        params, tables[name] = run_stage(config, stage, setup, start)
        studies[name] = study(tables[name], setup.tracked.probes, setup.observed.probes)
        frames.append(long_table(stage, setup, tables[name]))
    run.write_metrics(pl.concat(frames))
    identities = [
        check for name in tables for check in check_identities(name, tables[name])
    ]
    findings = verdicts(studies)
    run.write_summary(
        {
            "claims": stored(findings),
            "identities": stored(identities),
            "stages": studies,
        }
    )
    figures = draw_figures(run)
    print(told([*identities, *findings]))
    for line in tightness(studies):
        print(line)
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures(identities) else 0


def run_stage(
    config: Config, stage: StageConfig, setup: Setup, start: Any
) -> tuple[Any, Table]:
    """Train, and measure on the way; the final parameters and what was measured."""
    model, rows = setup.base.model, setup.rows
    is_dpo = stage.loss == "dpo"
    if is_dpo:
        rows = add_reference(apply_fn(model), start, rows, batch_size=stage.batch_size)
    loss_fn = make_loss(stage.loss, **stage.coefficients)
    optimizer = make_optimizer(stage.as_recipe())
    measure = make_measure(
        model,
        loss_fn if is_dpo else of_chosen,
        make_update_examples(
            setup.tracked.probes, SIDES[stage.loss], num_tokens=config.update_tokens
        ),
        optimizer=optimizer if config.preconditioned else None,
        reference=start if is_dpo else None,
        step_norm=config.step_norm,
    )
    evaluate = make_evaluate(apply_fn(model), setup.observed)
    steps = moments(setup.num_steps, config.times)

    def observe(state: Any) -> dict[str, Any]:
        found = measure(state, steps.index(int(state.step)))
        print(f"update {int(state.step)}: measured", flush=True)
        return found

    init, step_fn = make_train_step(
        lambda params, batch: logits_fn(model, batch)(params), loss_fn, optimizer
    )
    batch_fn = make_batch_fn(rows, batch_size=stage.batch_size, seed=stage.seed)
    is_due = set(steps).__contains__
    *_, last = train(
        init(start),
        num_steps=setup.num_steps,
        step_fn=step_fn,
        batch_fn=cropped(batch_fn),
        save_every=setup.num_steps,
        observers={
            "kernel": Observer(observe, is_due),
            "evaluated": Observer(lambda state: evaluate(state.params), is_due),
        },
    )
    return last.state.params, last.table


def moments(num_steps: int, times: int) -> list[int]:
    """When to measure: both ends, with distances that grow."""
    fractions = [i / (times - 1) for i in range(times)]
    return sorted({round(num_steps * fraction**2) for fraction in fractions})


def of_chosen(logits: dict[str, Any], batch: dict[str, Any]) -> Any:
    """The loss of SFT, of the one side of an update example."""
    return losses.sft(logits["chosen"], batch["chosen"])


def long_table(stage: StageConfig, setup: Setup, table: Table) -> pl.DataFrame:
    """A stage's part of `metrics.parquet`; probes are called `STAGE/SET/PROMPT`."""
    of_series = {
        "kernel": setup.tracked.probes,
        "evaluated": setup.observed.probes,
    }
    named = {
        series: tuple(
            probe._replace(prompt_name=probe_name(stage.loss, probe.prompt_name))
            for probe in probes
        )
        for series, probes in of_series.items()
    }
    return series_rows(table, named, examples_per_step=stage.batch_size)


parse = functools.partial(command.parse, Config, __doc__)
