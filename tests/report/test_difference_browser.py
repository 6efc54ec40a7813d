"""Where in the model two checkpoints differ, in a browser: what the files say."""

import csv
import io
import json

import jax
import numpy as np
import polars as pl
import pytest
from zoo.decoders import pretrained, random_params
from zoo.pages import LAPTOP, PHONE, numbers_in, select, texts_of

import ldjax
from ldjax.compare.settings import Watch
from ldjax.data.tokenizers import train_word_level
from ldjax.runs.folder import open_run

pytestmark = pytest.mark.slow

#: Of the second prompt nobody said which answer is worse, so types have other counts.
ROWS = [
    {"prompt": "is the number one odd", "chosen": " yes", "rejected": " no maybe"},
    {"prompt": "is the number two odd", "chosen": " no yes"},
    {"prompt": "is the number six odd", "chosen": " maybe so", "rejected": " yes"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison as the command writes it, its table, and means of its numbers."""
    place = tmp_path_factory.mktemp("diff")
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    tokenizer = train_word_level([f"{r['prompt']}{r['chosen']} no so" for r in ROWS])
    start = pretrained(
        "llama", tokenizer=tokenizer, num_layers=2, vocab_size=tokenizer.vocab_size
    )
    step = random_params(start.model, 1)
    moved = lambda p, d: p + 0.05 * (d - (d.mean() if d.ndim < 2 else 0))
    ldjax.diff(
        start,
        start._replace(params=jax.tree.map(moved, start.params, step)),
        place / "rows.jsonl",
        out=place / "made",
        watch=Watch(nodes=3),
    )
    run = open_run(place / "made")
    tracked = run.metrics().filter(pl.col("probe").str.starts_with("tracked/"))
    ends = {
        (type_, quantity): value
        for type_, quantity, value in tracked.group_by("type", "quantity")
        .agg(pl.col("value").mean())
        .iter_rows()
    }
    return run, pl.read_parquet(run.path / "difference.parquet"), ends


def content_of(page, charts, place=0):
    """What a chart shows, as its file has it."""
    chart = page.locator(f"{charts} .chart").nth(place)
    return chart.evaluate("node => node.content.rows()")


def sums_of(table, *by):
    """Means over the responses of each type of what the places did, by brute force."""
    rows = table.group_by("probe", "type", *by).agg(pl.col("value").sum())
    means = rows.group_by("type", *by).agg(pl.col("value").mean())
    return {tuple(names): value for *names, value in means.iter_rows()}


def map_of(rows):
    """A map without the places that there are not."""
    return {
        (layer, kind): value for layer, kind, value in rows[1:] if np.isfinite(value)
    }


def test_the_map_is_the_table_on_disk(opened, made):
    run, table, _ = made
    page = opened([run], viewport=LAPTOP)
    types = table["type"].unique(maintain_order=True).to_list()
    assert len(types) > 3
    sums = sums_of(table, "layer", "kind")
    for i, type_ in enumerate(types):
        select(page, "Type", index=i)
        found = map_of(content_of(page, "#difference-map"))
        wanted = {of[1:]: value for of, value in sums.items() if of[0] == type_}
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        title = page.locator("#difference-map figcaption").text_content()
        assert title == f"What each layer and kind did to {type_}, mean nats"
        # What a reader points at is what is named.
        plot = page.locator("#difference-map .plot")
        plot.scroll_into_view_if_needed()
        box = page.locator("#difference-map image").bounding_box()
        plot.hover(
            position={"x": box["width"] / 30 + 96, "y": box["height"] / 8 + 4},
        )
        (said,) = texts_of(page, "#difference-map .readout div")
        name, _, value = said.rpartition(": ")
        where = tuple(name.split(", "))
        assert numbers_in(value) == pytest.approx([wanted[where]], rel=1e-3)


def test_sums_by_kind_and_by_layer_are_the_measured_change(opened, made):
    run, table, ends = made
    page = opened([run], viewport=LAPTOP)
    counts = table.group_by("type").agg(pl.col("probe").n_unique())
    assert len(set(counts["probe"].to_list())) > 1
    by_kind, by_layer = sums_of(table, "kind"), sums_of(table, "layer")
    head, *rows = content_of(page, "#difference-bars")
    assert head == ["bar", "part", "nats"]
    found = {(type_, kind): value for type_, kind, value in rows}
    types = list(dict.fromkeys(type_ for type_, *_ in rows))
    measured = {type_: found.pop((type_, "measured")) for type_ in types}
    assert found == pytest.approx(by_kind, rel=1e-5, abs=1e-7)
    for i, type_ in enumerate(types):
        parts = [value for of, value in found.items() if of[0] == type_]
        assert measured[type_] == pytest.approx(ends[type_, "measured"], rel=1e-5)
        assert sum(parts) == pytest.approx(ends[type_, "integrated"], rel=1e-4)
        assert sum(parts) == pytest.approx(measured[type_], rel=1e-2)
        select(page, "Type", index=i)
        rows = content_of(page, "#difference-bars", 1)[1:]
        layers = {(type_, name): v for name, part, v in rows if part == "sum"}
        wanted = {of: value for of, value in by_layer.items() if of[0] == type_}
        assert layers == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert sum(layers.values()) == pytest.approx(sum(parts), rel=1e-4)
    # The numbers beside the bars are the totals.
    shown = texts_of(page, "#difference-bars .chart:first-child text.strong")
    assert [numbers_in(text)[0] for text in shown] == pytest.approx(
        [*measured.values()], rel=0.05, abs=6e-3
    )


def test_both_first_orders_are_the_files(opened, made):
    run, _, ends = made
    page = opened([run], viewport=LAPTOP)
    heads = texts_of(page, "#difference-ends th")
    columns = ["measured", "integrated", "predicted", "from_after", "floor"]
    assert heads[:2] == ["type", "n"]
    assert heads[2:] == [
        *("measured", "integrated"),
        *("first order, before", "first order, after", "rounding floor"),
    ]
    rows = page.locator("#difference-ends tbody tr").all()
    assert len(rows) == len({type_ for type_, _ in ends})
    for row in rows:
        type_, *cells = row.locator("td").all_text_contents()
        # Far enough apart that one column is not taken for another.
        wanted = [ends[type_, name] for name in columns]
        assert np.ptp(wanted[:4]) > 1e-3 * abs(wanted[0])
        found = [numbers_in(cell)[0] for cell in cells[1:]]
        assert found == pytest.approx(wanted, rel=5e-3)
        assert found[:4] == pytest.approx(wanted[:4], rel=6e-4)


def test_responses_are_sorted_by_the_measured_change_and_show_their_places(
    opened, made
):
    run, table, _ = made
    page = opened([run], viewport=LAPTOP)
    rows = run.metrics().filter(quantity="measured").select("probe", "type", "value")
    measured = {
        (probe.removeprefix("tracked/"), type_): value
        for probe, type_, value in rows.iter_rows()
    }
    if (more := page.locator("#response-list .more")).count():
        more.click()
    for order in (lambda v: -abs(v), lambda v: -v, lambda v: v):
        cells = [
            row.locator("td").all_text_contents()
            for row in page.locator("#response-list tbody tr").all()
        ]
        wanted = sorted(measured.items(), key=lambda item: order(item[1]))
        assert [(c[0].removeprefix("train/"), c[1]) for c in cells] == [
            (probe.removeprefix("train/"), type_) for (probe, type_), _ in wanted
        ]
        changes = [numbers_in(cell[4])[0] for cell in cells]
        assert changes == pytest.approx([v for _, v in wanted], rel=0.05, abs=6e-3)
        page.locator("#response-list th button", has_text="change").click()
    for place in (0, 3):
        row = page.locator("#response-list tbody tr").nth(place)
        probe, type_, *_ = row.locator("td").all_text_contents()
        row.click()
        of = table.filter(probe=probe, type=type_)
        wanted = {
            (layer, kind): value
            for layer, kind, value in of.select("layer", "kind", "value").iter_rows()
        }
        found = map_of(content_of(page, "#response"))
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        change = measured[probe.removeprefix("train/"), type_]
        assert sum(found.values()) == pytest.approx(change, rel=0.02)


def test_the_file_of_a_chart_and_a_phone(opened, made):
    run, table, _ = made
    page = opened([run], viewport=PHONE)
    with page.expect_download() as download:
        page.locator("#difference-map .buttons button", has_text="CSV").first.click()
    rows = list(csv.reader(io.StringIO(download.value.path().read_text())))
    layers = table["layer"].unique(maintain_order=True).to_list()
    assert list(dict.fromkeys(row[0] for row in rows[1:])) == layers
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
