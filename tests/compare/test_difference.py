"""What changed between two checkpoints: sums, signs, orders, adapters, tied heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from zoo.decoders import STYLES, pretrained, random_params, random_tokens

import ldjax
from ldjax import linen
from ldjax.compare.difference import checks
from ldjax.compare.pair import pair_of, untied
from ldjax.compare.places import place_of, places_of
from ldjax.compare.settings import Watch
from ldjax.data.batches import Example
from ldjax.equation.log_probs import sequence_log_probs
from ldjax.equation.subset import merge, split
from ldjax.models import (
    LowRank,
    Pretrained,
    Transformer,
    is_adapter,
    merge_adapters,
)
from ldjax.watch.probes import Probe

PROBES = [
    Probe(f"train/{i}", type_, Example(random_tokens(3, i), random_tokens(4 + i, seed)))
    for i in range(2)
    for seed, type_ in enumerate(("chosen", "rejected"), 10)
]
EXACT = 1e-12


def model(style, seed=0, **changes):
    changes = {"num_layers": 1} | changes
    found = pretrained(style, param_dtype="float64", **changes)
    return found._replace(params=random_params(found.model, seed))


def away(start, size, seed=1):
    """A model at a distance from another, in a drawn direction."""
    step = random_params(start.model, seed)
    moved = lambda p, d: p + size * (d - (d.mean() if d.ndim < 2 else 0))
    return start._replace(params=jax.tree.map(moved, start.params, step))


def log_probs(of, probes=PROBES):
    """By brute force: one response after the other, without padding."""
    found = []
    for _, _, example in probes:
        prompt, response = example[:2]
        ids = np.array([*prompt, *response])
        tokens = jnp.asarray(ids[None, :-1])
        logits = of.model.apply({"params": of.params}, tokens)[0]
        rows = jax.nn.log_softmax(logits)[len(prompt) - 1 :]
        found.append(rows[np.arange(len(response)), ids[len(prompt) :]].sum())
    return np.array(found)


def diff(before, after, **watch):
    return ldjax.diff(before, after, PROBES, watch=Watch(**watch))


#: The two that differ most in every run of the tests.
MARKS = {"llama": [], "gpt2": pytest.mark.slow}
ALL = [
    pytest.param(style, marks=MARKS.get(style, pytest.mark.exhaustive))
    for style in STYLES
]


@pytest.fixture(scope="module", params=ALL)
def ends(request):
    start = model(request.param)
    return start, away(start, 0.02)


def test_places_sum_to_what_was_measured(ends):
    before, after = ends
    found = diff(before, after, nodes=6)
    change = log_probs(after) - log_probs(before)
    np.testing.assert_allclose(found.measured, change, rtol=0, atol=EXACT * 100)
    assert np.abs(change).min() > 1e-3
    for by in ("layer", "kind"):
        sums = found.sums(by).group_by("probe", "type", maintain_order=True)
        sums = sums.agg(pl.col("value").sum())["value"].to_numpy()
        np.testing.assert_allclose(sums, change, rtol=1e-6)
    np.testing.assert_allclose(found.by_token, found.integrated, rtol=EXACT * 100)
    assert all(claim.holds for claim in checks(found, 1e-6))


@pytest.mark.slow
def test_swapped_all_signs_flip(ends):
    before, after = ends
    there, back = diff(before, after, nodes=3), diff(after, before, nodes=3)
    size = np.abs(there.shares).max()
    np.testing.assert_allclose(there.shares, -back.shares, atol=1e-12 * size)
    np.testing.assert_allclose(there.measured, -back.measured, atol=1e-12)
    np.testing.assert_allclose(there.from_before, -back.from_after, atol=1e-12 * size)
    np.testing.assert_allclose(there.quadrature, -back.quadrature, atol=1e-12 * size)


@pytest.mark.slow
def test_shares_are_those_of_groups_that_move_alone_in_the_derivative():
    """By `path_integral`: a forward-mode pass for each place."""
    before = model("llama", tied_head=True)
    after = away(before, 0.05)
    found = diff(before, after, nodes=2)
    pair = pair_of(before, after)
    places = places_of(pair.before)
    apply_fn = linen.apply_fn(pair.model)
    for (of, batch), _ in zip(found.batches, found.tokens, strict=True):
        shares = ldjax.path_integral(
            lambda p, b=batch: sequence_log_probs(apply_fn(p, b), b.targets, b.mask),
            pair.before,
            pair.after,
            nodes=2,
            group_of=place_of,
        )
        for i, place in enumerate(places.places):
            wanted = np.asarray(shares[place])[: len(of)]
            np.testing.assert_allclose(found.shares[of, i], wanted, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "size"), [(1, 1e-3), (2, 4e-3)])
def test_what_nodes_leave_falls_as_their_order_says(nodes, size):
    before = model("llama")
    left = [
        np.linalg.norm(diff(before, away(before, s, 3), nodes=nodes).quadrature)
        for s in (size, size / 2)
    ]
    assert 0.93 < left[0] / left[1] / 2 ** (2 * nodes + 1) < 1.07


@pytest.mark.slow
def test_nodes_are_as_many_as_the_tolerance_needs():
    before = model("qwen2")
    after = away(before, 0.1)
    rough, fine = (diff(before, after, tolerance=t) for t in (0.1, 1e-4))
    assert rough.nodes < fine.nodes
    for found, tolerance in ((rough, 0.1), (fine, 1e-4)):
        left = np.linalg.norm(found.quadrature) / np.linalg.norm(found.measured)
        assert left <= tolerance
        assert checks(found, tolerance)[1].holds
    assert not checks(diff(before, after, nodes=1), 1e-4)[1].holds


@pytest.mark.slow
def test_adapters_do_what_the_matrices_they_are_merged_into_do():
    adapters = LowRank(rank=2, alpha=1.0, targets=("query", "up"))
    base = model("llama")
    config = dataclasses.replace(base.config, adapters=adapters)
    drawn = random_params(Transformer(config), 3)
    adapted = Pretrained(
        Transformer(config),
        merge(split(drawn, is_adapter)[0], base.params),
        config,
        None,
    )
    found = diff(base, adapted, nodes=7)
    merged = diff(base, merge_adapters(adapted), nodes=7)
    change = log_probs(adapted) - log_probs(base)
    np.testing.assert_allclose(found.integrated, change, rtol=1e-6)
    both = {
        (place.layer, place.kind): of
        for place, of in zip(found.places.places, found.shares.T, strict=True)
    }
    for place, of in zip(merged.places.places, merged.shares.T, strict=True):
        if place.kind in ("query", "up"):
            theirs = both[place.layer, f"{place.kind} adapter"]
            np.testing.assert_allclose(theirs, of, atol=1e-12)
            assert np.abs(of).max() > 1e-3
        assert np.abs(both[place]).max() == 0
    back = diff(adapted, base, nodes=7)
    np.testing.assert_allclose(back.shares, -found.shares, atol=1e-12)


@pytest.mark.slow
def test_a_tied_head_counts_apart_from_the_embedding():
    """Each use by a finite difference in which the other stands still."""
    before = model("gpt2")
    assert before.config.tied_head
    step = random_params(before.model, 1)["token_embedding"]["embedding"]
    size = 1e-5
    moved = before.params["token_embedding"]["embedding"] + size * step
    after = before._replace(
        params=before.params | {"token_embedding": {"embedding": moved}}
    )
    found = diff(before, after, nodes=1)
    split_ = untied(before)
    for kind, leaf in (("embedding", moved), ("head", moved.T)):
        name, part = {
            "embedding": ("token_embedding", "embedding"),
            "head": ("unembedding", "kernel"),
        }[kind]
        alone = split_._replace(params=split_.params | {name: {part: leaf}})
        wanted = log_probs(alone) - log_probs(split_)
        (place,) = (
            i for i, place in enumerate(found.places.places) if place.kind == kind
        )
        np.testing.assert_allclose(found.shares[:, place], wanted, rtol=1e-3)


@pytest.mark.slow
def test_tokens_by_layer_sum_to_the_token():
    before = model("llama")
    found = diff(before, away(before, 0.02), nodes=2, by_layer=3)
    assert sorted(found.layers) == [0, 1, 2]
    place = {
        int(number): (i, row)
        for i, (of, _) in enumerate(found.batches)
        for row, number in enumerate(of)
    }
    for number, of in found.layers.items():
        i, row = place[number]
        np.testing.assert_allclose(
            of.sum(0), found.tokens[i]["integrated"][row], atol=1e-12
        )
        layers = found.places.layers
        shares = [
            sum(
                found.shares[number, j]
                for j, where in enumerate(found.places.places)
                if where.layer == layer
            )
            for layer in layers
        ]
        np.testing.assert_allclose(of.sum(1), shares, atol=1e-12)


@pytest.mark.slow
def test_what_did_not_change_did_nothing():
    before = model("neox")
    found = diff(before, before)
    assert found.nodes == 1
    assert not found.shares.any()
    assert not found.measured.any()
    assert all(claim.holds for claim in checks(found, 0.01))


def test_the_first_setting_that_differs_is_named():
    with pytest.raises(ValueError, match=r"`num_layers` is 1 in the first and 3 in"):
        diff(model("gpt2"), model("gpt2", num_layers=3))


@pytest.mark.slow
def test_log_probs_that_are_no_numbers_are_refused():
    whole = model("gpt2")
    broken = whole._replace(params=jax.tree.map(lambda x: x * jnp.nan, whole.params))
    with pytest.raises(ValueError, match="The second model gives log-probs that are"):
        diff(whole, broken)
