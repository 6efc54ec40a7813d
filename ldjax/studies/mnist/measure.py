"""Training on digits, with test images of every class watched at every step."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldjax import linen, losses, precision
from ldjax.data import Images, as_sequences
from ldjax.equation.log_probs import log_softmax
from ldjax.equation.sequences import Sequences
from ldjax.equation.step import StepComparison, make_pending_step, make_step
from ldjax.models import MLP, LeNet
from ldjax.ntk.empirical import empirical_ntk
from ldjax.progress import progress
from ldjax.runs.loop import NonFiniteError
from ldjax.studies.mnist.results import NUM_CLASSES, Results
from ldjax.studies.mnist.settings import Config

__all__ = ["collect", "kernel_epochs", "per_class", "take"]

MODELS = {"lenet": LeNet, "mlp": MLP}


def collect(config: Config, images: Images) -> Results:
    """Train, and collect what the figures and the claims are about."""
    model = MODELS[config.model]()
    apply_fn = linen.apply_fn(model)
    key = jax.random.key(config.seed)
    start = model.init(key, images.test_images[:1])["params"]

    probe = per_class(images, config.probes_per_class)
    kernel_images = per_class(images, config.kernel_images_per_class)
    steps_per_epoch = len(images.train_labels) // config.batch_size
    results = Results(steps_per_epoch=steps_per_epoch, batch_size=config.batch_size)
    params = start
    for epoch, params, steps in train(config, apply_fn, start, images, probe):
        if steps is not None:
            results.add_steps(epoch, steps)
        if epoch in kernel_epochs(config.epochs):
            results.add_kernel(epoch, kernel(model, params, kernel_images))
        if epoch == config.step_epoch:
            add_single_steps(results, config, apply_fn, params, images, probe)
        if epoch in (0, config.epochs):
            tested = test_log_probs(apply_fn, params, images)
            results.add_test(epoch, tested, images.test_labels)
    change = log_probs(apply_fn, params, probe) - log_probs(apply_fn, start, probe)
    results.change = np.asarray(change).reshape(NUM_CLASSES, -1, NUM_CLASSES)
    return results


def per_class(images: Images, count: int) -> Sequences:
    """The first `count` test images of each class, class by class."""
    labels = images.test_labels
    chosen = [np.flatnonzero(labels == c)[:count] for c in range(NUM_CLASSES)]
    index = np.concatenate(chosen)
    return as_sequences(images.test_images[index], labels[index])


def take(images: Images, index: np.ndarray) -> Sequences:
    """Training images by their number."""
    return as_sequences(images.train_images[index], images.train_labels[index])


def train_image(images: Images, label: int, draw: int) -> Sequences:
    """One training image of a class (their order is random)."""
    return take(images, np.flatnonzero(images.train_labels == label)[draw : draw + 1])


def train(
    config: Config, apply_fn: Any, params: Any, images: Images, probe: Sequences
) -> Iterator[tuple[int, Any, StepComparison | None]]:
    """Train; yields `(epoch, params, steps)`, starting with epoch 0 and no steps."""
    steps = len(images.train_labels) // config.batch_size

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        # The notebook's scheduler moves once an epoch.
        epoch = jnp.asarray(step) // steps
        cosine = (1 + jnp.cos(jnp.pi * epoch / config.epochs)) / 2
        span = config.learning_rate - config.end_learning_rate
        return config.end_learning_rate + span * cosine

    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=config.momentum),
    )
    init, step, finish = make_pending_step(apply_fn, losses.sft, optimizer)
    state = init(params, take(images, np.arange(config.batch_size)), probe)
    yield 0, params, None
    with progress("training", config.epochs, unit="epochs") as tell:
        for epoch in range(1, config.epochs + 1):
            order = np.random.default_rng((config.seed, epoch))
            index = order.permutation(len(images.train_labels))[
                : steps * config.batch_size
            ]
            comparisons = []
            # A Python loop: inside `lax.scan` XLA's CPU code takes twice as long.
            for batch in index.reshape(steps, config.batch_size):
                state, step_before = step(state, take(images, batch))
                comparisons.append(step_before)
            # Each step reports the one before it: move them up by one.
            comparisons = [*comparisons[1:], finish(state)]
            loss = state.now.loss
            if not np.isfinite(loss):
                raise NonFiniteError(f"The loss is {loss} in epoch {epoch}.")
            tell(epoch, f"{loss:.3f} nats")
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *comparisons)
            yield epoch, state.now.params, stacked


def kernel_epochs(epochs: int) -> set[int]:
    """When the kernel is computed: densely early, then every twelfth of the run."""
    early = {epoch for epoch in (0, 1, 2, 3, 5) if epoch < epochs}
    return early | set(range(epochs, -1, -max(1, epochs // 12)))


@functools.partial(jax.jit, static_argnums=0)
def kernel(model: nn.Module, params: Any, images: Sequences) -> jax.Array:
    """The exact kernel between images, `[image, label, image, label]`."""
    logits_fn = linen.logits_fn(model, images)
    K = empirical_ntk(logits_fn, logits_fn, params, method="structured")
    return K.dense()[:, 0, :, :, 0]


@functools.partial(jax.jit, static_argnums=0)
def log_probs(apply_fn: Any, params: Any, images: Sequences) -> jax.Array:
    """Log-probs of all labels, `[image, label]`, in nats."""
    return log_softmax(precision.watched(apply_fn)(params, images)[:, 0])


def test_log_probs(apply_fn: Any, params: Any, images: Images) -> np.ndarray:
    """Log-probs of all labels on all test images, `[image, label]`, in nats."""
    pieces = [
        as_sequences(
            images.test_images[at : at + 500], images.test_labels[at : at + 500]
        )
        for at in range(0, len(images.test_labels), 500)
    ]
    return np.concatenate([log_probs(apply_fn, params, piece) for piece in pieces])


def add_single_steps(
    results: Results,
    config: Config,
    apply_fn: Any,
    params: Any,
    images: Images,
    probe: Sequences,
) -> None:
    """Plain SGD steps on one image each: the panels' example, and claim 1's draws."""
    epoch = config.step_epoch
    # The rate is part of the state, so one compiled step serves all rates.
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=config.step_rate)
    init, step = make_step(apply_fn, losses.sft, optimizer, parts=None)

    def one_step(rate: float, update: Any, probe: Any) -> StepComparison:
        state = init(params)
        state.opt_state.hyperparams["learning_rate"] = jnp.asarray(rate)
        return step(state, update, probe)[1]

    update = train_image(images, config.classes[0], 0)
    first = np.array(config.classes) * config.probes_per_class
    watched = jax.tree.map(lambda leaf: leaf[first], probe)
    results.add(epoch, "one_step_prob", np.exp(log_probs(apply_fn, params, watched)))
    results.add(epoch, "update_prob", np.exp(log_probs(apply_fn, params, update)))
    logits = precision.watched(apply_fn)(params, update)
    residual = jax.grad(losses.sft)(logits, update)
    results.add(epoch, "update_residual", residual[:, 0])
    for rate in (config.step_rate, config.step_rate / 2, config.step_rate / 4):
        comparison = one_step(rate, update, watched)
        results.add(epoch, f"one_step_predicted@{rate:g}", comparison.predicted[:, 0])
        results.add(epoch, f"one_step_measured@{rate:g}", comparison.measured[:, 0])

    counts = (config.draws_per_class, NUM_CLASSES, config.probes_per_class)
    pull_ups = np.zeros((NUM_CLASSES, *counts))
    for label, draw in np.ndindex(pull_ups.shape[:2]):
        update = train_image(images, label, draw)
        change = one_step(config.step_rate, update, probe).measured[:, 0, label]
        pull_ups[label, draw] = np.asarray(change).reshape(NUM_CLASSES, -1)
    results.pull_ups = pull_ups
    # Rows: class of the probe; columns: class of the trained image, whose label it is.
    results.add(epoch, "pull_up", pull_ups.mean((1, 3)).T)
