"""Optimizers in NumPy, from their papers and optax's documentation, already split.

Each keeps its own state and returns a `Split`: with the scale factors of this very
step frozen, the update is `scale * gradient + history + decay`.
"""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """One update: linear in the gradient, with what is left over."""

    scale: np.ndarray | float
    history: np.ndarray | None
    decay: np.ndarray | None

    def update(self, gradient):
        """The whole update."""
        rest = [part for part in (self.history, self.decay) if part is not None]
        return self.scale * gradient + sum(rest, np.zeros_like(gradient))


class Sgd:
    """Plain, momentum (heavy ball) or Nesterov."""

    def __init__(self, learning_rate, momentum=None, *, nesterov=False):
        self.learning_rate, self.momentum = learning_rate, momentum
        self.nesterov, self.trace = nesterov, 0.0

    def step(self, gradient, theta):
        del theta
        if self.momentum is None:
            return Split(-self.learning_rate, None, None)
        old = self.trace * np.ones_like(gradient)
        self.trace = gradient + self.momentum * old
        if self.nesterov:  # gradient + momentum * new trace
            return Split(
                -self.learning_rate * (1 + self.momentum),
                -self.learning_rate * self.momentum**2 * old,
                None,
            )
        return Split(
            -self.learning_rate, -self.learning_rate * self.momentum * old, None
        )


class RmsProp:
    """Hinton's lecture 6; optax adds epsilon under the root."""

    def __init__(self, learning_rate, decay=0.9, epsilon=1e-8):
        self.learning_rate, self.decay, self.epsilon = learning_rate, decay, epsilon
        self.squares = 0.0

    def step(self, gradient, theta):
        del theta
        self.squares = self.decay * self.squares + (1 - self.decay) * gradient**2
        scale = -self.learning_rate / np.sqrt(self.squares + self.epsilon)
        return Split(scale, None, None)


class Adam:
    """Kingma & Ba 2015, algorithm 1; with decoupled decay and clipping, AdamW's."""

    def __init__(
        self,
        learning_rate,
        *,
        b1=0.9,
        b2=0.999,
        epsilon=1e-8,
        weight_decay=None,
        max_norm=None,
    ):
        self.learning_rate, self.b1, self.b2 = learning_rate, b1, b2
        self.epsilon, self.weight_decay, self.max_norm = epsilon, weight_decay, max_norm
        self.mean, self.squares, self.count, self.clip = 0.0, 0.0, 0, 1.0

    def step(self, gradient, theta):
        self.count += 1
        self.clip = 1.0
        if self.max_norm is not None:
            self.clip = min(1.0, self.max_norm / np.sqrt((gradient**2).sum()))
        clipped = self.clip * gradient
        old_mean = self.mean * np.ones_like(gradient)
        self.mean = self.b1 * old_mean + (1 - self.b1) * clipped
        self.squares = self.b2 * self.squares + (1 - self.b2) * clipped**2
        unbiased = self.squares / (1 - self.b2**self.count)
        preconditioner = 1 / (np.sqrt(unbiased) + self.epsilon)
        factor = -self.learning_rate * preconditioner / (1 - self.b1**self.count)
        decay = None
        if self.weight_decay is not None:
            decay = -self.learning_rate * self.weight_decay * theta
        return Split(
            factor * (1 - self.b1) * self.clip, factor * self.b1 * old_mean, decay
        )
