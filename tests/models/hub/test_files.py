"""Folders of models: bit for bit what was saved, and one clear error for any damage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from zoo.decoders import CONFIGS, STYLES, pretrained

from ldjax.data.tokenizers import (
    SpecialTokens,
    load_tokenizer,
    train_bpe,
    train_word_level,
)
from ldjax.models import load, save
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.hub.config import from_hub, to_hub

DTYPES = ("float32", "float64", "bfloat16", "float16")
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A saved model in one file."""
    save(tmp_path / "model", pretrained())
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    """The same in many files."""
    save(tmp_path / "model", pretrained(), max_shard_bytes=5_000)
    return tmp_path / "model"


def edit(folder, name="config.json", **changes):
    """Changes a JSON file; None takes a setting away."""
    content = json.loads((folder / name).read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(content))


def rewrite(folder, change):
    """Changes the tensors of the one file."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(folder, *parts, error: type[Exception] = ValueError):
    """The one message, which has these parts."""
    with pytest.raises(error) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    for part in parts:
        assert part in message
    return message


# What is saved is what is loaded.


@pytest.mark.parametrize("max_shard_bytes", [10**9, 3_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path, dtype, max_shard_bytes):
    saved = pretrained(param_dtype=dtype)
    save(tmp_path / "new", saved, max_shard_bytes=max_shard_bytes)
    loaded = load(tmp_path / "new", param_dtype=dtype)
    assert loaded.config == saved.config
    assert loaded.tokenizer is None
    assert jax.tree.structure(loaded.params) == jax.tree.structure(saved.params)
    for a, b in zip(
        jax.tree.leaves(loaded.params), jax.tree.leaves(saved.params), strict=True
    ):
        assert a.dtype == b.dtype == dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


CHANGES = {
    "gpt2": {"tied_head": False, "activation": "relu", "norm_epsilon": 1e-3},
    "neox": {
        "rotary_fraction": 0.5,
        "parallel_residual": False,
        "qkv_bias": False,
        "attention_out_bias": False,
        "tied_head": True,
        "rotary_scaling": RotaryScaling(kind="linear", factor=3.0),
    },
    "qwen2": {
        "width": 22,
        "head_dim": 6,
        "tied_head": False,
        "rotary_scaling": RotaryScaling(
            kind="yarn",
            factor=4.0,
            original_max_positions=16,
            fast=32.0,
            amplitude=1.25,
            whole_indices=False,
        ),
    },
    "llama": {
        "num_kv_heads": 1,
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "tied_head": True,
        "rotary_scaling": RotaryScaling(
            kind="llama3", factor=8.0, original_max_positions=32
        ),
    },
}


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_the_architecture_survives_in_every_family(tmp_path, style, changed):
    saved = pretrained(style, **(CHANGES[style] if changed else {}))
    save(tmp_path / "new", saved)
    loaded = load(tmp_path / "new")
    assert loaded.config == saved.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, saved.params)


def test_shapes_are_read_without_weights(folder):
    wanted = load(folder)
    (folder / FILE).unlink()
    shapes = load(folder, shapes_only=True)
    assert shapes.config == wanted.config
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes.params) == (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), wanted.params)
    )


def test_shards_stay_below_their_bound_and_hold_each_tensor_once(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    names = [file.name for file in files]
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((sharded / INDEX).read_text())
    held = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == held
    sizes = [sum(a.nbytes for a in load_file(file).values()) for file in files]
    assert index["metadata"]["total_size"] == sum(sizes)
    single = [file for file in files if len(load_file(file)) == 1]
    for file, size in zip(files, sizes, strict=True):
        assert size <= 5_000 or file in single


def test_a_dtype_of_the_computation_is_kept_apart(folder):
    loaded = load(folder, dtype="bfloat16")
    assert loaded.config.dtype == "bfloat16"
    assert loaded.model.config == loaded.config
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"float32"}


# Tensors that do not fit.


def test_all_that_does_not_fit_is_said_at_once(folder):
    def damage(tensors):
        del tensors["transformer.h.1.ln_1.bias"], tensors["transformer.ln_f.weight"]
        tensors["transformer.h.7.ln_1.bias"] = np.ones(3)
        tensors["transformer.wte.weight"] = np.ones((5, 32))
        tensors["transformer.h.0.mlp.c_fc.bias"] = np.ones(7)

    rewrite(folder, damage)
    refused(
        folder,
        "config.json",
        "missing: transformer.h.1.ln_1.bias, transformer.ln_f.weight",
        "not of this model: transformer.h.7.ln_1.bias",
        "transformer.wte.weight is [5, 32] instead of [23, 32]",
        "transformer.h.0.mlp.c_fc.bias is [7] instead of [24]",
        "another model?",
    )


def test_numbers_that_are_no_floats_are_refused(folder):
    name = "transformer.wpe.weight"
    rewrite(folder, lambda tensors: tensors.update({name: np.ones((64, 32), np.int8)}))
    refused(folder, name)


def test_a_float_too_small_to_read_is_named(folder):
    # As NumPy cannot write it: one byte for each number.
    data = (folder / FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = {"transformer.ln_f.bias": header["transformer.ln_f.bias"]}
    header["transformer.ln_f.bias"] |= {"dtype": "F8_E4M3", "data_offsets": [0, 32]}
    text = json.dumps(header).encode()
    shard = len(text).to_bytes(8, "little") + text + bytes(32)
    rewrite(folder, lambda tensors: tensors.pop("transformer.ln_f.bias"))
    (folder / FILE).rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(shard)
    where = dict.fromkeys(load_file(folder / "a.safetensors"), "a.safetensors")
    where["transformer.ln_f.bias"] = "b.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, "F8_E4M3")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.pop("transformer.wpe.weight"), "missing: transformer.wpe.weight"),
        (lambda t: t.update(more=np.ones(2)), "not of this model: more"),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.ones((32, 1))}),
            "transformer.ln_f.bias is [32, 1] instead of [32]",
        ),
    ],
)
def test_one_tensor_that_does_not_fit_is_named(folder, change, part):
    rewrite(folder, change)
    message = refused(folder, part)
    assert message.count("transformer.") <= 1


def test_of_many_names_only_some_are_said(folder):
    edit(folder, n_layer=9)
    message = refused(folder, "missing: transformer.h.2.ln_1.weight", "and 74 more")
    assert len(message) < 800  # ten names, and how many more


def test_a_head_that_the_config_ties_away_is_not_missed_but_wanted_untied(folder):
    edit(folder, tie_word_embeddings=False)
    refused(folder, "missing: lm_head.weight")


def test_a_stored_head_must_be_the_embedding_that_it_is_tied_to(folder):
    # Of two that differ transformers 5 takes the head, older ones the embedding.
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))
    load(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": 2 * t["lm_head.weight"]}))
    refused(folder, "lm_head.weight", "tie_word_embeddings")


# Files that are damaged or not there.


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_file_cut_short_is_named(folder, size):
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:size])
    refused(folder, FILE, "not a whole safetensors file", "again")


def test_a_shard_cut_short_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, shard.name, "not a whole safetensors file", "again")


def test_a_text_for_a_file_of_tensors_is_named(folder):
    # What a repository holds whose large files were not fetched.
    (folder / FILE).write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    refused(folder, FILE, "not a whole safetensors file", "git lfs pull")


def test_missing_shards_are_named(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    refused(sharded, f"{shards[0].name}, {shards[2].name}", error=FileNotFoundError)


def test_a_tensor_that_the_index_invents_is_named(sharded):
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    some = next(iter(listed.values()))
    edit(sharded, INDEX, weight_map=listed | {"other": some})
    refused(sharded, INDEX, "other", "again")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"metadata": {}}', '{"weight_map": [1]}', "3"]
)
def test_a_damaged_index_is_named(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, INDEX, "not a whole index", "weight_map", "again")


def test_no_weights_at_all_are_told_from_pickled_ones(folder):
    (folder / FILE).unlink()
    refused(folder, "neither", FILE, INDEX, error=FileNotFoundError)
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(
        folder,
        "pytorch_model.bin",
        "safetensors only",
        "save_pretrained",
        error=FileNotFoundError,
    )


@pytest.mark.parametrize("text", ["", "{", "not json", '{"model_type": "gpt2"'])
def test_a_damaged_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json is not whole JSON")


def test_a_config_that_is_no_object_is_named(folder):
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json must hold a JSON object")


def test_a_folder_without_config_is_no_model(folder):
    (folder / "config.json").unlink()
    refused(folder, "no config.json", error=FileNotFoundError)


def test_a_file_is_not_taken_for_a_folder(folder):
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load(folder / FILE)


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ValueError, match="`revision` is of a repository"):
        load(folder, revision="main")


# Models that ldjax does not compute.


@pytest.mark.parametrize(
    ("style", "changes", "parts"),
    [
        ("gpt2", {"model_type": "bert"}, ("'bert', an encoder", "ldjax reads GPT-2, ")),
        ("gpt2", {"model_type": None}, ("`model_type` is None",)),
        ("gpt2", {"activation_function": "mish"}, ("'mish'", "gelu_new")),
        ("gpt2", {"n_embd": None}, ("`n_embd` is missing",)),
        ("gpt2", {"n_embd": "32"}, ("`n_embd` must be a number, got '32'",)),
        ("gpt2", {"n_head": 5}, ("`num_heads`", "5")),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            ("`scale_attn_by_inverse_layer_idx` is True",),
        ),
        ("neox", {"use_parallel_residual": "yes"}, ("must be true or false",)),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ("'dynamic'", "linear, llama3 and yarn"),
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
            ("'longrope'",),
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            ("`low_freq_factor` is missing",),
        ),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            ("one set for all layers",),
        ),
        ("llama", {"rope_scaling": {"type": "linear"}}, ("`factor` is missing",)),
        ("gpt2", {"n_layer": 2.5}, ("2.5",)),
        ("gpt2", {"activation_function": ["gelu"]}, ("activation_function",)),
        (
            "llama",
            {"rope_parameters": {"rope_theta": "wide", "rope_type": "default"}},
            ("wide",),
        ),
        ("neox", {"rope_parameters": {"partial_rotary_factor": [1]}}, ("[1]",)),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 0,
                }
            },
            ("original_max_position",),
        ),
        ("qwen2", {"layer_types": 3}, ("layer_types",)),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"]},
            ("sliding_attention",),
        ),
    ],
)
def test_a_model_that_ldjax_does_not_compute_is_refused(
    tmp_path, style, changes, parts
):
    save(tmp_path / "model", pretrained(style))
    edit(tmp_path / "model", **changes)
    if "model_type" in changes and changes["model_type"] is None:
        parts = ("`model_type` is None",)
    refused(tmp_path / "model", "config.json", *parts)


@pytest.mark.parametrize(
    ("style", "changes", "named"),
    [
        ("gpt2", {"parallel_residual": True}, "parallel_residual=True"),
        ("gpt2", {"mlp_bias": False}, "mlp_bias=False"),
        ("gpt2", {"head_bias": True, "tied_head": False}, "head_bias=True"),
        ("gpt2", {"num_kv_heads": 1}, "num_kv_heads=1"),
        ("neox", {"gated_mlp": True}, "gated_mlp=True"),
        ("neox", {"head_dim": 16}, "head_dim=16"),
        ("llama", {"parallel_residual": True}, "parallel_residual=True"),
        ("llama", {"gated_mlp": False}, "gated_mlp=False"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"positions": "learned", "rotary_fraction": 1.0}, "norm='rms'"),
    ],
)
def test_an_architecture_of_no_family_is_not_saved_and_named(
    tmp_path, style, changes, named
):
    with pytest.raises(ValueError, match="No model of the hub") as caught:
        save(tmp_path / "new", pretrained(style, **changes))
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_null_is_as_many_key_heads_as_query_heads_and_nothing_is_32_in_qwen2():
    content = to_hub(CONFIGS["qwen2"])
    many = content | {"num_attention_heads": 64, "num_key_value_heads": None}
    assert from_hub(many).num_kv_heads == 64
    del many["num_key_value_heads"]
    assert from_hub(many).num_kv_heads == 32


def test_float64_needs_the_64_bit_mode(folder):
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"float64.*jax_enable_x64"),
    ):
        load(folder, param_dtype="float64")


# Saving touches nothing that was there.


def test_a_folder_that_holds_something_is_left_alone(folder):
    before = contents(folder)
    with pytest.raises(FileExistsError, match="is not empty"):
        save(folder, pretrained("llama"))
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(tmp_path):
    save(tmp_path, pretrained())
    assert sorted(contents(tmp_path)) == ["config.json", FILE]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path):
    model = pretrained()
    del model.params["final_norm"]["bias"]  # found out when its shard is written
    with pytest.raises(KeyError):
        save(tmp_path / "new", model, max_shard_bytes=3_000)
    assert not list(tmp_path.iterdir())


# The hub, without a network.


OFFLINE = """
from ldjax.models import load
for revision in (None, "step1000"):
    try:
        load("EleutherAI/pythia-70m", revision=revision)
    except FileNotFoundError as error:
        print(error)
"""


@pytest.mark.slow
def test_without_a_network_the_message_says_how_to_fetch_the_model(tmp_path):
    pytest.importorskip("huggingface_hub")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    for what in (lines[0], lines[3]):
        assert "'EleutherAI/pythia-70m' is no folder here" in what
        assert "cannot be reached" in what
    assert lines[1] == "hf download EleutherAI/pythia-70m --local-dir pythia-70m"
    assert "give its path" in lines[2]
    assert "'step1000'" in lines[3]
    assert lines[4].startswith("hf download EleutherAI/pythia-70m")
    assert "--revision step1000" in lines[4]


@pytest.mark.parametrize("name", ["not a name", "a/b--c", "-x", "x.git"])
def test_a_malformed_name_is_neither_folder_nor_model(name):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ValueError, match="cannot be the name of a model") as caught:
        load(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c", "~/nowhere"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load(name)


# Tokenizers.


TEXTS = ["the cat sat on the mat"] * 3
OTHER = SpecialTokens(end="<|stop|>", padding="<|fill|>", unknown=None)


def with_tokenizer(folder, tokenizer, **changes):
    save(folder, pretrained(tokenizer=tokenizer, **changes))
    return folder


def test_a_tokenizer_comes_back_with_its_special_tokens(tmp_path):
    tokenizer = train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER)
    folder = with_tokenizer(tmp_path / "new", tokenizer, vocab_size=300)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 0
    loaded = load(folder).tokenizer
    assert loaded is not None
    assert loaded.special_tokens == OTHER
    assert (loaded.end_id, loaded.padding_id, loaded.unknown_id) == (0, 1, None)
    assert loaded.vocab_size == 300
    assert loaded.encode("the mat") == tokenizer.encode("the mat")


def test_ids_beyond_the_tokenizer_decode_to_nothing(tmp_path):
    tokenizer = train_word_level(["the cat"])
    folder = with_tokenizer(tmp_path / "new", tokenizer, vocab_size=23)
    loaded = load(folder).tokenizer
    assert loaded is not None
    assert tokenizer.vocab_size < 23
    ids = [4, tokenizer.vocab_size, 3, 22]
    assert loaded.decode(ids) == tokenizer.decode([4, 3])
    with pytest.raises(ValueError, match=r"\[0, 23\)"):
        loaded.decode([23])


def test_a_tokenizer_with_more_tokens_than_the_model_is_another_models(tmp_path):
    folder = tmp_path / "model"
    save(folder, pretrained())
    train_bpe(TEXTS, vocab_size=300).save(folder)
    refused(folder, "tokenizer.json", "vocabulary only 23", "another model's")


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "tokenizer.json is not a whole tokenizer.json")


@pytest.mark.parametrize("text", ["{", "[]"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_file_beside_a_tokenizer_is_named(tmp_path, name, text):
    folder = with_tokenizer(tmp_path / "new", train_word_level(["the cat"]))
    (folder / name).write_text(text)
    refused(folder, name)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "form", [str, lambda token: {"content": token, "lstrip": True}]
)
def test_special_tokens_are_read_from_either_file_in_either_form(tmp_path, file, form):
    train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"no token '<\|endoftext\|>'.*<\|stop\|>"):
        load_tokenizer(tmp_path)
    named = {"eos_token": form("<|stop|>"), "pad_token": form("<|fill|>")}
    (tmp_path / file).write_text(json.dumps(named))
    assert load_tokenizer(tmp_path).special_tokens == OTHER


def test_the_config_of_a_tokenizer_goes_before_the_map(tmp_path):
    train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER).save(tmp_path)
    other = {"eos_token": "<|fill|>", "pad_token": "<|stop|>", "bos_token": "?"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(other))
    assert load_tokenizer(tmp_path).end_id == 0
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": null}')
    assert load_tokenizer(tmp_path).end_id == 1


def test_an_end_token_that_pads_too_is_no_padding_token_of_its_own(tmp_path):
    train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER).save(tmp_path)
    named = {"eos_token": "<|stop|>", "pad_token": "<|stop|>", "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == SpecialTokens(end="<|stop|>", padding=None)
    assert loaded.padding_id == loaded.end_id == 0


def test_an_end_token_that_the_tokenizer_lacks_is_named(tmp_path):
    train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match=r"tokenizer.json.*no token '</s>'"):
        load_tokenizer(tmp_path)


def test_special_tokens_asked_for_go_before_the_files(tmp_path):
    train_bpe(TEXTS, vocab_size=265, special_tokens=OTHER).save(tmp_path)
    asked = SpecialTokens(end="<|fill|>", padding=None)
    assert load_tokenizer(tmp_path, special_tokens=asked).end_id == 1


def test_a_vocabulary_may_be_stated_larger_but_not_smaller(tmp_path):
    train_bpe(TEXTS, vocab_size=265).save(tmp_path)
    least = load_tokenizer(tmp_path).vocab_size
    assert load_tokenizer(tmp_path, vocab_size=least).vocab_size == least
    assert load_tokenizer(tmp_path, vocab_size=999).vocab_size == 999
    with pytest.raises(ValueError, match=rf"{least} token ids.* only {least - 1}"):
        load_tokenizer(tmp_path, vocab_size=least - 1)
