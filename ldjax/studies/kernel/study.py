"""The exact kernel between two texts, from the settings to what was found."""

import dataclasses
import functools
from typing import Any, NamedTuple

from ldjax import command
from ldjax.finetune.start import Base
from ldjax.progress import progress
from ldjax.runs.folder import Run
from ldjax.studies.kernel import __doc__ as about
from ldjax.studies.kernel.figures import draw_figures
from ldjax.studies.kernel.measure import analyse
from ldjax.studies.kernel.results import (
    check_identities,
    headline,
    in_words,
    metric_rows,
    pushed,
    table_of_pushes,
)
from ldjax.studies.kernel.settings import SIDES, Config
from ldjax.studies.kernel.texts import Text, describe, load_model, make_text
from ldjax.studies.study import Findings, conduct
from ldjax.theory.claims import stored


class Asked(NamedTuple):
    """What is looked at.

    Attributes:
      base: The model.
      texts: What it reads, by side.
    """

    base: Base
    texts: dict[str, Text]


@command.experiment
def main(config: Config) -> int:
    """Run the study; the exit status."""
    return conduct(config, prepare=find, measure=measure, describe=all_settings)


def find(config: Config) -> Asked:
    """The model that is asked for, and the texts as it reads them."""
    base = load_model(config)
    return Asked(base, {side: make_text(config, side, base) for side in SIDES})


def all_settings(config: Config, asked: Asked) -> dict[str, Any]:
    """What `config.json` says of the run."""
    filled = {
        f"{side}_{name}": getattr(text, name)
        for side, text in asked.texts.items()
        for name in ("prompt", "text")
    }
    return (
        dataclasses.asdict(config)
        | filled
        | {
            "model": asked.base.model.config.settings(),
            "reductions": {"loss": "sum over tokens", "changes": "each token"},
        }
    )


def measure(config: Config, asked: Asked, run: Run) -> Findings:
    """Compute the kernel, and check it in every view."""
    base, texts = asked
    command.teller(config)(describe(base, texts))
    with progress("computing the kernel and its checks"):
        analysis = analyse(
            base, **texts, learning_rate=config.learning_rate, seed=config.seed
        )
    run.write_metrics(metric_rows(analysis))
    identities, numbers = check_identities(analysis), headline(analysis)
    tokens = {
        side: [base.tokenizer.decode([i]) for i in text.example.response_ids]
        for side, text in texts.items()
    }
    pushes = [
        pushed(analysis, place, config.top, base.tokenizer)
        for place in range(len(tokens["probe"]))
    ]
    summary = {
        "tokens": tokens,
        "notes": {side: list(text.notes) for side, text in texts.items()},
        "pushed": pushes,
        "numbers": numbers,
        "identities": stored(identities),
    }
    text = f"{table_of_pushes(tokens['probe'], pushes)}\n{in_words(numbers)}"
    return Findings(identities, summary, draw_figures, text)


parse = functools.partial(command.parse, Config, about)
