"""Frozen replays: an optimizer's run again, its scales as they were, without somebody.

A replay trains by a NumPy optimizer (`train`) and remembers preconditioner, clip factor
and rate of every step; `updates` is what other gradients and (for weight decay) other
parameters make of these. It is linear, so what is missing when a gradient is left out
is that gradient's part of every update.
"""

import numpy as np
from witnesses.numpy_optimizers import Adam, Lion, RmsProp, ScheduleFreeSgd


def train(replay, gradients, theta):
    """The parameters before each step."""
    thetas = []
    for gradient in gradients:
        thetas.append(theta)
        theta = theta + replay.step(gradient, theta)
    return thetas


class Momentum:
    """Heavy ball or Nesterov, with decay before the momentum."""

    def __init__(self, rates, factor, *, decay=0.0, nesterov=False):
        self.rates, self.factor = rates, factor
        self.decay, self.nesterov = decay, nesterov
        self.seen = []

    def step(self, gradient, theta):
        self.seen.append((gradient, theta))
        return self.updates(*zip(*self.seen, strict=True))[-1]

    def updates(self, gradients, thetas):
        trace, updates = 0.0, []
        for rate, gradient, theta in zip(self.rates, gradients, thetas, strict=False):
            pull = gradient + self.decay * theta
            trace = pull + self.factor * trace
            direction = pull + self.factor * trace if self.nesterov else trace
            updates.append(-rate * direction)
        return updates


class AdamW:
    """Adam with its clip factors, denominators and rates remembered."""

    def __init__(self, rates, **options):
        self.rates, self.scales = rates, []
        self.adam = Adam(0.0, **options)

    def step(self, gradient, theta):
        adam = self.adam
        adam.learning_rate = self.rates[adam.count]
        split = adam.step(gradient, theta)
        unbiased = adam.squares / (1 - adam.b2**adam.count)
        self.scales.append((adam.clip, 1 / (np.sqrt(unbiased) + adam.epsilon)))
        return split.update(gradient)

    def updates(self, gradients, thetas):
        b1, decay = self.adam.b1, self.adam.weight_decay or 0.0
        mean, updates = 0.0, []
        for t, (clip, inverse) in enumerate(self.scales):
            mean = b1 * mean + (1 - b1) * clip * gradients[t]
            direction = mean / (1 - b1 ** (t + 1))
            if self.adam.nesterov:
                direction = b1 * mean / (1 - b1 ** (t + 2))
                direction += (1 - b1) * clip * gradients[t] / (1 - b1 ** (t + 1))
            updates.append(-self.rates[t] * (inverse * direction + decay * thetas[t]))
        return updates


class RmsPropMomentum:
    """RMSprop, then heavy ball."""

    def __init__(self, rate, factor):
        self.rate, self.factor, self.scales = rate, factor, []
        self.rms, self.trace = RmsProp(1.0), 0.0

    def step(self, gradient, theta):
        self.scales.append(self.rms.step(gradient, theta).scale)
        self.trace = self.factor * self.trace + self.scales[-1] * gradient
        return self.rate * self.trace

    def updates(self, gradients, thetas):
        del thetas
        trace, updates = 0.0, []
        for scale, gradient in zip(self.scales, gradients, strict=True):
            trace = self.factor * trace + scale * gradient
            updates.append(self.rate * trace)
        return updates


class LionReplay:
    """Lion, the size under each sign remembered."""

    def __init__(self, rate, **options):
        self.rate, self.options, self.sizes = rate, options, []
        self.lion = Lion(rate, **options)

    def step(self, gradient, theta):
        b1 = self.options["b1"]
        self.sizes.append(np.abs(b1 * self.lion.mean + (1 - b1) * gradient))
        return self.lion.step(gradient, theta).update(gradient)

    def updates(self, gradients, thetas):
        b1, b2, decay = (self.options[k] for k in ("b1", "b2", "weight_decay"))
        mean, updates = 0.0, []
        for size, gradient, theta in zip(self.sizes, gradients, thetas, strict=True):
            direction = (b1 * mean + (1 - b1) * gradient) / size
            updates.append(-self.rate * (direction + decay * theta))
            mean = b2 * mean + (1 - b2) * gradient
        return updates


class Mean:
    """Another optimizer's steps with the means of `every` gradients."""

    def __init__(self, inner, every):
        self.inner, self.every, self.held = inner, every, []

    def step(self, gradient, theta):
        self.held.append(gradient)
        if len(self.held) < self.every:
            return np.zeros_like(gradient)
        mean, self.held = sum(self.held) / self.every, []
        return self.inner.step(mean, theta)

    def updates(self, gradients, thetas):
        outer = len(gradients) // self.every * self.every
        rows = np.array(gradients[:outer]).reshape(-1, self.every, gradients[0].size)
        ends = thetas[self.every - 1 :: self.every]
        made = iter(self.inner.updates(list(rows.mean(axis=1)), ends))
        is_end = [(t + 1) % self.every == 0 for t in range(len(gradients))]
        return [next(made) if end else np.zeros_like(gradients[0]) for end in is_end]


class ScheduleFree:
    """Schedule-free gradient descent has no scales; its parameters move along."""

    def __init__(self, rate):
        self.rate, self.sgd = rate, ScheduleFreeSgd(rate)

    def step(self, gradient, theta):
        return self.sgd.step(gradient, theta).update(gradient)

    def updates(self, gradients, thetas):
        del thetas  # where it starts is no matter
        again, theta, updates = ScheduleFree(self.rate), 0.0 * gradients[0], []
        for gradient in gradients:
            updates.append(again.step(gradient, theta))
            theta = theta + updates[-1]
        return updates
