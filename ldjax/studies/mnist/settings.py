"""The settings of the learning dynamics of digits."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from ldjax.command.options import COUNT, POSITIVE, SEED, SIZE, Range
from ldjax.runs.sinks import SinkName
from ldjax.studies.study import Settings

__all__ = ["Config"]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
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

    ranges: ClassVar = {
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
        return Settings.resolved(filled)

    def problems(self) -> dict[str, bool]:
        """What may be wrong besides a number."""
        problems = {
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
        return problems

    def tiny(self) -> dict[str, Any]:
        """Two epochs of few images."""
        return {
            "epochs": 2,
            "num_train": 128,
            "batch_size": 32,
            "probes_per_class": 2,
            "kernel_images_per_class": 1,
            "draws_per_class": 1,
            "step_epoch": 1,
        }
