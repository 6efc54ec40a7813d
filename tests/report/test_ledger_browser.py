"""The ledger's parts of the page in a browser: what is shown is the ledger's."""

import numpy as np
import polars as pl
import pytest
from zoo.ledgers import write_ledger, write_token_ledger
from zoo.pages import LAPTOP, PHONE, numbers_in, select, texts_of
from zoo.report_runs import HOSTILE, make_run

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.tokenizers import load_tokenizer

pytestmark = pytest.mark.slow

STEPS, WIDTH = 40, 12
TEXTS = {f"prompt {i}": f"{i} plain words, and then a few more" for i in range(3)}
EXAMPLES = {
    f"train/{i:04d}": {
        "prompt": f"why {i}?",
        "sides": {"chosen": f"so {i} it is", "rejected": f"no {i} is not"},
    }
    for i in range(60)
}
PROBE, OTHER = "train/0000", "train/0001"
AT = f"#run=with_ledger&probe={PROBE}&type=chosen"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a ledger of its tracked responses, and the table of that."""
    run = make_run(tmp_path_factory.mktemp("runs") / "with_ledger", TEXTS)
    changes = np.random.default_rng(3).normal(0, 30, len(RESPONSE_TYPES))
    measured = {
        (PROBE, type_): float(change)
        for type_, change in zip(RESPONSE_TYPES, changes, strict=True)
    }
    measured[OTHER, "chosen"] = 7.5
    table = write_ledger(run, measured, EXAMPLES, num_steps=STEPS, batch_size=WIDTH)
    with np.load(run.path / "tokens.npz") as file:
        targets = [
            ids[mask]
            for ids, mask in zip(file["targets_0"], file["mask_0"], strict=True)
        ]
    tokenizer = load_tokenizer(run.path, vocab_size=300)
    arrays = write_token_ledger(run, EXAMPLES, targets, tokenizer)
    return run, table, measured, arrays


def chart_of(page, title):
    return page.locator("figure.chart", has=page.get_by_text(title)).first


def bars_of(chart):
    """The left and the right end of each bar, in pixels."""
    return chart.locator("rect.part").evaluate_all(
        """nodes => nodes.map(node => (({left, right}) => [left, right])(
             node.getBoundingClientRect()))"""
    )


def places_of(chart, lines):
    """Where upright lines stand, in pixels."""
    return chart.locator(lines).evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect().left)"
    )


def parts_of(table, type_, by_side, probe=PROBE):
    """What the page shows of a response, by brute force."""
    of = table.filter(probe=probe, type=type_)
    gradients = of.filter(origin="gradient")
    parts = {}
    for name, is_own in (("its own pair", True), ("other pairs", False)):
        rows = gradients.filter((pl.col("example") == probe) == is_own)
        for side in ("chosen", "rejected") if by_side else ("",):
            kept = rows.filter(side=side) if side else rows
            key = f"{name}, {side}" if side else name
            parts[key] = kept["value"].sum()
    for name, origin in (
        ("weight decay", "weight_decay"),
        ("before the run", "before"),
        ("rounding", "rounding"),
        ("quadrature", "quadrature"),
    ):
        parts[name] = of.filter(origin=origin)["value"].sum()
    return parts


@pytest.mark.parametrize("by_side", [False, True])
def test_the_parts_stand_end_to_end_up_to_the_measured_change(opened, made, by_side):
    run, table, measured, _ = made
    page = opened([run], viewport=LAPTOP)
    for type_ in ("chosen", "rejected"):
        select(page, "Response to", label=type_)
        page.get_by_label("Pairs by side").set_checked(by_side)
        chart = chart_of(page, "Parts of the measured change")
        parts = parts_of(table, type_, by_side)
        total = measured[PROBE, type_]
        assert sum(parts.values()) == pytest.approx(total, rel=1e-9)
        names = [text for text in texts_of(chart, ".axis text") if text in parts]
        assert names == list(parts)
        shown = [numbers_in(text)[0] for text in texts_of(chart, ".axis .strong")[:-2]]
        assert shown == pytest.approx(list(parts.values()), abs=0.006, rel=5e-3)
        *bars, last = bars_of(chart)
        (zero,) = places_of(chart, "line.zero")
        goal = places_of(chart, "line.span")[0]
        end = zero
        for (left, right), value in zip(bars, parts.values(), strict=True):
            start, end_ = (left, right) if value > 0 else (right, left)
            assert abs(start - end) < 2
            end = end_
        assert abs(end - goal) < 2
        np.testing.assert_allclose(last, sorted([zero, goal]), atol=2)
        scale = abs(last[1] - last[0]) / abs(total)
        for (left, right), value in zip(bars, parts.values(), strict=True):
            assert right - left == pytest.approx(abs(value) * scale, abs=2)


def test_the_balance_of_every_type(opened, made):
    run, table, measured, _ = made
    page = opened([run], viewport=LAPTOP)
    chart = chart_of(page, "Origins of the change of every type")
    shown = chart.evaluate("node => node.content.bars")
    assert [bar["name"] for bar in shown] == list(RESPONSE_TYPES)
    for bar in shown:
        probes = [probe for probe, type_ in measured if type_ == bar["name"]]
        assert len(probes) == (2 if bar["name"] == "chosen" else 1)
        parts = [parts_of(table, bar["name"], False, probe) for probe in probes]
        means = {name: np.mean([of[name] for of in parts]) for name in parts[0]}
        found = {part["name"]: part["value"] for part in bar["parts"]}
        assert found == pytest.approx(means)
        total = np.mean([measured[probe, bar["name"]] for probe in probes])
        assert bar["total"] == pytest.approx(total)
        assert sum(found.values()) == pytest.approx(bar["total"], rel=1e-9)


def cards(page, place):
    """The value, name and sides of the examples in a column."""
    column = page.locator("ol.shares").nth(place)
    found = []
    for head in column.locator(".share-head").all():
        value, name, *_ = head.locator("> *").all_text_contents()
        found.append((name, numbers_in(value)[0], head.text_content()))
    return found


def ranked(rows, count):
    sums = rows.filter(origin="gradient").group_by("example").agg(pl.col("value").sum())
    order = sorted(sums.rows(), key=lambda of: -of[1])
    lifted = [of for of in order if of[1] > 0][:count]
    return lifted, [of for of in order[::-1] if of[1] < 0][:count]


def test_the_ten_that_lifted_and_the_ten_that_lowered_it(opened, made):
    run, table, *_ = made
    page = opened([run])
    for type_ in ("chosen", "irr_hum"):
        select(page, "Response to", label=type_)
        rows = table.filter(probe=PROBE, type=type_)
        for place, expected in enumerate(ranked(rows, 10)):
            shown = cards(page, place)
            assert len(shown) == 10
            for (name, value, head), (example, sum_) in zip(
                shown, expected, strict=True
            ):
                assert name == example
                assert value == pytest.approx(sum_, rel=5e-3, abs=0.006)
                assert ("its own pair" in head) == (name == PROBE)
                sides = [
                    rows.filter(example=name, side=side)["value"].sum()
                    for side in ("chosen", "rejected")
                ]
                told = head[head.index("chosen") :]
                assert numbers_in(told)[:2] == pytest.approx(sides, rel=5e-3, abs=0.006)


def test_an_update_has_its_own_ones(opened, made):
    run, table, *_ = made
    page = opened([run], at=AT)
    page.get_by_label("At update").fill("8")
    page.get_by_label("At update").press("Tab")
    rows = table.filter(probe=PROBE, type="chosen", step=7)
    told = page.locator(
        "#response p", has_text="The examples of update 8"
    ).text_content()
    own = float(rows.filter(example=PROBE)["value"].sum())
    whole = float(rows.filter(origin="gradient")["value"].sum())
    numbers = numbers_in(told.partition("gave")[2])
    assert numbers[:3] == pytest.approx([whole, own, whole - own], rel=5e-3, abs=1e-6)
    for place, expected in enumerate(ranked(rows, 4)):
        shown = [of[:2] for of in cards(page, place)]
        assert [name for name, _ in shown] == [name for name, _ in expected]
        np.testing.assert_allclose(
            [value for _, value in shown],
            [of[1] for of in expected],
            rtol=5e-3,
            atol=0.006,
        )
    # The slider by the keyboard, and the same update for the next response.
    page.get_by_role("slider", name="Update").press("ArrowRight")
    assert page.get_by_label("At update").input_value() == "9"
    select(page, "Response to", label="rejected")
    assert "The examples of update 9" in page.locator("#response").text_content()
    page.get_by_role("button", name="All updates", exact=True).click()
    assert len(cards(page, 0)) == 10
    # A click on the picture, whose axis goes from 0 to the last update.
    svg = page.locator("svg.windows")
    ends = places_of(svg, ".grid line >> nth=0")[0], svg.bounding_box()
    left, right = ends[0], ends[1]["x"] + ends[1]["width"] - 10
    at = left + (right - left) * 20.5 / STEPS - ends[1]["x"]
    svg.click(position={"x": at, "y": 60})
    assert page.get_by_label("At update").input_value() == "21"
    page.get_by_role("button", name="All updates", exact=True).click()


def test_the_texts_of_an_example(opened, made):
    run, *_ = made
    page = opened([run])
    card = page.locator("ol.shares li").nth(1)
    name = cards(page, 0)[1][0]
    card.locator("summary").focus()
    page.keyboard.press("Enter")
    card.locator(".text").first.wait_for()
    sides = EXAMPLES[name]["sides"]
    assert card.locator(".text").all_text_contents() == [
        EXAMPLES[name]["prompt"],
        sides["chosen"],
        sides["rejected"],
    ]


def test_trained_tokens_of_a_token(opened, made):
    run, _, _, arrays = made
    page = opened([run], at=AT)
    page.locator("#response .tokens").first.locator(".token").nth(2).click()
    totals = arrays["map_0"][2].sum((1, 2), dtype=np.float64)
    told = page.locator("#response p", has_text="lifted this token").text_content()
    lifted, lowered = totals[totals > 0].sum(), -totals[totals < 0].sum()
    expected = [lifted, lowered, lifted - lowered]
    assert numbers_in(told)[:3] == pytest.approx(expected, rel=5e-3)
    order = np.argsort(-totals)
    names = arrays["rows"]
    shown = page.locator(".token-share")
    kept = [*order[:3], *order[::-1][:3]]
    for place, row in enumerate(kept):
        card = shown.nth(place)
        value, name = card.locator("p").first.text_content().split(maxsplit=1)
        assert numbers_in(value)[0] == pytest.approx(totals[row], rel=5e-3)
        assert name.startswith(names[row])
        scored = arrays["map_0"][2][row][arrays["mask"][row]]
        titles = card.locator(".token").evaluate_all("nodes => nodes.map(n => n.title)")
        assert len(titles) == len(scored)
        colored = [i for i, title in enumerate(titles) if title]
        largest = np.argsort(-np.abs(scored), kind="stable")[: len(colored)]
        assert sorted(largest) == colored
        values = [numbers_in(titles[i])[0] for i in colored]
        np.testing.assert_allclose(values, scored[colored], rtol=5e-3)
        rest = numbers_in(card.locator("p .quiet").first.text_content())[-1]
        exact = float(totals[row] - scored[colored].sum())
        assert rest == pytest.approx(exact, rel=5e-3, abs=1e-6)


def test_it_is_told_what_the_ledger_is_about(opened, tmp_path):
    run = make_run(tmp_path / "short", TEXTS, steps=range(6))
    examples = dict(list(EXAMPLES.items())[:8])
    measured = {(PROBE, "chosen"): 3.0}
    write_ledger(run, measured, examples, num_steps=4, batch_size=8)
    page = opened([run], at=AT.replace("with_ledger", "short"))
    told = page.locator("#response").text_content()
    assert "Over the first 4 updates it moved by +3 nats" in told
    select(page, "Response to", label="rejected")
    told = page.locator("#response").text_content()
    assert f"no account of this response, but of those to {PROBE}." in told
    assert page.locator("svg.windows, ol.shares").count() == 0


def test_a_run_without_a_ledger_says_how_to_make_one(opened, tmp_path):
    run = make_run(tmp_path / "old", TEXTS)
    page = opened([run])
    told = page.locator("#response p", has_text="ldjax ledger RUN")
    assert told.count() == 1
    assert page.locator("#origin-charts .chart, svg.windows, ol.shares").count() == 0


def test_hostile_texts_of_examples_are_texts(opened, tmp_path):
    run = make_run(tmp_path / "hostile", {"plain": "a plain text"})
    examples = {
        f"train/{i:04d}": {"prompt": text, "sides": {"update": text}}
        for i, text in enumerate(HOSTILE.values())
    }
    measured = {(PROBE, "chosen"): 3.0}
    write_ledger(run, measured, examples, num_steps=8, batch_size=8)
    page = opened([run], at=AT.replace("with_ledger", "hostile"))
    shown = set(texts_of(page, "ol.shares .text"))
    cut = {text[:2000] for text in HOSTILE.values()}
    assert {text[:2000] for text in shown} == cut
    assert page.locator("main img, main script, main textarea, main b").count() == 0


@pytest.mark.parametrize(
    ("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")], ids=["laptop", "phone"]
)
def test_it_fits_the_screen(opened, made, size, scheme):
    run, *_ = made
    page = opened([run], viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
