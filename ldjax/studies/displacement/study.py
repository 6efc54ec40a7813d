"""The account of a falling chosen answer, from the settings to what was found."""

import functools
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ldjax import command
from ldjax.files.whole import whole_file
from ldjax.finetune.prepare import Prepared, prepare
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.runs.folder import Run
from ldjax.studies.displacement import __doc__ as about
from ldjax.studies.displacement.figures import draw_figures
from ldjax.studies.displacement.measure import SIDES
from ldjax.studies.displacement.results import (
    Account,
    check_claims,
    check_identities,
    explained,
    long_table,
    why,
)
from ldjax.studies.displacement.settings import RATES, Config, RateName
from ldjax.studies.displacement.training import account_for, finetuned
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import Claim, stored


class Asked(NamedTuple):
    """What is trained on what.

    Attributes:
      stages: The settings of each training, by its rate.
      setup: What they share: the data, the model and the watched pairs.
    """

    stages: dict[RateName, FinetuneConfig]
    setup: Prepared


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find, measure=measure)


def find(config: Config) -> Asked:
    """The trainings that are asked for, with their data and model."""
    stages: dict[RateName, FinetuneConfig] = {
        name: config.stage(name, config.loss) for name in config.rates
    }
    stage = next(iter(stages.values()))
    if stage.objective.named.trains_on != "pairs":
        raise ValueError(f"`loss={config.loss}` is not a loss of pairs")
    return Asked(stages, prepare(stage))


def measure(config: Config, asked: Asked, run: Run) -> Findings:
    """Train at every rate, and account for the changes."""
    stages, setup = asked
    start = setup.base.params
    if config.init is None:
        print("finetuning the base model on the chosen answers", flush=True)
        start = finetuned(config.stage("small", "sft"), setup)
    accounts: dict[RateName, Account] = {}
    for name, stage in stages.items():
        print(f"{config.loss}: {RATES[name]}", flush=True)
        accounts[name] = account_for(config, stage, setup, start)
    watched = {
        side: [probe for probe in setup.watched.tracked.probes if probe.type == side]
        for side in SIDES
    }
    claims: list[Claim] = []
    found: dict[RateName, dict[str, Any]] = {}
    for name, account in accounts.items():
        found[name] = explained(account)
        claims += check_identities(name, account)
        if name == "slow" and not config.smoke:
            claims += check_claims(name, account, loss=config.loss)
        write_labels(run, name, account.table["labels"])
        account.ledger.write(run.path / f"ledger_{name}")
    run.write_metrics(
        pl.concat(
            long_table(name, account, watched) for name, account in accounts.items()
        )
    )
    return Findings(
        claims=claims,
        summary={"rates": found, "checks": stored(claims)},
        draw=functools.partial(draw_figures, accounts=accounts),
        text="\n".join(why(RATES[name], each) for name, each in found.items()),
    )


def write_labels(run: Run, name: str, labels: dict[str, np.ndarray]) -> None:
    """`labels_RATE.npz`: which labels rise, as bits, at each observed update."""
    arrays: dict[str, Any] = {"step": labels["step"]} | {
        k.replace(":", "_"): v for k, v in labels.items() if k.endswith(":rises")
    }
    path = run.path / f"labels_{name}.npz"
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


parse = functools.partial(command.parse, Config, about)
