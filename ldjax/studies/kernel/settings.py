"""The settings of the exact kernel between two texts."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from ldjax.command.options import COUNT, POSITIVE, SEED
from ldjax.studies.study import Settings

__all__ = ["SIDES", "Config"]

SIDES = ("probe", "update")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The exact kernel between two texts under a language model."""

    out: Path = Path("runs/kernel")
    """Run folder to write."""
    model: str | None = None
    """Model to look into: the folder of a run or in the layout of Hugging Face, or an
    id on the hub such as EleutherAI/pythia-70m. By default the base model of the toy
    world, which is pretrained once and cached (2 minutes)."""
    probe_prompt: str = ""
    """What comes before the watched text. Prompts are read and not scored."""
    probe_text: str | None = None
    """The watched text; like every answer in `finetune.py` it begins with one space and
    ends with the END token. By default a rejected answer of the toy world, with its
    prompt."""
    update_prompt: str = ""
    """What comes before the trained text."""
    update_text: str | None = None
    """The trained text. By default the preferred answer to the same prompt."""
    special_tokens: Literal["auto", "read", "text"] = "auto"
    """What special tokens that a text spells are (see `finetune.py`)."""
    learning_rate: float = 1e-5
    """Of the step of gradient descent that is predicted; its loss is the sum over the
    tokens of the update text, in nats."""
    top: int = 3
    """Tokens that are listed at each position as pushed up, and as pushed down."""
    cache: Path = Path("runs/cache")
    """Where the base model is kept."""
    seed: int = 0
    """Of the toy world, its base model and the drawn vectors of the checks."""
    smoke: bool = False
    """The whole path at tiny size: a random model, short texts."""

    ranges: ClassVar = {"learning_rate": POSITIVE, "top": COUNT, "seed": SEED}

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        problems: dict[str, bool] = {}
        for side in SIDES:
            text = getattr(self, f"{side}_text")
            prompt = getattr(self, f"{side}_prompt")
            problems |= {
                f"--{side}-text is empty: give it at least one word": (
                    text is not None and not text.strip()
                ),
                f"--{side}-prompt needs --{side}-text": text is None and prompt != "",
            }
        return problems
