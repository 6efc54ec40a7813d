"""The settings of SFT and DPO of a real model."""

import dataclasses
from pathlib import Path

from ldjax.command.options import COUNT, POSITIVE, SEED
from ldjax.data.everyday import everyday_pairs
from ldjax.finetune import pipeline
from ldjax.models.hub.smollm2 import SMOLLM2

__all__ = ["RANGES", "Config"]

RANGES = {
    "sft_epochs": POSITIVE,
    "dpo_epochs": POSITIVE,
    "learning_rate": POSITIVE,
    "lora_rank": COUNT,
    "seed": SEED,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """SFT and DPO of a real model on everyday questions."""

    out: Path = Path("runs/real")
    """Folder to write; each stage has a run folder in it."""
    model: str = SMOLLM2
    """The model: smollm2-135m, which is downloaded by pip, or whatever `ldjax finetune
    --model` takes."""
    sft_epochs: float = 2.0
    """Passes of SFT over the 32 pairs, 8 updates each."""
    dpo_epochs: float = 1.0
    """Passes of DPO over the 32 pairs, 8 updates each."""
    learning_rate: float = 1e-5
    """Of Adam, in both stages."""
    lora_rank: int | None = None
    """Train fresh low-rank adapters of this rank only, which takes less memory."""
    cache: Path = Path("runs/cache")
    """Where reference log-probs and compiled functions are kept."""
    seed: int = 0
    """Of everything."""
    resume: bool = False
    """Go on where a run that was stopped in `--out` stood."""
    overwrite: bool = False
    """Replace what is already in `--out`."""
    smoke: bool = False
    """The whole path with a tiny model, drawn and written on the spot: checks
    identities and files, and downloads nothing."""

    def stages(self, model: str) -> pipeline.Config:
        """The settings of both stages, small enough for a laptop."""
        train, test = everyday_pairs()
        return pipeline.Config.of(
            out=self.out,
            data=str(train),
            test_data=test,
            model=model,
            stages=("sft", "dpo_after_sft"),
            learning_rate=self.learning_rate,
            lora_rank=self.lora_rank,
            batch_size=4,
            sft_epochs=None if self.smoke else self.sft_epochs,
            dpo_epochs=None if self.smoke else self.dpo_epochs,
            max_length=96,
            # Its tokenizer begins no text with a token of its own.
            document_start=False,
            probe_prompts=2,
            tracked=1,
            token_maps=0,
            nodes=1,
            history="whole",
            one_step=False,
            evaluations=4,
            cache=self.cache,
            seed=self.seed,
            resume=self.resume,
            overwrite=self.overwrite,
            smoke=self.smoke,
        )
