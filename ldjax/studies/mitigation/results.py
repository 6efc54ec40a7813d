"""From what the policies of `mitigation.py` did and said to its numbers and claims.

A moment is a policy at one length of preference training, such as `extend@4`: by what
it was trained, and for how many epochs after SFT.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldjax import losses
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.world.judge import Verdict
from ldjax.finetune.results import curves_of
from ldjax.studies.policies import VERDICTS, Policy, Study, verdict_rates
from ldjax.studies.statistics import mean_rate, win_rate
from ldjax.theory.claims import Claim, standing
from ldjax.theory.curves import Curves
from ldjax.theory.signatures import evaluate
from ldjax.watch.probes import make_observe_fn
from ldjax.watch.record import set_of

__all__ = [
    "ARMS",
    "DECODINGS",
    "LENGTHS",
    "LOSSES",
    "QUANTITIES",
    "SAME_LENGTH",
    "Moment",
    "Said",
    "changes",
    "check_claims",
    "check_identities",
    "identities",
    "make_moments",
    "metric_rows",
    "numbers",
    "over_seeds",
    "rivals",
    "wins",
]

#: What SFT trains on: the two arms of the comparison.
ARMS = {"baseline": ("chosen",), "extend": ("chosen", "rejected")}
#: Epochs of DPO after which a policy is kept; the paper's.
LENGTHS = (2, 4, 6)
#: Epochs after which DPO is compared with other losses.
SAME_LENGTH = 4
#: The other losses, at the defaults of their sources.
LOSSES = {
    "ipo": losses.ipo(),
    "simpo": losses.simpo(),
    "rpo": losses.rpo(),
    "gated_dpo": losses.gated_dpo(),
}
#: The first is the paper's, and that of the claim.
DECODINGS = ("sampled", "greedy")
#: Series of `Curves`, and what they are called.
QUANTITIES = {
    "chosen": "chosen",
    "rejected": "rejected",
    "margin": "margin",
    "argmax": "y*",
    "others": "ten other types",
    "all": "all twelve types",
}
# Of a log-prob of some fifty tokens in float32, in another compiled function.
ROUNDING = 1e-3
_MEASURED = ("log_prob", "argmax_log_prob", "energy", "squeezing_threshold")

# Verdicts of the responses to the same prompts, by moment, by decoding.
Verdicts = Mapping[str, Mapping[str, Sequence[Verdict]]]


class Moment(NamedTuple):
    """A policy that is judged.

    Attributes:
      stage: The run that it is of: what SFT trained on, and the loss.
      kept: Its place among the parameters kept.
      observation: Its place on the run's curves.
    """

    stage: str
    kept: int
    observation: int


class Said(NamedTuple):
    """Responses of a policy, and what the judge says of them."""

    texts: Sequence[str]
    verdicts: list[Verdict]


def make_moments(losses: Sequence[str], *, evaluations: int) -> dict[str, Moment]:
    """The policies that are judged, by name.

    Args:
      losses: Other losses than DPO.
      evaluations: Observations per epoch.
    """
    found = {}
    for arm in ARMS:
        found[f"{arm}@0"] = Moment(f"{arm} sft", 0, -1)
        for place, epochs in enumerate(LENGTHS):
            found[f"{arm}@{epochs}"] = Moment(f"{arm} dpo", place, epochs * evaluations)
    for loss in losses:
        found[f"{loss}@{SAME_LENGTH}"] = Moment(f"baseline {loss}", 0, -1)
    return found


def rivals(names: Iterable[str]) -> dict[str, str]:
    """Each policy but the baseline's, and the baseline after as many epochs."""
    return {
        name: f"baseline@{name.partition('@')[2]}"
        for name in names
        if not name.startswith("baseline")
    }


# One seed


def numbers(
    study: Study,
    trained: Mapping[str, Policy],
    moments: Mapping[str, Moment],
    said: Mapping[str, Mapping[str, Said]],
) -> dict[str, Any]:
    """What is known of a seed, as `summary.json` has it; probes are trained prompts."""
    curves = {
        stage: curves_of(policy.curves, study.observed.probes, "train")
        for stage, policy in trained.items()
    }
    verdicts = {
        decoding: {name: found.verdicts for name, found in by_moment.items()}
        for decoding, by_moment in said.items()
    }
    return {
        "changes": {
            name: changes(curves[moment.stage], moment.observation)
            for name, moment in moments.items()
        },
        "start_of_dpo": {arm: _start(study, trained[f"{arm} dpo"]) for arm in ARMS},
        "rates": {
            decoding: {name: verdict_rates(each) for name, each in by_moment.items()}
            for decoding, by_moment in verdicts.items()
        },
        "wins": wins(verdicts),
        "signatures": _signatures(curves),
        "identities": identities(study, trained, moments),
    }


def changes(curves: Curves, observation: int) -> dict[str, float]:
    """Mean changes since the start of a run, in nats."""
    return {
        name: float(curves[name][observation] - curves[name][0]) for name in QUANTITIES
    }


def wins(verdicts: Verdicts) -> dict[str, dict[str, dict[str, float]]]:
    """How often each challenger wins over the baseline of as many epochs."""

    def win(ours: Sequence[Verdict], theirs: Sequence[Verdict]) -> dict[str, float]:
        rate, low, high = map(float, win_rate(ours, theirs, VERDICTS))
        ties = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
        return {"rate": rate, "low": low, "high": high, "ties": ties}

    return {
        decoding: {
            name: win(by_moment[name], by_moment[other])
            for name, other in rivals(by_moment).items()
        }
        for decoding, by_moment in verdicts.items()
    }


def _start(study: Study, policy: Policy) -> dict[str, float]:
    """What DPO finds: how likely y- is, and which labels a push on it would raise."""

    def mean(quantity: str) -> float:
        return float(_means(study, policy, quantity, "train", "rejected")[0])

    return {
        "log_prob": mean("log_prob"),
        "prob": 1 - mean("energy"),
        "threshold": mean("squeezing_threshold"),
        "residual_norm": mean("residual_norm"),
    }


def _signatures(curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    return [
        verdict._asdict()
        for loss in ("sft", "dpo")
        for verdict in evaluate(
            curves[f"extend {loss}"], f"pair_{loss}", curves[f"baseline {loss}"]
        )
    ]


def identities(
    study: Study, trained: Mapping[str, Policy], moments: Mapping[str, Moment]
) -> dict[str, float]:
    """What is zero up to rounding, whatever the policies do."""
    observe = make_observe_fn(study.apply_fn, study.observed)

    def gap(params: Any, policy: Policy, observation: int) -> float:
        seen = policy.curves["log_prob"][observation]
        return float(np.abs(observe(params)["log_prob"] - seen).max())

    starts = [
        gap(trained[f"{stage.split()[0]} sft"].params[-1], policy, 0)
        for stage, policy in trained.items()
        if not stage.endswith("sft")
    ]
    ends = [
        gap(trained[stage].params[kept], trained[stage], observation)
        for stage, kept, observation in moments.values()
    ]
    return {
        "preference training begins at its SFT policy, nats": max(starts),
        "what is judged is what was observed after as many epochs, nats": max(ends),
    }


def metric_rows(
    seed: int, study: Study, trained: Mapping[str, Policy], batch_size: int
) -> list[tuple[Any, ...]]:
    """The curves as a long table: means over prompts; a probe is SEED/STAGE/SET."""
    rows = []
    for stage, set_name in itertools.product(trained, ("train", "test")):
        policy, probe = trained[stage], f"{seed}/{stage}/{set_name}"
        steps = policy.curves["step"].tolist()
        for type_, quantity in itertools.product(RESPONSE_TYPES, _MEASURED):
            values = _means(study, policy, quantity, set_name, type_).tolist()
            rows += [
                (step, step * batch_size, probe, type_, quantity, value)
                for step, value in zip(steps, values, strict=True)
            ]
    return rows


def _means(
    study: Study, policy: Policy, quantity: str, set_name: str, type_: str
) -> np.ndarray:
    """Over the prompts of a set, `[observation]`."""
    is_meant = [
        probe.type == type_ and set_of(probe.prompt_name) == set_name
        for probe in study.observed.probes
    ]
    return policy.curves[quantity][:, is_meant].mean(1).astype(float)


# All seeds


def over_seeds(
    wins: Sequence[Mapping[str, Mapping[str, dict[str, float]]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """The mean win rates of all seeds, each with an interval over seeds.

    Policies of another seed may differ by more than their prompts do, so prompts of all
    seeds are no one sample. A seed's rate has the chance of its prompts in it.

    Args:
      wins: Of each seed. Of a single one the interval stays that over prompts.
    """
    if len(wins) == 1:
        return {decoding: dict(found) for decoding, found in wins[0].items()}

    def mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
        rate, low, high = map(float, mean_rate([win["rate"] for win in found]))
        ties = float(np.mean([win["ties"] for win in found]))
        return {"rate": rate, "low": low, "high": high, "ties": ties}

    return {
        decoding: {
            name: mean([each[decoding][name] for each in wins]) for name in by_moment
        }
        for decoding, by_moment in wins[0].items()
    }


def check_claims(
    seeds: Mapping[int, dict[str, Any]], pooled: Mapping[str, Any]
) -> list[Claim]:
    """What most seeds have to show."""
    claims = []
    for found in zip(*(each["signatures"] for each in seeds.values()), strict=True):
        holds = [verdict["verdict"] == "holds" for verdict in found]
        claims.append(_claim(f"{found[0]['id']}: {found[0]['text']}", holds))
    last = f"extend@{LENGTHS[-1]}"
    rates = [each["wins"][DECODINGS[0]][last]["rate"] for each in seeds.values()]
    together = pooled[DECODINGS[0]][last]
    sample = "seeds" if len(seeds) > 1 else "the prompts of one seed"
    text = (
        f"after {LENGTHS[-1]} epochs of DPO extend wins over baseline: over {sample} "
        f"{together['rate']:.3f} [{together['low']:.3f}, "
        f"{together['high']:.3f}]"
    )
    claims.append(
        _claim(text, [rate > 0.5 for rate in rates], clear=together["low"] > 0.5)
    )
    return claims


def _claim(text: str, holds: Sequence[bool], *, clear: bool = True) -> Claim:
    verdict = standing(holds)
    if verdict == "held" and not clear:
        verdict = "depends"
    return Claim(
        f"{text} ({sum(holds)} of {len(holds)} seeds)",
        clear and 2 * sum(holds) > len(holds),
        verdict=verdict,
        numbers={"seeds": list(holds)},
    )


def check_identities(seeds: Mapping[int, dict[str, Any]]) -> list[Claim]:
    """Each identity with its largest error over the seeds."""
    found = [each["identities"] for each in seeds.values()]
    worst = {name: max(each[name] for each in found) for name in found[0]}
    return [
        Claim(
            f"{name}: up to {value:.0e}",
            value < ROUNDING,
            "identity",
            numbers={"value": value, "bound": ROUNDING},
        )
        for name, value in worst.items()
    ]
