"""Means over prompts, their errors and the balance, against plain Python."""

import math
import shutil
import statistics

import numpy as np
import polars as pl
import pytest
from zoo.report_runs import make_run

from ldjax.report.following import following
from ldjax.report.measures import change_curves, part_names
from ldjax.report.numbers import balances, mean_lines, per_token
from ldjax.report.words import headline, sentences
from ldjax.runs.folder import METRIC_COLUMNS, Run, create_run
from ldjax.watch.record import probe_lengths

TEXTS = {name: "words " * (i + 1) for i, name in enumerate("abcd")}


@pytest.fixture(scope="module", params=[False, True], ids=["first", "integrated"])
def run(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return make_run(path, TEXTS, steps=range(4), maps=False, integrated=request.param)


def values_of(run, quantity, type_, set_name="train"):
    """By prompt, its values in the order of steps."""
    found = {}
    for _, _, probe, name, kind, value in sorted(run.metrics().rows()):
        if (name, kind) == (type_, quantity) and probe.startswith(set_name):
            found.setdefault(probe, []).append(value)
    return found


@pytest.mark.parametrize("type_", ["chosen", "irr_hum", "margin", "greedy"])
def test_a_line_is_the_mean_over_prompts_with_its_standard_error(run, type_):
    line = mean_lines(run.metrics(), "train")[type_]
    quantity = "argmax_log_prob" if type_ == "greedy" else "log_prob"
    name = {"margin": "chosen", "greedy": "chosen"}.get(type_, type_)
    values = values_of(run, quantity, name)
    if type_ == "margin":
        rejected = values_of(run, "log_prob", "rejected")
        values = {
            probe: [a - b for a, b in zip(of, rejected[probe], strict=True)]
            for probe, of in values.items()
        }
    assert line.num_prompts == len(values) == 4
    assert line.start == pytest.approx(statistics.mean(of[0] for of in values.values()))
    for step in range(4):
        changes = [of[step] - of[0] for of in values.values()]
        assert line.y[step] == pytest.approx(statistics.mean(changes))
        error = statistics.stdev(changes) / math.sqrt(4)
        assert line.error[step] == pytest.approx(error)


def test_lines_are_those_of_the_figures(run):
    metrics = run.metrics()
    lines = mean_lines(metrics, "train")
    for name, curve in change_curves(metrics, "log_prob", "train").items():
        assert (4 * lines[name].x).tolist() == curve.x.tolist()
        np.testing.assert_allclose(lines[name].y, curve.y, atol=1e-12)


def test_one_prompt_has_no_standard_error_and_a_diverged_one_is_seen():
    rows = [(s, s, "train/0", "mine", "log_prob", v) for s, v in ((0, 1.0), (1, 2.0))]
    table = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
    assert np.isnan(mean_lines(table, "train")["mine"].error).all()
    rows.append((1, 1, "train/1", "mine", "log_prob", math.nan))
    rows.append((0, 0, "train/1", "mine", "log_prob", 0.0))
    table = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
    line = mean_lines(table, "train")["mine"]
    assert line.y[0] == 0
    assert math.isnan(line.y[1])


def test_per_token_divides_each_response_by_its_length(run):
    lengths = probe_lengths(run.path)
    line = mean_lines(per_token(run.metrics(), lengths), "train")["irr_hum"]
    values = values_of(run, "log_prob", "irr_hum")
    ends = [
        (of[-1] - of[0]) / lengths[probe, "irr_hum"] for probe, of in values.items()
    ]
    assert len({lengths[probe, "irr_hum"] for probe in values}) == 4
    assert line.end == pytest.approx(statistics.mean(ends))


def test_a_balance_is_complete(run):
    metrics = run.metrics()
    is_integrated = "integrated" in metrics["quantity"]
    for type_, balance in balances(metrics).items():
        assert sum(balance.parts.values()) == pytest.approx(balance.measured)
        (measured,) = values_of(run, "measured", type_, "tracked").values()
        assert balance.measured == pytest.approx(sum(measured))
        (floors,) = values_of(run, "floor", type_, "tracked").values()
        assert balance.floor == pytest.approx(sum(floors))
        assert (balance.integrated is not None) == is_integrated
        whole = balance.predicted if balance.integrated is None else balance.integrated
        assert [*balance.parts.values()][-1] == pytest.approx(balance.measured - whole)
        left = "quadrature" if is_integrated else "remainder"
        assert [*balance.parts] == ["part:chosen", "part:rejected", left]


def test_parts_that_nobody_named_are_parts_still():
    names = ["part:mine", "part:chosen", "part:update", "measured", "predicted"]
    logged = pl.DataFrame({"quantity": names})
    assert part_names(logged) == ["part:chosen", "part:mine", "remainder"]
    assert part_names(pl.DataFrame({"quantity": names[3:]})) == []


def test_stages_follow_each_other_where_they_were_moved_to(tmp_path):
    old = tmp_path / "old"
    out = lambda name: {"out": str(old / name)}
    settings = {
        "dpo": out("dpo") | {"init": str(old / "sft")},
        "sft": out("sft"),
        "base": out("base") | {"init": None},
        "again": {"init": str(tmp_path / "new" / "dpo")},
    }
    for name, of in settings.items():
        create_run(old / name, of)
    shutil.move(old, tmp_path / "new")
    runs = [Run(tmp_path / "new" / name) for name in settings]
    assert following(runs) == [1, None, None, 0]
    assert following(runs[2:]) == [None, None]


def test_a_circle_of_runs_begins_somewhere(tmp_path):
    one = create_run(tmp_path / "one", {"init": str(tmp_path / "two")})
    two = create_run(tmp_path / "two", {"init": str(tmp_path / "one")})
    assert following([one, two]) == [None, None]
    (tmp_path / "one" / "config.json").write_text("[")
    assert following([one, two]) == [None, 0]


def test_the_headline_says_where_a_run_began():
    of = {"loss": "dpo", "base_model": "toy"}  # as runs were written before
    assert headline(of) == "loss dpo, from the base model toy"
    assert headline(of | {"init": "runs/sft"}) == "loss dpo, from the run sft"
    hub = {"loss": "dpo", "init": None, "base_model": "EleutherAI/pythia-410m"}
    assert headline(hub).endswith("from the base model EleutherAI/pythia-410m")


def test_three_sentences_say_it(run):
    metrics = run.metrics()
    told = sentences({"train": mean_lines(metrics, "train")}, balances(metrics))
    assert len(told) == 3
    assert all(text.endswith(".") for text in told)
    balance = balances(metrics)["chosen"]
    assert f"changed by {balance.measured:+.2f} nats: " in told[2]
    assert f"{balance.predicted:+.2f}" in told[2]
    if balance.integrated is not None:
        assert f"along the updates gives {balance.integrated:+.2f}" in told[2]
