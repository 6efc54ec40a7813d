"""What a ledger costs, for each response and update.

Claim: going back over an update takes at most 1.3 times what it cannot do without: for
each response a backward pass at every node, and a forward-mode pass of the batch. Both
are compiled for as many responses at a time, at the sizes of the toy pipeline, SFT and
DPO. Medians of interleaved repeats. Beside it: how many updates of a plain training
could be made in the time of each response.

    python -m experiments.benchmarks.ledger    (~3 min; exit status 1 if a bound fails)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import ldjax
from experiments.benchmarks.frame import Options, Page
from experiments.benchmarks.step import random_texts
from experiments.benchmarks.timing import interleaved_medians
from ldjax import command
from ldjax.data.reference import add_reference
from ldjax.equation.path import path_of
from ldjax.equation.sequences import sides_of
from ldjax.models import Transformer, preset
from ldjax.origins import Training
from ldjax.origins.pull import Point, Watch, make_pull_fn, moments_of
from ldjax.runs.loop import make_train_step
from ldjax.theory.claims import Claim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Cost of a ledger relative to what it cannot do without."""

    length: int = 40
    """Tokens of a text."""
    texts: int = 8
    """Texts (or pairs) of an update."""
    probes: int = 24
    """Responses that are in flight together."""
    nodes: tuple[int, ...] = (1, 3)
    """Places along the update where gradients are taken."""
    repeats: int = 20
    """Interleaved timings of each function."""
    bound: float = 1.3
    """Largest allowed ratio."""


@command.experiment
def main(config: Config) -> int:
    """Print the table; the exit status."""
    if config.smoke:
        config = dataclasses.replace(
            config, length=6, texts=2, probes=2, nodes=(1,), repeats=1
        )
    page, claims = Page("ledger", config), []
    page.say(
        "| loss | nodes | ms a response | yardstick, ms | ratio | bound | "
        "training steps a response |"
    )
    page.say("|---|---|---|---|---|---|---|")
    for loss in ("sft", "dpo"):
        for nodes in config.nodes:
            seconds, yardstick, plain = measure(config, loss, nodes)
            ratio = seconds / yardstick
            each, theirs = (1e3 * of / config.probes for of in (seconds, yardstick))
            page.say(
                f"| {loss} | {nodes} | {each:.2f} | {theirs:.2f} | {ratio:.3f} | "
                f"{config.bound} | {seconds / config.probes / plain:.2f} |"
            )
            text = f"{loss}, {nodes} nodes: {ratio:.3f} of its yardstick"
            text += f" (at most {config.bound})"
            claims.append(Claim(text, ratio <= config.bound))
    return page.end(claims)


def measure(config: Config, loss: str, nodes: int) -> tuple[float, float, float]:
    """Seconds: of going back over an update, of its yardstick, of a plain update."""
    training, params, batch = problem(config, loss)
    probes = random_texts(config.probes, config.length)
    point = Point(params, training.optimizer.init(params))
    watch = Watch.of(training)
    pull = make_pull_fn(training, path_of(nodes))
    moved = jax.tree.map(lambda leaf: leaf + 1e-4, params)
    moments = moments_of(training, point, batch)
    adjoint = {
        name: jnp.zeros((config.probes, *of.shape), of.dtype)
        for name, of in moments.items()
    }
    directions = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (config.probes, *leaf.shape)), params
    )

    def go_back() -> Any:
        nonlocal adjoint  # whose memory is taken
        adjoint, paid = pull(point, moved, batch, probes, adjoint)
        return paid

    @jax.jit
    def backward(params: Any) -> Any:
        def log_prob(params: Any, probe: ldjax.Sequences) -> jax.Array:
            return watch.one(params, probe).log_probs.sum()

        gradient = jax.value_and_grad(log_prob)
        return jax.vmap(lambda probe: gradient(params, probe))(probes)

    @jax.jit
    def forward_mode(params: Any, directions: Any) -> Any:
        def logits_of(params: Any) -> dict[str, jax.Array]:
            sides = sides_of(batch).items()
            return {name: watch.watch_fn(params, side) for name, side in sides}

        def along(direction: Any) -> Any:
            return jax.jvp(logits_of, (params,), (direction,))[1]

        return jax.vmap(along)(directions)

    optimizer: Any = training.optimizer
    init, step = make_train_step(training.apply_fn, training.loss_fn, optimizer)
    state = init(jax.tree.map(jnp.copy, params))  # the step takes its memory

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    forms: dict[str, Callable[[], Any]] = {
        "train": train,
        "back": go_back,
        "backward": lambda: backward(params),
        "jvp": lambda: forward_mode(params, directions),
    }
    seconds = interleaved_medians(forms, config.repeats)
    yardstick = nodes * seconds["backward"] + seconds["jvp"]
    return seconds["back"], yardstick, seconds["train"]


def problem(config: Config, loss: str) -> tuple[Training, Any, Any]:
    """How is trained, the parameters and a batch."""
    model = Transformer(preset("toy", vocab_size=360))
    apply_fn = ldjax.linen.apply_fn(model)
    update = random_texts(config.texts, config.length)
    params = model.init(jax.random.key(0), update.tokens)["params"]
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(5e-4))
    if loss == "sft":
        return Training(apply_fn, ldjax.losses.sft, optimizer), params, update
    other = update._replace(tokens=update.tokens[::-1])
    batch = {"chosen": update, "rejected": other}
    batch = add_reference(apply_fn, params, batch, batch_size=config.texts)
    return Training(apply_fn, ldjax.losses.dpo(0.1), optimizer), params, batch


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
