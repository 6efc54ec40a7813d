"""The families that came later against transformers: windows, norms, no positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import parity
from witnesses.parity import LATER_FAMILIES

from ldjax.models import load, save
from ldjax.models.decoder.sampling import generate_greedy
from ldjax.models.hub.config import family_of, from_hub, to_hub
from ldjax.models.hub.parameters import abstract_params
from ldjax.models.hub.tensors import leaf_names, rules

NUM_DRAWS = 6
#: The draw of each family that CI compares.
KEPT = {
    **{"qwen3": 1, "mistral": 1, "smollm3": 1, "phi3": 1},
    **{"olmo2": 3, "olmo3": 2, "gemma2": 0, "gemma3_text": 2},
}

# Importing torch and transformers alone takes seconds.
pytestmark = pytest.mark.slow


def draws(*, kept=True):
    """Family and number of each draw; those that CI leaves out are marked."""
    redundant = pytest.mark.exhaustive
    return [
        pytest.param(
            *(family, index),
            marks=() if kept and KEPT[family] == index else redundant,
        )
        for family in LATER_FAMILIES
        for index in range(NUM_DRAWS)
    ]


def drawn(folder, family, index, dtype):
    """A model of transformers and its folder."""
    model = parity.draw_model(parity.draw_config(family, index), dtype)
    model.save_pretrained(folder)
    return model


def tiny(folder, family, **settings):
    """A fixed small model of transformers and its folder."""
    model = parity.draw_model(parity.tiny_config(family, **settings), "float32")
    model.save_pretrained(folder)
    return model


def assert_same(left, right):
    """Bit for bit, in structure and dtype too."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("family", "index"), draws())
def test_logits_are_those_of_transformers_before_and_after_a_save(
    tmp_path, family, index
):
    model = drawn(tmp_path / "theirs", family, index, "float64")
    wanted = parity.hub_logits(model, "float64")
    ours = load(tmp_path / "theirs", param_dtype="float64")
    got = parity.our_logits(ours)
    parity.assert_close(parity.real(got), parity.real(wanted), "float64")
    log_probs = parity.our_log_probs(got)
    parity.assert_close(log_probs, parity.hub_log_probs(wanted), "float64")
    save(tmp_path / "ours", ours, max_shard_bytes=10_000)
    assert (tmp_path / "ours/model.safetensors.index.json").is_file()
    again = load(tmp_path / "ours", param_dtype="float64")
    assert again.config == ours.config
    assert_same(again.params, ours.params)
    back = parity.reread(tmp_path / "ours", "float64")
    assert type(back) is type(model)
    left, right = model.state_dict(), back.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name].numpy(), right[name].numpy())
    # Rotary settings are equal but for rounding.
    reread = parity.real(parity.hub_logits(back, "float64"))
    parity.assert_close(reread, parity.real(wanted), "float64")


@pytest.mark.parametrize(("family", "index"), draws(kept=False))
def test_logits_in_single_precision_are_those_of_transformers(tmp_path, family, index):
    model = drawn(tmp_path, family, index, "float32")
    got, wanted = (
        parity.our_logits(load(tmp_path)),
        parity.hub_logits(model, "float32"),
    )
    parity.assert_close(parity.real(got), parity.real(wanted), "float32")


@pytest.mark.parametrize(("family", "index"), draws())
def test_greedy_decoding_is_token_for_token_that_of_transformers(
    tmp_path, family, index
):
    # In float64, where no two logits are equal up to rounding.
    model = drawn(tmp_path, family, index, "float64")
    prompts = [row[mask].tolist() for row, mask in zip(*parity.batch(), strict=True)]
    ours = load(tmp_path, param_dtype="float64")
    got = generate_greedy(ours.model, ours.params, prompts, max_new_tokens=64)
    wanted = parity.hub_greedy(model, prompts, 64)
    assert got.tokens.tolist() == wanted
    assert len({token for row in wanted for token in row}) > 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", LATER_FAMILIES)
def test_files_of_any_float_are_read_as_that_asked_for(tmp_path, family, dtype):
    torch = parity.library("torch")
    model = tiny(tmp_path, family).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours.params)} == {"float32"}
    found = leaf_names(ours.params)
    wanted = model.state_dict()
    for rule in rules(ours.config):
        packed = rule.pack(*(np.asarray(found[leaf]) for leaf in rule.leaves))
        np.testing.assert_array_equal(packed, wanted[rule.name].float().numpy())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", LATER_FAMILIES)
def test_shards_and_the_trunk_alone_are_the_single_file(tmp_path, family, tied):
    model = tiny(tmp_path / "one", family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "many", max_shard_size="6KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    wanted = load(tmp_path / "one")
    assert wanted.config.tied_head == tied
    assert_same(load(tmp_path / "many").params, wanted.params)
    if tied:
        model.base_model.save_pretrained(tmp_path / "trunk")
        trunk = load(tmp_path / "trunk")
        assert trunk.config == wanted.config
        assert_same(trunk.params, wanted.params)


# Configurations


def minimal(family):
    """What a file cannot leave out."""
    return {
        "model_type": family,
        "vocab_size": 37,
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 32,
        "intermediate_size": 20,
    }


def as_transformers_has_it(folder, content):
    """The same file with nothing left out and by the newest names."""
    (folder / "config.json").write_text(json.dumps(content))
    config = parity.library("transformers").AutoConfig.from_pretrained(folder)
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("family", LATER_FAMILIES)
def test_settings_left_out_have_the_defaults_of_transformers(tmp_path, family):
    got = from_hub(minimal(family))
    assert got == from_hub(as_transformers_has_it(tmp_path, minimal(family)))
    assert family_of(got) == family


OLD_ROTARY = {
    "plain": {"rope_theta": 50.0},
    "none": {"rope_theta": 50.0, "rope_scaling": None},
    "linear": {"rope_theta": 50, "rope_scaling": {"rope_type": "linear", "factor": 2}},
    "yarn": {
        "rope_theta": 50.0,
        "rope_scaling": {
            **{"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2},
            "original_max_position_embeddings": 24,
        },
    },
}
OLD = {
    "qwen3": {"use_sliding_window": True, "max_window_layers": 3, "head_dim": 4},
    "mistral": {"sliding_window": 4096, "head_dim": None},
    "smollm3": {"no_rope_layer_interval": 3},
    "phi3": {"partial_rotary_factor": 1.0, "sliding_window": 2047},
    "olmo2": {"attention_bias": True},
    "olmo3": {"sliding_window": 5},
    "gemma2": {"query_pre_attn_scalar": 224, "final_logit_softcapping": None},
    "gemma3_text": {"sliding_window_pattern": 3, "rope_local_base_freq": 11.0},
}


@pytest.mark.parametrize("kind", OLD_ROTARY)
@pytest.mark.parametrize("family", LATER_FAMILIES)
def test_old_names_of_settings_mean_what_transformers_makes_of_them(
    tmp_path, family, kind
):
    if family == "phi3" and kind in ("linear", "yarn"):
        pytest.skip("Phi-3 has no such scaling")
    old = minimal(family) | OLD_ROTARY[kind] | OLD[family]
    new = as_transformers_has_it(tmp_path, old)
    assert "rope_scaling" not in new
    got = from_hub(old)
    assert got == from_hub(new)
    assert got.rotary_theta == 50.0
    assert (got.rotary_scaling is None) == (kind in ("plain", "none"))


#: Settings that folders have as null, or leave out.
NULLS = (
    *("num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps"),
    *("hidden_act", "hidden_activation", "max_position_embeddings", "attention_bias"),
    *("rope_scaling", "rope_parameters", "rope_theta", "mlp_bias", "layer_types"),
    *("sliding_window", "use_sliding_window", "max_window_layers"),
    *("no_rope_layers", "no_rope_layer_interval", "query_pre_attn_scalar"),
    *("final_logit_softcapping", "attn_logit_softcapping", "sliding_window_pattern"),
    *("use_bidirectional_attention", "partial_rotary_factor"),
    "original_max_position_embeddings",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("is_null", [True, False])
@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("family", LATER_FAMILIES)
def test_a_setting_that_is_null_or_left_out_is_what_transformers_makes_of_it(
    family, name, is_null
):
    transformers, torch = parity.library("transformers"), parity.library("torch")
    # 32 heads, since Qwen has as many of keys where it is not said.
    sizes = {"num_attention_heads": 32, "hidden_size": 64, "num_hidden_layers": 2}
    base = parity.tiny_config(family, **sizes)
    content = json.loads(base.to_json_string(use_diff=False))
    content.pop(name, None)
    if is_null:
        content[name] = None
    content["pad_token_id"] = None  # defaults are beyond a small vocabulary
    try:
        theirs = type(base).from_dict(dict(content))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(theirs)
            model(torch.zeros((1, 3), dtype=int))
    except Exception:
        # What they refuse we may refuse: nobody can say what it means.
        assert is_null
        pytest.skip("transformers refuses it")
    ours = from_hub(content)
    shapes = leaf_names(abstract_params(ours))
    assert {
        rule.name: rule.shape(*(shapes[leaf].shape for leaf in rule.leaves))
        for rule in rules(ours)
    } == {name: tuple(x.shape) for name, x in model.named_parameters()}
    assert ours.tied_head == theirs.tie_word_embeddings
    new = json.loads(theirs.to_json_string(use_diff=False))
    assert ours == from_hub(new)


REFUSED = {
    "qwen3": {
        "layer_types": ["linear_attention"] * 7,
        "sliding_window": 0,
    },
    "mistral": {
        "attention_bias": True,
        "layer_types": ["full_attention"] * 7,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
    },
    "smollm3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 0},
    "phi3": {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
    "olmo2": {"rope_parameters": {"full_attention": {}}},
    "olmo3": {
        "rope_parameters": {"rope_type": "yarn", "factor": 8.0},
        "sliding_window": None,
    },
    "gemma2": {"use_bidirectional_attention": True, "query_pre_attn_scalar": 0.5},
    "gemma3_text": {
        "use_bidirectional_attention": True,
        "attn_logit_softcapping": 50.0,
        "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 3}},
    },
}


@pytest.mark.parametrize(
    ("family", "name"), [(f, name) for f, all_ in REFUSED.items() for name in all_]
)
def test_settings_that_are_not_computed_are_refused_by_name(family, name):
    content = minimal(family) | {name: REFUSED[family][name]}
    if family == "qwen3":
        content["use_sliding_window"] = True
    with pytest.raises(
        ValueError, match=r"rotary|" + name.removeprefix("no_")
    ) as error:
        from_hub(content)
    assert "\n" not in str(error.value)


def test_gemma3_with_eyes_is_read_as_its_language_model(tmp_path):
    transformers, torch = parity.library("transformers"), parity.library("torch")
    text = parity.tiny_config("gemma3_text", num_hidden_layers=3, layer_types=None)
    eyes = {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "image_size": 8, "patch_size": 4},
    }
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={"model_type": "siglip_vision_model", **eyes},
        **{"mm_tokens_per_image": 4, "image_token_index": 36},
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert to_hub(ours.config)["model_type"] == "gemma3_text"
    tokens, mask = parity.batch()
    tokens = np.where(tokens == 36, 0, tokens)
    got = ours.model.apply(
        {"params": ours.params}, jnp.asarray(tokens), jnp.asarray(mask)
    )
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(int)),
            position_ids=torch.tensor(positions),
        ).logits.numpy()
    parity.assert_close(parity.real(got), parity.real(wanted), "float32")
