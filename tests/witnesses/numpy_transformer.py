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
    stream = [embedding[token].copy() for token in tokens]
    if config.positions == "learned":
        table = params["position_embedding"]["embedding"]
        stream = [x + table[t] for t, x in enumerate(stream)]
    for layer in range(config.num_layers):
        block = params[f"blocks_{layer}"]
        normed = [norm(config, block["attention_norm"], x) for x in stream]
        attended = attention(config, block["attention"], normed)
        if config.parallel_residual:
            inputs = stream
        else:
            inputs = [x + y for x, y in zip(stream, attended, strict=True)]
        fed = [
            mlp(config, block["mlp"], norm(config, block["mlp_norm"], x))
            for x in inputs
        ]
        stream = [x + y + z for x, y, z in zip(stream, attended, fed, strict=True)]
    final = [norm(config, params["final_norm"], x) for x in stream]
    if config.tied_head:
        return np.stack([embedding @ h for h in final])
    return np.stack([dense(params["unembedding"], h) for h in final])


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
    scaled = x / math.sqrt(sum(x**2) / len(x) + config.norm_epsilon) * layer["scale"]
    return scaled + layer["bias"] if config.norm == "layer" else scaled


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


def rotated(config, vector, position):
    size = config.rotary_dim
    out = vector.copy()
    for j in range(size // 2):
        angle = position / config.rotary_theta ** (2 * j / size)
        turned = complex(vector[j], vector[j + size // 2]) * np.exp(1j * angle)
        out[j], out[j + size // 2] = turned.real, turned.imag
    return out


def attention(config, layer, inputs):
    dim = config.head_dim
    shared = config.num_heads // config.num_kv_heads

    def heads(name, num):
        return [dense(layer[name], x).reshape(num, dim) for x in inputs]

    queries = heads("query", config.num_heads)
    keys, values = (
        heads("key", config.num_kv_heads),
        heads("value", config.num_kv_heads),
    )
    outputs = []
    for t in range(len(inputs)):
        mixed = []
        for head in range(config.num_heads):
            query = rotated(config, queries[t][head], t)
            scores = [
                query @ rotated(config, keys[s][head // shared], s) / math.sqrt(dim)
                for s in range(t + 1)
            ]
            weights = np.exp(np.array(scores) - max(scores))
            weights = weights / sum(weights)
            mixed.append(
                sum(w * values[s][head // shared] for s, w in enumerate(weights))
            )
        outputs.append(dense(layer["out"], np.concatenate(mixed)))
    return outputs
