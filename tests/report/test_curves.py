"""The figures of finetuning show the right numbers, from a run folder alone."""

from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from ldjax.report import curves as figures
from ldjax.report.measures import (
    accumulated_curves,
    change_curves,
    final_parts,
    part_names,
    remainder_ratio,
)
from ldjax.runs.folder import create_run

TYPES = (
    "chosen",
    "chosen_initial",
    "chosen_gptsemantic",
    "chosen_gptformat",
    "rejected",
    "reject_gptsemantic",
    "reject_gptformat",
    "irr_train",
    "irr_test",
    "irr_hum",
    "random_permute",
    "random_nonhum",
)
NUM_STEPS = 40
FLOOR = 1e-6
RATES = dict(zip(TYPES, np.linspace(0.5, -2, 12), strict=True))


def observation_rows(rng, scale):
    for step in range(0, NUM_STEPS + 1, 5):
        for probe in ("train/0000", "train/0001", "train/0002", "test/0000"):
            for name in TYPES:
                noise = rng.normal(0, 0.2, 2)
                value = -100 + scale * RATES[name] * step + noise[0]
                yield step, 4 * step, probe, name, "log_prob", value
                greedy = -60 + scale * 0.5 * step + noise[1]
                yield step, 4 * step, probe, name, "argmax_log_prob", greedy


def tracked_rows(rng, scale, sides):
    for step in range(NUM_STEPS):
        for probe in ("tracked/0000", "tracked/0001"):
            for name in TYPES:
                parts = {
                    "part:chosen": scale * rng.normal(1, 0.3),
                    "part:rejected": scale * (RATES[name] - 1 + rng.normal(0, 0.3)),
                    "part:history": rng.normal(0.1, 0.1),
                    "part:weight_decay": -0.02,
                }
                predicted = sum(parts.values())
                parts["part:update"] = parts["part:chosen"] + parts["part:rejected"]
                if not sides:
                    del parts["part:chosen"], parts["part:rejected"]
                parts["predicted"] = predicted
                parts["measured"] = predicted * (1 + rng.normal(0, 0.05))
                parts["floor"] = FLOOR
                for quantity, value in parts.items():
                    yield step, 4 * step, probe, name, quantity, value


def synthetic_run(path, *, seed=0, scale=1.0, sides=True, tracked=True):
    rng = np.random.default_rng(seed)
    run = create_run(path, {"seed": seed})
    rows = [*observation_rows(rng, scale), (0, 0, "", "", "loss", 0.7)]
    if tracked:
        rows = [*rows, *tracked_rows(rng, scale, sides)]
    run.write_metrics(rows)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figures by name, which are not written: that takes seconds."""
    kept = {}

    @contextmanager
    def figure(path, title, **subplots):
        drawn, axes = plt.subplots(squeeze=False, **subplots)
        yield axes
        kept[path.stem] = axes
        plt.close(drawn)

    monkeypatch.setattr(figures, "figure", figure)
    return kept


def mean_over_probes(run, quantity, probe_set, name):
    """Step to mean, by plain Python."""
    values = {}
    for step, _, probe, type_, found, value in run.metrics().rows():
        if (type_, found) == (name, quantity) and probe.split("/")[0] == probe_set:
            values.setdefault(step, []).append(value)
    return {step: sum(numbers) / len(numbers) for step, numbers in values.items()}


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.get_lines()}


# The numbers


@pytest.mark.parametrize("probe_set", ["train", "test"])
def test_a_change_is_that_of_the_mean_over_the_prompts_of_a_set(run, probe_set):
    curves = change_curves(run.metrics(), "log_prob", probe_set)
    assert tuple(curves) == TYPES
    for name in ("chosen", "irr_test"):
        means = mean_over_probes(run, "log_prob", probe_set, name)
        assert curves[name].x.tolist() == [4 * step for step in means]
        expected = np.array(list(means.values())) - means[0]
        np.testing.assert_allclose(curves[name].y, expected, atol=1e-12)


def test_accumulated_changes_are_sums_over_steps_of_means_over_sequences(run):
    metrics = run.metrics()
    totals = {}
    for quantity in ("measured", "predicted"):
        means = mean_over_probes(run, quantity, "tracked", "rejected")
        x, y = accumulated_curves(metrics, quantity)["rejected"]
        assert x.tolist() == list(range(NUM_STEPS + 1))
        expected = np.cumsum([0, *means.values()])
        np.testing.assert_allclose(y, expected, atol=1e-12)
        totals[quantity] = expected
    remainder = accumulated_curves(metrics, "remainder")["rejected"].y
    expected = totals["measured"] - totals["predicted"]
    np.testing.assert_allclose(remainder, expected, atol=1e-12)


def test_a_remainder_ratio_takes_norms_over_the_sequences_of_its_types(run):
    metrics = run.metrics().filter(pl.col("step") == 7)
    types = ("irr_train", "irr_hum")
    columns = {
        quantity: metrics.filter(
            (pl.col("quantity") == quantity) & pl.col("type").is_in(types)
        )["value"].to_numpy()
        for quantity in ("predicted", "measured")
    }
    assert len(columns["measured"]) == 4
    error = np.linalg.norm(columns["measured"] - columns["predicted"])
    size = np.linalg.norm(columns["measured"])
    x, y = remainder_ratio(run.metrics(), types)
    assert x.tolist() == list(range(NUM_STEPS))
    assert y[7] == pytest.approx(error / size, rel=1e-12)
    floor = remainder_ratio(run.metrics(), types, "floor").y[7]
    assert floor == pytest.approx(2 * FLOOR / size, rel=1e-12)


def test_steps_at_which_nothing_moved_have_no_ratio(tmp_path):
    run = create_run(tmp_path / "run", {})
    rows = [
        (step, step, "tracked/0", "chosen", quantity, moved)
        for step, moved in enumerate((1.0, 0.0, 2.0))
        for quantity in ("predicted", "measured")
    ]
    run.write_metrics(rows)
    x, y = remainder_ratio(run.metrics(), ("chosen",))
    assert x.tolist() == [0, 2]
    assert y.tolist() == [0, 0]


@pytest.mark.parametrize("sides", [True, False])
def test_the_parts_of_every_type_add_up_to_its_measured_change(tmp_path, sides):
    metrics = synthetic_run(tmp_path / "run", sides=sides).metrics()
    causes = ["part:chosen", "part:rejected"] if sides else ["part:update"]
    others = ["part:history", "part:weight_decay", "remainder"]
    parts = final_parts(metrics)
    assert list(parts) == part_names(metrics) == [*causes, *others]
    measured = accumulated_curves(metrics, "measured")
    for name in TYPES:
        total = sum(changes[name] for changes in parts.values())
        assert total == pytest.approx(measured[name].y[-1], abs=1e-9)


# The figures


def test_the_curves_of_a_run_and_its_baseline(run, axes, tmp_path):
    baseline = synthetic_run(tmp_path / "baseline", seed=1, scale=0.5)
    figures.draw_curves(run, baseline)
    panels = axes["curves"].reshape(6, 2)
    for pair in panels:
        assert pair[0].get_shared_y_axes().joined(*pair)
    for column, probe_set in enumerate(("train", "test")):
        lines = lines_by_label(panels[1, column])
        assert {"rejected", "reject_gptformat"} < lines.keys()
        expected = change_curves(run.metrics(), "log_prob", probe_set)
        paler = change_curves(baseline.metrics(), "log_prob", probe_set)
        plotted = [line.get_ydata() for line in panels[1, column].get_lines()]
        for place, curve in ((0, expected), (3, paler)):
            np.testing.assert_array_equal(plotted[place], curve["rejected"].y)
        margin = lines_by_label(panels[4, column])["chosen - rejected"].get_ydata()
        difference = expected["chosen"].y - expected["rejected"].y
        np.testing.assert_array_equal(margin, difference)
        squeezing = lines_by_label(panels[5, column])
        greedy = change_curves(run.metrics(), "argmax_log_prob", probe_set)
        np.testing.assert_array_equal(
            squeezing["greedy tokens (y*)"].get_ydata(), greedy["chosen"].y
        )
        mean = np.mean([curve.y for curve in expected.values()], axis=0)
        np.testing.assert_allclose(squeezing["mean of 12 types"].get_ydata(), mean)
    (legend,) = [ax.get_legend() for ax in panels[1] if ax.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == list(TYPES[4:7])


def test_points_and_sums_of_predictions_and_measurements(run, axes):
    figures.draw_predicted_against_measured(run)
    points, sums = axes["predicted_against_measured"]
    metrics = run.metrics()
    for column, name in enumerate(
        ("chosen", "rejected", "irr_train", "random_permute")
    ):
        of_type = metrics.filter(
            pl.col("probe").str.starts_with("tracked") & (pl.col("type") == name)
        ).sort("step", "probe")
        xy = [
            of_type.filter(quantity=quantity)["value"]
            for quantity in ("predicted", "measured")
        ]
        drawn = points[column].collections[0].get_offsets()
        np.testing.assert_array_equal(np.sort(drawn, 0), np.sort(np.array(xy).T, 0))
        solid, dashed, *_ = sums[column].get_lines()
        for line, quantity in ((solid, "measured"), (dashed, "predicted")):
            expected = accumulated_curves(metrics, quantity)[name].y
            np.testing.assert_array_equal(line.get_ydata(), expected)
        assert solid.get_label() == name
        assert solid.get_linestyle() == "-"
        assert dashed.get_linestyle() == "--"


def test_the_remainder_has_a_logarithmic_axis_and_its_floor(run, axes):
    figures.draw_remainder(run)
    ax = axes["remainder"][0, 0]
    assert ax.get_yscale() == "log"
    lines = lines_by_label(ax)
    groups = {"chosen", "rejected", "irrelevant", "random", "all", "rounding floor"}
    assert groups <= lines.keys()
    ratio = remainder_ratio(run.metrics(), TYPES[4:7]).y
    raw = [line.get_ydata() for line in ax.get_lines()]
    assert any(np.array_equal(ratio, y) for y in raw)
    middle = lines["rejected"].get_ydata()[7]  # the median of two steps
    assert middle == pytest.approx(ratio[6:8].mean())


def test_stacked_parts_end_at_what_was_measured(run, axes):
    figures.draw_by_side(run)
    of_chosen, of_rejected, bars = axes["by_side"][0]
    diamonds = lines_by_label(bars)["measured"].get_ydata()
    for column, total in enumerate(diamonds):
        stacked = [container[column] for container in bars.containers]
        heights = np.array([bar.get_height() for bar in stacked])
        assert heights.sum() == pytest.approx(total, abs=1e-9)
        ends = [bar.get_y() + bar.get_height() for bar in stacked]
        assert max(ends) == pytest.approx(heights.clip(min=0).sum())
        assert min(ends) == pytest.approx(heights.clip(max=0).sum())
    names = [label.get_text() for label in bars.get_xticklabels()]
    assert names == list(TYPES)
    ends = final_parts(run.metrics())
    for ax, name in ((of_chosen, "chosen"), (of_rejected, "rejected")):
        shown = [line.get_ydata()[-1] for line in ax.get_lines()]
        assert shown[:5] == [ends[part][name] for part in ends]
        assert shown[5] == diamonds[TYPES.index(name)]


def test_what_was_not_recorded_is_not_drawn(axes, tmp_path):
    run = synthetic_run(tmp_path / "run", tracked=False)
    run.write_metrics(
        run.metrics().filter(~pl.col("probe").str.starts_with("test")).rows()
    )
    assert figures.draw_predicted_against_measured(run) == []
    assert figures.draw_remainder(run) == []
    assert figures.draw_by_side(run) == []
    figures.draw_curves(run)
    assert axes["curves"].shape == (3, 2)
    empty = create_run(tmp_path / "empty", {})
    empty.write_metrics([(0, 0, "", "", "loss", 0.7)])
    assert figures.draw_curves(empty) == []


def test_types_that_are_not_tracked_are_left_out(run, axes, tmp_path):
    part = create_run(tmp_path / "part", {})
    part.write_metrics(
        run.metrics().filter(pl.col("type").is_in(["chosen", "rejected"])).rows()
    )
    figures.draw_predicted_against_measured(part)
    figures.draw_remainder(part)
    figures.draw_by_side(part)
    points, sums = axes["predicted_against_measured"]
    assert [len(ax.collections) for ax in points] == [1, 1, 0, 0]
    assert [ax.get_legend() is None for ax in sums] == [False, False, True, True]
    lines = lines_by_label(axes["remainder"][0, 0])
    assert "rejected" in lines
    assert "random" not in lines
    bars = axes["by_side"][0, 2]
    names = [label.get_text() for label in bars.get_xticklabels()]
    assert names == ["chosen", "rejected"]


@pytest.mark.slow
def test_every_figure_is_written_to_the_run_folder(run):
    written = [
        *figures.draw_curves(run),
        *figures.draw_predicted_against_measured(run),
        *figures.draw_remainder(run),
        *figures.draw_by_side(run),
    ]
    names = ["curves", "predicted_against_measured", "remainder", "by_side"]
    assert written == [run.path / "figures" / f"{name}.png" for name in names]
    for path in written:
        assert imread(path).std() > 0.02  # not blank
