"""Optimizers in NumPy, from their papers and optax's documentation, already split.

Each keeps its own state and returns a `Split`: with the scale factors of this very
step frozen, the update is `scale * gradient + history + decay`.
"""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """One update: linear in the gradient, with what is left over.

    `scale` multiplies the gradient entry by entry, or is a matrix for it.
    """

    scale: np.ndarray | float
    history: np.ndarray | None
    decay: np.ndarray | None
    accumulated: np.ndarray | None = None

    def own(self, gradient):
        """The gradient's own share."""
        if np.ndim(self.scale) == 2:
            return self.scale @ gradient
        return self.scale * gradient

    @property
    def rest(self):
        """The other parts, by their names in the library."""
        parts = {
            "history": self.history,
            "accumulated": self.accumulated,
            "weight_decay": self.decay,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def update(self, gradient):
        """The whole update."""
        return self.own(gradient) + sum(self.rest.values(), np.zeros_like(gradient))


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
    """Kingma & Ba 2015, algorithm 1; with decoupled decay and clipping, AdamW's.

    Clipped by the norm (`max_norm`) or entry by entry (`max_entry`); `nesterov` is
    Dozat's, as optax has it: the momentum of the next step's correction.
    """

    def __init__(
        self,
        learning_rate,
        *,
        b1=0.9,
        b2=0.999,
        epsilon=1e-8,
        weight_decay=None,
        max_norm=None,
        max_entry=None,
        nesterov=False,
    ):
        self.learning_rate, self.b1, self.b2 = learning_rate, b1, b2
        self.epsilon, self.weight_decay = epsilon, weight_decay
        self.max_norm, self.max_entry, self.nesterov = max_norm, max_entry, nesterov
        self.mean, self.squares, self.count, self.clip = 0.0, 0.0, 0, 1.0

    def step(self, gradient, theta):
        self.count += 1
        self.clip = 1.0
        if self.max_norm is not None:
            self.clip = min(1.0, self.max_norm / np.sqrt((gradient**2).sum()))
        if self.max_entry is not None:
            self.clip = np.minimum(1.0, self.max_entry / np.abs(gradient))
        clipped = self.clip * gradient
        old_mean = self.mean * np.ones_like(gradient)
        self.mean = self.b1 * old_mean + (1 - self.b1) * clipped
        self.squares = self.b2 * self.squares + (1 - self.b2) * clipped**2
        unbiased = self.squares / (1 - self.b2**self.count)
        factor = -self.learning_rate / (np.sqrt(unbiased) + self.epsilon)
        new, old = 1 - self.b1, self.b1  # of the clipped gradient, of the old mean
        correction = 1 - self.b1**self.count
        if self.nesterov:
            ahead = self.b1 / (1 - self.b1 ** (self.count + 1))
            new, old = new * (ahead + 1 / correction), old * ahead
        else:
            new, old = new / correction, old / correction
        decay = None
        if self.weight_decay is not None:
            decay = -self.learning_rate * self.weight_decay * theta
        return Split(factor * new * self.clip, factor * old * old_mean, decay)


class Lion:
    """Chen et al. 2023, algorithm 2; without `b1` and decay, the sign of the gradient.

    `sign(x)` is `x / |x|`, the size frozen.
    """

    def __init__(self, learning_rate, *, b1=None, b2=0.99, weight_decay=None):
        self.learning_rate, self.b1, self.b2 = learning_rate, b1, b2
        self.weight_decay, self.mean = weight_decay, 0.0

    def step(self, gradient, theta):
        if self.b1 is None:
            return Split(-self.learning_rate / np.abs(gradient), None, None)
        old = self.b1 * self.mean * np.ones_like(gradient)
        size = np.abs(old + (1 - self.b1) * gradient)
        self.mean = self.b2 * self.mean + (1 - self.b2) * gradient
        return Split(
            -self.learning_rate * (1 - self.b1) / size,
            -self.learning_rate * old / size,
            -self.learning_rate * self.weight_decay * theta,
        )


class Adopt:
    """Taniguchi et al. 2024, algorithm 2: scaled by the squares *before* this step."""

    def __init__(self, learning_rate, *, b1=0.9, b2=0.9999, epsilon=1e-6):
        self.learning_rate, self.b1, self.b2 = learning_rate, b1, b2
        self.epsilon, self.squares, self.mean, self.count = epsilon, 0.0, 0.0, 0

    def step(self, gradient, theta):
        del theta
        if self.count == 0:
            self.count, self.squares = 1, gradient**2
            return Split(0.0, np.zeros_like(gradient), None)
        inverse = 1 / np.maximum(np.sqrt(self.squares), self.epsilon)
        bound = self.count**0.25
        factor = inverse * np.minimum(1, bound / np.abs(gradient * inverse))
        old = self.b1 * self.mean * np.ones_like(gradient)
        self.mean = old + (1 - self.b1) * factor * gradient
        self.squares = self.b2 * self.squares + (1 - self.b2) * gradient**2
        self.count += 1
        rate = -self.learning_rate
        return Split(rate * (1 - self.b1) * factor, rate * old, None)


class Rprop:
    """Riedmiller & Braun 1993, with no step where the gradient has turned."""

    def __init__(self, learning_rate, *, up=1.2, down=0.5, bounds=(1e-6, 50.0)):
        self.size, self.up, self.down, self.bounds = learning_rate, up, down, bounds
        self.before = 0.0

    def step(self, gradient, theta):
        del theta
        turned = gradient * self.before
        factor = np.where(turned > 0, self.up, np.where(turned < 0, self.down, 1.0))
        self.size = np.clip(self.size * factor, *self.bounds)
        self.before = np.where(turned < 0, 0.0, gradient)
        return Split(np.where(turned < 0, 0, -self.size / np.abs(gradient)), None, None)


class Muon:
    """Jordan 2024, of one matrix: the left factors of the iterations as one matrix."""

    COEFFICIENTS = 3.4445, -4.7750, 2.0315

    def __init__(self, learning_rate, shape, *, beta=0.95, epsilon=1e-8):
        self.learning_rate, self.shape, self.beta = learning_rate, shape, beta
        self.epsilon, self.mean, self.count = epsilon, 0.0, 0

    def step(self, gradient, theta):
        del theta
        self.count += 1
        old = self.beta * self.mean * np.ones_like(gradient)
        self.mean = old + (1 - self.beta) * gradient
        ahead = self.beta / (1 - self.beta ** (self.count + 1))
        new = (1 - self.beta) * (ahead + 1 / (1 - self.beta**self.count))
        x = (ahead * old + new * gradient).reshape(self.shape)
        left = np.eye(self.shape[0]) / (np.linalg.norm(x) + self.epsilon)
        x = left @ x
        a, b, c = self.COEFFICIENTS
        for _ in range(5):
            square = x @ x.T
            factor = a * np.eye(len(x)) + b * square + c * square @ square
            left, x = factor @ left, factor @ x
        rate = -self.learning_rate * np.sqrt(max(1, self.shape[1] / self.shape[0]))
        whole = rate * np.kron(left, np.eye(self.shape[1]))  # rows one after another
        return Split(whole * new, whole @ (ahead * old), None)


class ScheduleFreeSgd:
    """Defazio et al. 2024: the gradient moves `z`, `x` averages it, both are mixed."""

    def __init__(self, learning_rate, *, b1=0.9):
        self.learning_rate, self.b1, self.z, self.count = learning_rate, b1, None, 0

    def step(self, gradient, theta):
        self.count += 1
        c = 1 / self.count
        z = theta if self.z is None else self.z
        x = (theta - (1 - self.b1) * z) / self.b1
        still = (1 - self.b1) * z + self.b1 * ((1 - c) * x + c * z)
        self.z = z - self.learning_rate * gradient
        scale = -self.learning_rate * (1 - self.b1 + self.b1 * c)
        return Split(scale, still - theta, np.zeros_like(theta))


class Anchored:
    """Gradient descent with a pull to where it started (L2-SP)."""

    def __init__(self, learning_rate, strength):
        self.learning_rate, self.strength, self.anchor = learning_rate, strength, None

    def step(self, gradient, theta):
        del gradient
        self.anchor = theta if self.anchor is None else self.anchor
        pull = -self.learning_rate * self.strength * (theta - self.anchor)
        return Split(-self.learning_rate, pull, np.zeros_like(theta))


class Accumulated:
    """Another optimizer's step with the mean (or sum) of `every` gradients."""

    def __init__(self, inner, every, *, mean=True):
        self.inner, self.every = inner, every
        self.weight = 1 / every if mean else 1.0
        self.held = []

    def step(self, gradient, theta):
        zero = np.zeros_like(gradient)
        if len(self.held) < self.every - 1:
            self.held.append(gradient)
            return Split(0.0, None, None, zero)
        before = self.weight * sum(self.held, zero)
        self.held = []
        split = self.inner.step(before + self.weight * gradient, theta)
        return split._replace(
            scale=split.scale * self.weight, accumulated=split.own(before)
        )
