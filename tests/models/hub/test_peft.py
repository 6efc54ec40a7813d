"""Adapters against PEFT: written, read, merged; and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import parity
from witnesses.parity import FAMILIES, LATER_FAMILIES
from zoo.decoders import CONFIGS, random_params

from ldjax.models import (
    LowRank,
    Pretrained,
    Transformer,
    add_adapters,
    is_adapter,
    load,
    merge_adapters,
    save,
    save_adapters,
)

TARGETS = {
    "gpt2": ("qkv", "out", "up", "down"),
    "gpt_neox": ("qkv", "out", "up", "down"),
    "qwen2": ("query", "key", "value", "out", "gate", "up", "down"),
    "llama": ("query", "value", "down"),
    "phi3": ("qkv", "out", "gate_up", "down"),
    **dict.fromkeys(
        (family for family in LATER_FAMILIES if family != "phi3"),
        ("query", "key", "value", "out", "gate", "up", "down"),
    ),
}
MODULES = {
    "gpt2": ["c_attn", "c_proj"],  # also the one of the MLP
    "gpt_neox": ["query_key_value", "dense", "dense_4h_to_h"],
    "qwen2": ["q_proj", "v_proj"],
    "llama": ["self_attn.k_proj", "o_proj", "gate_proj", "up_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    **{
        family: ["q_proj", "self_attn.v_proj", "gate_proj", "mlp.down_proj"]
        for family in LATER_FAMILIES
        if family != "phi3"
    },
}


def drawn_adapters(pretrained, seed=0):
    """The same with adapters that change something: no `B` is zero."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf, chosen: (
            jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype) if chosen else leaf
        ),
        pretrained.params,
        is_adapter(pretrained.params),
    )
    return pretrained._replace(params=params)


def hub_base(folder, family, **settings):
    """A model of transformers in float64, and its folder."""
    model = parity.draw_model(parity.tiny_config(family, **settings), "float64")
    model.save_pretrained(folder)
    return model


def merged_by_peft(base, folder):
    """PEFT's model with the adapters of a folder, and its logits; then merged."""
    peft = parity.library("peft")
    with parity.precision("float64"):
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        model = model.to(parity.library("torch").float64)
    logits = parity.hub_logits(model, "float64")
    with parity.precision("float64"):
        merged = model.merge_and_unload()
    return logits, parity.hub_logits(merged, "float64"), merged


def assert_agree(got, wanted):
    parity.assert_close(parity.real(got), parity.real(wanted), "float64")


def some_layers(layers):
    """Every family once, in turn with all layers and with some; else exhaustive."""
    kept = [(family, (None, layers)[i % 2]) for i, family in enumerate(FAMILIES)]
    other = [(family, (layers, None)[i % 2]) for i, family in enumerate(FAMILIES)]
    kept.append(("phi3", layers))
    other += [(family, layers) for family in LATER_FAMILIES if family != "phi3"]
    return [*kept, *(pytest.param(*c, marks=pytest.mark.exhaustive) for c in other)]


# PEFT asks transformers for something by its old name.
of_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.mark.slow
@of_peft
@pytest.mark.parametrize(("family", "layers"), some_layers((1,)))
def test_peft_computes_the_logits_of_saved_adapters(tmp_path, family, layers):
    theirs = hub_base(tmp_path / "base", family)
    base = load(tmp_path / "base", param_dtype="float64")
    adapters = LowRank(rank=3, alpha=5.0, targets=TARGETS[family], layers=layers)
    ours = drawn_adapters(add_adapters(base, adapters, key=jax.random.key(0)))
    save_adapters(tmp_path / "adapters", ours, base=tmp_path / "base")
    plain = parity.hub_logits(theirs, "float64")
    wanted, wanted_merged, merged = merged_by_peft(theirs, tmp_path / "adapters")
    assert abs(parity.real(wanted - plain)).max() > 1e-2 * abs(plain).max()
    assert_agree(parity.our_logits(ours), wanted)
    assert_agree(wanted_merged, wanted)
    # The merged matrices are PEFT's, and the folder is read back as it was.
    merged.save_pretrained(tmp_path / "merged")
    got, kept = merge_adapters(ours), load(tmp_path / "merged", param_dtype="float64")
    assert got.config == kept.config
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13),
        got.params,
        kept.params,
    )
    back = load(tmp_path / "adapters", param_dtype="float64")
    assert back.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, back.params, ours.params)


@pytest.mark.slow
@of_peft
@pytest.mark.parametrize(("family", "layers"), some_layers([0]))
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_adapters_made_by_peft_have_their_logits(tmp_path, family, layers):
    peft, torch = parity.library("peft"), parity.library("torch")
    base = hub_base(tmp_path / "base", family)
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=MODULES[family],
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    with parity.precision("float64"), torch.no_grad():
        model = peft.get_peft_model(base, settings).to(torch.float64).eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(tmp_path / "adapters")
    ours = load(tmp_path / "adapters", param_dtype="float64")
    assert ours.config.adapters is not None
    num_named = len(MODULES[family]) + (family == "gpt2")
    assert len(ours.config.adapters.targets) == num_named
    assert_agree(parity.our_logits(ours), parity.hub_logits(model, "float64"))


STYLES = {"gpt2": "gpt2", "gpt_neox": "neox", "qwen2": "qwen2", "llama": "llama"}


def plain(family="gpt2", **changes):
    """A model of ldjax in float64."""
    config = dataclasses.replace(
        CONFIGS[STYLES[family]], param_dtype="float64", **changes
    )
    model = Transformer(config)
    return Pretrained(model, random_params(model), config, None)


def adapted(family="gpt2", *, layers=None, targets=None, **changes):
    """The same with adapters that change something."""
    targets = TARGETS[family] if targets is None else targets
    adapters = LowRank(rank=2, alpha=3.0, targets=targets, layers=layers)
    fresh = add_adapters(plain(family, **changes), adapters, key=jax.random.key(0))
    return drawn_adapters(fresh)


def logits(pretrained):
    tokens = jnp.arange(12).reshape(2, 6)
    options = {"xla_backend_optimization_level": 0}
    apply = jax.jit(pretrained.model.apply, compiler_options=options)
    return apply({"params": pretrained.params}, tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_merging_keeps_what_others_change(family):
    base = plain(family, num_layers=1)
    adapters = LowRank(rank=2, alpha=3.0, targets=TARGETS[family])
    fresh = add_adapters(base, adapters, key=jax.random.key(0))
    unchanged, model = logits(base), drawn_adapters(fresh)
    bound = 1e-12 * abs(unchanged).max()
    np.testing.assert_allclose(logits(fresh), unchanged, rtol=0, atol=bound)
    merged, wanted = merge_adapters(model), logits(model)
    np.testing.assert_allclose(logits(merged), wanted, rtol=0, atol=bound)
    assert abs(wanted - unchanged).max() > 1e-2
    assert merged.config == base.config


def test_adapters_are_two_matrices_beside_each_target():
    model = adapted("llama", layers=(1,))
    assert sum(jax.tree.leaves(is_adapter(model.params))) == 2 * len(TARGETS["llama"])
    base = plain("llama")
    assert merge_adapters(base) is base
    merged = merge_adapters(model).params
    jax.tree.map(
        np.testing.assert_array_equal, merged["blocks_0"], base.params["blocks_0"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_some_layers_are_read_back_with_their_base(tmp_path, family):
    model = adapted(family, layers=(1,))
    save(tmp_path / "base", plain(family))
    save_adapters(tmp_path / "adapters", model, base=tmp_path / "base")
    back = load(tmp_path / "adapters", param_dtype="float64")
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    shapes = load(tmp_path / "adapters", shapes_only=True, param_dtype="float64")
    assert shapes.config == model.config
    for shape, leaf in zip(
        jax.tree.leaves(shapes.params), jax.tree.leaves(model.params), strict=True
    ):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


@pytest.fixture
def folder(tmp_path):
    """Adapters of GPT-2 and, beside them, their base."""
    save(tmp_path / "base", plain())
    save_adapters(tmp_path / "adapters", adapted(), base=tmp_path / "base")
    return tmp_path / "adapters"


def edit(folder, **changes):
    """Changes the settings of adapters."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder, change):
    """Changes the tensors of adapters."""
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "IA3"),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["experts.up"]),
    ],
)
def test_settings_that_change_the_function_are_refused_by_name(folder, name, value):
    edit(folder, **{name: value})
    with pytest.raises(ValueError, match=rf"adapter_config.json: `{name}` is"):
        load(folder)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda"])
def test_starts_that_change_the_base_when_peft_reads_them_are_refused(folder, start):
    # There `W` becomes what the start leaves of it, so that `W + B A` is not meant.
    edit(folder, init_lora_weights=start)
    with pytest.raises(ValueError, match=rf"`init_lora_weights`.*{start}"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", None),
        ("r", "two"),
        ("r", 2.5),
        ("lora_alpha", None),
        ("lora_alpha", "much"),
        ("base_model_name_or_path", 3),
    ],
)
def test_settings_that_make_no_sense_are_named(folder, name, value):
    edit(folder, **{name: value})
    with pytest.raises(ValueError, match=rf"adapter_config.json.*{name}"):
        load(folder)


def test_settings_of_training_alone_are_no_matter(folder):
    wanted = load(folder)
    edit(
        folder,
        lora_dropout=0.3,
        inference_mode=False,
        task_type=None,
        init_lora_weights="gaussian",
        revision=None,
    )
    assert load(folder).config == wanted.config


@pytest.mark.parametrize("module", ["q_proj", "c", "attn"])
def test_modules_of_other_models_are_no_matter_beside_some_of_this(folder, module):
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    wanted = load(folder)
    edit(folder, target_modules=[*targets, module])
    assert load(folder).config == wanted.config
    edit(folder, target_modules=[module])
    with pytest.raises(ValueError, match=rf"'{module}'.*attn.c_attn.*mlp.c_proj"):
        load(folder)


@pytest.mark.parametrize("module", ["wte", "transformer.wpe", "lm_head"])
def test_adapters_outside_of_blocks_are_refused(folder, module):
    edit(folder, target_modules=["c_attn", module])
    with pytest.raises(ValueError, match=rf"chooses .*{module}.*blocks only.*Merge"):
        load(folder)


def test_a_layer_beyond_the_last_is_refused(folder):
    edit(folder, layers_to_transform=[0, 7])
    with pytest.raises(ValueError, match=r"adapter_config.json.*7"):
        load(folder)


def test_tensors_that_do_not_fit_are_named(folder):
    def damage(tensors):
        name = next(name for name in sorted(tensors) if "c_fc.lora_A" in name)
        tensors[name] = tensors[name][:, 1:].copy()

    edit_tensors(folder, damage)
    with pytest.raises(ValueError, match=r"adapters do not fit.*c_fc.lora_A.*31"):
        load(folder)


@pytest.mark.parametrize("name", ["missing", "extra"])
def test_missing_and_extra_tensors_are_named(folder, name):
    gone = "base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"

    def damage(tensors):
        whole = tensors.pop(gone)
        if name == "extra":
            tensors.update({gone: whole, "other.lora_A.weight": whole})

    edit_tensors(folder, damage)
    wanted = gone if name == "missing" else "other.lora_A.weight"
    with pytest.raises(ValueError, match=wanted):
        load(folder)


def test_a_file_of_tensors_that_is_gone_is_named(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors"):
        load(folder)


def test_a_base_that_is_gone_is_named(folder):
    edit(folder, base_model_name_or_path=str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load(folder)


@pytest.mark.parametrize("base", [None, ""])
def test_adapters_without_a_base_are_refused(folder, base):
    edit(folder, base_model_name_or_path=base)
    with pytest.raises(ValueError, match="does not name its base model"):
        load(folder)


def test_damaged_settings_are_named(folder):
    (folder / "adapter_config.json").write_text('{"r": 2,')
    with pytest.raises(ValueError, match=r"adapter_config.json is not whole JSON"):
        load(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config.json"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ("qkv",)),
        ("qwen2", ("up", "qkv")),
        ("gpt2", ("query", "value")),
        ("gpt_neox", ("key",)),
    ],
)
def test_adapters_that_peft_has_not_are_not_written(tmp_path, family, targets):
    model = adapted(family, targets=targets)
    wrong = next(name for name in targets if name != "up")
    with pytest.raises(ValueError, match=f"no adapters of {wrong}.* in {family}"):
        save_adapters(tmp_path / "adapters", model, base="some/model")
    assert not list(tmp_path.iterdir())


def test_a_gate_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="gate"):
        adapted("gpt2", targets=("gate",))


def test_adapters_are_put_on_once():
    model = adapted()
    adapters = LowRank(rank=1, alpha=1.0, targets=("up",))
    with pytest.raises(ValueError, match="merge them first"):
        add_adapters(model, adapters, key=jax.random.key(0))


def test_a_model_with_adapters_is_not_saved_whole(tmp_path):
    with pytest.raises(ValueError, match="merge_adapters"):
        save(tmp_path / "whole", adapted())
    assert not list(tmp_path.iterdir())


def test_a_model_without_adapters_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        save_adapters(tmp_path / "adapters", plain(), base="some/model")


def test_a_folder_that_holds_something_is_left_alone(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(FileExistsError, match="not empty"):
        save_adapters(folder, adapted(), base="some/model")
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
