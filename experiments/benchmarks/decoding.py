"""Decoding with the KV cache against recomputing the whole prefix for each token.

Claim: 256 new tokens come at least 5 times faster. Run it with

    python -m experiments.benchmarks.decoding

(about a minute on two cores). Both sides are compiled whole, run in float32 and draw
the same greedy tokens. Recomputing reads prefixes that grow in steps of `--segment`
tokens, which is faster than padding every prefix to the final length, and computes
the head at the last token only. Times are medians of interleaved repeats, compilation
excluded. Exits with status 1 where the ratio falls short.
"""

import functools
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

from experiments.benchmarks.frame import Options, Page
from experiments.benchmarks.timing import interleaved_medians
from ldjax import command
from ldjax.models import PRESETS, Transformer, preset
from ldjax.models.decoder.sampling import generate_greedy
from ldjax.theory.claims import Claim


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What is timed."""

    preset: str = "1M"
    """Size of the model, one of `ldjax.models.PRESETS`."""
    batch_size: int = 4
    """Prompts decoded at a time."""
    prompt_length: int = 16
    """Length of each prompt, in tokens."""
    num_new: int = 256
    """New tokens for each prompt."""
    segment: int = 32
    """Recomputed prefixes are padded to multiples of this, in tokens."""
    repeats: int = 5
    """Timed runs of each side."""
    least_ratio: float = 5.0
    """The claim."""
    seed: int = 0
    """Of the parameters and the prompts."""


@functools.partial(jax.jit, static_argnames=("model", "num_new", "segment"))
def recompute_greedy(
    params: dict, prompts: Array, *, model: Transformer, num_new: int, segment: int
) -> Array:
    """New tokens `[batch, num_new]` without a cache."""
    batch, length = prompts.shape

    def draw(ids: Array, num_read: Array, reach: int) -> Array:
        variables = {"params": params}
        hidden = model.apply(variables, ids[:, :reach], method=model.hidden)
        last = jax.lax.dynamic_index_in_dim(hidden, num_read - 1, 1, keepdims=False)
        logits = jnp.asarray(model.apply(variables, last, method=model.head))
        token = logits.argmax(axis=-1)
        return jax.lax.dynamic_update_index_in_dim(
            ids, token.astype(ids.dtype), num_read, 1
        )

    padding = jnp.zeros((batch, num_new), prompts.dtype)
    ids = jnp.concatenate([prompts, padding], axis=1)
    for start in range(length, length + num_new, segment):
        stop = min(start + segment, length + num_new)
        step = functools.partial(draw, reach=stop)
        ids = jax.lax.fori_loop(start, stop, lambda n, x, step=step: step(x, n), ids)
    return ids[:, length:]


@command.experiment
def main(config: Config) -> int:
    """Prints the table; returns the exit status."""
    if config.preset not in PRESETS:
        print(f"--preset must be one of {', '.join(PRESETS)}.", file=sys.stderr)
        return 2
    num_new = 24 if config.smoke else config.num_new
    model = Transformer(preset(config.preset))
    key_params, key_prompts = jax.random.split(jax.random.key(config.seed))
    shape = (config.batch_size, config.prompt_length)
    prompts = jax.random.randint(key_prompts, shape, 0, model.config.vocab_size)
    params = jax.jit(model.init)(key_params, prompts)["params"]
    prompt_lists = prompts.tolist()

    def cached() -> Array:
        generated = generate_greedy(model, params, prompt_lists, max_new_tokens=num_new)
        return generated.tokens

    def recomputed() -> Array:
        return recompute_greedy(
            params, prompts, model=model, num_new=num_new, segment=config.segment
        )

    num_equal = int((cached() == recomputed()).all(axis=1).sum())  # compiles, too
    functions = {"KV cache": cached, "recomputed": recomputed}
    seconds = interleaved_medians(functions, 1 if config.smoke else config.repeats)
    ratio = seconds["recomputed"] / seconds["KV cache"]
    num_tokens = config.batch_size * num_new
    page = Page("decoding", config)
    page.say(
        f"Preset {config.preset}, {config.batch_size} prompts of "
        f"{config.prompt_length} tokens, {num_new} new tokens each; {num_equal} of "
        f"{config.batch_size} rows with the same tokens.",
        "",
        "| decoding | seconds | new tokens/s | ratio |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {value:.3f} | {num_tokens / value:.0f} "
            f"| {value / seconds['KV cache']:.1f} |"
            for name, value in seconds.items()
        ),
    )
    text = f"the cache is {ratio:.1f} times faster (at least {config.least_ratio})"
    return page.end([Claim(text, ratio >= config.least_ratio)])


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
