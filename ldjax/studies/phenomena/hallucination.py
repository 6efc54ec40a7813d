"""Hallucination: why another prompt's answer rises under this one.

The watched text is `irr_train`: prompt `u` with the chosen answer of a training pair
`j`. A step of gradient descent on the SFT loss over all training pairs changes its
log-prob by a sum of one term for each pair, exactly to first order. `irr_test`, an
answer that no pair has, is the control.

Claims: the answer's own pair `j` is the largest of all terms for most watched texts,
before SFT and at every later moment; over SFT irr_train gains more than irr_test.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldjax.studies.phenomena.results import Number, Outcome
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, donors, padded, place_of, watched
from ldjax.studies.policies import Study, sft_rows
from ldjax.theory.influence import make_influence_fn, make_step_fn

__all__ = ["Moment", "measure", "moments", "rank", "split"]

_TYPES = ("irr_train", "irr_test")
_MOMENTS = (0, 1, 2, 5)  # epochs, and the end


class Moment(NamedTuple):
    """The account of the watched texts at one moment of SFT.

    Attributes:
      parts: Mean first-order change by where it comes from, by type; from `split`.
      ranks: Of each irr_train, the place of its answer's own pair among all pairs.
      gap: By how much the terms miss the change of the step, relative, at most.
    """

    parts: dict[str, dict[str, float]]
    ranks: np.ndarray
    gap: float

    @property
    def largest(self) -> float:
        """Share of the texts whose largest term is that of the answer's own pair."""
        return float((self.ranks == 1).mean())


def measure(start: Start, config: Config) -> Outcome:
    """The account of a seed."""
    account = make_account_fn(start.study)
    found = {
        epochs: account(start.after(epochs)) for epochs in moments(config.sft_epochs)
    }
    curves = start.curves
    gains = {
        name: curves[name][: config.sft_epochs + 1] - curves[name][0]
        for name in ("chosen", *_TYPES)
    }
    table = {}
    for epochs, moment in found.items():
        table |= told(epochs, moment)
    table |= {f"SFT: change of {name} (nats)": gain[-1] for name, gain in gains.items()}
    return Outcome(
        table=table,
        claims={
            "the answer's own pair is the largest term of most texts, at all times": (
                all(moment.largest > 0.5 for moment in found.values())
            ),
            "irr_train gains more than irr_test over SFT": bool(
                gains["irr_train"][-1] > gains["irr_test"][-1]
            ),
        },
        gaps={
            "the terms of all pairs sum to the change by the step, relative to the sum "
            "of their sizes": max(moment.gap for moment in found.values())
        },
        numbers=[
            Number("terms", start.updates(epochs), type_, part, value)
            for epochs, moment in found.items()
            for type_, parts in moment.parts.items()
            for part, value in parts.items()
        ]
        + [
            Number("sft", start.updates(epochs), name, "change", value)
            for name, gain in gains.items()
            for epochs, value in enumerate(gain)
        ],
    )


def make_account_fn(study: Study) -> Callable[[Any], Moment]:
    """A function from parameters to the account of the watched texts."""
    irr_train, irr_test = (watched(study, (type_,)) for type_ in _TYPES)
    batch = padded(study, [*irr_train, *irr_test])
    pairs = sft_rows(study, study.data.train)
    prompts = np.array([place_of(probe) for probe in irr_train])
    answers = donors(study.data.train)[prompts]
    influence, step = make_influence_fn(study.apply_fn), make_step_fn(study.apply_fn)

    def account(params: Any) -> Moment:
        # The loss is a mean over the pairs.
        terms = influence(params, batch, pairs) / len(pairs.tokens)
        gaps = abs(terms.sum(1) - step(params, batch, pairs)) / abs(terms).sum(1)
        of_train, of_test = np.split(terms, [len(prompts)])
        parts = {
            "irr_train": split(of_train, {"answer": answers, "prompt": prompts}),
            "irr_test": split(of_test, {"prompt": prompts}),
        }
        return Moment(parts, rank(of_train, answers), float(gaps.max()))

    return account


def moments(epochs: int) -> list[int]:
    """When to look: at the start, dense early, at the end."""
    return [*(moment for moment in _MOMENTS if moment < epochs), epochs]


def split(terms: np.ndarray, owners: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean over the texts of some pairs' terms, of all others, and of the sum.

    Args:
      terms: `[text, pair]`.
      owners: A pair of each text, by name.
    """
    texts = np.arange(len(terms))
    parts = {name: terms[texts, places].mean() for name, places in owners.items()}
    whole = terms.sum(1).mean()
    return parts | {"others": whole - sum(parts.values()), "whole": whole}


def rank(terms: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of each text, the place of one pair by its term; 1 is larger than all others.

    Equal ones stand before it: where nothing moves, no pair moves most.
    """
    own = terms[np.arange(len(terms)), places]
    return (terms >= own[:, None]).sum(1)


def told(epochs: int, moment: Moment) -> dict[str, float]:
    """A moment's lines of the table."""
    train, test = (moment.parts[type_] for type_ in _TYPES)
    when = f"epoch {epochs}:"
    return {
        f"{when} change of irr_train (nats per unit of rate)": train["whole"],
        f"{when} of it by the answer's own pair": train["answer"],
        f"{when} of it by the prompt's own pair": train["prompt"],
        f"{when} of it by all others": train["others"],
        f"{when} share of the answer's own pair": train["answer"] / train["whole"],
        f"{when} texts whose largest term is its (share)": moment.largest,
        f"{when} its median rank": float(np.median(moment.ranks)),
        f"{when} change of irr_test (nats per unit of rate)": test["whole"],
        f"{when} of it by the prompt's own pair (irr_test)": test["prompt"],
    }
