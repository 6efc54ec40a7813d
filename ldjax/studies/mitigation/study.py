"""Remedies for squeezing, from the settings to what was found."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from ldjax import command
from ldjax.data.preferences import PreferenceRow
from ldjax.files.whole import whole_file
from ldjax.finetune.recipes import RECIPES
from ldjax.runs.folder import Run
from ldjax.studies.mitigation import __doc__ as about
from ldjax.studies.mitigation.figures import draw_figures
from ldjax.studies.mitigation.measure import held_out, listen, train_all
from ldjax.studies.mitigation.results import (
    Said,
    check_claims,
    check_identities,
    make_moments,
    metric_rows,
    numbers,
    over_seeds,
)
from ldjax.studies.mitigation.settings import Config
from ldjax.studies.mitigation.tables import tables
from ldjax.studies.policies import check_model, make_study
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import stored


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find, measure=measure)


def find(config: Config) -> None:
    """Refuse a model that is not there."""
    check_model(config.model)


def measure(config: Config, subject: None, run: Run) -> Findings:
    """Train the policies of every seed, and have them judged."""
    del subject
    moments = make_moments(config.losses, evaluations=config.evaluations)
    seeds: dict[int, dict[str, Any]] = {}
    rows = []
    for seed in config.seeds:
        study = make_study(
            config.world,
            model=config.model,
            seed=seed,
            cache=config.cache,
            probe_prompts=config.probe_prompts,
            smoke=config.smoke,
        )
        trained = train_all(config, study, seed)
        asked = held_out(study)[: config.judged]
        said = listen(study, trained, moments, asked, seed)
        seeds[seed] = numbers(study, trained, moments, said)
        rows += metric_rows(seed, study, trained, RECIPES["small", "dpo"].batch_size)
        write_responses(run, asked, said, seed)
    run.write_metrics(rows)
    pooled = over_seeds([each["wins"] for each in seeds.values()])
    claims = [] if config.smoke else check_claims(seeds, pooled)
    identities = check_identities(seeds)
    text = tables(seeds, pooled)
    with whole_file(run.path / "tables.md") as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")
    summary = {
        "claims": stored(claims),
        "identities": stored(identities),
        "pooled_wins": pooled,
        "seeds": seeds,
    }
    return Findings([*identities, *claims], summary, draw_figures, f"\n{text}\n")


def write_responses(
    run: Run,
    asked: list[PreferenceRow],
    said: Mapping[str, Mapping[str, Said]],
    seed: int,
) -> None:
    """`responses-SEED.jsonl`: what was judged."""
    lines = [
        {
            "policy": name,
            "decoding": decoding,
            "prompt": row.prompt,
            "text": text,
            "verdict": verdict,
        }
        for decoding, by_moment in said.items()
        for name, (texts, verdicts) in by_moment.items()
        for row, text, verdict in zip(asked, texts, verdicts, strict=True)
    ]
    with whole_file(run.path / f"responses-{seed}.jsonl") as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


parse = functools.partial(command.parse, Config, about)
