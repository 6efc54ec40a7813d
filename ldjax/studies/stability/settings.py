"""The settings of the kernel's stability."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE
from ldjax.finetune.settings.config import Config as StageConfig
from ldjax.studies.study import ModelSettings

__all__ = ["Config"]


@dataclasses.dataclass(frozen=True)
class Config(ModelSettings):
    """Exact kernel norms and the paper's proxies of them along SFT and DPO."""

    out: Path = Path("runs/kernel_stability")
    """Run folder to write."""
    data: str = "toy"
    """`toy`, or a file of JSON lines (see `finetune.py`)."""
    sft_epochs: float | None = None
    """Passes of SFT over the training prompts, instead of the recipe's."""
    dpo_epochs: float | None = None
    """Passes of DPO, instead of the recipe's."""
    updates: int = 2
    """Update examples: trained prompts whose kernels are computed."""
    update_tokens: int = 2
    """Tokens of an update's response that its loss is restricted to, evenly spread; 0
    for all. The cost is in proportion to it; probes always have all their tokens."""
    times: int = 8
    """Moments of each run, both ends included; dense early."""
    preconditioned: bool = True
    """Also the kernel of the run's optimizer; doubles the time."""
    probe_prompts: int = 20
    """Trained prompts over which the authors' code evaluates its proxies."""
    step_norm: float = 0.01
    """Length of the gradient steps whose measured change the proxies are made of."""
    seed: int = 0
    """Of everything."""
    smoke: bool = False
    """The whole path at tiny size."""

    ranges: ClassVar = {
        "sft_epochs": POSITIVE,
        "dpo_epochs": POSITIVE,
        "probe_prompts": COUNT,
        "updates": COUNT,
        "update_tokens": SIZE,
        "times": COUNT._replace(least=2, words="at least 2"),
        "step_norm": POSITIVE,
        "seed": SEED,
    }

    def tiny(self) -> dict[str, Any]:
        """One example, at both ends."""
        return {"updates": 1, "update_tokens": 2, "times": 2}

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        return {
            "--updates must be at most --probe-prompts": (
                self.updates > self.probe_prompts
            ),
        }

    def stage(self, loss: Any, *, base: str | None = None) -> StageConfig:
        """The settings of one run, from a base that was found if it is given."""
        return StageConfig.of(
            loss=loss,
            data=self.data,
            world=self.world,
            epochs=self.sft_epochs if loss == "sft" else self.dpo_epochs,
            probe_prompts=self.probe_prompts,
            tracked=self.updates,
            cache=self.cache,
            seed=self.seed,
            smoke=self.smoke,
            model=base or self.model,
        )
