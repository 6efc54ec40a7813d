"""Longer SFT before DPO: whether it makes the squeezing worse.

One run of SFT, kept at several lengths; the same DPO from each, with itself as the
reference. Where SFT has made the model certain, fewer labels are likely, so more of
them are below the threshold |p|² - p(y-) and fall when y- is pushed down.

Claims, of the longest SFT against the shortest: in DPO the types that are not trained
on fall more (or rise less); y* rises more (or falls less).
"""

import numpy as np

from ldjax import losses
from ldjax.finetune.recipes import RECIPES
from ldjax.studies.phenomena.results import Number, Outcome
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, change, geometric_mean, watched_curves
from ldjax.studies.policies import Policy, Study, pairs, train_policy
from ldjax.watch.record import TRAIN, set_of

__all__ = ["beginning", "measure"]

_CHANGES = ("chosen", "rejected", "argmax", "others", "all")
_NAMES = {"argmax": "y*", "others": "the 10 other types", "all": "all 12 types"}


def measure(start: Start, config: Config) -> Outcome:
    """DPO of a seed after SFT of each length."""
    study = start.study
    found: dict[int, dict[str, float]] = {}
    for epochs in config.sft_lengths:
        reference = start.after(epochs)
        policy = train_policy(
            study,
            reference,
            pairs(study, study.data.train, reference),
            losses.dpo(),
            RECIPES["small", "dpo"]._replace(epochs=config.dpo_epochs),
            observations=1,
            seed=start.seed,
        )
        curves = watched_curves(study, policy)
        found[epochs] = beginning(study, policy) | {
            _change_of(name): change(curves, name) for name in _CHANGES
        }
    shortest, longest = found[config.sft_lengths[0]], found[config.sft_lengths[-1]]
    others, greedy = _change_of("others"), _change_of("argmax")
    return Outcome(
        table={
            f"{quantity}: after {epochs} epochs of SFT": numbers[quantity]
            for quantity in shortest
            for epochs, numbers in found.items()
        },
        claims={
            "the types that are not trained on fall more after the longest SFT": (
                longest[others] < shortest[others]
            ),
            "y* rises more after the longest SFT": longest[greedy] > shortest[greedy],
        },
        gaps={},
        numbers=[
            Number(str(epochs), 0, "", quantity, value)
            for epochs, numbers in found.items()
            for quantity, value in numbers.items()
        ],
    )


def beginning(study: Study, policy: Policy) -> dict[str, float]:
    """What the rejected answers and y* are like before the first update."""
    probes = study.observed.probes
    is_rejected = np.array(
        [
            probe.type == "rejected" and set_of(probe.prompt_name) == TRAIN
            for probe in probes
        ]
    )
    num_tokens = np.array([probe.example.num_scored for probe in probes])
    log_prob, threshold = (
        policy.curves[name][0, is_rejected]
        for name in ("log_prob", "squeezing_threshold")
    )
    return {
        "p(y-) of a token at the start": geometric_mean(
            log_prob, num_tokens[is_rejected]
        ),
        "squeezing threshold at the start": float(threshold.mean()),
        "y* at the start (nats)": float(watched_curves(study, policy)["argmax"][0]),
    }


def _change_of(name: str) -> str:
    return f"change of {_NAMES.get(name, name)} (nats)"
