"""The settings of the account of a falling chosen answer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from ldjax.command.options import COUNT, POSITIVE, SEED
from ldjax.finetune.settings.config import Config as FinetuneConfig
from ldjax.studies.study import ModelSettings

__all__ = ["RATES", "Config", "RateName"]

RateName = Literal["slow", "plain", "small"]
RATES: Mapping[RateName, str] = {
    "slow": "small rate",
    "plain": "plain gradient descent",
    "small": "training rate",
}


@dataclasses.dataclass(frozen=True)
class Config(ModelSettings):
    """Why did the chosen answer fall?"""

    out: Path = Path("runs/displacement")
    """Run folder to write."""
    loss: str = "dpo"
    """A loss of pairs (see `finetune.py --help`)."""
    coefficients: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the loss, by name, instead of its defaults."""
    data: str = "toy"
    """`toy`, or a file of JSON lines (see `finetune.py`)."""
    blank: Literal["bad", "keep"] = "bad"
    """What a blank chosen or rejected response is."""
    rates: tuple[RateName, ...] = ("slow", "plain", "small")
    """Recipes of `finetune.py` to train by: plain gradient descent at a small rate and
    at one that moves answers by nats, and Adam at the training rate."""
    init: Path | None = None
    """Run folder of `finetune.py` to start from; by default the base model (pretrained
    if the cache has none) is finetuned on the chosen answers first."""
    sft_epochs: float | None = None
    """Passes of that over the training prompts, instead of the recipe's."""
    epochs: float | None = None
    """Passes over the pairs, instead of the recipe's."""
    tracked: int = 8
    """Pairs that are accounted for at every update."""
    observations: int = 10
    """Updates, in equal intervals, of which every label is measured, and beside which a
    step is taken on each watched pair alone."""
    max_length: int = 512
    """Of prompt and response together, in tokens."""
    max_prompt_length: int | None = None
    """Of a prompt that has to be cut, in tokens (see `finetune.py`)."""
    seed: int = 0
    """Of the world, the base model, the choice of pairs and the order of data."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not R2."""

    ranges: ClassVar = {
        "sft_epochs": POSITIVE,
        "epochs": POSITIVE,
        "tracked": COUNT,
        "observations": COUNT,
        "seed": SEED,
    }

    def tiny(self) -> dict[str, Any]:
        """One rate, looked at twice."""
        return {"rates": ("small",), "observations": 2}

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        return {
            "--rates must name at least one": not self.rates,
        }

    def stage(self, recipe: RateName, loss: str) -> FinetuneConfig:
        """The settings of a training as `finetune.py` has them."""
        is_sft = loss == "sft"
        stage = FinetuneConfig.of(
            loss=loss,
            coefficients={} if is_sft else self.coefficients,
            recipe=recipe,
            epochs=self.sft_epochs if is_sft else self.epochs,
            data=self.data,
            blank=self.blank,
            world=self.world,
            model=self.model,
            init=self.init,
            tracked=self.tracked,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            cache=self.cache,
            seed=self.seed,
            smoke=self.smoke,
        ).resolved()
        stage.check()
        return stage
