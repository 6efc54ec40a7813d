r"""Remedies for the squeezing effect: extended SFT before DPO, and other losses.

The paper's remedy lifts the valley before pushing. Baseline: SFT on the chosen answers,
then DPO. Extend: SFT on the chosen and on the rejected ones, each a target of its own,
for as many epochs, so twice the updates, then the same DPO. Policies are kept after 2,
4 and 6 epochs of DPO. Then IPO, SimPO, RPO and gated DPO, at their defaults in
`ldjax.losses`, each from the baseline's SFT policy and compared with DPO after 4
epochs. Within a seed all share the base model, and after SFT the order of the pairs.

The judge of the toy world compares responses, sampled at temperature 1 with the same
key for all policies (and greedy ones beside them), to prompts that no policy is trained
on. All of them are answerable: the corpus of the base model files facts of every
entity, six in ten of them true. The 95 % interval of a seed is over prompts, its
policies being those that there are. That of all seeds is over seeds (Student's, of
their rates), as another seed makes other policies: of three seeds it is wide.

Claims, checked on full runs (exit status 1 if one does not hold for most seeds): the
published signatures EXT1 (extended SFT lifts rejected more, chosen less, and keeps the
margin smaller), EXT2 (DPO after it costs chosen, rejected and the mean of all types
less) and EXT3 (and ends with a lower y*, the greedy log-prob); and after 6 epochs of
DPO sampled responses of extend win over the baseline's, with the interval over seeds
above one half. "held" is for all seeds, "refuted" for none, else "depends".

    python experiments/mitigation.py --out runs/mitigation                     (~30 min)
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from ldjax import command, losses
from ldjax.command.options import POSITIVE, SEED, wrong_numbers
from ldjax.data.preferences import PreferenceRow
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.files.whole import whole_file
from ldjax.finetune.recipes import RECIPES
from ldjax.runs.folder import Run, create_run
from ldjax.studies.mitigation.figures import draw_figures
from ldjax.studies.mitigation.results import (
    ARMS,
    DECODINGS,
    LENGTHS,
    LOSSES,
    SAME_LENGTH,
    Moment,
    Said,
    check_claims,
    check_identities,
    make_moments,
    metric_rows,
    numbers,
    over_seeds,
)
from ldjax.studies.mitigation.tables import tables
from ldjax.studies.policies import (
    Policy,
    Study,
    check_model,
    judged,
    make_study,
    pairs,
    responses,
    sft_rows,
    train_policy,
)
from ldjax.theory.claims import failures, stored, told


@dataclasses.dataclass(frozen=True)
class Config:
    """Extended SFT before DPO, and other losses than DPO."""

    out: Path = Path("runs/mitigation")
    """Run folder to write."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is a world, a base model and an order of the data of its own."""
    world: str = "small"
    """Preset of the toy world: demo, small or paper."""
    model: str = "toy"
    """What to start from: the size of a base model, a folder or an id on the hub (see
    `finetune.py`)."""
    losses: tuple[Literal["ipo", "simpo", "rpo", "gated_dpo"], ...] = (
        "ipo",
        "simpo",
        "rpo",
        "gated_dpo",
    )
    """Compared with DPO after as many epochs."""
    prompts: int = 1000
    """Training prompts, the first of the world."""
    sft_epochs: float = 4.0
    """Passes of SFT over the training prompts."""
    judged: int = 200
    """Held-out prompts whose responses are judged, if there are as many."""
    probe_prompts: int = 20
    """Trained prompts whose responses are observed; and half as many held-out ones."""
    evaluations: int = 4
    """Observations per epoch after SFT, which has 20 in all."""
    cache: Path = Path("runs/cache")
    """Where base models and compiled functions are kept."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claims."""

    def resolved(self) -> "Config":
        """At the size of a smoke test if it is one."""
        if not self.smoke:
            return self
        return dataclasses.replace(
            self,
            seeds=self.seeds[:1],
            world="demo",
            losses=self.losses[:1],
            prompts=16,
            sft_epochs=1.0,
            judged=4,
            probe_prompts=2,
            evaluations=1,
        )

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        if self.world not in WORLDS:
            raise ValueError(f"--world must be one of {', '.join(WORLDS)}")
        batch_size, there = RECIPES["small", "dpo"].batch_size, WORLDS[self.world]
        problems = {
            "--seeds must be at least one, all different and not negative": (
                not self.seeds
                or len(set(self.seeds)) < len(self.seeds)
                or min(self.seeds) < 0
            ),
            f"--prompts must be between {batch_size} and {there.num_train}": (
                not batch_size <= self.prompts <= there.num_train
            ),
            f"--probe-prompts must be between 1 and {there.num_train}": (
                not 1 <= self.probe_prompts <= there.num_train
            ),
            "--losses must all be different": len(set(self.losses)) < len(self.losses),
            "--judged must be at least 2": self.judged < 2,
            "--evaluations must be at least 1": self.evaluations < 1,
        }
        wrong = [problem for problem, applies in problems.items() if applies]
        wrong += wrong_numbers(self, {"sft_epochs": POSITIVE, "seeds": SEED})
        if wrong:
            raise ValueError("; ".join(wrong))


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    with command.set_up():
        config = config.resolved()
        config.check()
        check_model(config.model)
        run = create_run(
            config.out, dataclasses.asdict(config), overwrite=config.overwrite
        )
    moments = make_moments(config.losses, evaluations=config.evaluations)
    seeds, rows = {}, []
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
    return report(config, run, seeds)


def train_all(config: Config, study: Study, seed: int) -> dict[str, Policy]:
    """Every policy of a seed, by what SFT trained on and by the loss: `extend dpo`."""
    rows = study.data.train[: config.prompts]
    begin = time.perf_counter()
    trained: dict[str, Policy] = {}

    def run(stage: str, start: Any, examples: Any, loss_fn: Any, **options: Any):
        trained[stage] = train_policy(
            study, start, examples, loss_fn, seed=seed, **options
        )
        seconds = time.perf_counter() - begin
        print(f"seed {seed}, {seconds:4.0f} s: {stage} done", flush=True)
        return trained[stage].params[-1]

    sft = RECIPES["small", "sft"]._replace(epochs=config.sft_epochs)
    dpo = RECIPES["small", "dpo"]
    starts, preferred = {}, {}
    for arm, target in ARMS.items():
        examples = sft_rows(study, rows, target)
        starts[arm] = run(
            f"{arm} sft", study.base.params, examples, losses.sft, recipe=sft
        )
        preferred[arm] = pairs(study, rows, starts[arm])
        run(
            f"{arm} dpo",
            starts[arm],
            preferred[arm],
            losses.dpo(),
            recipe=dpo._replace(epochs=LENGTHS[-1]),
            keep=len(LENGTHS),
            observations=LENGTHS[-1] * config.evaluations,
        )
    for name in config.losses:
        run(
            f"baseline {name}",
            starts["baseline"],
            preferred["baseline"],
            LOSSES[name],
            recipe=dpo._replace(epochs=SAME_LENGTH),
            observations=SAME_LENGTH * config.evaluations,
        )
    return trained


def held_out(study: Study) -> list[PreferenceRow]:
    """Prompts that no policy is trained on."""
    validation = [
        PreferenceRow(row["prompt"], {"chosen": row["chosen"]}, f"validation:{number}")
        for number, row in enumerate(study.world.validation, 1)
    ]
    return [*study.data.test, *validation]


def listen(
    study: Study,
    trained: Mapping[str, Policy],
    moments: Mapping[str, Moment],
    asked: list[PreferenceRow],
    seed: int,
) -> dict[str, dict[str, Said]]:
    """The responses of every policy, by decoding, by moment."""
    keys = {"sampled": jax.random.key(seed), "greedy": None}

    def said(params: Any, decoding: str) -> Said:
        texts = responses(study, params, asked, key=keys[decoding])
        return Said([*texts], judged(study, asked, texts))

    return {
        decoding: {
            name: said(trained[moment.stage].params[moment.kept], decoding)
            for name, moment in moments.items()
        }
        for decoding in DECODINGS
    }


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


def report(
    config: Config,
    run: Run,
    seeds: Mapping[int, dict[str, Any]],
) -> int:
    """Write the summary, tables and figures, print the numbers; the exit status."""
    pooled = over_seeds([each["wins"] for each in seeds.values()])
    claims = [] if config.smoke else check_claims(seeds, pooled)
    identities = check_identities(seeds)
    run.write_summary(
        {
            "claims": stored(claims),
            "identities": stored(identities),
            "pooled_wins": pooled,
            "seeds": seeds,
        }
    )
    text = tables(seeds, pooled)
    with whole_file(run.path / "tables.md") as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")
    figures = draw_figures(run)
    print(f"\n{text}\n")
    print(told([*identities, *claims]))
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures([*identities, *claims]) else 0


parse = functools.partial(command.parse, Config, __doc__)
