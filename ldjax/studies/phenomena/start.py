"""What all phenomena start from: a study, and one run of SFT in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldjax import losses
from ldjax.data.batches import to_sequences
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.equation.sequences import Sequences
from ldjax.finetune.recipes import RECIPES
from ldjax.finetune.results import curves_of
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.policies import Policy, Study, make_study, sft_rows, train_policy
from ldjax.theory.curves import Curves
from ldjax.watch.probes import Probe, ProbeSet
from ldjax.watch.record import TRAIN, prompt_of, row_name, set_of

__all__ = [
    "Start",
    "change",
    "donors",
    "geometric_mean",
    "make_start",
    "padded",
    "place_of",
    "watched",
    "watched_curves",
]


_FEW = 16  # more than a batch


class Start(NamedTuple):
    """A study and its policies after SFT.

    Attributes:
      study: The toy world, its base model, what is watched.
      seed: Of everything.
      sft: A run of SFT, kept and observed after every epoch.
    """

    study: Study
    seed: int
    sft: Policy

    def after(self, epochs: int) -> Any:
        """Parameters after so many epochs of SFT; after none, those of the base."""
        return self.sft.params[epochs - 1] if epochs else self.study.base.params

    @property
    def curves(self) -> Curves:
        """Mean log-probs of watched responses to trained prompts, by epoch."""
        return watched_curves(self.study, self.sft)

    def updates(self, epochs: int) -> int:
        """Updates of SFT in so many epochs."""
        return int(self.sft.curves["step"][epochs])


def make_start(config: Config, seed: int) -> Start:
    """Make the study of a seed, and finetune its base."""
    study = make_study(
        config.world,
        model=config.model,
        seed=seed,
        cache=config.cache,
        probe_prompts=config.probe_prompts,
        smoke=config.smoke,
    )
    if config.smoke:
        study = with_few_prompts(study)
    epochs = config.longest_sft
    sft = train_policy(
        study,
        study.base.params,
        sft_rows(study, study.data.train),
        losses.sft,
        RECIPES["small", "sft"]._replace(epochs=epochs),
        keep=epochs,
        observations=epochs,
        seed=seed,
    )
    return Start(study, seed, sft)


def with_few_prompts(study: Study) -> Study:
    """For a smoke test: the watched prompts and the donors of their answers first."""
    train = study.data.train
    places = [place_of(probe) for probe in watched(study, ("chosen",))]
    order = (*places, *donors(train)[places].tolist(), *range(len(train)))
    kept = list(dict.fromkeys(order))[:_FEW]
    observed = [
        probe._replace(prompt_name=row_name(TRAIN, kept.index(place_of(probe))))
        for probe in watched(study, RESPONSE_TYPES)
    ]
    return study._replace(
        data=study.data._replace(
            train=[train[place] for place in kept], test=study.data.test[:_FEW]
        ),
        observed=ProbeSet.of(observed, max_length=study.max_length, batch_size=None),
    )


def place_of(probe: Probe) -> int:
    """The place of a probe's prompt in the rows of its set."""
    return int(prompt_of(probe.prompt_name))


def donors(rows: Sequence[PreferenceRow]) -> np.ndarray:
    """For each row, the place of the one whose chosen answer is its irr_train."""
    places = {row.responses["chosen"]: place for place, row in enumerate(rows)}
    return np.array([places[row.responses["irr_train"]] for row in rows])


def watched(study: Study, types: Sequence[str], *, prompts: int = 0) -> list[Probe]:
    """Watched responses to trained prompts, prompt by prompt in the order of `types`.

    Args:
      study: Where they are.
      types: Response types.
      prompts: Of the first prompts only, if not 0.
    """
    by_prompt: dict[str, dict[str, Probe]] = {}
    for probe in study.observed.probes:
        if set_of(probe.prompt_name) == TRAIN:
            by_prompt.setdefault(probe.prompt_name, {})[probe.type] = probe
    chosen = list(by_prompt.values())[: prompts or None]
    return [responses[type_] for responses in chosen for type_ in types]


def padded(study: Study, probes: Sequence[Probe]) -> Sequences:
    """Probes as one batch."""
    examples = [probe.example for probe in probes]
    return to_sequences(examples, max_length=study.max_length)


def watched_curves(study: Study, policy: Policy) -> Curves:
    """Mean log-probs of the watched responses to trained prompts along a run."""
    return curves_of(policy.curves, study.observed.probes, "train")


def change(curves: Curves, name: str) -> float:
    """Of a curve, from its first to its last point, in nats."""
    return float(curves[name][-1] - curves[name][0])


def geometric_mean(log_probs: np.ndarray, num_tokens: np.ndarray) -> float:
    """The probability of a token: geometric mean in each response, and over them."""
    return float(np.exp((log_probs / num_tokens).mean()))
