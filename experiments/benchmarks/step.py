"""What accounting for a step costs.

Claim: the immediate form of the instrumented step takes at most 1.10 times a plain step
plus one forward-mode pass and one forward pass of the probes; the pending form at most
1.10 times a plain step plus one forward-mode pass. Medians of interleaved repeats, at
two sizes: probes that cost a fifth of the step, and five times the step. What a split
into parts adds is reported beside, not bounded. The second step is timed: the first of
every 64 also measures the rounding noise.

And a midpoint, which makes the parts sum to what was measured, costs the pending form
at most 1.10 times the immediate step that knows first order alone; at the sizes of the
toy pipeline, with parts, SFT and DPO. Other nodes are reported beside.

    python -m experiments.benchmarks.step      (~4 min; exit status 1 if a bound fails)
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
from experiments.benchmarks.timing import interleaved_medians
from ldjax import command
from ldjax.data.reference import add_reference
from ldjax.equation.path import Nodes
from ldjax.models import LeNet, Transformer, preset
from ldjax.theory.claims import Claim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Cost of the instrumented step relative to what it cannot do without."""

    batch_size: int = 128
    """Images in the update."""
    length: int = 40
    """Tokens of a text, in the update and the probes of the toy pipeline."""
    texts: int = 8
    """Texts (or pairs) of its update."""
    probes: int = 24
    """Texts that it watches."""
    repeats: int = 30
    """Interleaved timings of each function."""
    bound: float = 1.10
    """Largest allowed ratio."""


@command.experiment
def main(config: Config) -> int:
    """Print the table; the exit status."""
    if config.smoke:
        config = dataclasses.replace(config, batch_size=10, repeats=1, probes=2)
    page, claims = Page("step", config), []
    # A step is about three forward passes of the update; an observation (forward-mode
    # pass and forward pass) about three of the probes.
    sizes = {"0.2 x": config.batch_size // 5, "5 x": 5 * config.batch_size}
    page.say("| probes cost | form | ms | yardstick, ms | ratio | bound |")
    page.say("|---|---|---|---|---|---|")
    for name, num_probes in sizes.items():
        for form, ms, yardstick, bound in measure(config, num_probes):
            ratio = ms / yardstick
            page.say(
                f"| {name} the step | {form} | {ms:.2f} | {yardstick:.2f} | "
                f"{ratio:.3f} | {bound if bound else '-'} |"
            )
            if bound is not None:
                text = (
                    f"{form}, probes of {name} the step: {ratio:.3f} of its yardstick"
                )
                claims.append(Claim(f"{text} (at most {bound})", ratio <= bound))
    page.say("\n| loss | form, nodes | ms | of the first | bound |")
    page.say("|---|---|---|---|---|")
    for loss in ("sft",) if config.smoke else ("sft", "dpo"):
        seconds = measure_nodes(config, loss)
        for name, value in seconds.items():
            ratio = value / seconds["immediate, None"]
            bound = config.bound if name == "pending, midpoint" else None
            page.say(
                f"| {loss} | {name} | {1e3 * value:.2f} | {ratio:.3f} | "
                f"{bound if bound else '-'} |"
            )
            if bound is not None:
                text = f"{loss}, a midpoint in the pending form: {ratio:.3f}"
                claims.append(Claim(f"{text} (at most {bound})", ratio <= bound))
    return page.end(claims)


def measure(
    config: Config, num_probes: int
) -> list[tuple[str, float, float, float | None]]:
    """`(form, ms, yardstick in ms, bound)` for each form of the step."""
    apply_fn, optimizer = ldjax.linen.apply_fn(LeNet()), optax.adam(1e-3)
    update, probe = random_images(config.batch_size), random_images(num_probes)
    params = LeNet().init(jax.random.key(0), update.tokens)["params"]

    def loss_fn(params: Any) -> jax.Array:
        return ldjax.losses.sft(apply_fn(params, update), update)

    def log_probs(params: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return ldjax.log_softmax(apply_fn(params, probe))

    @jax.jit
    def plain_step(params: Any, opt_state: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    forward = jax.jit(log_probs)
    jvp = jax.jit(lambda params, direction: jax.jvp(log_probs, (params,), (direction,)))
    forms: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_step(params, opt_state),
        "jvp": lambda: jvp(params, params),
        "forward": lambda: forward(params),
    }
    opt_state = optimizer.init(params)
    for parts, suffix in ((None, ""), ("side", ", with parts")):
        init, step = ldjax.make_step(apply_fn, ldjax.losses.sft, optimizer, parts=parts)
        state, _ = step(init(params), update, probe)
        forms[f"immediate{suffix}"] = lambda step=step, state=state: step(
            state, update, probe
        )
        init, step, _ = ldjax.make_pending_step(
            apply_fn, ldjax.losses.sft, optimizer, parts=parts
        )
        state, _ = step(init(params, update, probe), update)
        forms[f"pending{suffix}"] = lambda step=step, state=state: step(state, update)

    seconds = interleaved_medians(forms, config.repeats)
    ms = {name: 1e3 * value for name, value in seconds.items()}
    with_forward = ms["plain"] + ms["jvp"] + ms["forward"]
    without = ms["plain"] + ms["jvp"]
    return [
        ("immediate", ms["immediate"], with_forward, config.bound),
        ("pending", ms["pending"], without, config.bound),
        ("immediate, with parts", ms["immediate, with parts"], with_forward, None),
        ("pending, with parts", ms["pending, with parts"], without, None),
    ]


def measure_nodes(config: Config, loss: str) -> dict[str, float]:
    """Seconds of a step with parts, by its form and nodes."""
    model = Transformer(preset("toy", vocab_size=360))
    apply_fn = ldjax.linen.apply_fn(model)
    update, probe = (
        random_texts(n, config.length) for n in (config.texts, config.probes)
    )
    params = model.init(jax.random.key(0), update.tokens)["params"]
    loss_fn, batch = ldjax.losses.sft, update
    if loss == "dpo":
        batch = {
            "chosen": update,
            "rejected": update._replace(tokens=update.tokens[::-1]),
        }
        batch = add_reference(apply_fn, params, batch, batch_size=config.texts)
        loss_fn = ldjax.losses.dpo(0.1)
    problem = (apply_fn, loss_fn, optax.adam(5e-4))
    forms: dict[str, Callable[[], Any]] = {}
    rules: tuple[Nodes, ...] = (None, "midpoint", "simpson")
    for nodes in rules[:2] if config.smoke else rules:
        init, step = ldjax.make_step(*problem, nodes=nodes)
        state, _ = step(init(params), batch, probe)
        forms[f"immediate, {nodes}"] = lambda step=step, state=state: step(
            state, batch, probe
        )
        init, step, _ = ldjax.make_pending_step(*problem, nodes=nodes)
        state, _ = step(init(params, batch, probe), batch)
        forms[f"pending, {nodes}"] = lambda step=step, state=state: step(state, batch)
    return interleaved_medians(forms, config.repeats)


def random_texts(count: int, length: int) -> ldjax.Sequences:
    """Drawn ids, the last two thirds of each scored."""
    ids = jax.random.randint(jax.random.key(count), (count, length + 1), 0, 360)
    mask = jnp.broadcast_to(jnp.arange(length) >= length // 3, (count, length))
    return ldjax.Sequences(ids[:, :-1], ids[:, 1:], mask)


def random_images(count: int) -> ldjax.Sequences:
    """Images of noise: the cost does not depend on what they show."""
    images = jax.random.uniform(jax.random.key(count), (count, 28, 28))
    labels = jnp.arange(count)[:, None] % 10
    return ldjax.Sequences(images, labels, jnp.ones((count, 1), bool))


if __name__ == "__main__":
    command.run(main, tyro.cli(Config, description=__doc__))
