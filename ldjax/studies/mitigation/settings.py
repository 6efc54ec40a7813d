"""The settings of the remedies for squeezing."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from ldjax.command.options import COUNT, POSITIVE, SEED
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.finetune.recipes import RECIPES
from ldjax.studies.study import ModelSettings

__all__ = ["Config"]


@dataclasses.dataclass(frozen=True)
class Config(ModelSettings):
    """Extended SFT before DPO, and other losses than DPO."""

    out: Path = Path("runs/mitigation")
    """Run folder to write."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is a world, a base model and an order of the data of its own."""
    world: str = "small"
    """Preset of the toy world: demo, small or paper."""
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

    ranges: ClassVar = {
        "seeds": SEED,
        "prompts": COUNT,
        "sft_epochs": POSITIVE,
        "judged": COUNT._replace(least=2, words="at least 2"),
        "probe_prompts": COUNT,
        "evaluations": COUNT,
    }

    def tiny(self) -> dict[str, Any]:
        """One seed, one other loss, few prompts."""
        return {
            "seeds": self.seeds[:1],
            "world": "demo",
            "losses": self.losses[:1],
            "prompts": 16,
            "sft_epochs": 1.0,
            "judged": 4,
            "probe_prompts": 2,
            "evaluations": 1,
        }

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        if self.world not in WORLDS:
            return {f"--world must be one of {', '.join(WORLDS)}": True}
        batch_size, there = RECIPES["small", "dpo"].batch_size, WORLDS[self.world]
        return {
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
        }
