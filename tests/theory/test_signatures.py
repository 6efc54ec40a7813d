"""Verdicts on learning curves, against the definitions that were published as JSON.

The witness below reads the published term language by itself and shares no code with
`ldjax.theory.signatures`.
"""

import csv
import json
import operator
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.theory.curves import (
    Curves,
    D,
    TooFewPointsError,
    end,
    fall,
    highest,
    lowest,
    on_baseline,
    peak,
    slope,
    start,
    tpeak,
    upfrac,
)
from ldjax.theory.signatures import REGIMES, SIGNATURES, evaluate, table

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
COMPARISONS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


# Functions, on curves that can be worked out by hand


@pytest.mark.parametrize(
    ("term", "label", "value"),
    [
        (start("chosen"), "start(chosen)", -10),
        (end("chosen"), "end(chosen)", -6.5),  # the mean of -6 and -7
        (D("chosen"), "D(chosen)", 3.5),
        (peak("chosen"), "peak(chosen)", 6),
        (tpeak("chosen"), "tpeak(chosen)", 2 / 20),
        (fall("chosen"), "fall(chosen)", 2.5),
        (upfrac("chosen"), "upfrac(chosen)", 3 / 20),
        (slope("chosen", 0.0, 0.1), "slope(chosen, 0, 0.1)", 60),
        (slope("chosen", 0.95, 1.0), "slope(chosen, 0.95, 1)", -20),
        (abs(start("chosen")), "|start(chosen)|", 10),
        (-0.5 * D("chosen"), "-0.5 D(chosen)", -1.75),
        (peak("rejected"), "peak(rejected)", 0),  # never above its start
        (tpeak("rejected"), "tpeak(rejected)", 0),
        (D("margin"), "D(margin)", 5.5),
        (highest("top", [D("chosen"), D("rejected")]), "top", 3.5),
        (lowest("low", [D("chosen"), D("rejected")]), "low", -2),
    ],
)
def test_a_number_of_a_curve(term, label, value):
    chosen = [-10.0, -8, -4, -7, -7, *[-7] * 13, -7, -6, -7]
    rejected = [0.0] * 19 + [-2.0, -2.0]
    curves = Curves({"chosen": np.array(chosen), "rejected": np.array(rejected)})
    assert len(chosen) == 21
    assert term.label == label
    assert term.of(curves) == pytest.approx(value, rel=1e-12)


def test_derived_series_are_means_over_the_right_types():
    levels = dict(zip(RESPONSE_TYPES, 2.0 ** np.arange(12), strict=True))
    curves = Curves({k: np.array([0, level]) for k, level in levels.items()})
    rest = sum(levels.values()) - levels["chosen"] - levels["rejected"]
    assert curves["all"].tolist() == [0, (2**12 - 1) / 12]
    assert curves["others"].tolist() == [0, rest / 10]
    assert curves["margin"].tolist() == [0, levels["chosen"] - levels["rejected"]]
    assert dict(curves).keys() == set(RESPONSE_TYPES)


def test_a_term_on_the_baseline_is_that_of_the_second_run():
    runs = [Curves({"chosen": np.array([0.0, x])}) for x in (2, 3)]
    check = D("chosen") < on_baseline(0.5 * D("chosen"))
    assert check.label == "D(chosen) < baseline 0.5 D(chosen)"
    assert check.numbers(*runs) == {"D(chosen)": 2, "baseline 0.5 D(chosen)": 1.5}
    assert not check.holds(*runs)
    assert check.holds(*runs[::-1]) == (3 < 1)


def test_a_chain_of_comparisons_is_refused():
    with pytest.raises(TypeError, match=r"D\(chosen\) > D\(rejected\)"):
        _ = D("chosen") > D("rejected") > D("irr_train")


def test_a_slope_over_one_evaluation_is_refused():
    curves = Curves({"chosen": np.arange(5.0)})
    assert slope("chosen", 0.0, 0.25).of(curves) == 4
    with pytest.raises(TooFewPointsError, match=r"slope\(chosen, 0, 0.2\) needs 2"):
        slope("chosen", 0.0, 0.2).of(curves)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"chosen": np.array([1.0, np.nan])}, "'chosen' is nan at evaluation 1"),
        ({"argmax": np.array([1.0, 2, -np.inf])}, "'argmax' is -inf at evaluation 2"),
        ({"chosen": np.array([1.0])}, r"at least 2 evaluations, got shape \(1,\)"),
        ({"chosen": np.ones((3, 2))}, r"one axis .* got shape \(3, 2\)"),
        ({"gpt_semantic": np.ones(3)}, "no series 'gpt_semantic': expected"),
        ({"margin": np.ones(3)}, "'margin', 'all' and 'others' are derived"),
        (
            {"chosen": np.ones(3), "rejected": np.ones(4)},
            "'rejected' has 4, 'chosen' has 3",
        ),
    ],
)
def test_bad_curves_are_named(series, message):
    with pytest.raises(ValueError, match=message):
        Curves(series)


# Verdicts, on curves made by hand


def piecewise(changes, num_points=21):
    """Curves from -100 through the changes given, evenly spaced."""
    time = np.linspace(0, 1, num_points)
    return Curves(
        {
            name: -100 + np.interp(time, np.linspace(0, 1, len(points)), points)
            for name, points in changes.items()
        }
    )


SFT = {
    "chosen": (0, 25, 35, 40),
    "chosen_initial": (0, 4, -4, -6, -8),
    "chosen_gptsemantic": (0, -3),
    "chosen_gptformat": (0, -8),
    "rejected": (0, 6, 0, -5),
    "reject_gptsemantic": (0, -2),
    "reject_gptformat": (0, -6),
    "irr_train": (0, 15, 22),
    "irr_test": (0, 8, 4, 0),
    "irr_hum": (0, -16),
    "random_permute": (0, -14),
    "random_nonhum": (0, -13),
    "argmax": (0, 26),
    **{f"A_o:{k}": (0, 12) for k in RESPONSE_TYPES},
}
EXTENDED = {**SFT, "chosen": (0, 24, 33, 38), "rejected": (0, 20, 30, 35)}
DPO = {
    "chosen": (0, 12, 9, 5),
    "chosen_initial": (0, -45),
    "chosen_gptsemantic": (0, 1, -10, -21, -31),
    "chosen_gptformat": (0, -31),
    "rejected": (0, -75),
    "reject_gptsemantic": (0, -50),
    "reject_gptformat": (0, -42),
    "irr_train": (0, 3, -9, -19, -29),
    "irr_test": (0, -48),
    "irr_hum": (0, -34),
    "random_permute": (0, -88),
    "random_nonhum": (0, -78),
    "argmax": (0, 41),
    **{f"A_o:{k}": (0, 12) for k in RESPONSE_TYPES},
    "A_o:rejected": (0, 14),
}
MILD = {k: tuple(0.5 * point for point in points) for k, points in DPO.items()}
MILD["chosen"] = (0, 12, 10, 9)
FALLING = {"chosen": (0, -40, -20), "rejected": (0, -90)}
FAITHFUL = {
    "sft": (SFT,),
    "sft_extend": (EXTENDED,),
    "dpo_from_base": (DPO,),
    "dpo_from_base_highlr": (FALLING,),
    "dpo_after_sft": (DPO,),
    "dpo_after_extend": (DPO,),
    "pair_sft": (EXTENDED, SFT),
    "pair_dpo": (MILD, DPO),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_every_signature_holds_on_curves_of_its_shape(regime):
    curves, *baseline = [piecewise(changes) for changes in FAITHFUL[regime]]
    verdicts = evaluate(curves, regime, *baseline)
    wrong = [(v.id, v.why) for v in verdicts if v.verdict != "holds" or v.why]
    assert not wrong
    assert [v.id for v in verdicts] == [
        signature.id for signature in SIGNATURES if regime in signature.regimes
    ]


def test_a_failed_check_is_named_with_its_numbers():
    curves = piecewise({**DPO, "argmax": (0, -10)})
    verdicts = {v.id: v for v in evaluate(curves, "dpo_from_base")}
    failed = {name for name, v in verdicts.items() if v.verdict == "fails"}
    assert failed == {"DPO5_squeezing", "DPO5b_greedy_rises", "DPO6_late_squeeze"}
    squeezing = verdicts["DPO5_squeezing"]
    assert squeezing.why == "not D(argmax) >= 0.02 D(margin)"
    assert list(squeezing.numbers) == [
        "D(argmax)",
        "0.02 D(margin)",
        "D(all)",
        "-0.1 D(margin)",
    ]
    assert squeezing.numbers["D(argmax)"] == pytest.approx(-9.75)


def test_a_signature_without_its_series_is_not_applicable_and_says_which():
    kept = {k: v for k, v in DPO.items() if k not in ("irr_train", "irr_test")}
    verdicts = {v.id: v for v in evaluate(piecewise(kept), "dpo_after_sft")}
    missing = verdicts["DPO7_trained_others_fall_less"]
    assert missing.verdict == "not applicable"
    assert missing.why == "not logged: irr_test, irr_train"
    assert missing.numbers == {}
    assert verdicts["DPO5_squeezing"].why == "not logged: irr_test, irr_train"
    assert verdicts["DPO1_margin_grows"].verdict == "holds"


def test_a_series_that_the_baseline_lacks_is_named_as_such():
    baseline = piecewise({"chosen": SFT["chosen"]})
    (verdict,) = evaluate(piecewise(EXTENDED), "pair_sft", baseline)
    assert verdict.verdict == "not applicable"
    assert verdict.why == "not logged: rejected of the baseline"


@pytest.mark.parametrize("regime", REGIMES)
def test_a_run_that_did_not_move_has_no_verdict(regime):
    still = dict.fromkeys(SFT, (0, 0.01))
    runs = [piecewise(changes) for changes in FAITHFUL[regime]]
    for place in range(len(runs)):
        curves, *baseline = [*runs[:place], piecewise(still), *runs[place + 1 :]]
        for verdict in evaluate(curves, regime, *baseline):
            assert verdict.verdict == "not applicable"
            assert verdict.why.startswith("did not move: not ")
            assert len(verdict.numbers) == 2


def test_a_run_moved_from_five_percent_of_its_start():
    for change, verdict in ((5.0, "holds"), (4.999, "not applicable")):
        curves = piecewise({"chosen": (0, change), "rejected": (0, 0)}, 2)
        margin = {v.id: v for v in evaluate(curves, "dpo_after_sft")}
        chosen = {v.id: v for v in evaluate(curves, "sft")}
        assert margin["DPO1_margin_grows"].verdict == verdict
        assert chosen["SFT1_chosen_rises"].verdict == verdict


def test_what_is_not_known_about_the_precondition_is_said():
    curves = piecewise({"chosen": (0, -40), "argmax": (0, 1)})
    (verdict,) = evaluate(curves, "dpo_from_base_highlr")
    assert verdict.verdict == "holds"
    assert verdict.why == "whether the run moved is not known without rejected"


def test_too_few_evaluations_for_a_slope_are_not_applicable():
    verdicts = evaluate(piecewise(SFT, num_points=5), "sft")
    short = {v.id: v.why for v in verdicts if v.verdict == "not applicable"}
    assert short.keys() == {"SFT4_unseen_answers_rise_then_fall", "SFT12_front_loaded"}
    assert "1 of 5 there; evaluate more often" in short["SFT12_front_loaded"]


def test_a_wrong_regime_or_baseline_is_refused():
    curves = piecewise(SFT)
    with pytest.raises(ValueError, match=r"one of sft, sft_extend, .*: 'dpo'"):
        evaluate(curves, "dpo")
    with pytest.raises(ValueError, match="'pair_sft' needs `baseline`"):
        evaluate(curves, "pair_sft")
    with pytest.raises(ValueError, match="'sft' takes no `baseline`"):
        evaluate(curves, "sft", curves)


def test_verdicts_go_to_json_and_back_and_to_a_table():
    verdicts = evaluate(piecewise({"chosen": SFT["chosen"]}), "sft")
    written = json.dumps([v._asdict() for v in verdicts], allow_nan=False)
    assert [type(verdicts[0])(**v) for v in json.loads(written)] == verdicts
    lines = table(verdicts).splitlines()
    assert lines[0].split()[:5] == [
        "SFT1_chosen_rises",
        "core",
        "holds",
        "D(chosen)",
        f"{verdicts[0].numbers['D(chosen)']:.4g},",
    ]
    assert "not applicable  not logged: " in lines[1]
    assert len(lines) == len(verdicts)
    assert table([]) == ""


# The published definitions and curves


def reference_or_skip():
    if not REFERENCE.is_dir():
        message = "no folder shared/reference next to the repository: signatures"
        if os.environ.get("CI"):
            pytest.fail(f"{message} were not tested, and CI has to")
        pytest.skip(f"{message} not compared with the published ones")


@pytest.fixture(scope="module")
def published():
    reference_or_skip()
    return json.loads((REFERENCE / "signatures.json").read_text())


@pytest.fixture(scope="module")
def reference_runs():
    """Regime and series of every published run."""
    reference_or_skip()
    runs = json.loads((REFERENCE / "runs.json").read_text())["runs"]
    return {name: (run["regime"], read_curves(run)) for name, run in runs.items()}


def read_curves(run):
    columns = {}
    with (REFERENCE / run["curve_csv"]).open() as file:
        for row in csv.DictReader(file):
            name = row["response_type"]
            if name == f"argmax@{run['argmax_context']}":
                name = "argmax"
            columns.setdefault(name, []).append(row["mean_logp"])
            columns.setdefault(f"A_o:{name}", []).append(row["mean_A_o"])
    return {
        name: np.array(values, float)
        for name, values in columns.items()
        if "" not in values and "@" not in name
    }


class Missing(Exception):
    """A series that was not logged."""


def witness_series(name, curves):
    if name == "margin":
        return witness_series("chosen", curves) - witness_series("rejected", curves)
    if name in ("all", "others"):
        left_out = () if name == "all" else ("chosen", "rejected")
        kept = [k for k in RESPONSE_TYPES if k not in left_out]
        return sum([witness_series(k, curves) for k in kept], np.zeros(1)) / len(kept)
    if name not in curves:
        raise Missing
    return curves[name]


def witness_function(name, y, *window):
    last = y[len(y) - max(1, len(y) // 10) :]
    mean_of_last = sum(last) / len(last)
    match name:
        case "start":
            return y[0]
        case "end":
            return mean_of_last
        case "D":
            return mean_of_last - y[0]
        case "peak":
            return max(value - y[0] for value in y)
        case "tpeak":
            return y.index(max(y)) / (len(y) - 1)
        case "fall":
            return max(y) - mean_of_last
        case "upfrac":
            ups = [after > before for before, after in pairwise(y)]
            return sum(ups) / len(ups)
        case "slope":
            first, last = window
            points = [(t / (len(y) - 1), value) for t, value in enumerate(y)]
            points = [(u, v) for u, v in points if first <= u <= last]
            mean_u, mean_v = np.mean(points, axis=0)
            covariance = sum((u - mean_u) * (v - mean_v) for u, v in points)
            return covariance / sum((u - mean_u) ** 2 for u, _ in points)
    raise AssertionError(name)


def witness_term(term, curves, other):
    if not isinstance(term, list):
        return term
    name, *rest = term
    of = lambda part: witness_term(part, curves, other)
    match name:
        case "mul":
            return rest[0] * of(rest[1])
        case "sub":
            return of(rest[0]) - of(rest[1])
        case "abs":
            return abs(of(rest[0]))
        case "max":
            return max(map(of, rest))
        case "min":
            return min(map(of, rest))
        case "B":
            return witness_term(rest[0], other, None)
    y = witness_series(rest[0], curves).tolist()
    return witness_function(name, y, *rest[1:])


def witness_moved(regime, curves):
    series = "margin" if "dpo" in regime else "chosen"
    try:
        change = witness_term(["D", series], curves, None)
    except Missing:
        return True
    return change >= 0.05 * abs(curves["chosen"][0])


def witness_verdict(signature, regime, curves, other):
    """The verdict and both sides of each check, which a missing series leaves out."""
    try:
        sides = [
            (witness_term(left, curves, other), witness_term(right, curves, other))
            for left, _, right in signature["checks"]
        ]
    except Missing:
        return "not applicable", []
    if not all(witness_moved(regime, run) for run in (curves, other) if run):
        return "not applicable", sides
    holds = all(
        COMPARISONS[comparison](*pair)
        for pair, (_, comparison, _) in zip(sides, signature["checks"], strict=True)
    )
    return "holds" if holds else "fails", sides


def assert_same(published, regime, series, other=None):
    """That verdicts and numbers are the witness's; returns the verdicts by id."""
    runs = [Curves(run) for run in (series, other) if run is not None]
    verdicts = {v.id: v for v in evaluate(runs[0], regime, *runs[1:])}
    by_id = {signature.id: signature for signature in SIGNATURES}
    for signature in published["signatures"]:
        if regime not in signature["regimes"]:
            assert signature["id"] not in verdicts
            continue
        verdict = verdicts[signature["id"]]
        expected, sides = witness_verdict(signature, regime, series, other)
        assert verdict.verdict == expected, (verdict, sides)
        if not sides:
            continue
        native = by_id[verdict.id].checks
        for check, pair in zip(native, sides, strict=True):
            for term, number in zip((check.left, check.right), pair, strict=True):
                found = verdict.numbers.get(term.label)
                found = term.of(*runs) if found is None else found
                assert found == pytest.approx(number, rel=1e-9, abs=1e-9), term.label
    return verdicts


def test_the_signatures_are_the_published_ones(published):
    assert list(RESPONSE_TYPES) == published["definitions"]["types"]
    assert REGIMES.keys() == published["definitions"]["regimes"].keys()
    ours = {
        signature.id: (
            signature.strength,
            list(signature.regimes),
            [check.comparison for check in signature.checks],
        )
        for signature in SIGNATURES
    }
    assert ours == {
        signature["id"]: (
            signature["strength"],
            signature["regimes"],
            [comparison for _, comparison, _ in signature["checks"]],
        )
        for signature in published["signatures"]
    }
    assert len(SIGNATURES) == len(ours)


def test_the_published_runs_have_the_published_verdicts(published, reference_runs):
    found = {}
    for name, (regime, series) in reference_runs.items():
        verdicts = assert_same(published, regime, series)
        if name != "qwen05_baseline_dpo_checkbug_5e7":  # two runs in one file
            for verdict in verdicts.values():
                if verdict.verdict != "not applicable":
                    found[verdict.id, name] = verdict.verdict == "holds"
    stored = {
        (signature["id"], name): entry["holds"]
        for signature in published["signatures"]
        for name, entry in signature["reference"].items()
    }
    assert found == stored
    assert len(stored) > 50


def test_the_witness_finds_the_published_numbers(published, reference_runs):
    for signature in published["signatures"]:
        for name, entry in signature["reference"].items():
            curves = reference_runs[name][1]
            values = [witness_term(t, curves, None) for t in signature["report"]]
            assert values == pytest.approx(entry["values"], abs=6e-4), signature["id"]


def drawn_series(rng):
    """Curves of any shape around a rise or a fall, some of them missing."""
    num_points = rng.integers(10, 61)
    time = np.arange(num_points) / (num_points - 1)
    series = {}
    for name in (*RESPONSE_TYPES, "argmax", *(f"A_o:{k}" for k in RESPONSE_TYPES)):
        rise, drop, level = rng.normal(0, 20), rng.normal(0, 20), rng.uniform(50, 300)
        noise = rng.normal(0, 10 ** rng.uniform(-3, 1), num_points)
        series[name] = rise * time ** rng.uniform(0.2, 1) + drop * time**3 + noise
        series[name] -= level
    series["chosen"] += 30 * time
    if rng.random() < 0.3:
        for name in rng.choice(list(series), rng.integers(1, 4), replace=False):
            if name != "chosen":
                del series[name]
    return series


@pytest.mark.parametrize("regime", REGIMES)
def test_drawn_curves_have_the_verdicts_and_numbers_of_the_witness(regime, published):
    rng = np.random.default_rng((7, list(REGIMES).index(regime)))
    seen = set()
    for _ in range(25):
        other = drawn_series(rng) if regime.startswith("pair") else None
        verdicts = assert_same(published, regime, drawn_series(rng), other)
        seen |= {verdict.verdict for verdict in verdicts.values()}
    assert {"fails", "not applicable"} <= seen
