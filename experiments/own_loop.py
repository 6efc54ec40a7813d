"""Probes in a loop of one's own: a model in NNX, plain optax, three lines of ldjax.

    python experiments/own_loop.py --out runs/own_loop

It ends with the page.
"""

from pathlib import Path

import jax
import optax
import tyro
from flax import nnx

from ldjax import Recorder, command, losses
from ldjax.data.batches import Example, to_sequences
from ldjax.report import write_page
from ldjax.watch.probes import Probe

# A probe's name and two answers: the chosen one, which is trained, and the rejected.
TRAIN = {"train/2+3=": "56", "train/4+1=": "53", "train/3+3=": "65", "train/1+2=": "36"}
TEST = {"test/3+2=": "56", "test/1+4=": "53", "test/2+1=": "36"}


class Model(nnx.Module):
    """A language model of characters: one layer of attention, and a tied head."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(128, 32, rngs=rngs)
        self.layer = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits, `[batch, pos, vocab]`."""
        x = self.embed(tokens)
        return self.embed.attend(x + self.layer(x, mask=nnx.make_causal_mask(tokens)))


def main(out: Path = Path("runs/own_loop"), seed: int = 0) -> None:
    """Train, record, and write the page; a run that is already in `out` is replaced."""
    probes = [
        Probe(name, kind, Example(name.partition("/")[2].encode(), answer.encode()))
        for name, answers in (TRAIN | TEST).items()
        for kind, answer in zip(("chosen", "rejected"), answers, strict=True)
    ]
    batch = to_sequences([probe.example for probe in probes[: 2 * len(TRAIN) : 2]])
    graph, params, rest = nnx.split(Model(nnx.Rngs(seed)), nnx.Param, ...)
    apply_fn = lambda params, s: nnx.merge(graph, params, rest)(s.tokens)
    grad_fn = jax.jit(jax.grad(lambda p: losses.sft(apply_fn(p, batch), batch)))
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    with Recorder(out, apply_fn, probes, decode=bytes.decode, overwrite=True) as record:
        for step in range(100):
            updates, state = optimizer.update(grad_fn(params), state)
            new_params = optax.apply_updates(params, updates)
            record(step, params, new_params)
            params = new_params
    print(f"the report, for a browser: {write_page([record.run])}")


if __name__ == "__main__":
    command.run(tyro.cli, command.experiment(main))
