"""The folder of a comparison says what was found, response by response."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from zoo.decoders import pretrained, random_params

import ldjax
from ldjax.compare.settings import Watch
from ldjax.compare.words import balance
from ldjax.data.tokenizers import train_word_level
from ldjax.models import LowRank, Pretrained, Transformer
from ldjax.runs.folder import open_run

pytestmark = pytest.mark.slow

#: Longer ones first, so that batches are not in the order of the responses.
ROWS = [
    {"prompt": "why is it so", "chosen": " yes it is so" * 12, "rejected": " no"},
    {"prompt": "is it", "chosen": " no", "rejected": " yes it is so it is"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models, what changed between them, and the folder about it."""
    place = tmp_path_factory.mktemp("folder")
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    tokenizer = train_word_level(["why is it so yes no"])
    before = pretrained(
        "llama",
        tokenizer=tokenizer,
        num_layers=2,
        vocab_size=tokenizer.vocab_size,
        param_dtype="float64",
    )
    moved = lambda p, d: p + 0.1 * (d - (d.mean() if d.ndim < 2 else 0))
    step = random_params(before.model, 1)
    after = before._replace(params=jax.tree.map(moved, before.params, step))
    found = ldjax.diff(
        before,
        after,
        place / "rows.jsonl",
        out=place / "made",
        watch=Watch(nodes=2, batch_size=2, by_layer=2),
    )
    return before, after, found, open_run(place / "made")


def by_response(run, quantity):
    """Values under the names that responses have in the table."""
    rows = run.metrics().filter(quantity=quantity).sort("step", maintain_order=True)
    return {
        (probe.replace("tracked/", "train/"), type_, step): value
        for probe, type_, step, value in rows.select(
            "probe", "type", "step", "value"
        ).iter_rows()
    }


def log_prob(of, example):
    """By brute force: one response, without padding."""
    ids = np.array([*example.prompt_ids, *example.response_ids])
    begin = len(example.prompt_ids)
    tokens = jnp.asarray(ids[None, :-1])
    logits = of.model.apply({"params": of.params}, tokens)[0]
    rows = np.asarray(jax.nn.log_softmax(logits))[begin - 1 :]
    return float(rows[np.arange(len(ids) - begin), ids[begin:]].sum())


def test_both_ends_are_the_log_probs_of_each_response(made):
    before, after, found, run = made
    shown = by_response(run, "log_prob")
    assert len(shown) == 2 * len(found.probes)
    order = np.concatenate([places for places, _ in found.batches])
    assert (np.diff(order) < 0).any()
    for probe, type_, example in found.probes:
        for step, of in enumerate((before, after)):
            wanted = log_prob(of, example)
            assert shown[probe, type_, step] == pytest.approx(wanted, abs=1e-4)


def test_every_quantity_is_under_its_name(made):
    _, _, found, run = made
    own = lambda values: dict(
        zip(((p.prompt_name, p.type, 0) for p in found.probes), values, strict=True)
    )
    quantities = {
        "measured": found.measured,
        "integrated": found.integrated,
        "predicted": found.from_before,
        "from_after": found.from_after,
        "floor": found.floor,
    }
    for name, values in quantities.items():
        assert by_response(run, name) == pytest.approx(own(values), rel=1e-5)
    assert np.ptp([found.from_before, found.from_after], axis=0).min() > 1e-3
    table = pl.read_parquet(run.path / "difference.parquet")
    kinds = table.group_by("probe", "type", "kind").agg(pl.col("value").sum())
    for kind in kinds["kind"].unique():
        wanted = {
            (probe, type_, 0): value
            for probe, type_, value in kinds.filter(kind=kind)
            .select("probe", "type", "value")
            .iter_rows()
        }
        found_ = by_response(run, f"part:{kind}")
        assert found_ == pytest.approx(wanted, rel=1e-5, abs=1e-7), kind


def test_how_far_first_order_holds_is_told_of_the_first_checkpoint(made):
    _, _, found, run = made
    missed = np.linalg.norm(found.measured - found.from_before)
    size = np.linalg.norm(found.measured)
    spread = np.linalg.norm(found.measured - found.measured.mean())
    assert run.summary["r_squared"] == pytest.approx(1 - (missed / spread) ** 2)
    first = np.linalg.norm(found.from_before)
    assert run.summary["trust_radius"] == pytest.approx(0.1 * first / missed)
    said = " ".join(run.summary["sentences"])
    assert f"misses {missed / size:.1%} of the change" in said


def test_tokens_sum_to_their_response(made):
    _, _, found, run = made
    sums = {
        "measured": found.measured,
        "integrated": found.integrated,
        "predicted": found.from_before,
        "from_after": found.from_after,
    }
    with np.load(run.path / "tokens.npz") as file:
        batches = [name for name in file if name.startswith("probes_")]
        assert len(batches) > 1
        for batch in batches:
            places, i = file[batch], batch.removeprefix("probes_")
            for name, wanted in sums.items():
                got = file[f"{name}_{i}"].sum(-1)
                np.testing.assert_allclose(got, wanted[places], rtol=1e-4, atol=1e-6)
        layers = [str(name) for name in file["layers"]]
        by_layer = found.shares_by("layer")
        for number in (0, 1):
            for layer, values in zip(layers, file[f"layers_{number}"], strict=True):
                wanted = by_layer[layer][number]
                assert values.sum() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_table_for_a_terminal_has_the_means(made):
    _, _, found, _ = made
    lines = balance(found)
    of_type = {line.split()[0]: line.split()[1:] for line in lines[3:5]}
    for type_, (count, first, last, change, *_) in of_type.items():
        places = [i for i, probe in enumerate(found.probes) if probe.type == type_]
        assert int(count) == len(places)
        means = [values[places].mean() for values in (*found.ends, found.measured)]
        shown = [float(each) for each in (first, last, change)]
        assert shown == pytest.approx(means, abs=6e-3)
    rows = iter(lines[lines.index("", 5) + 1 :])
    kinds = next(rows).split()[2:]
    type_, *numbers = next(rows).split()
    places = [i for i, probe in enumerate(found.probes) if probe.type == type_]
    for kind, shown in zip(kinds, numbers, strict=False):
        if kind.isdigit():
            break
        mean = found.shares_by("kind")[kind][places].mean()
        assert float(shown) == pytest.approx(mean, abs=6e-4)


def test_adapters_of_two_kinds_are_merged_each_into_its_own(made):
    """What changed is the difference of the two models as they compute."""
    base = made[0]

    def adapted(seed, rank, targets):
        adapters = LowRank(rank=rank, alpha=3.0, targets=targets)
        config = dataclasses.replace(base.config, adapters=adapters)
        model = Transformer(config)
        drawn = random_params(model, seed)
        return Pretrained(model, drawn, config, base.tokenizer)

    first, second = adapted(1, 2, ("query",)), adapted(2, 3, ("up", "out"))
    probes = made[2].probes
    found = ldjax.diff(first, second, probes, watch=Watch(nodes=1))
    for place, (_, _, example) in enumerate(probes):
        change = log_prob(second, example) - log_prob(first, example)
        assert found.measured[place] == pytest.approx(change, abs=1e-9)
