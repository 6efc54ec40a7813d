"""Configurations at random of the families that came later, as transformers has them.

Windows are shorter than the rows that are compared, and rotary bases small, so that
every block's own kind is seen in the logits.
"""

import numpy as np

CONFIGS = {
    "qwen3": "Qwen3Config",
    "mistral": "MistralConfig",
    "smollm3": "SmolLM3Config",
    "phi3": "Phi3Config",
    "olmo2": "Olmo2Config",
    "olmo3": "Olmo3Config",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
}
MODULES = tuple(family.removesuffix("_text") for family in CONFIGS)
#: What makes a small configuration of each, beside the sizes that all share.
TINY = {
    "qwen3": {"num_key_value_heads": 1, "head_dim": 6},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 4},
    "smollm3": {"num_key_value_heads": 1, "no_rope_layers": [1, 0]},
    "phi3": {"num_key_value_heads": 1, "sliding_window": 4},
    "olmo2": {"num_key_value_heads": 1},
    "olmo3": {"num_key_value_heads": 1, "sliding_window": 4},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 6, "sliding_window": 4},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 6, "sliding_window": 4},
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def draw_settings(family, index, draw_scaling):
    """Settings at random; the index goes round what must not be missed."""
    rng = np.random.default_rng([index, *family.encode()])

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    layers = (2, 3, 2, 4, 2, 3)[index % 6]
    heads = one_of(1, 2, 3, 4)
    shared = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": one_of(
            *(n for n in range(1, heads + 1) if not heads % n)
        ),
        "hidden_size": heads * one_of(6, 8, 10),
        "intermediate_size": one_of(17, 30),
        "max_position_embeddings": 96,
        "tie_word_embeddings": bool(index % 2),
        "rms_norm_eps": one_of(1e-6, 1e-3),
    }
    theta = one_of(50.0, 10_000.0)
    # Of a window of one token the cache of transformers keeps all keys.
    window = {"sliding_window": one_of(2, 3, 4, 5)}
    kinds = [(_SLIDING, _FULL)[(i + index) % 2] for i in range(layers)]
    bias = {"attention_bias": bool(index % 3 == 1)}
    alike = {"rope_parameters": {"rope_theta": theta, **(draw_scaling(index) or {})}}
    by_kind = {
        "rope_parameters": {
            _FULL: {"rope_theta": theta, **(draw_scaling(index) or {})},
            _SLIDING: {"rope_theta": 9.0},
        }
    }
    if family == "qwen3":
        more = alike | bias | {"head_dim": one_of(4, 6, 10)}
        if index % 2:
            more |= window | {"use_sliding_window": True}
            more |= {"layer_types": kinds} if index % 3 else {"max_window_layers": 1}
    elif family == "mistral":
        more = alike | {"head_dim": one_of(None, 6, 10)}
        more |= window if index % 3 else {"sliding_window": None}
    elif family == "smollm3":
        rotated = [[1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]][index % 3]
        more = alike | bias | {"no_rope_layers": rotated[:layers]}
        more |= {"mlp_bias": bool(index // 2 % 2)}
        if index % 2:
            more |= window | {"use_sliding_window": True}
            more |= {"layer_types": kinds} if index % 3 else {}
    elif family == "phi3":
        fraction = (1.0, 0.5, 0.25)[index % 3]
        shared["hidden_size"] = heads * one_of(8, 16)
        rope = {"rope_theta": theta, "partial_rotary_factor": fraction}
        more = {"rope_parameters": {"rope_type": "default", **rope}}
        more |= window if index % 2 else {}
    elif family == "olmo2":
        more = alike | bias
    elif family == "olmo3":
        more = by_kind | bias | window
        more |= {"layer_types": kinds} if index % 3 else {}
    else:
        more = {
            **{"head_dim": one_of(4, 6, 10), "query_pre_attn_scalar": one_of(3, 6)},
            **bias,
            **window,
            "final_logit_softcapping": one_of(None, 9.0) if index else 9.0,
            "hidden_activation": one_of("gelu_pytorch_tanh", "silu"),
        }
        more |= {"layer_types": kinds} if index % 3 else {}
        if family == "gemma2":
            more |= alike | {"attn_logit_softcapping": (1.5, None, 4.0)[index % 3]}
        else:
            more |= by_kind
    return shared | more
