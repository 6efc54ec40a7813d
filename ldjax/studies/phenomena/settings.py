"""The settings of `phenomena.py`."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from ldjax.command.options import COUNT, POSITIVE, SEED, flag
from ldjax.data.world.world import PRESETS as WORLDS
from ldjax.studies.study import ModelSettings

__all__ = ["NAMES", "Config"]

#: The phenomena, in the order in which they are studied.
NAMES = ("hallucination", "fingerprint", "repeater", "longer_sft", "on_policy")


@dataclasses.dataclass(frozen=True)
class Config(ModelSettings):
    """The paper's phenomena of finetuning, measured through the exact kernel."""

    out: Path = Path("runs/phenomena")
    """Run folder to write."""
    only: str = ""
    """Phenomena to study, separated by commas: hallucination, fingerprint, repeater,
    longer_sft, on_policy; by default all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each of a toy world, its base model, the choice of probes and all draws."""
    probe_prompts: int = 40
    """Trained prompts whose responses are watched; and half as many held-out ones."""
    sft_epochs: int = 10
    """Passes of SFT over the training prompts, of the policy that the hallucination is
    watched up to and that the repeater and the on-policy study start from."""
    sft_lengths: tuple[int, ...] = (2, 5, 10, 20)
    """Passes of SFT before DPO that are compared, in ascending order."""
    dpo_epochs: float = 4.0
    """Passes of DPO, except for the repeater."""
    long_dpo_epochs: float = 20.0
    """Passes of the repeater's DPO."""
    checkpoints: int = 5
    """Moments of the repeater's DPO, in equal intervals, at which it is sampled."""
    samples: int = 4
    """Samples for each prompt."""
    kernel_prompts: int = 4
    """Prompts whose responses' kernels are computed; the cost grows with its square."""
    kernel_tokens: int = 3
    """Tokens of a response at which its kernel is taken, evenly spread, the END token
    among them; the cost is in proportion to it."""
    heat_prompts: int = 10
    """Prompts of the heat map."""

    ranges: ClassVar = {
        "dpo_epochs": POSITIVE,
        "long_dpo_epochs": POSITIVE,
        "sft_epochs": COUNT,
        "probe_prompts": COUNT,
        "seeds": SEED,
    }

    def tiny(self) -> dict[str, Any]:
        """One seed, few prompts, short trainings."""
        return {
            "seeds": self.seeds[:1],
            "probe_prompts": 2,
            "sft_epochs": 1,
            "sft_lengths": (1, 2),
            "dpo_epochs": 0.5,
            "long_dpo_epochs": 0.5,
            "checkpoints": 2,
            "samples": 2,
            "kernel_prompts": 2,
            "kernel_tokens": 1,
            "heat_prompts": 2,
        }

    @property
    def chosen(self) -> tuple[str, ...]:
        """The phenomena to study."""
        asked = self.only.split(",") if self.only else NAMES
        return tuple(name for name in NAMES if name in asked)

    @property
    def longest_sft(self) -> int:
        """Passes of the one SFT run that all phenomena share."""
        lengths = self.sft_lengths if "longer_sft" in self.chosen else ()
        return max((self.sft_epochs, *lengths))

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        unknown = [name for name in self.only.split(",") if name not in (*NAMES, "")]
        return {
            f"--only has {', '.join(unknown)}: choose of {', '.join(NAMES)}": (
                bool(unknown)
            ),
            "--only names no phenomenon": not self.chosen,
            "--seeds must be different and not negative, at least one": (
                not self.seeds
                or min(self.seeds) < 0
                or len(set(self.seeds)) < len(self.seeds)
            ),
            f"--world must be one of {', '.join(WORLDS)}": self.world not in WORLDS,
            "--sft-lengths must be positive and ascending, at least two": (
                len(self.sft_lengths) < 2
                or self.sft_lengths[0] < 1
                or list(self.sft_lengths) != sorted(set(self.sft_lengths))
            ),
            "--samples must be at least 2": self.samples < 2,
            **{
                f"{flag(name)} must be at least 1": getattr(self, name) < 1
                for name in ("checkpoints", "kernel_tokens")
            },
            **{
                f"{flag(name)} must be at least 2 and at most --probe-prompts": (
                    not 2 <= getattr(self, name) <= self.probe_prompts
                )
                for name in ("kernel_prompts", "heat_prompts")
            },
        }
