"""The remedies for squeezing as their users run them, and the numbers they report."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from shell.scripts import run_script

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.world.judge import Verdict
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.mitigation import results
from ldjax.studies.mitigation import study as mitigation
from ldjax.studies.policies import VERDICTS, verdict_rates
from ldjax.studies.statistics import mean_rate, win_rate
from ldjax.theory.curves import Curves


def verdicts_of(**others) -> Any:
    """All policies say what is wrong, but for those that are named."""
    by_moment = {name: others.get(name.replace("@", "_"), "wrong") for name in MOMENTS}
    said = {name: [verdict] * 4 for name, verdict in by_moment.items()}
    return dict.fromkeys(results.DECODINGS, said)


MOMENTS = [
    *(f"{arm}@{epochs}" for arm in ("baseline", "extend") for epochs in (0, 2, 4, 6)),
    *(f"{loss}@4" for loss in ("ipo", "simpo", "rpo", "gated_dpo")),
]


def test_every_policy_is_compared_with_the_baseline_of_as_many_epochs():
    losses = ("ipo", "simpo", "rpo", "gated_dpo")
    moments = results.make_moments(losses, evaluations=4)
    assert moments["extend@4"] == ("extend dpo", 1, 16)
    assert list(moments) == MOMENTS
    assert results.rivals(moments) == {
        "extend@0": "baseline@0",
        "extend@2": "baseline@2",
        "extend@4": "baseline@4",
        "extend@6": "baseline@6",
        **dict.fromkeys(MOMENTS[8:], "baseline@4"),
    }


def test_a_better_verdict_wins_and_an_equal_one_counts_half():
    said = verdicts_of(extend_4="correct", rpo_4="degenerate")
    won = results.wins(said)["sampled"]
    assert won["extend@4"] == {"rate": 1.0, "low": 1.0, "high": 1.0, "ties": 0.0}
    assert won["rpo@4"]["rate"] == 0.0
    assert won["extend@6"] == {"rate": 0.5, "low": 0.5, "high": 0.5, "ties": 1.0}


def test_the_interval_of_a_win_rate_is_students_over_prompts():
    ours: Any = ["correct"] * 60 + ["wrong"] * 40
    theirs: Any = ["wrong"] * 60 + ["correct"] * 40
    rate, low, high = win_rate(ours, theirs, VERDICTS)
    assert rate == 0.6
    error = np.sqrt(0.6 * 0.4 / 99)
    reach = t.ppf(0.975, 99) * error
    assert (rate - low, high - rate) == pytest.approx((reach, reach))


def test_the_interval_over_seeds_covers_where_seeds_differ():
    """Three seeds of 200 prompts whose true rates have a spread of 0.06.

    In 300 draws, 95 % coverage is at least 0.92 with a chance of 99 %. That over the
    prompts of all seeds together covers in two thirds.
    """
    rng = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(300):
        true = 0.6 + 0.06 * rng.normal(size=3)
        won = (rng.random((3, 200)) < true[:, None]).astype(float)
        wins = [{"sampled": {"a": {"rate": each.mean(), "ties": 0.0}}} for each in won]
        over_seeds = results.over_seeds(wins)["sampled"]["a"]
        _, low, high = mean_rate(won.ravel())
        covered += [
            over_seeds["low"] <= 0.6 <= over_seeds["high"],
            low <= 0.6 <= high,
        ]
    assert covered[0] / 300 >= 0.92
    assert covered[1] / 300 < 0.8


def test_of_one_seed_the_interval_is_over_its_prompts():
    won = results.wins(verdicts_of(extend_4="correct"))
    assert results.over_seeds([won]) == won


def test_rates_are_shares_of_all_responses():
    rates = verdict_rates(["correct", "wrong", "wrong", "malformed"])
    assert rates == {
        "correct": 0.25,
        "wrong": 0.5,
        "off-topic": 0.0,
        "malformed": 0.25,
        "degenerate": 0.0,
    }


def test_changes_are_since_the_start_of_the_run():
    series = {name: np.array([-9.0, -8.0, -6.0]) for name in RESPONSE_TYPES}
    series |= {"rejected": np.array([-9.0, -21.0, -9.0]), "argmax": np.zeros(3)}
    assert results.changes(Curves(series), 1) == {
        "chosen": 1.0,
        "rejected": -12.0,
        "margin": 13.0,
        "argmax": 0.0,
        "others": 1.0,
        "all": pytest.approx(-1 / 12),
    }


@pytest.mark.parametrize(
    ("rates", "low", "verdict", "holds"),
    [
        ((0.6, 0.7, 0.8), 0.55, "held", True),
        ((0.6, 0.7, 0.4), 0.55, "depends", True),
        ((0.6, 0.7, 0.8), 0.45, "depends", False),  # not told from one half
        ((0.6, 0.4, 0.4), 0.55, "depends", False),
        ((0.5, 0.4, 0.4), 0.35, "refuted", False),
    ],
)
def test_a_claim_is_of_most_seeds_and_of_all_together(rates, low, verdict, holds):
    found = {"id": "EXT1", "text": "text", "verdict": "holds"}
    seeds = {
        seed: {
            "signatures": [found],
            "wins": {"sampled": {"extend@6": {"rate": rate}}},
        }
        for seed, rate in enumerate(rates)
    }
    together = {"rate": float(np.mean(rates)), "low": low, "high": 0.9}
    *_, claim = results.check_claims(seeds, {"sampled": {"extend@6": together}})
    assert (claim.verdict, claim.holds) == (verdict, holds)


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (("holds", "holds"), "held"),
        (("holds", "not applicable"), "depends"),
        (("fails", "not applicable"), "refuted"),
    ],
)
def test_a_signature_that_is_not_applicable_does_not_hold(verdicts, word):
    seeds = {
        seed: {
            "signatures": [{"id": "EXT1", "text": "text", "verdict": verdict}],
            "wins": {"sampled": {"extend@6": {"rate": 0.5}}},
        }
        for seed, verdict in enumerate(verdicts)
    }
    pooled = {"sampled": {"extend@6": {"rate": 0.5, "low": 0.4, "high": 0.6}}}
    assert results.check_claims(seeds, pooled)[0].verdict == word


def test_wins_and_losses_of_two_policies_add_up_to_one():
    ours: list[Verdict] = ["correct", "wrong", "wrong"]
    theirs: list[Verdict] = ["wrong", "wrong", "malformed"]
    won, lost = (
        win_rate(*pair, VERDICTS).value for pair in ((ours, theirs), (theirs, ours))
    )
    assert won == pytest.approx(5 / 6)
    assert won + lost == pytest.approx(1)


@pytest.mark.exhaustive  # a notebook runs the same in CI
def test_smoke_leaves_a_whole_run_whose_identities_hold(tmp_path):
    out, cache = tmp_path / "run", tmp_path / "cache"
    result = run_script(
        "mitigation.py", "--smoke", "--out", out, "--cache", cache, cache=cache
    )
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    assert all(check["holds"] for check in run.summary["identities"])
    assert len(run.summary["identities"]) == 2
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics["value"].is_finite().all()
    seed = run.summary["seeds"]["0"]
    for by_moment in seed["rates"].values():
        assert list(by_moment) == MOMENTS[:9]
        for rates in by_moment.values():
            assert sum(rates.values()) == pytest.approx(1)
    lines = (out / "responses-0.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    names = MOMENTS[:9]  # one other loss
    assert len(told) == 2 * len(names) * 4  # decodings, policies, prompts
    assert {each["policy"] for each in told} == set(names)
    assert "Win rate over baseline" in (out / "tables.md").read_text()
    for name in ("curves", "win_rates", "verdicts", "losses"):
        assert (out / "figures" / f"{name}.png").is_file()
        assert str(out / "figures" / f"{name}.png") in result.stdout


def test_bad_options_are_one_clear_line(tmp_path):
    config = mitigation.Config(out=tmp_path / "run", prompts=4, probe_prompts=10**6)
    with pytest.raises(SystemExit) as stopped:
        mitigation.main(config)
    assert stopped.value.code == (
        "mitigation: --prompts must be between 8 and 1000; "
        "--probe-prompts must be between 1 and 1000"
    )
    assert not (tmp_path / "run").exists()
