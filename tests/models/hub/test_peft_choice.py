"""Which matrices PEFT's settings choose, and with what rank: against PEFT itself."""

import numpy as np
import pytest
from witnesses import parity

from ldjax.models import LowRank, OtherAdapter, load, save_adapters
from ldjax.models.hub.peft_choice import Matrix, read_choice, write_choice

LAYERS = 3

#: Full names of a block's modules, by family; what is drawn from.
BLOCKS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "qwen2": "model.layers",
    "llama": "model.layers",
}
MODULES = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": (
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "llama": (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        *("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
}
MODULES["qwen2"] = MODULES["llama"]

exhaustive = pytest.mark.exhaustive


def draw_settings(family, index):
    """Settings of PEFT; the index goes round the ways to choose modules."""
    rng = np.random.default_rng([index, *family.encode()])
    modules, blocks = MODULES[family], BLOCKS[family]

    def some(names, least=1):
        num = rng.integers(least, len(names) + 1)
        return [str(name) for name in rng.permutation(names)[:num]]

    ends = [one.split(".")[-1] if rng.integers(2) else one for one in some(modules)]
    full = [f"{blocks}.{i}.{one}" for i in range(LAYERS) for one in modules]
    attention = modules[0].split(".")[0]
    of_layers = {"layers_to_transform": [0, 2]}
    if index % 2:
        of_layers = {"layers_to_transform": 1, "layers_pattern": blocks.split(".")[-1]}
    chosen = (
        {"target_modules": [*ends, "nothing_of_this_name"]},
        {"target_modules": some(full, 2)},
        {"target_modules": rf".*\.[02]\.{attention}\..*"},
        {"target_modules": "all-linear"},
        {"target_modules": [*ends, full[0]], **of_layers},
        {"target_modules": "All-Linear", "exclude_modules": rf".*\.1\.{attention}.*"},
        {"target_modules": list(modules), "exclude_modules": some(modules[1:])},
    )[index % 7]
    patterns = {
        rf"{blocks}\.0\.{modules[0]}": 4,
        modules[-1].split(".")[-1]: 1,
        r"[a-z_.]+\.1\.mlp\..*": 5,
        f"^{full[-1]}": 2,
    }
    of_rank, of_alpha = (
        {name: patterns[name] * scale for name in some(list(patterns))}
        for scale in (1, 7)
    )
    if index % 3 == 0:
        of_rank = {}
    if index % 3 == 1:
        of_alpha = {}
    return {
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": bool(index // 2 % 2),
        "rank_pattern": of_rank,
        "alpha_pattern": of_alpha,
        **chosen,
    }


def peft_model(folder, family, settings):
    """A model of PEFT in float64 with adapters that change something; and saved."""
    peft, torch = parity.library("peft"), parity.library("torch")
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    config = parity.tiny_config(family, **{layers: LAYERS})
    base = parity.draw_model(config, "float64")
    base.save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    settings = peft.LoraConfig(**settings, task_type="CAUSAL_LM")
    with parity.precision("float64"), torch.no_grad():
        model = peft.get_peft_model(base, settings).to(torch.float64).eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder / "adapters")
    return model


def ranks_of(model):
    """The rank and scale that PEFT has for each module it adapted."""
    return {
        name.removeprefix("base_model.model."): (
            module.r["default"],
            module.scaling["default"],
        )
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def our_ranks(config, family):
    """The same of ldjax."""
    targets = {
        "gpt2": ("qkv", "out", "up", "down"),
        "gpt_neox": ("qkv", "out", "up", "down"),
    }.get(family, ("query", "key", "value", "out", "gate", "up", "down"))
    modules = dict(zip(targets, MODULES[family], strict=True))
    return {
        f"{BLOCKS[family]}.{i}.{modules[target]}": tuple(adapter)
        for i in range(config.num_layers)
        for target, adapter in config.adapters.at(i).items()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:fan_in_fan_out:UserWarning",
    "ignore:The following .*_pattern keys did not match:RuntimeWarning",
)
@pytest.mark.parametrize(
    ("family", "index"),
    [
        pytest.param(family, index, marks=() if index == first else exhaustive)
        for first, family in zip((4, 1, 2, 6), parity.FAMILIES, strict=True)
        for index in range(14)
    ],
)
def test_peft_chooses_the_same_matrices_ranks_and_scales(tmp_path, family, index):
    theirs = peft_model(tmp_path, family, draw_settings(family, index))
    ours = load(tmp_path / "adapters", param_dtype="float64")
    assert our_ranks(ours.config, family) == ranks_of(theirs)
    wanted = parity.hub_logits(theirs, "float64")
    got = parity.our_logits(ours)
    parity.assert_close(parity.real(got), parity.real(wanted), "float64")

    # And PEFT reads what ldjax writes of it.
    save_adapters(tmp_path / "again", ours, base=tmp_path / "base")
    assert load(tmp_path / "again", param_dtype="float64").config == ours.config
    peft, torch = parity.library("peft"), parity.library("torch")
    base = parity.reread(tmp_path / "base", "float64")
    with parity.precision("float64"):
        again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
        again = again.to(torch.float64)
    assert ranks_of(again) == ranks_of(theirs)
    got = parity.hub_logits(again, "float64")
    parity.assert_close(parity.real(got), parity.real(wanted), "float64")


# By hand, without PEFT.

MATRICES = [
    matrix
    for layer in range(12)
    for matrix in (
        Matrix(layer, "query", f"model.layers.{layer}.self_attn.q_proj"),
        Matrix(layer, "up", f"model.layers.{layer}.mlp.up_proj"),
    )
]
BESIDE = ("model.embed_tokens", "lm_head")


def chosen(**settings):
    """Rank and scale of what is chosen, by layer and target."""
    content = {"r": 2, "lora_alpha": 4, **settings}
    adapters = read_choice(content, MATRICES, beside=BESIDE)
    back = read_choice(write_choice(adapters, MATRICES), MATRICES, beside=BESIDE)
    assert back == adapters
    return {
        (layer, target): tuple(adapter)
        for layer in range(12)
        for target, adapter in adapters.at(layer).items()
    }


def test_a_layer_whose_number_begins_like_anothers_is_another():
    found = chosen(target_modules=["model.layers.1.mlp.up_proj"])
    assert found == {(1, "up"): (2, 2.0)}
    found = chosen(
        target_modules=["up_proj"], rank_pattern={r"layers\.1\.mlp\.up_proj": 8}
    )
    assert {at: rank for at, (rank, _) in found.items() if rank != 2} == {(1, "up"): 8}


def test_a_full_name_is_chosen_whatever_the_layers_are():
    found = chosen(
        target_modules=["q_proj", "model.layers.7.mlp.up_proj"],
        layers_to_transform=[0, 3],
    )
    assert set(found) == {(0, "query"), (3, "query"), (7, "up")}


def test_an_expression_is_of_the_whole_name_and_a_pattern_of_its_end():
    for part in ("up_proj", r".*mlp\.up", ["p_proj"]):
        with pytest.raises(ValueError, match=r"which is none.*mlp.up_proj"):
            chosen(target_modules=part)
    found = chosen(target_modules=r".*\.(0|11)\..*_proj", alpha_pattern={"up_proj": 1})
    assert found == {
        (0, "query"): (2, 2.0),
        (11, "query"): (2, 2.0),
        (0, "up"): (2, 0.5),
        (11, "up"): (2, 0.5),
    }


def test_the_first_pattern_that_fits_counts_and_only_at_a_dot():
    found = chosen(
        target_modules=["up_proj"],
        layers_to_transform=[2],
        rank_pattern={"p_proj": 9, "up_.*": 5, "up_proj": 7},
    )
    assert found == {(2, "up"): (5, 0.8)}


def test_a_stabilized_scale_is_over_the_root_of_each_rank():
    found = chosen(
        target_modules=["up_proj"],
        layers_to_transform=[0, 1],
        use_rslora=True,
        rank_pattern={r"layers\.1\..*": 16},
    )
    assert found == {(0, "up"): (2, 4 / 2**0.5), (1, "up"): (16, 1.0)}


def test_adapters_that_are_alike_have_no_others():
    content = {
        **{"r": 2, "lora_alpha": 4, "rank_pattern": {"x": 1}},
        "target_modules": [matrix.module for matrix in MATRICES],
    }
    found = read_choice(
        content,
        MATRICES,
        beside=BESIDE,
    )
    assert found == LowRank(rank=2, alpha=4.0, targets=("query", "up"))


def test_what_differs_is_named_by_matrix():
    found = read_choice(
        {"r": 2, "lora_alpha": 4, "target_modules": [MATRICES[0][2], MATRICES[3][2]]},
        MATRICES,
        beside=BESIDE,
    )
    assert found.targets == ("query", "up")
    assert found.layers == (0, 1)
    assert found.others == (
        OtherAdapter(layer=0, target="up", rank=0, alpha=4.0),
        OtherAdapter(layer=1, target="query", rank=0, alpha=4.0),
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"target_modules": None}, r"`target_modules` is None.*self_attn.q_proj"),
        ({"target_modules": []}, r"`target_modules` is \[\], which is none"),
        ({"target_modules": [3]}, r"`target_modules` must be names, got 3"),
        (
            {"target_modules": "(q"},
            r"`target_modules` has '\(q'.*no regular expression",
        ),
        ({"target_modules": ".*", "layers_to_transform": 1}, "PEFT refuses it, too"),
        ({"layers_to_transform": [0, 12]}, r"\[12\]; the model has 12 layers"),
        ({"target_modules": ".*"}, "chooses model.embed_tokens, lm_head"),
        ({"exclude_modules": ["proj", "up_proj"]}, "which is none of"),
        ({"rank_pattern": {"up_proj": 0}}, "whole number from 1 on, got 0"),
        ({"rank_pattern": [1]}, r"`rank_pattern` must be numbers by name"),
        ({"alpha_pattern": {"up_proj": "a"}}, "must be a number, got 'a'"),
        ({"alpha_pattern": {"(": 1}}, r"`alpha_pattern` has '\('"),
    ],
)
def test_a_choice_that_makes_no_sense_is_named(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        chosen(**{"target_modules": ["up_proj"]} | settings)
