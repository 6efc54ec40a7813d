"""A model of real size: loading it, and SFT and DPO steps that account for themselves.

Without `--model` a folder of GPT-2's shapes (124 million parameters, drawn) is written
first. Loading and each loss run in a process of their own, whose memory is measured.

Claims: loading takes at most 1.5 times the bytes of the parameters at its highest; the
parts of a step sum to its prediction, and what first order leaves unexplained of the
change by one step is below a tenth.

    python -m experiments.benchmarks.model     (~3 min; exit status 1 if a claim fails)
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import tyro

import ldjax
from experiments.benchmarks.frame import Options, Page, highest_memory, in_process
from ldjax import command
from ldjax.data.batches import Example, to_sequences
from ldjax.data.reference import add_reference
from ldjax.finetune.recipes import Recipe, make_optimizer
from ldjax.losses import make_loss
from ldjax.memory import human_bytes
from ldjax.models import Pretrained, Transformer, gpt2_config, load, save
from ldjax.ntk.cost import peak_bytes
from ldjax.theory.claims import Claim

_HERE = "experiments.benchmarks.model"
GPT2 = {"vocab_size": 50257, "num_layers": 12, "width": 768, "num_heads": 12}
SMALL = {"vocab_size": 512, "num_layers": 2, "width": 32, "num_heads": 2}
#: Of the parameters' bytes.
MOST_TO_LOAD = 1.5
LARGEST_REMAINDER = 0.1
LARGEST_GAP = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Memory and time of loading and finetuning a model of real size."""

    model: str = ""
    """Folder, or id on the hub; by default a folder of GPT-2's shapes is drawn."""
    batch_size: int = 4
    """Examples (or pairs) of an update."""
    probes: int = 8
    """Watched responses, predicted and measured at every step."""
    length: int = 64
    """Of prompt and response together, in tokens; a half each."""
    learning_rate: float = 1e-3
    """Of plain gradient descent on the mean over a batch of sums over tokens; the
    gradient is clipped to norm 1, so it is the length of the step."""
    steps: int = 4
    """Steps that are timed, after the first one, which compiles."""
    part: Literal["", "load", "sft", "dpo"] = ""
    """One measurement, in this process; all of them, in their own, by default."""


@command.experiment
def main(config: Config) -> int:
    """Print the table; the exit status."""
    if config.part:
        measure = measure_load if config.part == "load" else measure_steps
        print(json.dumps(measure(config)))
        return 0
    with folder_of(config) as source:
        found = {
            part: in_process(_HERE, config, model=source, part=part) for part in _PARTS
        }
    claims = [*loading(found["load"])]
    for loss in ("sft", "dpo"):
        claims += stepping(loss, found[loss], config)
    return Page("model", config).end(claims)


_PARTS = ("load", "sft", "dpo")


@contextlib.contextmanager
def folder_of(config: Config) -> Iterator[str]:
    """Where the model is."""
    if config.model:
        yield config.model
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "gpt2"
        # Also in a process of its own: what it leaves behind is not measured.
        sizes = SMALL if config.smoke else GPT2
        code = f"from {_HERE} import draw; draw({str(folder)!r}, {sizes!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        yield str(folder)


def draw(folder: str, sizes: dict[str, Any] = GPT2) -> None:
    """Write a model, of GPT-2's shapes if no others are given."""
    config = gpt2_config(max_positions=1024, **sizes)
    model = Transformer(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    save(Path(folder), Pretrained(model, params, config, None))


def measure_load(config: Config) -> dict[str, Any]:
    """Bytes and seconds of loading."""
    jnp.zeros(1).block_until_ready()  # JAX itself
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    params = load(config.model).params
    jax.block_until_ready(params)
    return {
        "seconds": time.perf_counter() - start,
        "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "peak": highest_memory() - before,
    }


def measure_steps(config: Config) -> dict[str, Any]:
    """Bytes and seconds of steps, and what they say."""
    base = load(config.model)
    apply_fn = ldjax.linen.apply_fn(base.model)
    recipe = Recipe("sgd", config.learning_rate, config.batch_size, 1.0, 0, 1.0)
    init, step = ldjax.make_step(
        apply_fn, make_loss(config.part), make_optimizer(recipe)
    )
    rng = np.random.default_rng(0)
    update: Any = texts(config, base, config.batch_size, rng)
    if config.part == "dpo":
        update = {
            "chosen": update,
            "rejected": texts(config, base, config.batch_size, rng),
        }
        update = add_reference(
            apply_fn, base.params, update, batch_size=config.batch_size
        )
    probe = texts(config, base, config.probes, rng)
    state = init(base.params)
    planned = peak_bytes(step, state, update, probe)
    resident = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    del base
    seconds, comparison = [], None
    for _ in range(1 + config.steps):
        start = time.perf_counter()
        state, comparison = step(state, update, probe)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    assert comparison is not None
    predicted, measured = (
        np.asarray(x, float) for x in (comparison.predicted, comparison.measured)
    )
    parts = [np.asarray(part, float) for part in comparison.parts.values()]
    size = np.linalg.norm(measured)
    return {
        "compile_and_first": seconds[0],
        "seconds": float(np.median(seconds[1:])),
        "planned": planned + resident,
        "peak": highest_memory(),
        "change": size,
        "remainder": np.linalg.norm(measured - predicted) / size,
        "gap": np.abs(sum(parts) - predicted).max() / np.abs(parts).sum(0).max(),
    }


def texts(config: Config, base: Any, count: int, rng: np.random.Generator) -> Any:
    """Drawn tokens, half prompt and half response."""
    half = config.length // 2

    def some() -> tuple[int, ...]:
        return tuple(rng.integers(base.config.vocab_size, size=half).tolist())

    examples = [Example(some(), some()) for _ in range(count)]
    return to_sequences(examples, max_length=2 * half)


def loading(found: dict[str, Any]) -> list[Claim]:
    """What is said of loading."""
    ratio = found["peak"] / found["parameters"]
    return [
        Claim(
            f"loading {human_bytes(found['parameters'])} of parameters takes "
            f"{human_bytes(found['peak'])}, {ratio:.2f} times as much (at most "
            f"{MOST_TO_LOAD}), and {found['seconds']:.1f} s",
            ratio <= MOST_TO_LOAD,
        )
    ]


def stepping(loss: str, found: dict[str, Any], config: Config) -> list[Claim]:
    """What is said of the steps of one loss."""
    return [
        Claim(
            f"{loss}: {found['seconds']:.1f} s a step of {config.batch_size} rows with "
            f"{config.probes} probes predicted, split and measured "
            f"({found['compile_and_first']:.0f} s the first), process of "
            f"{human_bytes(found['peak'])} at its highest (planned without JAX itself: "
            f"{human_bytes(found['planned'])}); of a change of {found['change']:.2g} "
            f"nats first order leaves {found['remainder']:.1%}",
            found["remainder"] < LARGEST_REMAINDER,
        ),
        Claim(
            f"{loss}: the parts sum to the prediction: {found['gap']:.1e} of it",
            found["gap"] < LARGEST_GAP,
            "identity",
        ),
    ]


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
