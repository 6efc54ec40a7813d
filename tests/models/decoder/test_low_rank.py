"""Low-rank adapters against plain algebra, and what adding and merging them does."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from zoo.decoders import CONFIGS, STYLES, make_decoder, random_params, random_tokens
from zoo.kernel_models import compiled

from ldjax.equation.subset import split
from ldjax.models import (
    LowRank,
    OtherAdapter,
    Pretrained,
    Transformer,
    add_adapters,
    is_adapter,
    merge_adapters,
)
from ldjax.models.hub.tensors import leaf_names

ACCEPTED = 1e-12
TOKENS = jnp.array([random_tokens(5, seed) for seed in range(2)])

ALONE = ("query", "key", "value", "out", "up", "down")
TOGETHER = ("qkv", "out", "up", "down")


def low_rank(style, targets=ALONE, *, rank=3, alpha=5.0, layers=None):
    """Adapters beside these matrices, and beside the gate where there is one."""
    gate = ("gate",) if CONFIGS[style].gated_mlp else ()
    return LowRank(rank=rank, alpha=alpha, targets=(*targets, *gate), layers=layers)


def make_adapted(style, adapters, **changes):
    """A decoder all of whose parameters are drawn, adapters too."""
    model, params = make_decoder(style, adapters=adapters, **changes)
    return Pretrained(model, params, model.config, None)


def logits(pretrained, run=compiled):
    apply = run(lambda params: pretrained.model.apply({"params": params}, TOKENS))
    return apply(pretrained.params)


def eager(function):
    """Operation by operation: fusion would round in other places."""
    return function


def merged_by_hand(params, scale):
    """`W + scale A B` matrix by matrix, in plain NumPy; adapters are dropped."""
    result = {}
    for name, branch in params.items():
        if "_lora_" in name:
            continue
        result[name] = branch
        if isinstance(branch, dict):
            result[name] = merged_by_hand(branch, scale)
        if f"{name}_lora_a" in params:
            factors = (params[f"{name}_lora_{factor}"]["kernel"] for factor in "ab")
            change = scale * np.matmul(*map(np.asarray, factors))
            result[name]["kernel"] = result[name]["kernel"] + change
    if "qkv_lora_a" in params:
        wide, narrow = (params[name]["kernel"].shape[1] for name in ("query", "key"))
        inner, outer = (np.asarray(params[f"qkv_lora_{f}"]["kernel"]) for f in "ab")
        for name, start, size in (
            ("query", 0, wide),
            ("key", wide, narrow),
            ("value", wide + narrow, narrow),
        ):
            change = scale * inner @ outer[:, start : start + size]
            result[name]["kernel"] = result[name]["kernel"] + change
    return result


exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "targets", "num_layers"),
    [
        ("gpt2", TOGETHER, 1),
        ("neox", ALONE, 1),
        ("qwen2", TOGETHER, 1),
        ("llama", ALONE, 1),
        *(exhaustive(s, t, 2) for s in STYLES for t in (ALONE, TOGETHER)),
    ],
)
def test_adapters_change_their_matrices_by_a_product(style, targets, num_layers):
    adapters = low_rank(style, targets)
    adapted = make_adapted(style, adapters, num_layers=num_layers)
    found = logits(adapted)

    merged = merge_adapters(adapted)
    assert merged.config == dataclasses.replace(adapted.config, adapters=None)
    assert merged.model == Transformer(merged.config)
    assert_close(merged.params, merged_by_hand(adapted.params, 5 / 3), rtol=ACCEPTED)
    assert_close(found, logits(merged), rtol=ACCEPTED)

    _, base = split(adapted.params, is_adapter)
    without = logits(merged._replace(params=base))
    assert abs(found - without).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_single_matrices_may_have_another_rank_and_scale(rank_stabilized):
    others = (
        OtherAdapter(layer=0, target="up", rank=1, alpha=0.5),
        OtherAdapter(layer=1, target="query", rank=0, alpha=1.0),
        OtherAdapter(layer=1, target="down", rank=4, alpha=5.0),
    )
    adapters = dataclasses.replace(
        low_rank("llama"), rank_stabilized=rank_stabilized, others=others
    )
    adapted = make_adapted("llama", adapters)
    merged = leaf_names(merge_adapters(adapted).params)
    given = leaf_names(adapted.params)
    power = 0.5 if rank_stabilized else 1.0
    expected = {}
    for name, leaf in given.items():
        if "_lora_" in name:
            continue
        factors = [name.replace("/kernel", f"_lora_{factor}/kernel") for factor in "ab"]
        if factors[0] == name or factors[0] not in given:
            expected[name] = leaf
            continue
        rank, alpha = {
            "blocks_0/mlp/up/kernel": (1, 0.5),
            "blocks_1/mlp/down/kernel": (4, 5.0),
        }.get(name, (3, 5.0))
        first, second = (np.asarray(given[factor]) for factor in factors)
        assert first.shape[1] == second.shape[0] == rank
        expected[name] = leaf + alpha / rank**power * first @ second
    assert sum("_lora_a" in name for name in given) == 13
    assert_close(merged, expected, rtol=ACCEPTED)
    assert_close(logits(adapted), logits(merge_adapters(adapted)), rtol=ACCEPTED)


def test_merging_a_model_without_adapters_changes_nothing():
    model, params = make_decoder("llama", num_layers=1)
    base = Pretrained(model, params, model.config, None)
    assert merge_adapters(base) is base


@pytest.mark.slow
@pytest.mark.parametrize(
    "style", ["gpt2", *map(exhaustive, ("neox", "qwen2", "llama"))]
)
def test_fresh_adapters_change_nothing(style):
    model, params = make_decoder(style, num_layers=1)
    base = Pretrained(model, params, model.config, None)
    adapted = add_adapters(base, low_rank(style), key=jax.random.key(1))
    assert adapted.config.adapters == low_rank(style)
    np.testing.assert_array_equal(logits(adapted, eager), logits(base, eager))
    assert merge_adapters(adapted).config == base.config
    assert_close(merge_adapters(adapted).params, params, rtol=0.0)


def kernels(params, factor):
    names = leaf_names(params)
    return {k: v for k, v in names.items() if k.endswith(f"_lora_{factor}/kernel")}


@pytest.mark.parametrize("how", ["added", "initial"])
def test_fresh_adapters_are_drawn_as_pefts(how):
    """`A` uniform with variance 1 / (3 d) and not one draw repeated; `B` zero."""
    adapters = low_rank("llama", ALONE, rank=13)
    model, params = make_decoder("llama", num_layers=1)
    if how == "added":
        base = Pretrained(model, params, model.config, None)
        params = add_adapters(base, adapters, key=jax.random.key(1)).params
    else:
        config = dataclasses.replace(model.config, adapters=adapters)
        init = compiled(lambda key: Transformer(config).init(key, TOKENS)["params"])
        params = init(jax.random.key(1))
    assert not any(leaf.any() for leaf in kernels(params, "b").values())
    drawn = kernels(params, "a")
    assert len(drawn) == 7
    units = []
    for leaf in drawn.values():
        assert leaf.dtype == jnp.float64
        assert leaf.shape[1] == 13
        units.append(np.ravel(leaf) * leaf.shape[0] ** 0.5)
    units = np.concatenate(units)
    assert 0.98 < abs(units).max() <= 1
    # 2 000 draws or more: a standard error of 0.013 and 0.007
    assert len(units) > 2000
    assert abs(units.mean()) < 0.06
    assert abs(units.var() - 1 / 3) < 0.03
    assert len(np.unique(units)) > 0.99 * len(units)


def test_the_draw_depends_on_the_key_alone():
    model, params = make_decoder("gpt2", num_layers=1)
    base = Pretrained(model, params, model.config, None)
    draws = [
        kernels(add_adapters(base, low_rank("gpt2"), key=key).params, "a")
        for key in map(jax.random.key, (1, 1, 2))
    ]
    assert_close(draws[0], draws[1], rtol=0.0)
    for name, leaf in draws[0].items():
        assert (leaf != draws[2][name]).mean() > 0.99


def shapes_of(config):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    return leaf_names(init["params"])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("targets", [ALONE, TOGETHER], ids=["alone", "together"])
def test_other_parameters_keep_their_names_and_shapes(style, targets):
    config = CONFIGS[style]
    adapters = low_rank(style, targets)
    adapted = shapes_of(dataclasses.replace(config, adapters=adapters))
    base = shapes_of(config)
    assert {name: adapted[name] for name in base} == base
    more = {name: leaf.shape for name, leaf in adapted.items() if name not in base}
    matrices = (
        f"blocks_{layer}/{'mlp' if name in ('gate', 'up', 'down') else 'attention'}"
        f"/{name}"
        for layer in range(config.num_layers)
        for name in adapters.targets
    )
    expected = {}
    for matrix in matrices:
        parts = [matrix]
        if matrix.endswith("/qkv"):
            parts = [matrix[:-3] + name for name in ("query", "key", "value")]
        sizes = [base[f"{part}/kernel"].shape for part in parts]
        expected[f"{matrix}_lora_a/kernel"] = (sizes[0][0], 3)
        expected[f"{matrix}_lora_b/kernel"] = (3, sum(out for _, out in sizes))
    assert more == expected


@pytest.mark.parametrize("layers", [(0,), (1,), (2, 0), None], ids=str)
def test_layers_restrict_adapters_to_their_blocks(layers):
    adapters = low_rank("gpt2", ("up", "qkv"), layers=layers)
    config = dataclasses.replace(CONFIGS["gpt2"], num_layers=3, adapters=adapters)
    found = {name.split("/")[0] for name in shapes_of(config) if "_lora_" in name}
    expected = range(3) if layers is None else layers
    assert found == {f"blocks_{layer}" for layer in expected}


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "qwen2"])
def test_query_key_and_value_share_the_inner_factor_of_qkv(style):
    """One `A` for the three is the same as three adapters with equal `A`."""
    shared = low_rank(style, ("qkv",))
    apart = low_rank(style, ("query", "key", "value"))
    adapted = make_adapted(style, shared, num_layers=1)
    other = dataclasses.replace(adapted.config, adapters=apart)
    flat = dict(leaf_names(adapted.params))
    where = "blocks_0/attention"
    inner, outer = (flat.pop(f"{where}/qkv_lora_{f}/kernel") for f in "ab")
    widths = [flat[f"{where}/{name}/kernel"].shape[1] for name in ("query", "key")]
    parts = jnp.split(outer, np.cumsum(widths), axis=1)
    for name, part in zip(("query", "key", "value"), parts, strict=True):
        flat[f"{where}/{name}_lora_a/kernel"] = inner
        flat[f"{where}/{name}_lora_b/kernel"] = part
    names = leaf_names(random_params(Transformer(other)))
    assert set(names) == set(flat)
    params = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        branch = params
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    three = Pretrained(Transformer(other), params, other, None)
    assert_close(logits(adapted), logits(three), rtol=ACCEPTED)


@pytest.mark.parametrize("style", STYLES)
def test_is_adapter_tells_the_parameters_that_were_added(style):
    config = dataclasses.replace(CONFIGS[style], adapters=low_rank(style))
    names, base = shapes_of(config), shapes_of(CONFIGS[style])
    nested = jax.eval_shape(lambda: random_params(Transformer(config)))
    chosen = leaf_names(is_adapter(nested))
    assert chosen == {name: name not in base for name in names}


def test_is_adapter_fits_any_parameters():
    params = {"up_lora_a": 1.0, "a": {"x_lora_b": {"kernel": 2.0}}, "lora_a": [3.0]}
    mask = {"up_lora_a": False, "a": {"x_lora_b": {"kernel": True}}, "lora_a": [False]}
    assert is_adapter(params) == mask
    assert is_adapter(1.0) is False


def test_adapters_are_in_the_dtype_of_the_parameters():
    config = dataclasses.replace(
        CONFIGS["llama"], num_layers=1, dtype="bfloat16", param_dtype="float32"
    )
    model = Transformer(config)
    base = Pretrained(model, random_params(model), config, None)
    adapted = add_adapters(base, low_rank("llama"), key=jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(adapted.params)} == {
        jnp.dtype("float32")
    }


# What is refused.

SETTINGS = {"rank": 2, "alpha": 4.0, "targets": ("up",)}


def other(**changes):
    settings = {"layer": 0, "target": "up", "rank": 1, "alpha": 1.0}
    return OtherAdapter(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rank": 0}, "`rank` must be at least 1.*got 0 and 4.0"),
        ({"alpha": 0.0}, "`alpha` positive, got 2 and 0.0"),
        ({"alpha": float("nan")}, "`alpha` positive, got 2 and nan"),
        ({"targets": ()}, "`targets` must be some of.*got none"),
        ({"targets": ("qkv", "key", "up")}, "qkv stands for query, key.*it and key"),
        (
            {"targets": ("gate_up", "up")},
            "gate_up stands for gate and up; got it and up",
        ),
        ({"others": (other(target="down"),)}, "down of layer 0.*none of the `targets`"),
        ({"others": (other(rank=-1),)}, "rank -1 and alpha 1.0"),
        ({"others": (other(alpha=0.0),)}, "rank 1 and alpha 0.0"),
        ({"others": (other(), other())}, "names a matrix twice"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        LowRank(**SETTINGS | changes)


def test_an_unknown_target_is_refused_by_name(monkeypatch):
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`targets`.*query.*; got c_attn, q_proj"):
        LowRank.of(SETTINGS | {"targets": ["up", "q_proj", "c_attn"]})


@pytest.mark.parametrize("style", ["gpt2", "neox"])
def test_a_gate_that_the_model_has_not_is_refused(style):
    adapters = LowRank(rank=1, alpha=1.0, targets=("gate",))
    with pytest.raises(ValueError, match="gate is a target, but the MLP has no gate"):
        dataclasses.replace(CONFIGS[style], adapters=adapters)


def test_a_matrix_of_a_layer_that_the_model_has_not_is_refused():
    adapters = LowRank(**SETTINGS, others=(other(layer=2),))
    with pytest.raises(ValueError, match=r"layers \[2\] are none of the 2"):
        dataclasses.replace(CONFIGS["llama"], adapters=adapters)


@pytest.mark.parametrize("layers", [(0, 2), (-1,)], ids=str)
def test_a_layer_that_the_model_has_not_is_refused(layers):
    adapters = LowRank(rank=1, alpha=1.0, targets=("up",), layers=layers)
    beyond = str(layers[-1])
    with pytest.raises(ValueError, match=rf"layers \[{beyond}\] are none of the 2"):
        dataclasses.replace(CONFIGS["llama"], adapters=adapters)


def test_adapters_on_top_of_adapters_are_refused():
    adapted = make_adapted("gpt2", low_rank("gpt2"), num_layers=1)
    with pytest.raises(ValueError, match="has adapters already: merge them first"):
        add_adapters(adapted, low_rank("gpt2"), key=jax.random.key(0))


@pytest.mark.parametrize("layers", [None, (0,), ()], ids=str)
@pytest.mark.parametrize(
    "more", [{}, {"rank_stabilized": True, "others": (other(), other(layer=3))}]
)
def test_settings_survive_json(layers, more):
    original = LowRank(**SETTINGS, layers=layers, **more)
    for settings in (original.settings(), dataclasses.asdict(original)):
        assert LowRank.of(json.loads(json.dumps(settings))) == original
    assert LowRank.of(original) is original


def test_settings_are_as_they_were_before_single_matrices_could_differ():
    adapters = LowRank(**SETTINGS)
    before = {**SETTINGS, "layers": None}
    assert adapters.settings() == before
    assert LowRank.of(before) == adapters
    config = dataclasses.replace(CONFIGS["llama"], adapters=adapters)
    assert config.settings()["adapters"] == before
