"""The repeater: what free-running samples become in a long DPO, beside y*.

y* is the greedy token after each prefix of the chosen answer, as the paper watches it;
what the policy says by itself is drawn from it, greedily and at temperature 1, for
prompts that it was not trained on.

Claims, of the end of a long DPO against the policy after SFT: y* grows or stays (does
not fall by more than `STAYS`); the samples repeat themselves more (the mean of
distinct-1, -2 and -3 falls); more of them are degenerate or malformed.
"""

from typing import Any

import jax
import numpy as np

from ldjax import losses
from ldjax.finetune.recipes import RECIPES
from ldjax.studies.phenomena.results import Number, Outcome
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, watched_curves
from ldjax.studies.policies import (
    Study,
    distinct_n,
    judged,
    pairs,
    responses,
    train_policy,
    verdict_rates,
)

__all__ = ["BAD", "STAYS", "measure", "spoken"]

#: Nats along an answer.
STAYS = 1.0
#: Verdicts of what is no answer at all.
BAD = ("degenerate", "malformed")
_OBSERVATIONS = 2  # of y*, between two moments of sampling
_GRAMS = (1, 2, 3)


def measure(start: Start, config: Config) -> Outcome:
    """Of a seed: the base, the policy after SFT, and that along a long DPO."""
    study, epochs = start.study, config.sft_epochs
    reference = start.after(epochs)
    dpo = train_policy(
        study,
        reference,
        pairs(study, study.data.train, reference),
        losses.dpo(),
        RECIPES["small", "dpo"]._replace(epochs=config.long_dpo_epochs),
        keep=config.checkpoints,
        observations=_OBSERVATIONS * config.checkpoints,
        seed=start.seed,
    )
    greedy = watched_curves(study, dpo)["argmax"]
    key = jax.random.key(start.seed)

    def speak(params: Any) -> dict[str, dict[str, float]]:
        return {
            "sampled": spoken(study, params, samples=config.samples, key=key),
            "greedy": spoken(study, params),
        }

    moments = dpo.curves["step"][::_OBSERVATIONS].tolist()
    params = [reference, *dpo.params]
    said = dict(zip(moments, map(speak, params), strict=True))
    of_base = speak(study.base.params)
    first, *_, last = said.values()
    table = {
        "y* of the base (nats)": start.curves["argmax"][0],
        "y* after SFT (nats)": greedy[0],
        "y* after DPO (nats)": greedy[-1],
    }
    table |= {
        f"{drawn}, {quantity}: {when}": numbers[drawn][quantity]
        for drawn in first
        for quantity in first[drawn]
        for when, numbers in (("base", of_base), ("SFT", first), ("DPO", last))
    }
    samples = [numbers["sampled"] for numbers in (first, last)]
    distinct = [np.mean([of[f"distinct-{n}"] for n in _GRAMS]) for of in samples]
    bad = [sum(of[verdict] for verdict in BAD) for of in samples]
    return Outcome(
        table=table,
        claims={
            "y* grows or stays along long DPO": bool(greedy[-1] >= greedy[0] - STAYS),
            "samples repeat themselves more": bool(distinct[1] < distinct[0]),
            "more samples are degenerate or malformed": bad[1] > bad[0],
        },
        gaps={},
        numbers=[
            Number("dpo", int(step), "chosen", "y*", value)
            for step, value in zip(dpo.curves["step"], greedy, strict=True)
        ]
        + [
            Number(arm, step, drawn, quantity, value)
            for arm, by_step in (("base", {0: of_base}), ("dpo", said))
            for step, of in by_step.items()
            for drawn, quantities in of.items()
            for quantity, value in quantities.items()
        ],
    )


def spoken(
    study: Study, params: Any, *, samples: int = 1, key: jax.Array | None = None
) -> dict[str, float]:
    """What a policy says to held-out prompts by itself.

    Args:
      study: With the prompts and their judge.
      params: Of the policy.
      samples: For each prompt.
      key: Of the samples; without one they are greedy.

    Returns:
      `distinct-N`, the mean number of words, and the share of each verdict.
    """
    rows = study.data.test * samples
    texts = responses(study, params, rows, key=key)
    return (
        {f"distinct-{n}": distinct_n(texts, n) for n in _GRAMS}
        | {"words": float(np.mean([len(text.split()) for text in texts]))}
        | verdict_rates(judged(study, rows, texts))
    )
