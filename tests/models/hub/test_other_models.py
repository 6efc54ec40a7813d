"""What a newcomer is told of models that ldjax does not read: one line each."""

import json

import pytest
from witnesses import parity
from zoo.decoders import pretrained

from ldjax.models import load, save
from ldjax.models.hub.config import from_hub
from ldjax.models.hub.families import FAMILIES


def refusal(content):
    """The one line that refuses a `config.json`."""
    with pytest.raises(ValueError, match=r"^[^\n]+\.$") as caught:
        from_hub(content)
    return str(caught.value)


READS = "ldjax reads GPT-2, GPT-NeoX (Pythia), Llama (SmolLM2), Qwen2"

MOE = "a mixture of experts: which matrices a token meets depends on the token"
ENCODER = "an encoder, which reads in both directions"
RECURRENT = "a state-space or recurrent model"
SEES = "a model of images or sound beside text"
BLOCKS = "whose blocks ldjax does not compute"


@pytest.mark.parametrize(
    ("family", "more", "what"),
    [
        ("mixtral", {"num_local_experts": 8}, f"{MOE}, which ldjax does not compute"),
        ("mixtral", {}, MOE),
        ("qwen2_moe", {"num_experts": 60}, "(`num_experts` is 60)"),
        ("qwen3_moe", {"num_experts": 128}, MOE),
        ("olmoe", {"num_experts": 64}, MOE),
        ("gpt_oss", {"num_local_experts": 32}, MOE),
        ("deepseek_v3", {"n_routed_experts": 256}, "(`n_routed_experts` is 256)"),
        ("dbrx", {"ffn_config": {"moe_num_experts": 16}}, "(`moe_num_experts` is 16)"),
        ("hunyuan_v1_moe", {"num_experts": [8, 8]}, "(`num_experts` is [8, 8])"),
        (
            "llama4",
            {"text_config": {"num_local_experts": 16}, "vision_config": {}},
            MOE,
        ),
        ("bert", {}, ENCODER),
        ("roberta", {}, ENCODER),
        ("distilbert", {}, ENCODER),
        ("modernbert", {}, ENCODER),
        ("deberta-v2", {}, ENCODER),
        ("modernbert-decoder", {}, BLOCKS),
        ("t5", {"is_encoder_decoder": True}, "an encoder-decoder, which reads one"),
        ("bart", {}, "an encoder-decoder, which reads one"),
        ("seamless", {"is_encoder_decoder": True}, "an encoder-decoder; ldjax reads"),
        ("mamba", {}, RECURRENT),
        ("rwkv", {}, RECURRENT),
        ("jamba", {}, RECURRENT),
        ("whisper", {}, "a model of sound"),
        ("vit", {}, "a model of images"),
        *((name, {}, BLOCKS) for name in ("falcon", "bloom", "opt", "phi", "gemma")),
        *((name, {}, BLOCKS) for name in ("gpt_bigcode", "gptj", "mpt", "cohere")),
        ("llava", {"text_config": {"model_type": "vicuna"}}, SEES),
        ("qwen2_vl", {"vision_config": {}, "image_token_id": 9}, SEES),
        (
            "mllama",
            {"text_config": {"model_type": "llama"}, "vision_config": {}},
            "(ldjax reads its text model alone, llama, from a folder of its own)",
        ),
        (None, {}, "so that it is not known what model it is of"),
        ("", {"hidden_size": 768}, "so that it is not known what model it is of"),
    ],
)
def test_a_model_of_another_kind_is_told_by_its_kind(family, more, what):
    message = refusal({"model_type": family, **more})
    assert message.startswith(f"`model_type` is {family!r}, ")
    assert what in message
    assert READS in message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_a_mixture_of_experts_in_disguise_is_none_of_a_family(family, name):
    message = refusal({"model_type": family, name: 2})
    assert MOE in message
    assert f"(`{name}` is 2)" in message


@pytest.mark.parametrize("number", [None, 0, 1, True, [], {}])
def test_no_expert_or_one_is_no_mixture(tmp_path, number):
    save(tmp_path / "a", pretrained("llama"))
    file = tmp_path / "a" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"num_local_experts": number}))
    load(tmp_path / "a", shapes_only=True)


@pytest.mark.parametrize(
    ("changes", "scheme"),
    [
        (
            {
                "quantization_config": {
                    "quant_method": "bitsandbytes",
                    "load_in_4bit": True,
                }
            },
            "(bitsandbytes, 4 bits)",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "(gptq, 4 bits)",
        ),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "(awq, 4 bits)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "(fp8)"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "(mxfp4)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "(4 bits)"),
        ({"quantization_config": 3}, "(3)"),
        ({"quantization_config": {}}, "({})"),
    ],
)
def test_quantized_weights_are_refused_with_their_scheme(changes, scheme):
    message = refusal({"model_type": "llama", **changes})
    assert f"quantized {scheme}" in message
    assert "Load the model that they were made from, or a GGUF file of it." in message


@pytest.mark.parametrize(
    "head", ["LlamaForSequenceClassification", "LlamaForTokenClassification"]
)
def test_a_model_with_another_head_is_refused(head):
    message = refusal({"model_type": "llama", "architectures": [head]})
    assert f"`architectures` has {head}" in message
    assert "gives scores" in message


@pytest.mark.exhaustive
def test_every_model_of_transformers_is_read_or_refused_in_one_line():
    """By the defaults of its configuration; only settings of a family are its own."""
    transformers = parity.library("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    told = {}
    for family in sorted(set(mapping) - {*FAMILIES, "gemma3"}):
        try:
            content = mapping[family]().to_dict()
        except Exception:  # some cannot be made without arguments
            content = {"model_type": family}
        told[family] = refusal({**content, "model_type": family})
        assert len(told[family]) < 600
    assert len(told) > 300
    unlike = {
        name: text for name, text in told.items() if "moe" in name and MOE not in text
    }
    assert not unlike


# Folders.


def message_of(folder):
    """The one line that refuses a folder, as a run shows it."""
    with pytest.raises((ValueError, FileNotFoundError), match=r"^[^\n]+\.$") as caught:
        load(folder)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value).removeprefix(str(folder))


def fill(folder, *names):
    """Empty files, and `name/` for folders."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ((), "it is empty"),
        (("a/",), "it is no folder of a model"),
        (("pytorch_model.bin",), "pytorch_model.bin alone do not tell"),
        (
            ("model.safetensors",),
            "model.safetensors alone do not tell the architecture",
        ),
        (
            ("tokenizer.json", "tokenizer_config.json"),
            "it has a tokenizer (tokenizer.json, tokenizer_config.json) but no model",
        ),
        (("modules.json", "1_Pooling/config.json"), "sentence-transformers"),
        (("model_index.json", "unet/config.json"), "a pipeline of diffusers"),
        (("params.json", "consolidated.00.pth"), "its maker's own layout"),
        (("decoder_model.onnx", "tokenizer.json"), "decoder_model.onnx is a program"),
        (("onnx/model.onnx",), "model.onnx is a program made from a model"),
        (("train-0.parquet", "train-1.parquet"), "it holds data (train-0.parquet, "),
    ],
)
def test_a_folder_that_is_no_model_is_told_by_what_it_is(tmp_path, files, what):
    message = message_of(fill(tmp_path / "a", *files))
    assert message.startswith(" has no config.json: ")
    assert what in message


def test_a_folder_above_a_model_says_which_to_give(tmp_path):
    above = fill(tmp_path / "a", "model/config.json")
    assert message_of(above).endswith(f"give {above / 'model'}.")
    cached = fill(tmp_path / "b", "refs/main", "snapshots/0f/config.json")
    assert message_of(cached).endswith(f"give {cached / 'snapshots' / '0f'}.")
    trained = fill(
        *(tmp_path / "c", "checkpoint-90/config.json", "runs/x"),
        *("checkpoint-500/adapter_config.json", "checkpoint-x/config.json"),
    )
    assert message_of(trained).endswith(f"such as {trained / 'checkpoint-500'}.")
    many = fill(tmp_path / "d", *(f"{i}/config.json" for i in range(9)))
    assert "it holds 9 folders of models" in message_of(many)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (
            "pytorch_model.bin",
            "`AutoModelForCausalLM.from_pretrained(A).save_pretrained",
        ),
        ("model.ckpt", "they run no code"),
        ("tf_model.h5", "of TensorFlow or Flax; ldjax reads safetensors"),
        ("flax_model.msgpack", "transformers before version 5 converts them"),
        ("model.onnx", "a program made from a model"),
        ("openvino_model.xml", "a program made from a model"),
        ("tokenizer.model", "has no weights: neither model.safetensors nor"),
    ],
)
def test_weights_in_another_form_say_what_makes_them_safetensors(tmp_path, file, what):
    save(tmp_path / "a", pretrained())
    (tmp_path / "a" / "model.safetensors").unlink()
    message = message_of(fill(tmp_path / "a", file))
    assert what in message
    assert "openvino" not in what or file in message


def test_pickled_adapters_are_converted_by_peft(tmp_path):
    from ldjax.models.hub.files import TensorFiles

    folder = fill(tmp_path / "a", "adapter_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"PeftModel.from_pretrained\(BASE, A\)"
    ):
        TensorFiles.of(folder, name="adapter_model.safetensors")


def test_of_a_repository_only_safetensors_were_fetched(tmp_path):
    folder = tmp_path / "snapshots" / "0f"
    save(folder, pretrained())
    (folder / "model.safetensors").unlink()
    assert "if the repository has pytorch_model.bin instead" in message_of(folder)
