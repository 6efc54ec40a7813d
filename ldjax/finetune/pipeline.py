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
from typing import Any, Literal

from ldjax import command
from ldjax.command.options import POSITIVE, check_numbers
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.finetune import run as finetune
from ldjax.finetune.settings import PRESETS_OF_THE_PAPER, from_command_line
from ldjax.finetune.settings import Config as StageConfig
from ldjax.finetune.setup import check_fits, load_data
from ldjax.finetune.start import find_start
from ldjax.models import PRESETS as MODELS
from ldjax.report import write_page
from ldjax.report.words import named, told
from ldjax.runs.folder import Run, open_run, start_run
from ldjax.runs.sinks import SinkName

_RANGES = {
    "sft_epochs": POSITIVE._replace(also=(0,)),
    "dpo_epochs": POSITIVE._replace(also=(0,)),
}
STAGES = ("sft", "dpo_after_sft", "dpo_from_base")
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
    data: str = "toy"
    """`toy`, a file of JSON lines, or `hh-helpful-base` (see `finetune.py`)."""
    max_rows: int = 0
    """Rows of the file that are used, the first ones; all if 0."""
    test_data: Path | None = None
    """File of held-out prompts to watch; the toy world has its own."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row of a file, or leave it out and count it."""
    blank: Literal["bad", "keep"] = "bad"
    """What a blank chosen or rejected response is."""
    special_tokens: Literal["auto", "read", "text"] = "auto"
    """What special tokens that a text spells are (see `finetune.py`)."""
    world: str = "demo"
    """Preset of the toy world: demo, small or paper."""
    model: str = ""
    """What to start from: the size of a base model, a folder or an id on the hub (see
    `finetune.py`); by default toy for the toy world, 0.4M for a file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation of updates; all that is watched is float32."""
    preset: Literal["", "pythia-410m", "qwen1.5-0.5b"] = ""
    """The paper's runs: model and data from the hub, its optimizer, bfloat16 (see
    `finetune.py`)."""
    sft_epochs: float = 0.0
    """Passes of SFT over the training prompts, instead of the recipe's, if not 0."""
    dpo_epochs: float = 0.0
    """Passes of DPO, instead of the recipe's, if not 0."""
    probe_prompts: int = 40
    """Trained prompts whose responses are observed; and half as many held-out ones."""
    observe_all: bool = False
    """Observe every prompt as well, at the start and at the end of a stage."""
    one_step: bool = True
    """With each observation, also predict and measure what the update that follows does
    to every observed response; three times the cost of observing."""
    tracked: int = 8
    """Prompts whose responses are accounted for at every update."""
    token_maps: int = 2
    """Updates of a stage of which is recorded what each of their tokens did to each
    tracked token."""
    evaluations: int = 20
    """Observations of a stage in equal intervals, besides that at the start."""
    max_length: int = 512
    """Of prompt and response together, in tokens."""
    max_prompt_length: int = 0
    """Of a prompt that has to be cut, in tokens (see `finetune.py`)."""
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

    def stage(self, **changes: Any) -> StageConfig:
        """The settings of a stage."""
        names = {field.name for field in dataclasses.fields(StageConfig)}
        preset = PRESETS_OF_THE_PAPER[self.preset] if self.preset else {}
        shared = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name in names - {"out", "resume", "overwrite"}
        }
        return StageConfig(**(preset | shared | changes), resume=True)


@command.experiment
def main(config: Config) -> int:
    """Run the stages; the exit status."""
    with command.set_up():
        check_numbers(config, _RANGES)
        stage = config.stage(loss="dpo").resolved()
        stage.check()
        if config.resume and config.overwrite:
            raise ValueError("--resume and --overwrite contradict each other")
        # A bad row is found before a base is pretrained, and a model that is not there
        # or too large before anything is written.
        data = load_data(stage)
        if stage.model not in MODELS:
            for loss in ("sft", "dpo"):
                check_fits(config.stage(loss=loss).resolved(), data, stage.model)
        run = start_run(
            config.out,
            dataclasses.asdict(config),
            resume=config.resume,
            overwrite=config.overwrite,
            free=("out", "resume", "overwrite", "cache", "log"),
        )
        base = find_start(config.stage().resolved())
    sft, dpo_after_sft, dpo_from_base = (run.path / name for name in STAGES)
    stages = {
        "sft": config.stage(out=sft, model=base, epochs=config.sft_epochs),
        "dpo_after_sft": config.stage(
            out=dpo_after_sft,
            loss="dpo",
            model="",
            init=sft,
            initial_from=base,
            epochs=config.dpo_epochs,
        ),
        "dpo_from_base": config.stage(
            out=dpo_from_base, loss="dpo", model=base, epochs=config.dpo_epochs
        ),
    }
    statuses = {}
    for name, stage in stages.items():
        print(f"\n=== {TITLES[name]} ===", flush=True)
        statuses[name] = finetune.main(stage)
    runs = {name: open_run(run.path / name) for name in STAGES}
    run.write_summary(
        {
            "stages": {name: stage.summary for name, stage in runs.items()},
            "base": base,
        }
    )
    page = write_page([*runs.values()], run.path / "report.html")
    print("\n".join(["", *what_happened(runs), "", "run folders:"]))
    print("\n".join(str(stage.path) for stage in runs.values()))
    print(f"\nthe report, for a browser: {page}")
    failed = [TITLES[name] for name, status in statuses.items() if status]
    if failed:
        print(f"\nClaims that do not hold in: {', '.join(failed)}.")
    return 1 if failed else 0


def what_happened(runs: dict[str, Run]) -> list[str]:
    """What each stage did to each type of response, in plain language."""
    changes = {name: run.summary["changes"]["train"] for name, run in runs.items()}
    lines = ["What happened to the responses to trained prompts (mean change in nats):"]
    for type_ in (*RESPONSE_TYPES, "argmax"):
        if type_ not in changes["sft"]:
            continue
        moves = {name: changes[name][type_] for name in STAGES}
        stages = "; ".join(
            f"{_SHORT[name]} "
            + told(move["end"] - move["start"], move["highest"] - move["start"])
            for name, move in moves.items()
        )
        lines.append(f"  {named(type_)}: {stages}")
    return lines


_SHORT = {"sft": "SFT", "dpo_after_sft": "then DPO", "dpo_from_base": "DPO alone"}


parse = functools.partial(from_command_line, Config, __doc__)
