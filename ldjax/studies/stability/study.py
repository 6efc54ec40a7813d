"""The kernel's stability, from the settings to what was found."""

import functools
from typing import Any

import polars as pl

from ldjax import command
from ldjax.finetune.prepare import prepare, start_of
from ldjax.finetune.settings.config import Config as StageConfig
from ldjax.finetune.start import load_shapes
from ldjax.runs.folder import Run
from ldjax.studies.stability import __doc__ as about
from ldjax.studies.stability.figures import draw_figures
from ldjax.studies.stability.results import (
    check_identities,
    long_table,
    study,
    tightness,
    verdicts,
)
from ldjax.studies.stability.settings import Config
from ldjax.studies.stability.training import SIDES, run_stage
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import Claim, stored

Stages = dict[str, StageConfig]


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find, measure=measure)


def find(config: Config) -> Stages:
    """The settings of both stages, from a model that is there."""
    base = start_of(config.stage("sft").resolved())
    stages = {loss: config.stage(loss, base=base).resolved() for loss in SIDES}
    load_shapes(base, stages["sft"].model)  # is there such a model?
    for stage in stages.values():
        stage.check()
    return stages


def measure(config: Config, stages: Stages, run: Run) -> Findings:
    """Train in both stages, and measure on the way."""
    studies: dict[str, Any] = {}
    identities: list[Claim] = []
    frames, params = [], None
    for name, stage in stages.items():
        setup = prepare(stage)
        print(f"=== {name}: {setup.num_steps} updates ===", flush=True)
        # DPO starts where SFT ended.
        start = setup.base.params if params is None else params
        params, table = run_stage(config, stage, setup, start)
        studies[name] = study(
            table, setup.watched.tracked.probes, setup.watched.observed.probes
        )
        identities += check_identities(name, table)
        frames.append(long_table(stage, setup, table))
    run.write_metrics(pl.concat(frames))
    findings = verdicts(studies)
    summary = {
        "claims": stored(findings),
        "identities": stored(identities),
        "stages": studies,
    }
    return Findings([*identities, *findings], summary, draw_figures, tightness(studies))


parse = functools.partial(command.parse, Config, about)
