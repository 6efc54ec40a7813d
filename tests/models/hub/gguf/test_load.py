"""A GGUF file is the model that it was made of: settings, layout, types, refusals."""

import dataclasses
import functools
import re

import gguf
import jax
import numpy as np
import pytest
from witnesses.ggufs import NAMES, SETTINGS, WRITTEN, write_gguf
from zoo.decoders import pretrained

from ldjax.models import Pretrained, RotaryScaling, load
from ldjax.models.hub.config import to_hub
from ldjax.models.hub.gguf.file import GgufFile
from ldjax.models.hub.parameters import packed

#: The name that a file has for each style; Mistral is stored as Llama.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
}


@functools.cache
def drawn(architecture="llama", **changes):
    """A model in float32."""
    return pretrained(architecture, param_dtype="float32", **changes)


def stored(path, model: Pretrained, architecture="llama", change=None, **how):
    """Its file."""
    content = to_hub(model.config)
    settings = {name: content[name] for name in SETTINGS if content.get(name)}
    if not model.config.sliding_layers:
        settings.pop("sliding_window", None)
    settings["rope.freq_base"] = model.config.rotary_theta
    if model.config.local_rotary_theta is not None:
        settings["rope.freq_base_swa"] = model.config.local_rotary_theta
        settings["attention.sliding_window_pattern"] = 2
    settings |= how.pop("settings", {})
    tensors = dict(packed(model.params, model.config))
    if change is not None:
        change(tensors)
    return write_gguf(path, architecture, settings, tensors, **how)


def assert_same(found, wanted, *, atol=0.0):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("style", "tied"),
    [
        *((style, True) for style in ARCHITECTURES),
        *((style, False) for style in ("llama", "qwen2", "gemma3")),
    ],
)
def test_a_file_is_the_model_it_was_made_of(tmp_path, style, tied):
    model = drawn(style, num_kv_heads=2, tied_head=False)
    config = dataclasses.replace(model.config, tied_head=tied)
    params = {k: v for k, v in model.params.items() if not tied or k != "unembedding"}
    model = model._replace(config=config, params=params)
    file = stored(tmp_path / "model.gguf", model, ARCHITECTURES[style])
    found = load(file)
    # The name follows from the rest.
    config = dataclasses.replace(config, family=None)
    assert found.config == config
    assert found.tokenizer is None
    # One is added to norms of Gemma, and taken away again.
    assert_same(found.params, params, atol=2e-7 if "gemma" in style else 0.0)
    # The folder that has nothing else is the file, and shapes are read without it.
    shapes = load(tmp_path, shapes_only=True)
    assert shapes.config == config
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes.params
    )
    assert load(file, param_dtype="bfloat16").params["final_norm"]["scale"].dtype == (
        "bfloat16"
    )


def test_biases_and_a_width_of_heads_are_read_too(tmp_path):
    model = drawn(
        *(), qkv_bias=True, attention_out_bias=True, mlp_bias=True, head_dim=6
    )
    found = load(stored(tmp_path / "a.gguf", model))
    assert found.config == model.config
    assert_same(found.params, model.params)


KINDS = (*WRITTEN, "F16", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_gives_what_the_package_dequantises(tmp_path, kind):
    model = drawn(
        "llama", num_layers=1, width=256, mlp_width=256, head_dim=64, tied_head=True
    )
    file = stored(tmp_path / "a.gguf", model, kind=kind)
    found = load(file).params
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}

    def dequantised(name):
        of = tensors[name]
        assert of.tensor_type.name == kind
        return gguf.dequantize(of.data, of.tensor_type)

    block = found["blocks_0"]
    np.testing.assert_array_equal(
        block["mlp"]["down"]["kernel"], dequantised("blk.0.ffn_down.weight").T
    )
    np.testing.assert_array_equal(
        found["token_embedding"]["embedding"], dequantised("token_embd.weight")
    )
    # Row 2i + j of a head in the file is row i + j d / 2 of the hub.
    rows = [
        head * 64 + i + j * 32 for head in range(4) for i in range(32) for j in (0, 1)
    ]
    np.testing.assert_array_equal(
        np.asarray(block["attention"]["query"]["kernel"]).T[rows],
        dequantised("blk.0.attn_q.weight"),
    )
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


# Rotary settings


def llama3_factors(config, factor):
    """What the converter of llama.cpp writes, in its own words."""
    old, low, high = 8192, 1.0, 4.0
    factors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * config.rotary_theta ** (i / config.head_dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_the_factors_of_llama_3_are_its_scaling(tmp_path):
    model = drawn(head_dim=64, rotary_theta=500000.0)
    factors = llama3_factors(model.config, 32.0)
    assert len(set(factors)) > 4  # all three cases
    file = stored(tmp_path / "a.gguf", model, extra={"rope_freqs.weight": factors})
    assert load(file).config.rotary_scaling == RotaryScaling(
        kind="llama3", factor=32.0, original_max_positions=8192, slow=1.0, fast=4.0
    )
    file = stored(
        tmp_path / "b.gguf", model, extra={"rope_freqs.weight": factors**1.01}
    )
    with pytest.raises(
        ValueError, match=r"b\.gguf: .*rope_freqs\.weight.* not the fac"
    ):
        load(file)
    file = stored(
        tmp_path / "c.gguf", model, extra={"rope_freqs.weight": np.ones_like(factors)}
    )
    assert load(file).config.rotary_scaling is None


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            RotaryScaling(kind="linear", factor=4.0),
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 16,
                "rope.scaling.finetuned": True,
            },
            RotaryScaling(
                kind="yarn",
                factor=4.0,
                original_max_positions=16,
                slow=1.0,
                fast=32.0,
                amplitude=0.1 * np.log(4.0) + 1,
            ),
        ),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
    ],
)
def test_a_scaling_of_rotary_positions_is_read(tmp_path, settings, scaling):
    file = stored(tmp_path / "a.gguf", drawn(), settings=settings)
    assert load(file).config.rotary_scaling == scaling


# What is refused


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("mamba", {}, "the architecture is 'mamba'; of GGUF files ldjax reads llama, "),
        (
            "llama",
            {"expert_count": 8},
            "`llama.expert_count` is set: .* mixture of exp",
        ),
        ("llama", {"logit_scale": 2.0}, r"does not know.*: llama\.logit_scale"),
        ("llama", {"attention.value_length": 4}, "heads of one width"),
        ("llama", {"rope.dimension_count": 4}, "partial_rotary_factor"),
        ("llama", {"rope.scaling.type": "longrope"}, "longrope"),
        (
            "llama",
            {"num_attention_heads": [4, 2]},
            r"head_count` must be a number, got",
        ),
        ("llama", {"num_hidden_layers": None}, r"`llama\.block_count` is missing"),
        ("llama", {"num_hidden_layers": 3}, r"`num_hidden_layers` is 3, but .* of 2"),
        ("llama", {"hidden_size": 48}, r"`hidden_size` is 48, but .*\[23, 32\]"),
        ("llama", {"num_hidden_layers": 0}, r"block_count` must be a whole number"),
    ],
)
@pytest.mark.parametrize("shapes_only", [True, False])
def test_a_model_that_is_not_computed_is_refused_by_name(
    tmp_path, architecture, settings, message, shapes_only
):
    file = stored(tmp_path / "m.gguf", drawn(), architecture, settings=settings)
    with pytest.raises(ValueError, match=message) as caught:
        load(file, shapes_only=shapes_only)
    assert "m.gguf" in str(caught.value)


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path):
    file = stored(
        tmp_path / "m.gguf",
        drawn(),
        change=lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
        extra={"blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)},
    )
    with pytest.raises(
        ValueError,
        match=r"The metadata of .*m\.gguf does not fit the tensors beside it: missing: "
        r"model\.layers\.1\.mlp\.up_proj\.weight; not of this model: "
        r"blk\.0\.ffn_gate_inp\.weight",
    ):
        load(file)
    file = write_gguf(tmp_path / "v.gguf", "llama", {}, {})
    with pytest.raises(ValueError, match=r"v\.gguf: it has no `token_embd\.weight`"):
        load(file)


def test_a_type_that_the_package_does_not_dequantise_is_named(tmp_path):
    number = gguf.GGMLQuantizationType.Q8_K
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    block, size = gguf.GGML_QUANT_SIZES[number]
    writer.add_tensor("a", np.zeros((3, size), np.uint8), raw_dtype=number)
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    file = GgufFile.of(tmp_path / "m.gguf")
    assert file.tensors["a"].shape == (3, block)
    with pytest.raises(ValueError, match=r"m\.gguf: a is of the type Q8_K, which"):
        file.refuse_kinds(["a"])


def test_files_that_are_no_whole_gguf_are_refused_in_one_line(tmp_path):
    whole = stored(tmp_path / "whole.gguf", drawn()).read_bytes()
    file = tmp_path / "m.gguf"

    def refused(data):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
            load(file, shapes_only=True)
        message = str(caught.value)
        assert "\n" not in message
        return message

    assert "begins with b'PK" in refused(b"PK\x03\x04" + whole)
    assert "git lfs pull" in refused(b"version https://git-lfs.github.com/spec/v1\n")
    assert "begins with b''" in refused(b"")
    assert "big-endian" in refused(whole[:4] + whole[7:3:-1] + whole[8:])
    assert "version 9" in refused(whole[:4] + b"\x09\0\0\0" + whole[8:])
    for length in (5, 30, 200, 700, len(whole) // 2, len(whole) - 33):
        assert "not a whole GGUF file" in refused(whole[:length])


@pytest.mark.exhaustive
def test_bytes_that_changed_are_refused_or_read(tmp_path):
    whole = stored(tmp_path / "whole.gguf", drawn()).read_bytes()
    file = tmp_path / "m.gguf"
    rng = np.random.default_rng(0)
    header = whole.index(b"output_norm") + 60
    outcomes = []
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(4, header, size=rng.integers(1, 4)):
            data[place] = rng.integers(256)
        file.write_bytes(data)
        found = None
        try:
            load(file, shapes_only=True)
        except ValueError as error:
            found = str(error)
        assert found is None or str(file) in found
        outcomes.append(found is None)
    assert {True, False} == set(outcomes)


def test_parts_of_a_model_are_refused_with_how_to_join_them(tmp_path):
    name = "m-00001-of-00002.gguf"
    parts = {"split.no": 0, "split.count": 2, "split.tensors.count": 21}
    stored(tmp_path / name, drawn(), metadata=parts)
    with pytest.raises(
        ValueError, match=r"part 1 of 2 .*llama-gguf-split --merge FIRST-PART"
    ):
        load(tmp_path / name)


def test_which_file_is_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.gguf"):
        load(tmp_path / "none.gguf")
    model = drawn()
    stored(tmp_path / "a.gguf", model)
    with pytest.raises(ValueError, match="`revision` is of a repository"):
        load(tmp_path / "a.gguf", revision="main")
    stored(tmp_path / "b.gguf", model)
    with pytest.raises(ValueError, match=r"has 2 GGUF files: a\.gguf, b\.gguf\. Give"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="`model_type` is None"):
        load(tmp_path)
    assert set(NAMES.values()) >= {"attn_q", "output"}
