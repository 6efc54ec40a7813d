"""Responses that share their prompt, against each as a whole text."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo.decoders import ALL_CONFIGS, VOCAB, make_decoder

import ldjax
from ldjax import linen
from ldjax.data.batches import Example
from ldjax.equation import resolution
from ldjax.equation.sequences import Prompts, Sequences, check_sequences, in_chunks
from ldjax.losses import sft
from ldjax.watch.probes import (
    Probe,
    ProbeSet,
    make_change_fn,
    make_floor_fn,
    make_observe_fn,
    make_slope_fn,
)
from ldjax.watch.sharing import share_prompts, spread_fn

TOLERANCE = 1e-11
#: Rotated and learned positions, windows, soft caps, blocks without positions.
MARKS = {"llama": (), "gpt2": pytest.mark.slow}


def drawn(seed=0):
    """Four prompts of unlike lengths, with 3, 3, 2 and 1 responses, in any order."""
    rng = np.random.default_rng(seed)
    ids = lambda count: tuple(map(int, rng.integers(0, VOCAB, count)))
    prompts = {"a": ids(1), "b": ids(9), "c": ids(9), "d": ids(21)}
    probes = [
        Probe(f"train/{name}", type_, Example(prompts[name], ids(length), scored))
        for name, type_, length, scored in (
            ("b", "chosen", 4, None),
            ("a", "chosen", 7, None),
            ("d", "chosen", 3, None),
            ("b", "rejected", 1, None),
            ("c", "chosen", 2, None),
            ("a", "rejected", 2, None),
            ("c", "rejected", 18, (True, False) * 9),
            ("a", "irr_train", 3, None),
            ("b", "irr_train", 5, None),
        )
    ]
    return ProbeSet.of(probes, max_length=40, batch_size=None)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(style, marks=MARKS.get(style, pytest.mark.exhaustive))
        for style in sorted(ALL_CONFIGS)
    ],
)
def decoder(request):
    model, params = make_decoder(request.param)
    moved = jax.tree.map(lambda leaf: leaf * 1.001 + 1e-4, params)
    return linen.apply_fn(model), params, moved


@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_what_is_measured_is_that_of_whole_texts(decoder, size):
    apply_fn, params, moved = decoder
    whole = drawn()
    shared = share_prompts(whole, size)
    for make, args in {
        make_observe_fn: (params,),
        make_change_fn: (params, moved),
        make_slope_fn: (params, moved, 0.3),
    }.items():
        wanted, found = (make(apply_fn, probes)(*args) for probes in (whole, shared))
        for name, a, b in zip(
            wanted, *map(jax.tree.leaves, (wanted, found)), strict=False
        ):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=TOLERANCE, err_msg=name)
    floors = [make_floor_fn(apply_fn, probes)(params) for probes in (whole, shared)]
    # Of other rows the noise is another, of the same size.
    np.testing.assert_allclose(floors[1]["floor"], floors[0]["floor"], rtol=3)


@pytest.mark.slow
def test_a_step_accounts_for_shared_rows_as_for_whole_texts(decoder):
    apply_fn, params, _ = decoder
    whole = drawn()
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.integers(0, VOCAB, (2, 6)))
    update = Sequences(ids, ids[:, ::-1], jnp.ones((2, 6), bool))
    found = {}
    for name, probes, size in (
        ("whole", whole, None),
        ("chunks", share_prompts(whole, together=2), 2),
    ):
        init, step = ldjax.make_step(
            apply_fn, sft, optax.sgd(1e-2), nodes=1, probe_batch_size=size
        )
        watched = tuple(batch for _, batch in probes.batches)
        _, comparison = step(init(params), update, watched)
        parts = dict(comparison.parts) | {
            name: getattr(comparison, name) for name in ("predicted", "measured")
        }
        spread = spread_fn(whole, probes)
        found[name] = {part: spread(of) for part, of in parts.items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-8, atol=TOLERANCE),
        found["whole"],
        found["chunks"],
    )


def test_every_response_is_in_one_place_and_no_prompt_is_read_twice():
    whole = drawn()
    shared = share_prompts(whole)
    places = np.concatenate([at for at, _ in shared.batches])
    assert sorted(places[places >= 0]) == list(range(len(whole.probes)))
    read = sum(int(batch.prompts.mask.any(1).sum()) for _, batch in shared.batches)
    assert read == 3  # that of one token has none before it
    # A batch for each bucket of prompts; of few rows, more batches of one shape.
    assert [len(batch.prompts.tokens) for _, batch in shared.batches] == [3, 1]
    shapes = [batch.targets.shape for _, batch in share_prompts(whole, 3).batches]
    assert shapes == [(3, 32)] * 3 + [(1, 16)]
    assert max(len(b.targets) for _, b in share_prompts(whole, 2).batches) == 2
    few = share_prompts(whole, together=2).batches
    assert [(len(b.targets), b.rows_per_prompt) for _, b in few] == [(10, 2), (1, 1)]


def test_numbers_of_tokens_are_spread_to_where_they_stand_in_whole_texts():
    whole = drawn()
    for computed in (share_prompts(whole), share_prompts(whole, 2), whole):
        spread = spread_fn(whole, computed)
        targets = spread([np.asarray(batch.targets) for _, batch in computed.batches])
        for found, (_, batch) in zip(targets, whole.batches, strict=True):
            np.testing.assert_array_equal(found, np.where(batch.mask, batch.targets, 0))


def test_chunks_keep_the_rows_of_a_prompt_together():
    prompts = Prompts(jnp.arange(6).reshape(3, 2), jnp.ones((3, 2), bool))
    rows = Sequences(
        jnp.arange(12).reshape(12, 1), *jnp.zeros((2, 12, 1), int), prompts=prompts
    )

    def look(some):
        own = jnp.repeat(some.prompts.tokens, some.rows_per_prompt, axis=0)
        return jnp.concatenate([own, some.tokens], axis=1)

    for size in (None, 1, 4, 5, 9, 12):
        found = in_chunks(look, rows, size)
        np.testing.assert_array_equal(found, look(rows))


def test_noise_is_measured_on_whole_groups():
    prompts = Prompts(jnp.arange(16)[:, None], jnp.ones((16, 1), bool))
    rows = Sequences(
        jnp.arange(64)[:, None], *jnp.zeros((2, 64, 1), int), prompts=prompts
    )
    some = resolution.spread_rows(rows, rows.rows_per_prompt)
    assert some.rows_per_prompt == 4
    assert (some.tokens[::4, 0] == 4 * some.prompts.tokens[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokens": jnp.array([[VOCAB]])}, "prompts.tokens` is 23 at"),
        ({"tokens": jnp.array([[0.5]])}, "must be token ids"),
        ({"mask": jnp.array([[1]])}, "booleans"),
        ({"mask": jnp.ones((1, 2), bool)}, "got"),
        ({"tokens": jnp.zeros((2, 1), int), "mask": jnp.ones((2, 1), bool)}, "3 rows"),
    ],
)
def test_prompts_that_are_none_are_refused(change, problem):
    prompts = Prompts(jnp.zeros((1, 1), int), jnp.ones((1, 1), bool))._replace(**change)
    ids, mask = jnp.zeros((3, 4), int), jnp.ones((3, 4), bool)
    rows = Sequences(ids, ids, mask, prompts=prompts)
    with pytest.raises((TypeError, ValueError), match=problem):
        check_sequences(rows, vocab_size=VOCAB)


def test_what_is_no_prompts_is_refused():
    ids = jnp.zeros((3, 4), int)
    rows = Sequences(ids, ids, ids == 0, prompts=ids)
    with pytest.raises(TypeError, match="must be `Prompts`, got ArrayImpl"):
        check_sequences(rows)


def test_kernels_through_the_layers_refuse_shared_prompts():
    model, params = make_decoder("llama")
    ((_, batch), *_) = share_prompts(drawn()).batches
    logits_fn = linen.logits_fn(model, batch)
    with pytest.raises(ValueError, match="give each row its prompt"):
        ldjax.empirical_ntk(logits_fn, logits_fn, params, method="structured")
