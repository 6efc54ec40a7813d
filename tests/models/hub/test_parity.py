"""Models of the hub against transformers: logits, log-probs, decoding and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import parity
from witnesses.parity import FAMILIES

import ldjax.models.decoder.sampling
from ldjax.models import load, save
from ldjax.models.hub.config import from_hub
from ldjax.models.hub.parameters import abstract_params
from ldjax.models.hub.tensors import leaf_names, rules

NUM_DRAWS = 6
TRUNKS = {
    "gpt2": "transformer.",
    "gpt_neox": "gpt_neox.",
    "qwen2": "model.",
    "llama": "model.",
}
SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}

# Importing torch and transformers alone takes seconds.
pytestmark = pytest.mark.slow


def mostly_exhaustive(*kept):
    """The draws, those not kept marked as redundant."""
    redundant = (i for i in range(NUM_DRAWS) if i not in kept)
    return [*kept, *(pytest.param(i, marks=pytest.mark.exhaustive) for i in redundant)]


def drawn(folder, family, *, dtype="float32", **settings):
    """A small model of transformers and its folder."""
    model = parity.draw_model(parity.tiny_config(family, **settings), dtype)
    model.save_pretrained(folder)
    return model


def rewrite(folder, change):
    """Changes the tensors of a folder that has one file of them."""
    numpy = parity.library("safetensors.numpy")
    file = folder / "model.safetensors"
    tensors = numpy.load_file(file)
    change(tensors)
    numpy.save_file(tensors, file, metadata={"format": "pt"})


def assert_same(left, right):
    """Bit for bit, in structure and dtype too."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("index", "dtype"),
    [
        *((index, "float64") for index in range(NUM_DRAWS)),
        # The same formulas once more.
        *((index, "float32") for index in range(1)),
        *(
            pytest.param(index, "float32", marks=pytest.mark.exhaustive)
            for index in range(1, NUM_DRAWS)
        ),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_log_probs_equal_those_of_transformers(
    tmp_path, family, index, dtype
):
    model = parity.draw_model(parity.draw_config(family, index), dtype)
    model.save_pretrained(tmp_path)
    wanted = parity.hub_logits(model, dtype)
    got = parity.our_logits(load(tmp_path, param_dtype=dtype))
    parity.assert_close(parity.real(got), parity.real(wanted), dtype)
    log_probs = parity.our_log_probs(got)
    parity.assert_close(log_probs, parity.hub_log_probs(wanted), dtype)


#: Settings that folders have as null, or leave out.
NULLS = {
    "gpt2": ("n_inner", "layer_norm_epsilon", "activation_function"),
    "gpt_neox": ("rope_scaling", "rotary_pct", "rotary_emb_base", "head_dim"),
    "llama": ("num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters"),
    "qwen2": ("num_key_value_heads", "head_dim", "sliding_window", "layer_types"),
}
SHARED_NULLS = (
    *("tie_word_embeddings", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
    *("attention_bias", "mlp_bias", "pad_token_id", "use_sliding_window", "rope_theta"),
)


@pytest.mark.parametrize("is_null", [True, False])
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, n) for family in FAMILIES for n in (*NULLS[family], *SHARED_NULLS)],
)
def test_a_setting_that_is_null_or_left_out_is_what_transformers_makes_of_it(
    family, name, is_null
):
    transformers, torch = parity.library("transformers"), parity.library("torch")
    # 32 heads, since Qwen2 has as many of keys where it is not said.
    heads = {"qwen2": {"num_attention_heads": 32, "hidden_size": 64}}.get(family, {})
    base = parity.tiny_config(family, **heads)
    content = json.loads(base.to_json_string(use_diff=False))
    content.pop(name, None)
    if is_null:
        content[name] = None
    try:
        theirs = type(base).from_dict(dict(content))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(theirs)
    except Exception:
        # What they refuse we may refuse: nobody can say what it means.
        assert is_null
        pytest.skip("transformers refuses it")
    ours = from_hub(content)
    shapes = leaf_names(abstract_params(ours))
    # As files have it; in models of transformers 5 the head's name is one for all.
    head = {"gpt_neox": "embed_out.weight"}.get(family, "lm_head.weight")
    wanted = {
        head if name == "lm_head.weight" else name: tuple(x.shape)
        for name, x in model.named_parameters()
    }
    assert {
        rule.name: rule.shape(*(shapes[leaf].shape for leaf in rule.leaves))
        for rule in rules(ours)
    } == wanted
    assert ours.tied_head == theirs.tie_word_embeddings
    rope = getattr(theirs, "rope_parameters", None) or {}
    assert ours.rotary_theta == rope.get("rope_theta", 10000.0)
    assert ours.rotary_fraction == rope.get("partial_rotary_factor", 1.0)


@pytest.mark.parametrize("index", mostly_exhaustive(1))
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_token_for_token_that_of_transformers(
    tmp_path, family, index
):
    # In float64, where no two logits are equal up to rounding.
    model = parity.draw_model(parity.draw_config(family, index), "float64")
    model.save_pretrained(tmp_path)
    prompts = [row[mask].tolist() for row, mask in zip(*parity.batch(), strict=True)]
    ours = load(tmp_path, param_dtype="float64")
    got = ldjax.models.decoder.sampling.generate_greedy(
        ours.model, ours.params, prompts, max_new_tokens=64
    )
    wanted = parity.hub_greedy(model, prompts, 64)
    assert got.tokens.tolist() == wanted
    assert len({token for row in wanted for token in row}) > 3


@pytest.mark.parametrize(
    ("tied", "max_shard_bytes"),
    [
        (False, 4_000),
        (True, 10**9),
        pytest.param(True, 4_000, marks=pytest.mark.exhaustive),
        pytest.param(False, 10**9, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_is_saved_bit_for_bit(
    tmp_path, family, tied, max_shard_bytes
):
    model = drawn(tmp_path / "theirs", family, tie_word_embeddings=tied)
    ours = load(tmp_path / "theirs")
    save(tmp_path / "ours", ours, max_shard_bytes=max_shard_bytes)
    is_sharded = (tmp_path / "ours/model.safetensors.index.json").is_file()
    assert is_sharded == (max_shard_bytes < 10**9)
    back = parity.reread(tmp_path / "ours", "float32")
    wanted, got = model.state_dict(), back.state_dict()
    assert wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_array_equal(wanted[name].numpy(), got[name].numpy())
    np.testing.assert_array_equal(
        parity.hub_logits(back, "float32"), parity.hub_logits(model, "float32")
    )
    again = load(tmp_path / "ours")
    assert again.config == ours.config
    assert_same(again.params, ours.params)


@pytest.mark.parametrize("index", mostly_exhaustive(2, 4))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_configuration_has_the_same_logits_in_transformers(
    tmp_path, family, index
):
    model = parity.draw_model(parity.draw_config(family, index), "float64")
    model.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs", param_dtype="float64")
    save(tmp_path / "ours", ours)
    back = parity.reread(tmp_path / "ours", "float64")
    wanted, got = (parity.real(parity.hub_logits(m, "float64")) for m in (model, back))
    # Rotary settings are equal but for rounding.
    parity.assert_close(got, wanted, "float64")
    assert load(tmp_path / "ours", param_dtype="float64").config == ours.config


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_transformers_are_its_single_file(tmp_path, family):
    model = drawn(tmp_path / "one", family)
    model.save_pretrained(tmp_path / "many", max_shard_size="6KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(load(tmp_path / "many").params, load(tmp_path / "one").params)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_the_trunk_alone_is_the_tied_model(tmp_path, family):
    model = drawn(tmp_path / "whole", family, tie_word_embeddings=True)
    model.base_model.save_pretrained(tmp_path / "trunk")
    names = parity.library("safetensors.numpy").load_file(
        tmp_path / "trunk/model.safetensors"
    )
    assert not any(name.startswith(TRUNKS[family]) for name in names)
    whole, trunk = (load(tmp_path / name) for name in ("whole", "trunk"))
    assert whole.config == trunk.config
    assert_same(whole.params, trunk.params)


BUFFERS = {
    "gpt2": ("h.0.attn.bias", "h.1.attn.masked_bias"),
    "gpt_neox": (
        "layers.0.attention.bias",
        "layers.1.attention.masked_bias",
        "layers.0.attention.rotary_emb.inv_freq",
    ),
    "qwen2": ("layers.0.self_attn.rotary_emb.inv_freq",),
    "llama": ("layers.1.self_attn.rotary_emb.inv_freq",),
}


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_of_old_folders_are_left_unread(tmp_path, family, prefixed):
    model = drawn(tmp_path, family, tie_word_embeddings=True)
    prefix = TRUNKS[family] if prefixed else ""
    if not prefixed:
        model.base_model.save_pretrained(tmp_path)
    wanted = load(tmp_path)
    extra = {prefix + name: np.ones((1, 1, 4, 4)) for name in BUFFERS[family]}
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    assert_same(load(tmp_path).params, wanted.params)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_folder_may_hold_its_head_too(tmp_path, family):
    drawn(tmp_path, family, tie_word_embeddings=True)
    wanted = load(tmp_path)
    embedding = np.asarray(wanted.params["token_embedding"]["embedding"])
    head = "embed_out.weight" if family == "gpt_neox" else "lm_head.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({head: embedding}))
    assert_same(load(tmp_path).params, wanted.params)


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        ("gpt2", "float16"),
        ("gpt_neox", "float64"),
        ("llama", "bfloat16"),
        ("qwen2", "bfloat16"),
    ],
)
def test_files_of_any_float_are_read_as_that_asked_for(tmp_path, family, stored):
    torch = parity.library("torch")
    model = drawn(tmp_path / "narrow", family).to(getattr(torch, stored))
    model.save_pretrained(tmp_path / "narrow")
    model.float().save_pretrained(tmp_path / "wide")
    narrow, wide = (load(tmp_path / name) for name in ("narrow", "wide"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow.params)} == {"float32"}
    assert_same(narrow.params, wide.params)
    short = load(tmp_path / "wide", param_dtype="bfloat16").params
    assert_same(
        short, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide.params)
    )


OLD = {
    "linear": {"type": "linear", "factor": 2.5},
    "llama3": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    "none": None,
}


@pytest.mark.parametrize("kind", OLD)
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_old_names_of_settings_mean_what_transformers_makes_of_them(
    tmp_path, family, kind
):
    theta = "rotary_emb_base" if family == "gpt_neox" else "rope_theta"
    old = SIZES | {
        "model_type": family,
        "max_position_embeddings": 96,
        theta: 50,
        "rope_scaling": OLD[kind],
    }
    if family == "qwen2":
        old["num_key_value_heads"] = 1
    if family == "gpt_neox":
        old["rotary_pct"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = parity.library("transformers").AutoConfig.from_pretrained(tmp_path)
    new = json.loads(config.to_json_string(use_diff=False))
    assert "rope_parameters" in new
    assert "rope_scaling" not in new
    got = from_hub(old)
    assert got == from_hub(new)
    assert got.rotary_theta == 50.0
    assert (got.rotary_scaling is None) == (kind == "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_left_out_have_the_defaults_of_transformers(tmp_path, family):
    minimal = {"model_type": family, **SIZES}
    if family == "gpt2":
        minimal = {
            **{"model_type": family, "vocab_size": 37, "n_embd": 24},
            **{"n_layer": 1, "n_head": 2, "n_positions": 96},
        }
    if family == "qwen2":  # its published folders state both
        minimal |= {"num_key_value_heads": 1, "max_position_embeddings": 96}
    (tmp_path / "config.json").write_text(json.dumps(minimal))
    config = parity.library("transformers").AutoConfig.from_pretrained(tmp_path)
    full = json.loads(config.to_json_string(use_diff=False))
    assert from_hub(minimal) == from_hub(full)
