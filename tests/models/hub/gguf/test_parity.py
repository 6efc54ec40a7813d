"""Models in GGUF files against transformers' dequantised ones: logits."""

import warnings

import pytest
from witnesses import parity
from witnesses.ggufs import SETTINGS, WRITTEN, write_gguf

from ldjax.models import load

# Importing torch and transformers alone takes seconds.
pytestmark = pytest.mark.slow

#: Blocks of K-quants are of 256 numbers.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
#: What transformers takes for granted where a file says something else.
GRANTED = {
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3_text": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "num_hidden_layers": 6,
    },
}
#: Llama's rows of queries are stored in another order, Gemma's norms with one added.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
KINDS = ("F32", "Q4_1", "Q6_K")
REDUNDANT = (
    *("F32", "F16", *(kind for kind in WRITTEN if kind not in KINDS)),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "IQ3_S"),
)
REQUIRED = (
    *(("llama", kind) for kind in KINDS),
    *((name, "Q8_0") for name in ARCHITECTURES if name != "llama"),
)


def stored(path, config, model, kind):
    """The file of a model of transformers."""
    content = config.to_dict()
    settings = {name: content[name] for name in SETTINGS if content.get(name)}
    if not content.get("use_sliding_window", "sliding_window" in settings):
        settings.pop("sliding_window", None)
    settings["head_dim"] = content.get("head_dim") or (
        content["hidden_size"] // content["num_attention_heads"]
    )
    rope = content["rope_parameters"]
    rope = rope.get("full_attention", rope)
    settings["rope.freq_base"] = float(rope["rope_theta"])
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if content["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    name = content["model_type"].removesuffix("_text")
    return write_gguf(path, name, settings, tensors, kind=kind)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *REQUIRED,
        *(
            pytest.param(name, kind, marks=pytest.mark.exhaustive)
            for name in ARCHITECTURES
            for kind in REDUNDANT
            if (name, kind) not in REQUIRED
        ),
    ],
)
def test_logits_equal_those_of_transformers(tmp_path, architecture, kind):
    transformers = parity.library("transformers")
    tied = kind in ("Q4_1", "F16", "Q5_K") or architecture.startswith("gemma")
    settings = WIDE | GRANTED.get(architecture, {})
    config = parity.tiny_config(
        architecture, **settings, num_key_value_heads=2, tie_word_embeddings=tied
    )
    drawn = parity.draw_model(config, "float32")
    file = stored(tmp_path / "m.gguf", config, drawn, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ids of special tokens that no file has
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=file.name, dtype="float32"
        )
    wanted = parity.hub_logits(model.eval(), "float32")
    found = parity.our_logits(load(file))
    parity.assert_close(parity.real(found), parity.real(wanted), "float32")
    if kind == "F32":
        original = parity.hub_logits(drawn, "float32")
        parity.assert_close(parity.real(found), parity.real(original), "float32")
