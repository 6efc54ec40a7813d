"""What trained tokens do to watched ones, against one Jacobian of every log-prob."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from witnesses.closeness import assert_close
from zoo.decoders import make_decoder, random_tokens

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.data.reference import add_reference
from ldjax.models import LowRank, is_adapter
from ldjax.watch.token_maps import TokenMaps

# Adam at its first step, with an epsilon that keeps its quotient from rounding.
ADAM = optax.adam(1e-3, eps=1e-3)


def sentences(*sizes, seed):
    examples = [
        Example(random_tokens(p, seed + i), random_tokens(r, seed + i + 50))
        for i, (p, r) in enumerate(sizes)
    ]
    return to_sequences(examples, max_length=7)


PROBES = [sentences((2, 4), (3, 2), seed=1), sentences((1, 3), seed=5)]
SIDES = {
    "chosen": sentences((3, 4), (2, 3), seed=10),
    "rejected": sentences((3, 2), (2, 5), seed=20),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param("sft", marks=pytest.mark.exhaustive), "dpo"],
)
def case(request):
    """`apply_fn`, parameters, loss and update."""
    model, params = make_decoder("gpt2", num_layers=1)
    apply_fn = ldjax.linen.apply_fn(model)
    if request.param == "sft":
        return apply_fn, params, ldjax.losses.sft, SIDES["chosen"]
    elsewhere = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    pairs = add_reference(apply_fn, elsewhere, SIDES, batch_size=2)
    return apply_fn, params, ldjax.losses.dpo(0.5), pairs


@pytest.fixture(scope="module")
def expected(case):
    """`-A P J^T G` by brute force: one matrix of each."""
    apply_fn, params, loss_fn, update = case
    flat, unflatten = ravel_pytree(params)

    def logits_of(x):
        is_side = lambda leaf: hasattr(leaf, "targets")
        return jax.tree.map(
            lambda side: apply_fn(unflatten(x), side), update, is_leaf=is_side
        )

    def log_probs(x, probe):
        scores = jax.nn.log_softmax(apply_fn(unflatten(x), probe))
        picked = jnp.take_along_axis(scores, probe.targets[..., None], axis=-1)
        return jnp.where(probe.mask, picked[..., 0], 0)

    gradient = jax.grad(lambda x: loss_fn(logits_of(x), update))(flat)
    # Adam's first step is rate g / (|g| + eps).
    P = 1e-3 / (jnp.abs(gradient) + 1e-3)
    logits = logits_of(flat)
    jacobian = jax.jit(jax.jacrev(logits_of))(flat)
    slopes = [jax.jit(jax.jacrev(log_probs))(flat, probe) for probe in PROBES]
    G = jax.grad(loss_fn)(logits, update)
    if not isinstance(update, dict):
        jacobian, G = {"update": jacobian}, {"update": G}
    moves = {n: jnp.einsum("rlv,rlvx->rlx", G[n], jacobian[n]) for n in G}
    return {
        name: [-jnp.einsum("mpx,x,rlx->mprl", A, P, moved) for A in slopes]
        for name, moved in moves.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "kept_bytes"),
    [
        pytest.param(1, 0, marks=pytest.mark.exhaustive),
        (3, 0),
        (4, 2**30),
        pytest.param(64, 2**30, marks=pytest.mark.exhaustive),
    ],
)
def test_a_map_is_that_of_brute_force(case, expected, batch_size, kept_bytes):
    apply_fn, params, loss_fn, update = case
    token_maps = TokenMaps(
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        optimizer=ADAM,
        watch_fn=apply_fn,
        batch_size=batch_size,
        kept_bytes=kept_bytes,
    )
    init, _ = ldjax.make_step(apply_fn, loss_fn, ADAM)
    found = token_maps(init(params), update, PROBES)
    assert found.keys() == expected.keys()
    for name, maps in expected.items():
        for ours, theirs in zip(found[name], maps, strict=True):
            assert_close(ours, np.asarray(theirs), rtol=1e-10)
            assert np.abs(theirs).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept_bytes", "where"),  # forwards, and backwards
    [
        pytest.param(0, None, id="all-0", marks=pytest.mark.exhaustive),
        pytest.param(2**30, None, id="all", marks=pytest.mark.exhaustive),
        pytest.param(0, is_adapter, id="adapters-0"),
        pytest.param(2**30, is_adapter, id="adapters"),
    ],
)
def test_a_map_with_nodes_sums_to_the_parts_that_are_sides(kept_bytes, where):
    adapters = LowRank(rank=2, alpha=4.0, targets=("qkv",))
    changes = {} if where is None else {"adapters": adapters}
    model, params = make_decoder("gpt2", num_layers=1, **changes)
    apply_fn = ldjax.linen.apply_fn(model)
    loss_fn = ldjax.losses.sft
    update = SIDES["chosen"]
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9)
    )
    token_maps = TokenMaps(
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        optimizer=optimizer,
        watch_fn=apply_fn,
        where=where,
        nodes=2,
        batch_size=3,
        kept_bytes=kept_bytes,
    )
    init, step = ldjax.make_step(apply_fn, loss_fn, optimizer, where=where, nodes=2)
    state, _ = step(init(params), update, PROBES)
    _, comparison = step(state, update, PROBES)
    found = token_maps(state, update, PROBES)["update"]
    parts = comparison.parts["update"]
    for maps, part, first in zip(found, parts, comparison.predicted, strict=True):
        assert_close(maps.sum((2, 3)), np.asarray(part), rtol=1e-10)
        assert np.abs(part).max() > 1e-3
        # which is not what first order says of it
        assert np.abs(maps.sum((2, 3)) - first).max() > 1e-3
