"""Networks of images: LeNet and the MLP, initialised as PyTorch does."""

from ldjax.models.images.lenet import LeNet
from ldjax.models.images.mlp import MLP

__all__ = ["MLP", "LeNet"]
