"""SFT and then DPO of a real model on everyday questions."""

import functools

from ldjax import command
from ldjax.command.options import check_numbers
from ldjax.finetune import pipeline
from ldjax.models.hub.smollm2 import SMOLLM2, fetch_smollm2
from ldjax.studies.real import __doc__ as about
from ldjax.studies.real.settings import RANGES, Config
from ldjax.studies.real.tiny import write_tiny

__all__ = ["Config", "main", "parse"]


@command.experiment
def main(config: Config) -> int:
    """Run both stages; the exit status."""
    with command.set_up():
        check_numbers(config, RANGES)
        model = config.model
        if config.smoke:
            model = str(write_tiny(config.cache / "tiny.gguf", seed=config.seed))
        elif model == SMOLLM2:
            print(f"the model: {fetch_smollm2()}", flush=True)
    return pipeline.main(config.stages(model))


parse = functools.partial(command.parse, Config, about)
