"""Training throughput of the compiled step against the same model in torch eager.

Claim: at least 0.8 times torch's tokens per second. Run it with

    python -m experiments.benchmarks.training

(about two minutes on two cores). Both sides train a GPT-2 style decoder of the same
shapes in float32 with AdamW on the same batch, from the same parameters, and their
first losses are compared. Times are medians of interleaved repeats, compilation
excluded. Run it on an idle machine: torch's threads wait for one another in every
operation, so a busy one slows torch far more than us, and the ratio flatters (the load
is printed). Exits with status 1 where a ratio falls short. Without torch (it is not a
dependency: `pip install torch`) the table has our column alone.
"""

# torch is optional (see above), and absent where the types are checked.
# pyright: reportMissingImports=false

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmarks.frame import Options, Page
from experiments.benchmarks.timing import interleaved_medians
from ldjax import Sequences, command
from ldjax.linen import apply_fn
from ldjax.models import Transformer, TransformerConfig, gpt2_config
from ldjax.runs.loop import make_train_step, mean_token_loss
from ldjax.theory.claims import Claim

# Number of layers, width and number of heads.
SIZES = {"0.4M": (4, 64, 4), "4M": (4, 256, 8)}
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What is timed."""

    batch_size: int = 16
    """Rows of a batch."""
    context: int = 128
    """Length of a row, in tokens."""
    vocab_size: int = 2048
    """Number of tokens."""
    repeats: int = 20
    """Timed updates of each side, in turns."""
    least_ratio: float = 0.8
    """The claim: our tokens per second over torch's."""
    seed: int = 0
    """Of the parameters and the batch."""
    profile: Path | None = None
    """Folder for a trace of one of our updates at the smaller size."""


def our_update(
    model: Transformer, params: Any, batch: Sequences
) -> Callable[[], float]:
    """A function that makes one update and returns the loss before it."""
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    init, step = make_train_step(apply_fn(model), mean_token_loss, optimizer)
    state = init(params)

    def update() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return update


def torch_update(
    config: TransformerConfig, params: Any, batch: Sequences
) -> Callable[[], float]:
    """The same in torch eager."""
    import torch

    torch.set_num_threads(num_cores())
    model = torch_gpt2(config)
    copy_params(model, params)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
    )
    tokens, targets = (torch.tensor(np.asarray(x)).long() for x in batch[:2])

    def update() -> float:
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return update


def torch_gpt2(config: TransformerConfig) -> Any:
    """GPT-2 in plain torch, its layers named as ours are."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    width, num_heads = config.width, config.num_heads

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(width, width)
            self.key = nn.Linear(width, width)
            self.value = nn.Linear(width, width)
            self.out = nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            def heads(y: Any) -> Any:
                return y.unflatten(-1, (num_heads, -1)).transpose(1, 2)

            mixed = F.scaled_dot_product_attention(
                *(heads(layer(x)) for layer in (self.query, self.key, self.value)),
                is_causal=True,
            )
            return self.out(mixed.transpose(1, 2).flatten(2))

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(width, config.mlp_width)
            self.down = nn.Linear(config.mlp_width, width)

        def forward(self, x: Any) -> Any:
            return self.down(F.gelu(self.up(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(width, eps=config.norm_epsilon)
            self.attention = Attention()
            self.mlp_norm = nn.LayerNorm(width, eps=config.norm_epsilon)
            self.mlp = MLP()

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))

    class GPT2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(config.vocab_size, width)
            self.position_embedding = nn.Embedding(config.max_positions, width)
            self.blocks = nn.ModuleList(Block() for _ in range(config.num_layers))
            self.final_norm = nn.LayerNorm(width, eps=config.norm_epsilon)

        def forward(self, tokens: Any) -> Any:
            positions = torch.arange(tokens.shape[1])
            x = self.token_embedding(tokens) + self.position_embedding(positions)
            for block in self.blocks:
                x = block(x)
            return self.final_norm(x) @ self.token_embedding.weight.T

    return GPT2()


def copy_params(model: Any, params: Any) -> None:
    """Give the torch model our parameters: every one of both, in the right shape."""
    import torch

    theirs = dict(model.named_parameters())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = name.replace("blocks_", "blocks.")
        module, _, kind = name.rpartition(".")
        value = np.array(leaf.T if kind == "kernel" else leaf)
        parameter = theirs.pop(f"{module}.{'bias' if kind == 'bias' else 'weight'}")
        with torch.no_grad():
            parameter.copy_(torch.tensor(value).reshape(parameter.shape))
    if theirs:
        raise ValueError(f"torch's model has more parameters: {', '.join(theirs)}.")


def num_repeats(config: Config) -> int:
    """Timed updates of each side."""
    return 2 if config.smoke else config.repeats


def num_cores() -> int:
    """Cores this process may use."""
    import psutil

    return len(psutil.Process().cpu_affinity())


def time_size(config: Config, name: str) -> tuple[dict[str, float], str]:
    """Tokens per second of each side at one size, and the row of the table."""
    num_layers, width, num_heads = SIZES[name]
    model_config = gpt2_config(
        vocab_size=config.vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        max_positions=config.context,
    )
    model = Transformer(model_config)
    key_params, key_tokens = jax.random.split(jax.random.key(config.seed))
    shape = (config.batch_size, config.context + 1)
    ids = jax.random.randint(key_tokens, shape, 0, config.vocab_size)
    batch = Sequences(ids[:, :-1], ids[:, 1:], jnp.ones_like(ids[:, 1:], dtype=bool))
    params = jax.jit(model.init)(key_params, batch.tokens)["params"]
    updates = {"ldjax": our_update(model, params, batch)}
    with contextlib.suppress(ModuleNotFoundError):
        updates["torch"] = torch_update(model_config, params, batch)
    first = {side: update() for side, update in updates.items()}  # compiles, too
    if not np.allclose(list(first.values()), first["ldjax"], rtol=1e-5):
        raise ValueError(f"The two sides compute different losses: {first}.")
    if config.profile is not None and name == next(iter(SIZES)):
        with jax.profiler.trace(config.profile):
            updates["ldjax"]()
    seconds = interleaved_medians(updates, num_repeats(config))
    num_tokens = config.batch_size * config.context
    speeds = {side: num_tokens / value for side, value in seconds.items()}
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    theirs = (
        f"{speeds['torch']:,.0f} | {speeds['ldjax'] / speeds['torch']:.2f}"
        if "torch" in speeds
        else "– | –"
    )
    return speeds, f"| {num_params:,} | {speeds['ldjax']:,.0f} | {theirs} |"


@command.experiment
def main(config: Config) -> int:
    """Prints the table; returns the exit status."""
    names = list(SIZES)[: 1 if config.smoke else None]
    load = os.getloadavg()[0]
    results = {name: time_size(config, name) for name in names}
    page = Page("training", config)
    page.say(
        f"GPT-2 style, float32, AdamW, {config.batch_size} rows of {config.context} "
        f"tokens, vocabulary of {config.vocab_size}; medians of {num_repeats(config)} "
        f"interleaved updates; {num_cores()} cores, load {load:.1f} before the start.",
        "",
        "| parameters | ldjax [tokens/s] | torch eager [tokens/s] | ratio |",
        "|---:|---:|---:|---:|",
        *(row for _, row in results.values()),
    )
    all_speeds = [speeds for speeds, _ in results.values()]
    if not all("torch" in speeds for speeds in all_speeds):
        print("torch is not installed: nothing to compare with.", file=sys.stderr)
        return page.end()
    worst = min(speeds["ldjax"] / speeds["torch"] for speeds in all_speeds)
    text = f"{worst:.2f} of torch's tokens per second (at least {config.least_ratio})"
    return page.end([Claim(text, worst >= config.least_ratio)])


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
