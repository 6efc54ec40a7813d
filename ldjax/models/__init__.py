"""Flax Linen networks of the paper: images to logits."""

from ldjax.models.lenet import LeNet
from ldjax.models.mlp import MLP

__all__ = ["MLP", "LeNet"]
