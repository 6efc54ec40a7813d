"""On- and off-policy DPO at an equal budget: does a less likely y- do more harm?

From one policy after SFT, with the same training prompts, the same number of pairs and
of updates, three arms that differ in their pairs:

* `valley`: the data's chosen answer and, as the rejected one, its words shuffled;
* `off`: the data's chosen and rejected answers;
* `on`: the best and the worst of some samples of the policy, as a scorer ranks them.

The prompts are those to which the policy has samples that the scorer tells apart. What
is watched are the types of response that no arm trains on, so that no arm pushes a
watched type directly.

Claims: the arms' p(y-) grows from valley over off to on; the smaller it is, the more
the untrained types fall.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldjax import losses
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.finetune.recipes import RECIPES, Recipe
from ldjax.studies.phenomena.repeater import spoken
from ldjax.studies.phenomena.results import Number, Outcome
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, change, geometric_mean, watched_curves
from ldjax.studies.policies import (
    VERDICTS,
    Policy,
    Study,
    judged,
    pairs,
    responses,
    train_policy,
)

__all__ = [
    "ARMS",
    "UNTRAINED",
    "TooFewPairsError",
    "by_judge",
    "make_arms",
    "measure",
    "ranked",
]

#: In the order of the p(y-) that is expected.
ARMS = ("valley", "off", "on")
#: Types that no arm trains on.
UNTRAINED = tuple(
    name
    for name in RESPONSE_TYPES
    if name not in ("chosen", "rejected", "random_permute")
)

_LIKELIHOOD = "p(y-) of a token at the start"
_UNTRAINED = "change of the untrained types (nats)"
_NAMES = {
    "argmax": "y*",
    "all": "all 12 types",
    "margin": "the margin of the data's pairs",
}

# From a response to a prompt to a number; more is better.
Scorer = Callable[[Study, PreferenceRow, str], float]
Arms = dict[str, list[PreferenceRow]]


class TooFewPairsError(ValueError):
    """The scorer tells samples apart for fewer prompts than a batch has."""


def by_judge(study: Study, row: PreferenceRow, text: str) -> float:
    """A better verdict is more."""
    return -VERDICTS.index(judged(study, [row], [text])[0])


class Trained(NamedTuple):
    """An arm after its DPO.

    Attributes:
      policy: What it became.
      likelihood: p(y-) of a token before.
      margin: By how much it came to prefer the chosen one of its own pairs, mean nats.
    """

    policy: Policy
    likelihood: float
    margin: float


def by_length(study: Study, row: PreferenceRow, text: str) -> float:
    """A longer response is more."""
    del study, row
    return len(text)


def measure(start: Start, config: Config) -> Outcome:
    """The three arms of a seed."""
    # The judge finds all samples of a model that has learned nothing malformed.
    scorer = by_length if config.smoke else by_judge
    reference, recipe = start.after(config.sft_epochs), RECIPES["small", "dpo"]
    train, key = start.study.data.train, jax.random.key(start.seed)
    # Every prompt in turn, so that sample `i` of prompt `p` is at `i * len(train) + p`.
    texts = responses(start.study, reference, train * config.samples, key=key)
    best_and_worst = [
        ranked(start.study, row, texts[place :: len(train)], scorer)
        for place, row in enumerate(train)
    ]
    arms = make_arms(train, best_and_worst)
    num_pairs = len(arms["on"])
    if num_pairs < recipe.batch_size:
        raise TooFewPairsError(
            f"on_policy: to {num_pairs} prompts the policy has samples that the scorer "
            f"tells apart, and a batch has {recipe.batch_size}: raise `samples`"
        )
    study = with_room(start.study, arms)
    # As many updates as on all prompts.
    recipe = recipe._replace(epochs=config.dpo_epochs * len(train) / num_pairs)
    found = {
        arm: outcome_of(
            start.study,
            train_arm(study, reference, rows, recipe, seed=start.seed),
            samples=config.samples,
            key=key,
        )
        for arm, rows in arms.items()
    }
    likely = np.array([numbers[_LIKELIHOOD] for numbers in found.values()])
    changes = np.array([numbers[_UNTRAINED] for numbers in found.values()])
    before = verdicts(start.study, reference, samples=config.samples, key=key)
    return Outcome(
        table={"pairs of each arm": float(num_pairs)}
        | {f"{quantity}: before": value for quantity, value in before.items()}
        | {
            f"{quantity}: {arm}": numbers[quantity]
            for quantity in found["on"]
            for arm, numbers in found.items()
        },
        claims={
            "p(y-) grows from valley over off to on": bool((np.diff(likely) > 0).all()),
            "the smaller p(y-), the more the untrained types fall": bool(
                (np.diff(changes[np.argsort(likely)]) > 0).all()
            ),
        },
        gaps={},
        numbers=[
            Number(arm, 0, "", quantity, value)
            for arm, numbers in found.items()
            for quantity, value in numbers.items()
        ],
    )


def ranked(
    study: Study, row: PreferenceRow, texts: Sequence[str], scorer: Scorer
) -> tuple[str, str] | None:
    """The best and the worst response; None where the scorer tells none apart."""
    scores = [scorer(study, row, text) for text in texts]
    if min(scores) == max(scores):
        return None
    return texts[int(np.argmax(scores))], texts[int(np.argmin(scores))]


def make_arms(
    rows: Sequence[PreferenceRow],
    best_and_worst: Sequence[tuple[str, str] | None],
) -> Arms:
    """The pairs of each arm, for the prompts that have an on-policy one."""
    arms: Arms = {arm: [] for arm in ARMS}
    for row, own in zip(rows, best_and_worst, strict=True):
        if own is None:
            continue
        texts = row.responses
        sides = {
            "valley": (texts["chosen"], texts["random_permute"]),
            "off": (texts["chosen"], texts["rejected"]),
            "on": own,
        }
        for arm, (chosen, rejected) in sides.items():
            pair = {"chosen": chosen, "rejected": rejected}
            arms[arm].append(row._replace(responses=pair))
    return arms


def with_room(study: Study, arms: Arms) -> Study:
    """The study with room for all pairs: samples may be longer than the data.

    One length for all arms, so that they are functions of the same shapes.
    """
    longest = max(
        example.num_tokens
        for rows in arms.values()
        for row in rows
        for example in study.encode(row).examples.values()
    )
    return study._replace(max_length=max(study.max_length, longest))


def train_arm(
    study: Study,
    reference: Any,
    rows: Sequence[PreferenceRow],
    recipe: Recipe,
    *,
    seed: int,
) -> Trained:
    """DPO on the pairs of an arm."""
    before = pairs(study, rows, reference)
    policy = train_policy(
        *(study, reference, before, losses.dpo(), recipe),
        observations=1,
        seed=seed,
    )
    after = pairs(study, rows, policy.params[-1])
    gain = {
        side: np.asarray(after[side].reference - before[side].reference)
        for side in before
    }
    rejected = before["rejected"]
    return Trained(
        policy=policy,
        likelihood=geometric_mean(
            np.asarray(rejected.reference), np.asarray(rejected.mask.sum(-1))
        ),
        margin=float((gain["chosen"] - gain["rejected"]).mean()),
    )


def outcome_of(
    study: Study, trained: Trained, *, samples: int, key: jax.Array
) -> dict[str, float]:
    """The numbers of an arm."""
    curves = watched_curves(study, trained.policy)
    watched = ("chosen", "rejected", "random_permute", "argmax", "all", "margin")
    return (
        {
            _LIKELIHOOD: trained.likelihood,
            _UNTRAINED: float(np.mean([change(curves, name) for name in UNTRAINED])),
        }
        | {f"change of {_NAMES.get(n, n)} (nats)": change(curves, n) for n in watched}
        | {"margin of its own pairs at the end (nats)": trained.margin}
        | verdicts(study, trained.policy.params[-1], samples=samples, key=key)
    )


def verdicts(
    study: Study, params: Any, *, samples: int, key: jax.Array
) -> dict[str, float]:
    """How the judge finds a policy's samples, for held-out prompts."""
    sampled = spoken(study, params, samples=samples, key=key)
    return {f"samples that are {name}": sampled[name] for name in VERDICTS}
