"""A decoder in plain NumPy, one position and one head at a time.

A witness for `ldjax.models.decoder.transformer`: it shares no code with it, reads the
same parameters and takes the other road where there is one (rotations as complex
numbers, position by position instead of masks).
"""

import math
from typing import Any

import numpy as np


def forward(config, params, tokens):
    """Logits `[pos, vocab]` of one sequence without padding, in float64."""
    params = _as_float64(params)
    embedding = params["token_embedding"]["embedding"]
    stream = [config.embedding_scale * embedding[token] for token in tokens]
    if config.positions == "learned":
        table = params["position_embedding"]["embedding"]
        stream = [x + table[t] for t, x in enumerate(stream)]
    for layer in range(config.num_layers):
        block = params[f"blocks_{layer}"]
        normed = [before(config, block, "attention_norm", x) for x in stream]
        attended = [
            after(config, block, "attention_out_norm", y)
            for y in attention(config, layer, block["attention"], normed)
        ]
        if config.parallel_residual:
            inputs = stream
        else:
            inputs = [x + y for x, y in zip(stream, attended, strict=True)]
        fed = [
            mlp(config, block["mlp"], before(config, block, "mlp_norm", x))
            for x in inputs
        ]
        fed = [after(config, block, "mlp_out_norm", y) for y in fed]
        stream = [x + y + z for x, y, z in zip(stream, attended, fed, strict=True)]
    final = [norm(config, params["final_norm"], x) for x in stream]
    if config.tied_head:
        logits = np.stack([embedding @ h for h in final])
    else:
        logits = np.stack([dense(params["unembedding"], h) for h in final])
    return capped(config.logit_softcap, logits)


def _as_float64(params) -> Any:
    if isinstance(params, dict):
        return {name: _as_float64(value) for name, value in params.items()}
    return np.asarray(params, np.float64)


def dense(layer, x):
    y = np.array([sum(x * column) for column in layer["kernel"].T])
    return y + layer["bias"] if "bias" in layer else y


def norm(config, layer, x):
    if config.norm == "layer":
        x = x - sum(x) / len(x)
    scale = config.norm_offset + layer["scale"]
    scaled = x / math.sqrt(sum(x**2) / len(x) + config.norm_epsilon) * scale
    return scaled + layer["bias"] if config.norm == "layer" else scaled


def before(config, block, name, x):
    return x if config.norm_placement == "post" else norm(config, block[name], x)


def after(config, block, name, x):
    return x if config.norm_placement == "pre" else norm(config, block[name], x)


def capped(cap, x):
    return x if cap is None else cap * np.tanh(x / cap)


def activation(config, x):
    if config.activation == "gelu":
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    if config.activation == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if config.activation == "relu":
        return max(x, 0.0)
    return x / (1 + math.exp(-x))


def mlp(config, layer, x):
    up = dense(layer["up"], x)
    activated = dense(layer["gate"], x) if config.gated_mlp else up
    inner = np.array([activation(config, u) for u in activated])
    return dense(layer["down"], inner * up if config.gated_mlp else inner)


def rotated(config, layer, vector, position):
    size = config.rotary_dim
    out = vector.copy()
    if layer in config.unrotated_layers:
        return out
    theta = config.rotary_theta
    if layer in config.sliding_layers and config.local_rotary_theta is not None:
        theta = config.local_rotary_theta
    for j in range(size // 2):
        angle = position / theta ** (2 * j / size)
        turned = complex(vector[j], vector[j + size // 2]) * np.exp(1j * angle)
        out[j], out[j + size // 2] = turned.real, turned.imag
    return out


def attention(config, number, layer, inputs):
    dim = config.head_dim
    shared = config.num_heads // config.num_kv_heads

    def heads(name, num, normed=None):
        projected = [dense(layer[name], x) for x in inputs]
        if normed and config.qk_norm == "projection":
            projected = [norm(config, layer[normed], y) for y in projected]
        split = [y.reshape(num, dim) for y in projected]
        if normed and config.qk_norm == "head":
            split = [
                np.stack([norm(config, layer[normed], y) for y in x]) for x in split
            ]
        return split

    queries = heads("query", config.num_heads, "query_norm")
    keys = heads("key", config.num_kv_heads, "key_norm")
    values = heads("value", config.num_kv_heads)
    scale = (
        1 / math.sqrt(dim) if config.attention_scale is None else config.attention_scale
    )
    is_sliding = number in config.sliding_layers
    outputs = []
    for t in range(len(inputs)):
        seen = range(t + 1)
        if is_sliding:
            seen = range(max(0, t + 1 - config.sliding_window), t + 1)
        mixed = []
        for head in range(config.num_heads):
            query = rotated(config, number, queries[t][head], t)
            scores = np.array(
                [
                    scale * query @ rotated(config, number, keys[s][head // shared], s)
                    for s in seen
                ]
            )
            scores = capped(config.attention_softcap, scores)
            weights = np.exp(scores - max(scores))
            weights = weights / sum(weights)
            mixed.append(
                sum(
                    w * values[s][head // shared]
                    for s, w in zip(seen, weights, strict=True)
                )
            )
        outputs.append(dense(layer["out"], np.concatenate(mixed)))
    return outputs
