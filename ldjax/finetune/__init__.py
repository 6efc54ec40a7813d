"""A finetuning run, fully accounted for: `finetune(Config.of(loss="dpo"))`."""

from ldjax.finetune.conclude import FinetunedRun
from ldjax.finetune.run import finetune
from ldjax.finetune.settings.config import Config

__all__ = ["Config", "FinetunedRun", "finetune"]
