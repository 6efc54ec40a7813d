"""What several devices do to the work and the memory of each.

Claim: with n of them (virtual ones of the CPU), the compiled program of one device has
at most 1.25/n of the floating-point operations of a single device's, and its memory
(arguments, temporaries, results) falls with every doubling: for an optimizer step that
accounts for itself, an observation of the probes, and the exact kernel by three
methods. A loop's body counts once, as in XLA's own analysis.

    python -m experiments.benchmarks.sharding   (~3 min; exit status 1 if a claim fails)
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import ldjax
from experiments.benchmarks.frame import Options, Page
from ldjax import command
from ldjax.memory import human_bytes
from ldjax.models import Transformer, gpt2_config
from ldjax.runs.devices import data_mesh, replicate, shard
from ldjax.theory.claims import Claim
from ldjax.theory.quantities import sequence_quantities, token_quantities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """FLOPs and memory of one of 1, 2, 4, 8 devices."""

    bound: float = 1.25
    """Most FLOPs of a device, relative to an even share."""


DEVICES = (1, 2, 4, 8)


class Case(NamedTuple):
    """A function of parameters (or a state) and of rows that are divided."""

    fn: Callable[..., Any]
    everywhere: Any
    rows: tuple[Any, ...]


class Cost(NamedTuple):
    """Of one device."""

    flops: float
    num_bytes: int


@command.experiment
def main(config: Config) -> int:
    """Print the table; the exit status."""
    jax.config.update("jax_num_cpu_devices", DEVICES[-1])
    page, claims = Page("sharding", config), []
    page.say(f"| devices | {' | '.join(map(str, DEVICES))} |")
    page.say("|---|" + "---:|" * len(DEVICES))
    cases = make_cases()
    for name in list(cases)[-1:] if config.smoke else cases:
        case = cases[name]
        costs = [cost(case, num) for num in DEVICES]
        cells = [
            f"{one.flops / 1e6:.0f} MFLOP, {human_bytes(one.num_bytes)}"
            for one in costs
        ]
        page.say(f"| {name} | {' | '.join(cells)} |")
        share = max(
            one.flops * num / costs[0].flops
            for num, one in zip(DEVICES, costs, strict=True)
        )
        falls = all(b.num_bytes < a.num_bytes for a, b in itertools.pairwise(costs))
        claims += [
            Claim(
                f"{name}: a device has {share:.2f} of an even share of the work (at "
                f"most {config.bound})",
                share <= config.bound,
                "identity",
            ),
            Claim(f"{name}: its memory falls with every doubling", falls, "identity"),
        ]
    return page.end(claims)


def cost(case: Case, num_devices: int) -> Cost:
    """Of a device's program, as XLA compiled it."""
    mesh = data_mesh(jax.devices()[:num_devices])
    arguments = replicate(case.everywhere, mesh), *shard(case.rows, mesh)
    program: Any = jax.jit(case.fn).lower(*arguments).compile()
    memory = program.memory_analysis()
    return Cost(
        program.cost_analysis()["flops"],
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes,
    )


def make_cases() -> dict[str, Case]:
    """What is compiled."""
    model = Transformer(gpt2_config(vocab_size=2048, num_layers=2, width=64))
    update, probe = texts(32, 64, 2048), texts(128, 64, 2048)
    params = initial(model, probe)
    apply_fn = ldjax.linen.apply_fn(model)
    init, step = ldjax.make_step(
        apply_fn, ldjax.losses.sft, optax.adam(1e-3), probe_batch_size=64
    )

    def observe(params: Any, batch: ldjax.Sequences) -> Any:
        logits = apply_fn(params, batch)
        tokens = token_quantities(logits, batch.targets, batch.mask)
        return sequence_quantities(tokens, batch.mask, vocab_size=logits.shape[-1])

    kernels = {
        f"kernel, {name}": kernel_case(*settings)
        for name, settings in {
            "dense (`ntk_vp`)": ("ntk_vp", 16, lambda kernel: kernel.dense()),
            "structured": ("structured", 16, lambda kernel: kernel.dense()),
            "factored": ("factored", 512, lambda kernel: kernel.block_summary()),
        }.items()
    }
    return {
        "step": Case(step, init(params), (update, probe)),
        "observation": Case(observe, params, (probe,)),
        **kernels,
    }


def kernel_case(method: str, vocab: int, finish: Callable[[Any], Any]) -> Case:
    """A kernel of 64 probes with 16 examples, of a decoder that fits the method."""
    model = Transformer(gpt2_config(vocab_size=vocab, num_layers=2, width=32))
    probe, update = texts(64, 4, vocab), texts(16, 4, vocab)

    def kernel(params: Any, probe: Any, update: Any) -> Any:
        probe_fn = ldjax.linen.logits_fn(model, probe)
        update_fn = ldjax.linen.logits_fn(model, update)
        return finish(ldjax.empirical_ntk(probe_fn, update_fn, params, method=method))

    return Case(kernel, initial(model, probe), (probe, update))


def initial(model: Transformer, batch: ldjax.Sequences) -> Any:
    """Parameters."""
    return jax.jit(model.init)(jax.random.key(0), batch.tokens)["params"]


def texts(rows: int, length: int, vocab: int) -> ldjax.Sequences:
    """Noise: the cost does not depend on what it says."""
    ids = np.random.default_rng(rows).integers(vocab, size=(rows, length))
    tokens = jnp.asarray(ids, jnp.int32)
    return ldjax.Sequences(tokens, tokens, jnp.ones_like(tokens, bool))


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
