"""The paper's phenomena, from the settings to what was found."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ldjax import command
from ldjax.files.whole import whole_file
from ldjax.finetune.recipes import RECIPES
from ldjax.progress import progress
from ldjax.runs.folder import Run
from ldjax.runs.loop import NonFiniteError
from ldjax.studies.phenomena import __doc__ as about
from ldjax.studies.phenomena import (
    fingerprint,
    hallucination,
    longer_sft,
    on_policy,
    repeater,
)
from ldjax.studies.phenomena.figures import draw_figures
from ldjax.studies.phenomena.results import (
    Outcome,
    check_claims,
    check_identities,
    metric_rows,
    overall,
    tables,
)
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, make_start
from ldjax.studies.policies import check_model
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import stored

TABLE = "table.md"
# By phenomenon and seed.
Outcomes = dict[str, dict[int, Outcome]]


class Phenomenon(NamedTuple):
    """What is studied.

    Attributes:
      title: Of its table.
      measure: What it shows under a seed.
    """

    title: str
    measure: Callable[[Start, Config], Outcome]


PHENOMENA = {
    "hallucination": Phenomenon(
        "Hallucination: another prompt's answer rises", hallucination.measure
    ),
    "fingerprint": Phenomenon(
        "Fingerprint: texts of one source are alike", fingerprint.measure
    ),
    "repeater": Phenomenon("Repeater: long DPO degenerates", repeater.measure),
    "longer_sft": Phenomenon(
        "Longer SFT before DPO: more squeezing", longer_sft.measure
    ),
    "on_policy": Phenomenon(
        "On- and off-policy DPO: a less likely y- does more harm", on_policy.measure
    ),
}


class SeedError(ValueError):
    """A seed under which a phenomenon could not be measured."""


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find, measure=measure)


def find(config: Config) -> None:
    """Refuse a model that is not there."""
    check_model(config.model)


def measure(config: Config, subject: None, run: Run) -> Findings:
    """Look at every phenomenon under every seed; what is known so far is written."""
    del subject
    outcomes: Outcomes = {name: {} for name in config.chosen}
    for seed in config.seeds:
        try:
            for name, outcome in of_seed(config, seed):
                outcomes[name][seed] = outcome
        except (NonFiniteError, MemoryError, on_policy.TooFewPairsError) as error:
            raise SeedError(f"seed {seed}: {error}") from error
        write(run, outcomes)
    # Of a smoke test only the identities count.
    kind = "finding" if config.smoke else "claim"
    claims = [
        claim.about(name)
        for name, seeds in outcomes.items()
        for claim in (*check_identities(seeds), *check_claims(seeds, kind))
    ]
    return Findings(claims, summary_of(outcomes), draw_figures, text_of(outcomes))


def of_seed(config: Config, seed: int) -> Iterator[tuple[str, Outcome]]:
    """What a seed shows, phenomenon by phenomenon."""
    print(f"=== seed {seed}: SFT ===", flush=True)
    start = make_start(config, seed)
    for name in config.chosen:
        print(f"=== seed {seed}: {name} ===", flush=True)
        with progress(f"seed {seed}: {name}"):
            yield name, PHENOMENA[name].measure(start, config)


def write(run: Run, outcomes: Outcomes) -> None:
    """The numbers of the seeds so far, and what becomes of the claims."""
    batch_size = RECIPES["small", "sft"].batch_size
    run.write_metrics(
        [
            row
            for name, seeds in outcomes.items()
            for row in metric_rows(name, seeds, batch_size=batch_size)
        ]
    )
    run.write_summary(summary_of(outcomes))
    with whole_file(run.path / TABLE) as partial:
        partial.write_text(text_of(outcomes), encoding="utf-8")


def summary_of(outcomes: Mapping[str, Mapping[int, Outcome]]) -> dict[str, Any]:
    """The content of `summary.json`."""
    return {
        "phenomena": {
            name: {
                "title": PHENOMENA[name].title,
                "verdict": overall(check_claims(seeds)),
                "claims": stored(check_claims(seeds)),
                "identities": stored(check_identities(seeds)),
                "seeds": {
                    str(seed): outcome.table | outcome.claims
                    for seed, outcome in seeds.items()
                },
            }
            for name, seeds in outcomes.items()
        }
    }


def text_of(outcomes: Mapping[str, Mapping[int, Outcome]]) -> str:
    """The tables of all phenomena."""
    found = (tables(PHENOMENA[name].title, each) for name, each in outcomes.items())
    return "\n\n".join(found) + "\n"


parse = functools.partial(command.parse, Config, about)
