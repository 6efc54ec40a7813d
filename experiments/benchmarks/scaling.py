"""How the exact kernel of a language model grows with vocabulary, layers, positions.

Norm, trace and distance from k I of all blocks of the factored kernel
(`block_summary`) of a GPT-2-style decoder of width 128 with its own text, float32. One
thing is doubled at a time. Memory: temporaries and results as XLA plans them.

    python -m experiments.benchmarks.scaling     (~3 min; prints a table)
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ldjax
from experiments.benchmarks.frame import Options, Page
from experiments.benchmarks.timing import interleaved_medians
from ldjax import command
from ldjax.memory import human_bytes
from ldjax.models import Transformer, gpt2_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Memory and time of the factored kernel as its sizes double."""

    repeats: int = 3
    """Timings of each size, all sizes in turn."""


class Size(NamedTuple):
    """What is measured; `limit` bounds the bytes of a chunk of signals, if given."""

    vocab_size: int = 16384
    num_layers: int = 4
    num_positions: int = 16
    limit: float | None = None

    def tiny(self) -> "Size":
        """For a smoke: a vocabulary and layers that compile in seconds."""
        return self._replace(
            vocab_size=self.vocab_size // 128, num_layers=self.num_layers // 4
        )


SIZES = {
    "the base: V 16 384, 4 layers, T 16": Size(),
    "V doubled": Size(vocab_size=32768),
    "V doubled twice": Size(vocab_size=65536),
    "layers doubled": Size(num_layers=8),
    "T doubled": Size(num_positions=32),
    "`memory_limit` 40 MB": Size(limit=40e6),
    "`memory_limit` 20 MB": Size(limit=20e6),
}


@command.experiment
def main(config: Config) -> int:
    """Print the table."""
    sizes = {
        name: size.tiny() if config.smoke else size for name, size in SIZES.items()
    }
    compiled = {name: make(size) for name, size in sizes.items()}
    calls = {
        name: lambda program=program, params=params: program(params)
        for name, (program, params) in compiled.items()
    }
    seconds = interleaved_medians(calls, 1 if config.smoke else config.repeats)
    base = next(iter(seconds.values()))
    page = Page("scaling", config)
    page.say("| | time | of the base | memory | of the base |")
    page.say("|---|---:|---:|---:|---:|")
    first = None
    for name, (program, _) in compiled.items():
        memory = program.memory_analysis()
        used = memory.temp_size_in_bytes + memory.output_size_in_bytes
        first = first or used
        page.say(
            f"| {name} | {seconds[name]:.2f} s | {seconds[name] / base:.2f} | "
            f"{human_bytes(used)} | {used / first:.2f} |"
        )
    return page.end()


def make(size: Size) -> tuple[Any, Any]:
    """The compiled kernel of a size, and the parameters to call it with."""
    model = Transformer(
        gpt2_config(vocab_size=size.vocab_size, num_layers=size.num_layers, width=128)
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(size.vocab_size, size=(1, size.num_positions))
    tokens = jnp.asarray(ids, jnp.int32)
    text = ldjax.Sequences(tokens, tokens, jnp.ones_like(tokens, bool))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    fn = ldjax.linen.logits_fn(model, text)

    def summary(params: Any) -> Any:
        kernel = ldjax.empirical_ntk(
            fn, fn, params, method="factored", memory_limit=size.limit
        )
        return kernel.block_summary()

    return jax.jit(summary).lower(params).compile(), params


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
