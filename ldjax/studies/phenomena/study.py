"""The paper's phenomena of finetuning, measured through the exact kernel.

On the toy world, for each of some seeds, from one run of SFT:

* hallucination: which training pairs lift another prompt's answer, to first order;
* fingerprint: how alike texts are for the base model, by who wrote them;
* repeater: what a long DPO does to y* and to free-running samples;
* longer_sft: the same DPO after SFT of several lengths;
* on_policy: DPO on pairs from a valley, off-policy and on-policy, at an equal budget.

Each has its claims, which were fixed before the first run and are stated in its
module (`phenomena_NAME.py`). A claim is held if it is true under every seed, refuted if
under none; else it depends. Most say which of two numbers is larger: where there is no
difference, three seeds agree in one case of four, half of which are "held".

Exit status 1 if a claim is not held, or an identity does not hold: the terms of all
training pairs sum to the change that they explain; what the kernel's factors make of a
token's residual is the derivative along its step; the kernel of two texts is that of
the same two the other way round, transposed; no alignment is above 1.

    python experiments/phenomena.py --out runs/phenomena      (toy world; ~40 min)
    python experiments/phenomena.py --only hallucination,fingerprint --seeds 0
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ldjax import command
from ldjax.files.whole import whole_file
from ldjax.finetune.recipes import RECIPES
from ldjax.progress import progress
from ldjax.runs.folder import Run, create_run
from ldjax.runs.loop import NonFiniteError
from ldjax.studies.phenomena import fingerprint as phenomena_fingerprint
from ldjax.studies.phenomena import hallucination as phenomena_hallucination
from ldjax.studies.phenomena import longer_sft as phenomena_longer_sft
from ldjax.studies.phenomena import on_policy as phenomena_on_policy
from ldjax.studies.phenomena import repeater as phenomena_repeater
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
from ldjax.theory.claims import Claim, failures, stored, told

TABLE = "table.md"
# By phenomenon and seed.
Findings = dict[str, dict[int, Outcome]]


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
        "Hallucination: another prompt's answer rises",
        phenomena_hallucination.measure,
    ),
    "fingerprint": Phenomenon(
        "Fingerprint: texts of one source are alike", phenomena_fingerprint.measure
    ),
    "repeater": Phenomenon(
        "Repeater: long DPO degenerates", phenomena_repeater.measure
    ),
    "longer_sft": Phenomenon(
        "Longer SFT before DPO: more squeezing", phenomena_longer_sft.measure
    ),
    "on_policy": Phenomenon(
        "On- and off-policy DPO: a less likely y- does more harm",
        phenomena_on_policy.measure,
    ),
}


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    config = config.resolved()
    with command.set_up():
        config.check()
        check_model(config.model)
        run = create_run(
            config.out, dataclasses.asdict(config), overwrite=config.overwrite
        )
    findings: Findings = {name: {} for name in config.chosen}
    for seed in config.seeds:
        try:
            for name, outcome in study(config, seed):
                findings[name][seed] = outcome
        except (
            NonFiniteError,
            MemoryError,
            phenomena_on_policy.TooFewPairsError,
        ) as error:
            sys.exit(f"phenomena: seed {seed}: {error}")
        write(run, findings)
    return report(config, run, findings)


def study(config: Config, seed: int) -> Iterator[tuple[str, Outcome]]:
    """What a seed shows, phenomenon by phenomenon."""
    print(f"=== seed {seed}: SFT ===", flush=True)
    start = make_start(config, seed)
    for name in config.chosen:
        print(f"=== seed {seed}: {name} ===", flush=True)
        with progress(f"seed {seed}: {name}"):
            outcome = measure(name, start, config)
        yield name, outcome


def measure(name: str, start: Start, config: Config) -> Outcome:
    """What a phenomenon shows under a seed."""
    if config.smoke and name == "on_policy":
        # The judge finds all samples of a model that has learned nothing malformed.
        return phenomena_on_policy.measure(start, config, scorer=by_length)
    return PHENOMENA[name].measure(start, config)


def by_length(study: Any, row: Any, text: str) -> float:
    """A scorer that prefers longer responses."""
    del study, row
    return len(text)


def write(run: Run, findings: Findings) -> None:
    """The numbers of the seeds so far, and what becomes of the claims."""
    batch_size = RECIPES["small", "sft"].batch_size
    run.write_metrics(
        [
            row
            for name, outcomes in findings.items()
            for row in metric_rows(name, outcomes, batch_size=batch_size)
        ]
    )
    claims = {name: check_claims(outcomes) for name, outcomes in findings.items()}
    run.write_summary(
        {
            "phenomena": {
                name: {
                    "title": PHENOMENA[name].title,
                    "verdict": overall(claims[name]),
                    "claims": stored(claims[name]),
                    "identities": stored(check_identities(outcomes)),
                    "seeds": {
                        str(seed): outcome.table | outcome.claims
                        for seed, outcome in outcomes.items()
                    },
                }
                for name, outcomes in findings.items()
            }
        }
    )
    text = "\n\n".join(
        tables(PHENOMENA[name].title, outcomes) for name, outcomes in findings.items()
    )
    with whole_file(run.path / TABLE) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def report(config: Config, run: Run, findings: Findings) -> int:
    """Draw the figures, print the tables and the verdicts; the exit status."""
    figures = draw_figures(run)
    print((run.path / TABLE).read_text(encoding="utf-8"))
    claims = claims_of(findings, config)
    print(told(claims))
    print("\n".join(["", "figures:", *map(str, figures)]))
    print(f"table: {run.path / TABLE}\nrun folder: {run.path}")
    return 1 if failures(claims) else 0


def claims_of(findings: Findings, config: Config) -> list[Claim]:
    """Those of every phenomenon, by its name; of a smoke test only identities count."""
    return [
        dataclasses.replace(claim, text=f"{name}: {claim.text}")
        for name, outcomes in findings.items()
        for claim in (
            *check_identities(outcomes),
            *check_claims(outcomes, "finding" if config.smoke else "claim"),
        )
    ]


parse = functools.partial(command.parse, Config, __doc__)
