"""Losses as functions of logits; the residual `G` is always `jax.grad` of one.

A loss takes the logits first and the batch they belong to second;
`functools.partial(loss, batch=batch)` is the one-argument form that
`ldjax.decompose` takes. The reduction is part of each definition, because it is a
factor of the learning rate. A row without a scored token is an empty response: its
log-prob is 0, as a sum and as a mean, it gets no gradient, and the mean over the batch
counts it, so rows that only fill up a batch make its gradient smaller.
"""

from ldjax.losses.likelihood import gradient_ascent, sft, unlikelihood
from ldjax.losses.pairs import log_ratio_margin, log_ratios
from ldjax.losses.policy_gradient import grpo, reinforce
from ldjax.losses.preference import dpo, gated_dpo, hinge, ipo, kto, rpo, sppo
from ldjax.losses.reference_free import orpo, simpo, slic
from ldjax.losses.registry import LOSSES, NamedLoss, make_loss

__all__ = [
    "LOSSES",
    "NamedLoss",
    "dpo",
    "gated_dpo",
    "gradient_ascent",
    "grpo",
    "hinge",
    "ipo",
    "kto",
    "log_ratio_margin",
    "log_ratios",
    "make_loss",
    "orpo",
    "reinforce",
    "rpo",
    "sft",
    "simpo",
    "slic",
    "sppo",
    "unlikelihood",
]
