"""The equation and the exact kernels on the families that came later.

Two blocks each, of both kinds where a family has two, with rows longer than a window.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from witnesses.references import flat
from zoo.decoders import LATER_CONFIGS, LATER_STYLES, random_params, random_tokens
from zoo.kernel_models import compiled

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.models import LowRank, Transformer, is_adapter
from ldjax.ntk import plan

pytestmark = pytest.mark.slow

EXACT = 1e-10

UPDATE = to_sequences([Example(random_tokens(3, 1), random_tokens(3, 2))], max_length=6)
PROBE = to_sequences([Example(random_tokens(2, 3), random_tokens(3, 4))], max_length=6)
#: Blocks of both kinds, the second without a window (or without positions).
TWO_BLOCKS = {"num_layers": 2}
WINDOWS = {
    style: {"sliding_layers": (0,)}
    for style in ("gemma2", "gemma3", "mistral", "olmo3", "phi3")
}

exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def once(kept):
    """One family, and the others in an exhaustive run."""
    return [style if style == kept else exhaustive(style) for style in LATER_STYLES]


class Drawn:
    """A drawn model, and its dense Jacobians by Flax alone."""

    def __init__(self, style, **changes):
        config = dataclasses.replace(
            LATER_CONFIGS[style],
            **{"param_dtype": "float64", "width": 12, "mlp_width": 10},
            **TWO_BLOCKS | WINDOWS.get(style, {}) | changes,
        )
        self.model = Transformer(config)
        self.params = random_params(self.model)
        self.apply_fn = ldjax.linen.apply_fn(self.model)

    @functools.cached_property
    def jacobians(self):
        """`J[row, p]` of the probe and of the update, with their logits."""

        def dense(batch):
            def run(params) -> Any:
                return self.model.apply({"params": params}, batch.tokens)

            leaves = jax.tree.leaves(jax.jacrev(run)(self.params))
            logits = run(self.params)
            return [leaf.reshape(logits.size, -1) for leaf in leaves], logits

        both = compiled(lambda: (dense(PROBE), dense(UPDATE)))()
        return [
            (np.concatenate(blocks, axis=1), np.asarray(logits))
            for blocks, logits in both
        ]

    def kernel(self, weights=None):
        """`J_o P J_u^T` over the logits."""
        (probe, z), (update, y) = self.jacobians
        weights = 1.0 if weights is None else flat(weights)
        return ((probe * weights) @ update.T).reshape(z.shape + y.shape)

    def make(self, method, **options):
        """The kernel by one method, all its entries."""
        probe_fn, update_fn = (
            ldjax.linen.logits_fn(self.model, batch) for batch in (PROBE, UPDATE)
        )
        return compiled(
            lambda params: ldjax.empirical_ntk(
                probe_fn, update_fn, params, method=method, **options
            ).dense()
        )(self.params)


@pytest.fixture(scope="module")
def drawn():
    """Models by style and change, each made once."""
    return functools.cache(lambda style, **changes: Drawn(style, **changes))


def uncapped(style):
    """Gemma 2 without the cap of its logits, which the head's factors cannot have."""
    return {"logit_softcap": None} if style == "gemma2" else {}


@pytest.mark.parametrize(
    ("style", "method"),
    [
        ("gemma3", "factored"),
        *(
            exhaustive(style, method)
            for style in LATER_STYLES
            for method in ("structured", "factored", "jacobian", "lazy")
            if (style, method) != ("gemma3", "factored")
        ),
    ],
)
@pytest.mark.parametrize("tied_head", [True, exhaustive(False)])
def test_the_kernel_is_that_of_the_jacobians(drawn, style, method, tied_head):
    cap = uncapped(style) if method == "factored" else {}
    model = drawn(style, tied_head=tied_head, **cap)
    assert_close(model.make(method), model.kernel(), rtol=EXACT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["structured", "factored"])
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("style", LATER_STYLES)
def test_the_preconditioned_kernel_is_that_of_the_jacobians(
    drawn, style, method, tied_head
):
    model = drawn(style, tied_head=tied_head, **uncapped(style))
    rng = np.random.default_rng(0)
    P = jax.tree.map(lambda p: jnp.asarray(rng.uniform(1, 3, p.shape)), model.params)
    assert_close(model.make(method, preconditioner=P), model.kernel(P), rtol=EXACT)


@pytest.mark.parametrize("style", once("qwen3"))
def test_the_step_and_its_order(drawn, style):
    model = drawn(style, **uncapped(style))
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    init, step = ldjax.make_step(
        model.apply_fn, ldjax.losses.sft, optimizer, full_vocab=True
    )
    state, step = init(model.params), compiled(step)
    (_, z), (_, y) = model.jacobians
    G = references.sft_residual(y, *map(np.asarray, UPDATE[1:3]))
    moved = np.einsum("blvcmw,cmw->blv", model.kernel(), G)
    change = -np.einsum("blvw,blw->blv", references.adaptation(z), moved)
    change = change * np.asarray(PROBE.mask)[..., None]
    norms = []
    for rate in (4e-5, 2e-5, 1e-5):
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(rate)
        comparison = step(state, UPDATE, PROBE)[1]
        assert_close(comparison.predicted, rate * change, rtol=EXACT)
        norms.append(np.linalg.norm(comparison.remainder))
    for large, small in itertools.pairwise(norms):
        assert 3.8 < large / small < 4.2


@pytest.mark.parametrize("style", once("phi3"))
def test_the_parts_of_a_step_sum_to_its_prediction(drawn, style):
    model = drawn(style)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-3))
    init, step = ldjax.make_step(model.apply_fn, ldjax.losses.sft, optimizer)
    state, step = init(model.params), compiled(step)
    state, _ = step(state, UPDATE, PROBE)
    _, comparison = step(state, UPDATE, PROBE)
    total = sum(jax.tree.leaves(comparison.parts))
    assert_close(total, comparison.predicted, rtol=EXACT)
    assert abs(comparison.predicted).max() > 0


@pytest.mark.parametrize("style", once("phi3"))
@pytest.mark.parametrize("method", ["structured", exhaustive("factored")])
def test_the_kernel_of_adapters_is_that_of_their_jacobians(drawn, style, method):
    targets = ("query", "value", "up")
    if style == "phi3":
        targets = ("qkv", "gate_up", "out")
    adapters = LowRank(rank=2, alpha=3.0, targets=targets, rank_stabilized=True)
    model = drawn(style, adapters=adapters, **uncapped(style))
    chosen = jax.tree.map(
        lambda leaf, is_chosen: jnp.full(leaf.shape, float(is_chosen)),
        model.params,
        is_adapter(model.params),
    )
    assert 0 < flat(chosen).sum() < flat(chosen).size
    found = model.make(method, where=is_adapter)
    assert_close(found, model.kernel(chosen), rtol=EXACT)


def of_shapes(model):
    """What the plans of a kernel are made from."""
    return (
        ldjax.linen.logits_fn(model.model, PROBE),
        ldjax.linen.logits_fn(model.model, UPDATE),
        jax.eval_shape(lambda: model.params),
    )


def test_a_cap_of_the_logits_is_refused_by_name_and_gone_around(drawn):
    model = drawn("gemma2", tied_head=True)
    with pytest.raises(
        ValueError, match=r"after token_embedding comes a soft cap \(.*tanh"
    ):
        model.make("factored")
    (refused,) = (one for one in plan(*of_shapes(model)) if one.refusal)
    assert refused.method == "factored"
    assert "soft cap" in refused.refusal
    assert_close(model.make("auto"), model.kernel(), rtol=EXACT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", LATER_STYLES)
def test_every_method_has_a_plan(drawn, style):
    model = drawn(style, **uncapped(style))
    for one in plan(*of_shapes(model)):
        assert not one.refusal
        assert one.result_bytes > 0 or one.method == "lazy"
        assert one.flops > 0
        assert np.isfinite(one.seconds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", LATER_STYLES)
def test_the_certificate_accounts_for_every_matrix(drawn, style):
    from ldjax.ntk.layers.pairing import prove

    model = drawn(style, **uncapped(style))
    probe_fn, update_fn, params = of_shapes(model)
    for certified in itertools.chain(*prove(probe_fn, update_fn, model.params)):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        paths = {tuple(key.key for key in path) for path, _ in leaves}
        proven = certified.leaves | certified.shared
        left = {path[-1] for path in paths - proven}
        assert left == {"scale"}
        assert not isinstance(certified.head, str)
