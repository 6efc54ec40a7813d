"""Models that were trained before: the run folders of the experiments."""

from pathlib import Path
from typing import Any, NamedTuple

from ldjax.checkpoints import Checkpoints
from ldjax.data.tokenizers import Tokenizer, load_tokenizer
from ldjax.models.transformer import Transformer
from ldjax.models.transformer_config import TransformerConfig
from ldjax.runs import open_run

__all__ = ["Pretrained", "load_pretrained"]


class Pretrained(NamedTuple):
    """A language model with what reads and writes its tokens.

    Attributes:
      model: The decoder.
      params: Its parameters (`variables["params"]`).
      tokenizer: Its tokenizer.

    Examples:
      >>> Pretrained._fields
      ('model', 'params', 'tokenizer')
    """

    model: Transformer
    params: Any
    tokenizer: Tokenizer


def load_pretrained(path: Path) -> Pretrained:
    """The model that a run ended with.

    Args:
      path: The run folder of `experiments/pretrain.py` or `experiments/finetune.py`.

    Returns:
      The model, its parameters as they were trained and its tokenizer.

    Raises:
      FileNotFoundError: If there is no such run.
      ValueError: If it is a run of something else, or not complete.

    Examples:
      >>> load_pretrained(Path("/nowhere"))
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere is not a run folder: it has no config.json.
    """
    settings = open_run(path).config["settings"]
    if "model" not in settings or "num_steps" not in settings:
        raise ValueError(
            f"{path} is not a run of experiments/pretrain.py or finetune.py."
        )
    progress = Checkpoints(path / "checkpoints").restore()
    step = progress.step if progress else 0
    if progress is None or step < settings["num_steps"]:
        raise ValueError(
            f"The training in {path} stopped at step {step} of "
            f"{settings['num_steps']}; repeat its command with `--resume`."
        )
    return Pretrained(
        Transformer(TransformerConfig(**settings["model"])),
        progress.state["params"],
        load_tokenizer(path / "tokenizer.json"),
    )
