"""Figure 1 of the paper and its appendix C.1: learning dynamics of digits.

Trains LeNet with SGD while watching test images of every class, and accounts for what
each step did to them: first-order prediction beside measurement, one step on one
example, the accumulated change of a whole run, and the exact empirical NTK.

Claims, checked on a full run (exit status 1 if one does not hold), each by the lower
end of a 95 % interval:
  1. a step on an image pulls up its label more on images of its own class than on
     those of the other nine;
  2. the off-diagonal accumulated change follows the mean confusion (Spearman > 0.5);
  3. the ranking of |K|_F over class pairs is stable late in training (> 0.9);
  4. at the training rate first order explains each step (R^2 >= 0.95).

    python experiments/mnist.py --out runs/digits                  (offline; ~2 min)
    python experiments/mnist.py --mnist-dir DIR --out runs/mnist   (~4 min)
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldjax import command, linen, losses, precision
from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE, Range, wrong_numbers
from ldjax.data import Images, as_sequences, load_digits, load_mnist
from ldjax.equation.log_probs import log_softmax
from ldjax.equation.sequences import Sequences
from ldjax.equation.step import StepComparison, make_pending_step, make_step
from ldjax.models import MLP, LeNet
from ldjax.ntk.empirical import empirical_ntk
from ldjax.progress import progress
from ldjax.runs.folder import create_run
from ldjax.runs.sinks import SinkName, check_sinks, make_sink
from ldjax.studies.mnist.claims import check_claims, check_identities
from ldjax.studies.mnist.figures import draw_figures
from ldjax.studies.mnist.results import NUM_CLASSES, Results
from ldjax.theory.claims import failures, stored, told

MODELS = {"lenet": LeNet, "mlp": MLP}

_RANGES = {
    "seed": SEED,
    "epochs": COUNT,
    "num_train": COUNT,
    "batch_size": COUNT,
    "learning_rate": POSITIVE,
    "end_learning_rate": POSITIVE._replace(also=(0,)),
    "momentum": Range(0, 1 - 2**-24, "in [0, 1)"),
    "weight_decay": POSITIVE._replace(also=(0,)),
    "probes_per_class": COUNT,
    "kernel_images_per_class": COUNT,
    "draws_per_class": COUNT,
    "step_epoch": SIZE,
    "step_rate": POSITIVE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Learning dynamics of handwritten digits (Figure 1 of the paper)."""

    out: Path = Path("runs/mnist")
    """Run folder to write."""
    mnist_dir: Path | None = None
    """Folder with the four IDX files of MNIST, plain or gzipped. Without it the digits
    that scikit-learn carries are used."""
    download: bool = False
    """Download MNIST (checked by hash) instead."""
    model: Literal["lenet", "mlp"] = "lenet"
    """Network of the paper's notebook."""
    seed: int = 0
    """Of the split, the initial parameters and the order of the data."""
    epochs: int = 100
    """Passes over the training images; the learning rate falls to its end over them."""
    num_train: int = 0
    """Training images; 0 stands for 2000 of MNIST or 1000 of the digits."""
    batch_size: int = 0
    """Images a step; 0 stands for 64 for MNIST and 32 for the digits, of which there
    are half as many, so that both runs take the same number of steps. The rest of an
    epoch that fills no batch is left out."""
    learning_rate: float = 1e-3
    """At the start; cosine per epoch."""
    end_learning_rate: float = 1e-6
    """At the end."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Added to the gradient, as PyTorch's SGD does."""
    probes_per_class: int = 5
    """Watched test images of each class."""
    kernel_images_per_class: int = 10
    """Test images of each class between which the exact kernel is computed."""
    draws_per_class: int = 5
    """Single training images of each class for claim 1; each is one step away from
    every probe."""
    step_epoch: int = 5
    """Epoch after which the single steps are taken."""
    step_rate: float = 0.5
    """Learning rate of the single steps, large on purpose; also half and a quarter."""
    classes: tuple[int, int, int] = (4, 9, 0)
    """Class of the trained image (and of the same-class probe), of the similar and of
    the dissimilar probe."""
    log: tuple[SinkName, ...] = ()
    """Also show the numbers, when the run is done, in TensorBoard (`tensorboard`, files
    in the run folder) or Weights & Biases (`wandb`; offline unless one is logged in),
    or both."""
    overwrite: bool = False
    """Replace a run that is already in `--out`."""
    smoke: bool = False
    """The whole path at tiny size: checks identities and files, not the claims."""

    @property
    def data(self) -> str:
        """Which images."""
        return "MNIST" if self.mnist_dir or self.download else "digits"

    def resolved(self) -> "Config":
        """With every default filled in, at the size of a smoke test if it is one."""
        num_train, batch_size = (2000, 64) if self.data == "MNIST" else (1000, 32)
        filled = dataclasses.replace(
            self,
            num_train=self.num_train or num_train,
            batch_size=self.batch_size or batch_size,
        )
        return filled.shrunk() if self.smoke else filled

    def check(self) -> None:
        """Refuse what cannot run, before anything is written."""
        problems = {
            "--epochs must be at least 1": self.epochs < 1,
            "--step-epoch must be between 0 and --epochs": not (
                0 <= self.step_epoch <= self.epochs
            ),
            "--batch-size must be between 1 and --num-train": not (
                1 <= self.batch_size <= self.num_train
            ),
            "--classes are digits from 0 to 9": not set(self.classes) <= set(range(10)),
        }
        if not self.smoke:  # what the claims are judged by
            problems |= {
                "--epochs must be at least 4, for two late kernels": self.epochs < 4,
                "--probes-per-class must be at least 2": self.probes_per_class < 2,
                "--draws-per-class must be at least 2": self.draws_per_class < 2,
                "--kernel-images-per-class must be at least 3": (
                    self.kernel_images_per_class < 3
                ),
            }
        wrong = [problem for problem, applies in problems.items() if applies]
        wrong += wrong_numbers(self, _RANGES)
        if wrong:
            raise ValueError("; ".join(wrong))

    def shrunk(self) -> "Config":
        """The same experiment at the size of a smoke test."""
        return dataclasses.replace(
            self,
            epochs=2,
            num_train=128,
            batch_size=32,
            probes_per_class=2,
            kernel_images_per_class=1,
            draws_per_class=1,
            step_epoch=1,
        )


@command.experiment
def main(config: Config) -> int:
    """Run the experiment; the exit status."""
    config = config.resolved()
    with command.set_up():
        config.check()
        check_sinks(config.log)
        images = load_images(config)
        run = create_run(config.out, settings(config), overwrite=config.overwrite)
        sinks = [make_sink(name, run) for name in config.log]
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

    run.write_metrics(results.rows)
    for sink in sinks:
        sink.write(run.metrics())
        sink.close()
    identities = check_identities(results)
    claims = [] if config.smoke else check_claims(results)
    run.write_summary({"claims": stored(claims), "identities": stored(identities)})
    figures = draw_figures(run)
    print(told([*identities, *claims]))
    print("\n".join(["", "figures:", *map(str, figures), f"run folder: {run.path}"]))
    return 1 if failures([*identities, *claims]) else 0


def load_images(config: Config) -> Images:
    """MNIST where it is asked for, otherwise the bundled digits."""
    if config.data == "MNIST":
        return load_mnist(
            config.mnist_dir, seed=config.seed, num_train=config.num_train
        )
    return load_digits(seed=config.seed, num_train=config.num_train)


def settings(config: Config) -> dict[str, Any]:
    """What `config.json` says of the run."""
    reductions = {"loss": "mean over the batch", "probes": "mean over a class"}
    return dataclasses.asdict(config) | {"data": config.data, "reductions": reductions}


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
                sys.exit(f"mnist: the loss is {loss} in epoch {epoch}; stopped there")
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


parse = functools.partial(command.parse, Config, __doc__)
