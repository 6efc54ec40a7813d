"""Whether the plan of a finetuning run's memory bounds what the run takes.

A model is drawn, by default in the shapes of SmolLM2-135M, and finetuned by SFT and by
DPO for two updates, each in a process of its own whose memory is measured.

Claims: the plan is at least what the process took at its highest, and at most 1.6 times
as much. Of a smoke, where the process itself takes the most, only the first is judged.

    python -m experiments.benchmarks.memory     (~25 min, 14 GB; exit status 1 if not)
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks.frame import Options, Page, highest_memory, in_process
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.tokenizers import train_word_level
from ldjax.finetune import prepare
from ldjax.finetune.budget import Plan, Work, fits, make_plan
from ldjax.finetune.run import finetune
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.finetune.start import Base
from ldjax.memory import human_bytes
from ldjax.models import Pretrained, Transformer, llama_config, save
from ldjax.theory.claims import Claim

_HERE = "experiments.benchmarks.memory"
LOOSEST = 1.6
LOSSES = ("sft", "dpo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Planned and measured memory of finetuning a Llama."""

    vocab_size: int = 49152
    """Tokens of the vocabulary."""
    num_layers: int = 30
    """Blocks."""
    width: int = 576
    """Features of a token."""
    num_heads: int = 9
    """Heads; a third of them have keys and values of their own."""
    mlp_width: int = 1536
    """Hidden features of a block's MLP."""
    length: int = 64
    """Of prompt and response together, in tokens; a half each."""
    part: Literal["", "draw", "sft", "dpo"] = ""
    """One part, in this process; all of them, in their own, by default."""
    folder: str = ""
    """Where the model and the data of a part are."""

    def resolved(self) -> "Config":
        """At the size of a smoke test if it is one."""
        if not self.smoke:
            return self
        small = {"vocab_size": 4096, "num_layers": 2, "width": 96, "mlp_width": 256}
        return dataclasses.replace(self, num_heads=3, **small)


def main(config: Config) -> int:
    """Print planned and measured memory; the exit status."""
    config = config.resolved()
    folder = Path(config.folder)
    if config.part == "draw":
        print(json.dumps(draw(config, folder)))
    elif config.part:
        print(json.dumps(measure(folder, config.part)))
    if config.part:
        return 0
    claims = []
    with tempfile.TemporaryDirectory() as scratch:
        in_process(_HERE, config, folder=scratch, part="draw")
        for loss in LOSSES:
            found = in_process(_HERE, config, folder=scratch, part=loss)
            planned, measured = found["planned"], found["measured"]
            ratio = planned / measured
            text = (
                f"{loss}: planned {human_bytes(planned)}, measured "
                f"{human_bytes(measured)}: {ratio:.2f} times as much"
            )
            claims += [
                Claim(f"{text} (at least 1)", ratio >= 1, "identity"),
                Claim(f"{text} (at most {LOOSEST})", ratio <= LOOSEST),
            ]
    return Page("memory", config).end(claims)


def draw(config: Config, folder: Path) -> None:
    """Write the model, and rows with a text of every type."""
    words = [f"word{number}" for number in range(100)]
    tokenizer = train_word_level([" " + " ".join(words)])
    model = Transformer(
        llama_config(
            vocab_size=config.vocab_size,
            num_layers=config.num_layers,
            width=config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads // 3,
            mlp_width=config.mlp_width,
            tied_head=True,
        )
    )
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    save(folder / "model", Pretrained(model, params, model.config, tokenizer))
    half = config.length // 2 - 1  # with START, and with END

    def text(start: int) -> str:
        return " ".join(words[(start + i) % len(words)] for i in range(half))

    rows = [
        {"prompt": text(row)}
        | {type_: text(7 * (row + i)) for i, type_ in enumerate(RESPONSE_TYPES, 1)}
        for row in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)


def measure(folder: Path, loss: str) -> dict[str, int]:
    """Bytes planned and taken."""
    plans: list[Plan] = []

    def planned(base: Base, work: Work) -> Plan:
        plan = fits(base, work)
        if not plan.parts:  # as if memory mattered, which a run goes by
            plan = make_plan(base, work, plan.probes)
        plans.append(plan)
        return plan

    prepare.fits = planned
    config = FinetuneConfig.of(
        loss=loss,
        data=str(folder / "rows.jsonl"),
        model=str(folder / "model"),
        out=folder / loss,
        cache=folder,
        batch_size=4,
        epochs=1.0,
        probe_prompts=2,
        tracked=1,
        evaluations=1,
    )
    finetune(config)
    return {"planned": plans[0].total, "measured": highest_memory()}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
