"""Optimizers that keep every origin's share of their memory, one by one, in NumPy.

An origin is a row of a side of an update, the weight decay of an update, or what the
run began with. Scales are made by the sum of all gradients, as in the papers; each
share then goes its own way. Nothing is imported from ldjax. Parameters are one vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["AdamW", "Every", "Momentum", "RmsProp", "accounted", "log_prob_fn"]


def _sum(shares, like):
    return sum(shares.values(), np.zeros_like(like))


class Momentum:
    """Heavy ball or Nesterov; decay, if any, goes through the momentum."""

    def __init__(self, rate, beta=0.0, *, nesterov=False, decay=0.0):
        self.rate, self.beta, self.nesterov, self.decay = rate, beta, nesterov, decay
        self.traces = {}

    def step(self, step, gradients, theta):
        gradients = dict(gradients)
        if self.decay:
            gradients["decay", step] = self.decay * theta
        zero = np.zeros_like(theta)
        for origin in {**self.traces, **gradients}:
            old = self.traces.get(origin, zero)
            self.traces[origin] = self.beta * old + gradients.get(origin, zero)
        ahead = {
            origin: gradients.get(origin, zero) + self.beta * trace
            for origin, trace in self.traces.items()
        }
        moving = ahead if self.nesterov else self.traces
        return {origin: -self.rate * share for origin, share in moving.items()}


class RmsProp:
    def __init__(self, rate, decay=0.9, epsilon=1e-8):
        self.rate, self.decay, self.epsilon, self.squares = rate, decay, epsilon, 0.0

    def step(self, step, gradients, theta):
        del step
        total = _sum(gradients, theta)
        self.squares = self.decay * self.squares + (1 - self.decay) * total**2
        scale = self.rate / np.sqrt(self.squares + self.epsilon)
        return {origin: -scale * share for origin, share in gradients.items()}


class AdamW:
    """With a clip by the norm before it, a schedule, and a mask of what decays."""

    def __init__(self, rate, *, max_norm=np.inf, decay=0.0, mask: Any = 1.0):
        self.rate = rate
        self.max_norm, self.decay, self.mask = max_norm, decay, mask
        self.means, self.squares, self.count = {}, 0.0, 0

    def step(self, step, gradients, theta):
        b1, b2, epsilon = 0.9, 0.999, 1e-8
        rate = self.rate(self.count)
        self.count += 1
        total = _sum(gradients, theta)
        clip = min(1.0, self.max_norm / np.linalg.norm(total))
        self.squares = b2 * self.squares + (1 - b2) * (clip * total) ** 2
        root = np.sqrt(self.squares / (1 - b2**self.count)) + epsilon
        scale = rate / (1 - b1**self.count) / root
        zero = np.zeros_like(theta)
        for origin in {**self.means, **gradients}:
            new = (1 - b1) * clip * gradients.get(origin, zero)
            self.means[origin] = b1 * self.means.get(origin, zero) + new
        updates = {origin: -scale * mean for origin, mean in self.means.items()}
        if self.decay:
            updates["decay", step] = -rate * self.decay * self.mask * theta
        return updates


class Every:
    """Another one's step with the mean of so many gradients."""

    def __init__(self, inner, count):
        self.inner, self.count, self.held = inner, count, []

    def step(self, step, gradients, theta):
        self.held.append(gradients)
        if len(self.held) < self.count:
            return {}
        mean = {k: g / self.count for held in self.held for k, g in held.items()}
        self.held = []
        return self.inner.step(step, mean, theta)


def log_prob_fn(apply_fn, unflat):
    """`(theta, row) -> ` the log-prob of a row's scored tokens."""

    def log_prob(theta, row):
        logits = apply_fn(unflat(theta), jax.tree.map(lambda leaf: leaf[None], row))
        picked = jax.nn.log_softmax(logits[0])
        targets = jnp.where(row.mask, row.targets, 0)
        return (picked[jnp.arange(len(targets)), targets] * row.mask).sum()

    return log_prob


def accounted(
    optimizer, theta, *, num_steps, batch_fn, logits_fn, loss_fn, log_prob, probes, n
):
    """What every origin did to every probe.

    Args:
      optimizer: One of this module.
      theta: The parameters at the start.
      num_steps: How many updates.
      batch_fn: From a step to the sides of its batch, by name.
      logits_fn: `(theta, sides) -> logits` by side.
      loss_fn: `(logits, sides) -> scalar`, both by side.
      log_prob: `(theta, probe) -> scalar`.
      probes: Rows.
      n: Gauss-Legendre nodes.

    Returns:
      `{origin: [probe]}`, and the parameters at the end.
    """
    places, weights = np.polynomial.legendre.leggauss(n)
    gradient_of = jax.jit(jax.grad(log_prob))
    found = {}

    @jax.jit
    def rows_of(theta, sides):
        logits, pullback = jax.vjp(lambda t: logits_fn(t, sides), theta)
        residual = jax.grad(loss_fn)(logits, sides)
        shares = {}
        for side, of_side in residual.items():
            for row in range(len(of_side)):
                alone = {k: 0 * v for k, v in residual.items()}
                alone[side] = alone[side].at[row].set(of_side[row])
                (shares[side, row],) = pullback(alone)
        return shares

    for step in range(num_steps):
        gradients = {
            (step, *origin): np.asarray(share)
            for origin, share in rows_of(theta, batch_fn(step)).items()
        }
        updates = optimizer.step(step, gradients, theta)
        change = _sum(updates, theta)
        for k, probe in enumerate(probes):
            mean = sum(
                w / 2 * np.asarray(gradient_of(theta + (1 + x) / 2 * change, probe))
                for x, w in zip(places, weights, strict=True)
            )
            for origin, update in updates.items():
                found.setdefault(origin, np.zeros(len(probes)))[k] += mean @ update
        theta = theta + change
    return found, theta
