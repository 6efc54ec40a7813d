"""The paper's main experiments in one go: base, SFT, DPO after SFT, DPO from the base.

Pretrains a base model, finetunes it by SFT (the paper's Figure 3), the result by DPO
(Figure 4), and the base by DPO directly (as the published logs were made). Each stage
is a run of `finetune.py` in a folder of its own, with its claims; this script adds the
comparison of the stages and says in plain language what happened to each type of
response.

Exit status 1 if a claim of a stage does not hold.

    python experiments/pipeline.py --out runs/pipeline               (toy world; ~8 min)
    python experiments/pipeline.py --data probing.jsonl.gz --blank keep --out runs/hh
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, get_args

from ldjax import command
from ldjax.command.options import POSITIVE, changed, check_numbers, flat
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.finetune.prepare import check_fits, read_texts, start_of
from ldjax.finetune.run import FinetunedRun, finetune
from ldjax.finetune.settings import config as options
from ldjax.finetune.settings import records
from ldjax.finetune.settings.config import from_command_line, kept
from ldjax.models import PRESETS as MODELS
from ldjax.report import write_page
from ldjax.report.words import named, told
from ldjax.runs.folder import start_run
from ldjax.runs.sinks import SinkName

__all__ = ["Config", "main", "parse"]

_RANGES = {"sft_epochs": POSITIVE, "dpo_epochs": POSITIVE}
Stage = Literal["sft", "dpo_after_sft", "dpo_from_base"]
STAGES: tuple[Stage, ...] = get_args(Stage)
TITLES = {
    "sft": "SFT on the chosen answers",
    "dpo_after_sft": "DPO after SFT",
    "dpo_from_base": "DPO of the base model",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Base, SFT, DPO after SFT and DPO from the base."""

    out: Path = Path("runs/pipeline")
    """Folder to write; each stage has a run folder in it."""
    texts: records.Texts = dataclasses.field(default_factory=records.Texts)
    model: records.Model = dataclasses.field(default_factory=records.Model)
    stages: tuple[Stage, ...] = STAGES
    """Those that are run, one after the other."""
    preset: options.PresetName | None = None
    """A run of the paper: its model from the hub, Anthropic-HH helpful-base, its
    optimizer, in bfloat16; fits one GPU of 80 GB. Sets the defaults of other options,
    which `--help` behind it shows."""
    optimizer: records.Optimizer = dataclasses.field(default_factory=records.Optimizer)
    sft_epochs: float | None = None
    """Passes of SFT over the training prompts, instead of those of every stage."""
    dpo_epochs: float | None = None
    """Passes of DPO, instead of those of every stage."""
    tokens: records.Tokens = dataclasses.field(default_factory=records.Tokens)
    watch: records.Watch = dataclasses.field(default_factory=records.Watch)
    cache: Path = Path("runs/cache")
    """Where base models, reference log-probs and compiled functions are kept."""
    log: tuple[SinkName, ...] = ()
    """Also show each stage while it goes on, in TensorBoard (`tensorboard`, files in
    the run folder) or Weights & Biases (`wandb`; offline unless one is logged in)."""
    seed: int = 0
    """Of everything."""
    resume: bool = False
    """Go on where a pipeline that was stopped in `--out` stood."""
    overwrite: bool = False
    """Replace what is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claims."""

    @classmethod
    def of(cls, **given: Any) -> "Config":
        """Settings from options by their names on the command line."""
        return changed(cls(), **given)

    def stage(self, loss: str, **given: Any) -> options.Config:
        """The settings of a stage."""
        epochs = self.sft_epochs if loss == "sft" else self.dpo_epochs
        stage = options.Config(
            objective=records.Objective(loss),
            texts=self.texts,
            model=self.model,
            preset=self.preset,
            optimizer=self.optimizer,
            tokens=self.tokens,
            watch=self.watch,
            cache=self.cache,
            log=self.log,
            seed=self.seed,
            resume=True,
            smoke=self.smoke,
        )
        if epochs is not None:
            given["epochs"] = epochs
        return changed(stage, **given)


@command.experiment
def main(config: Config) -> int:
    """Run the stages; the exit status."""
    with command.set_up():
        check_numbers(config, _RANGES)
        stage = config.stage("dpo").resolved()
        stage.check()
        if not config.stages:
            raise ValueError(f"`stages` must be of {', '.join(STAGES)}")
        if "dpo_after_sft" in config.stages and "sft" not in config.stages:
            raise ValueError("`stages`: dpo_after_sft needs sft")
        if config.resume and config.overwrite:
            raise ValueError("`resume` and `overwrite` contradict each other")
        # A bad row is found before a base is pretrained, and a model that is not there
        # or too large before anything is written.
        texts, model = read_texts(stage), stage.model.model
        if model is not None and model not in MODELS:
            for loss in ("sft", "dpo"):
                check_fits(config.stage(loss).resolved(), texts, model)
        run = start_run(
            config.out,
            all_settings(config),
            resume=config.resume,
            overwrite=config.overwrite,
            free=("out", "resume", "overwrite", "cache", "log"),
        )
        base = start_of(config.stage("sft").resolved())
    sft, dpo_after_sft, dpo_from_base = (run.path / name for name in STAGES)
    # After SFT of adapters these are trained on.
    from_sft = {"model": None, "init": sft, "initial_from": base}
    from_sft |= {"lora_rank": None, "lora_alpha": None, "lora_targets": ()}
    stages = {
        "sft": config.stage("sft", out=sft, model=base),
        "dpo_after_sft": config.stage("dpo", out=dpo_after_sft, **from_sft),
        "dpo_from_base": config.stage("dpo", out=dpo_from_base, model=base),
    }
    runs = {}
    for name in (name for name in STAGES if name in config.stages):
        stage = stages[name]
        print(f"\n=== {TITLES[name]} ===", flush=True)
        runs[name] = finetune(stage, tell=command.teller(stage))
        print(runs[name], flush=True)
    run.write_summary(
        {
            "stages": {name: stage.summary for name, stage in runs.items()},
            "base": base,
        }
    )
    page = write_page([each.run for each in runs.values()], run.path / "report.html")
    print("\n".join(["", *what_happened(runs), "", "run folders:"]))
    print("\n".join(str(each.run.path) for each in runs.values()))
    print(f"\nthe report, for a browser: {page}")
    failed = [TITLES[name] for name, each in runs.items() if not each.holds]
    if failed:
        print(f"\nClaims that do not hold in: {', '.join(failed)}.")
    return 1 if failed else 0


#: Options that came later: a pipeline that was begun without them goes on.
_LATER = {
    *flat(records.Optimizer()),
    *("keep", "leading_space", "document_start"),
    *("lora_rank", "lora_alpha", "lora_targets"),
    *("nodes", "tolerance", "history"),
    "stages",
    "split",
}


def all_settings(config: Config) -> dict[str, Any]:
    """What `config.json` says of the pipeline: of later options only what is said."""
    preset = options.PRESETS_OF_THE_PAPER.get(config.preset or "", {})
    default = flat(Config.of(**preset))
    unsaid = {name for name in _LATER if flat(config)[name] == default[name]}
    return {name: value for name, value in kept(config).items() if name not in unsaid}


def what_happened(runs: dict[str, FinetunedRun]) -> list[str]:
    """What each stage did to each type of response, in plain language."""
    changes = {name: run.summary["changes"]["train"] for name, run in runs.items()}
    lines = ["What happened to the responses to trained prompts (mean change in nats):"]
    for type_ in (*RESPONSE_TYPES, "argmax"):
        moves = {name: of[type_] for name, of in changes.items() if type_ in of}
        if not moves:
            continue
        stages = "; ".join(
            f"{_SHORT[name]} "
            + told(move["end"] - move["start"], move["highest"] - move["start"])
            for name, move in moves.items()
        )
        lines.append(f"  {named(type_)}: {stages}")
    return lines


_SHORT = {"sft": "SFT", "dpo_after_sft": "then DPO", "dpo_from_base": "DPO alone"}


parse = functools.partial(from_command_line, Config, __doc__)
