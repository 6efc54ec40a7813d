"""The losses by the names people know."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ldjax.losses.likelihood import gradient_ascent, sft, unlikelihood
from ldjax.losses.policy_gradient import grpo, reinforce
from ldjax.losses.preference import dpo, gated_dpo, hinge, ipo, kto, rpo, sppo
from ldjax.losses.reference_free import orpo, simpo, slic

__all__ = ["LOSSES", "NamedLoss", "make_loss"]


class NamedLoss(NamedTuple):
    """A loss and what it is trained on.

    Attributes:
      make: From coefficients and a reduction where it has one, by keyword, to
        `loss_fn(logits, batch) -> scalar`.
      trains_on: `"responses"` (`Sequences`), `"pairs"` (a dict of a `"chosen"` and a
        `"rejected"` side) or `"samples"` (`Sequences` with `advantages`).
      has_reference: Whether the sides of a pair must have a `reference`.
      takes_unpaired: Whether a row may lack a side, whose mask is then all false.

    Examples:
      >>> LOSSES["simpo"].trains_on, LOSSES["simpo"].has_reference
      ('pairs', False)
    """

    make: Callable[..., Callable[..., Any]]
    trains_on: Literal["responses", "pairs", "samples"]
    has_reference: bool = False
    takes_unpaired: bool = False

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficients, which are numbers, and their defaults."""
        return {k: v for k, v in self.options.items() if not isinstance(v, str)}

    @property
    def options(self) -> dict[str, float | str]:
        """The coefficients, and the `reduction` where there is one."""
        parameters = inspect.signature(self.make).parameters
        return {name: p.default for name, p in parameters.items()}


def _dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Callable[..., Any]:
    return dpo(beta, label_smoothing)


def _cdpo(beta: float = 0.1, label_smoothing: float = 0.1) -> Callable[..., Any]:
    return dpo(beta, label_smoothing)


def _reference_free(beta: float = 0.1) -> Callable[..., Any]:
    return dpo(beta, reference_free=True)


#: By name, as TRL spells it where TRL has it (its `sigmoid` is DPO).
LOSSES: Mapping[str, NamedLoss] = MappingProxyType(
    {
        "sft": NamedLoss(lambda: sft, "responses"),
        "gradient_ascent": NamedLoss(lambda: gradient_ascent, "responses"),
        "unlikelihood": NamedLoss(lambda: unlikelihood, "responses"),
        "dpo": NamedLoss(_dpo, "pairs", has_reference=True),
        "sigmoid": NamedLoss(_dpo, "pairs", has_reference=True),
        "cdpo": NamedLoss(_cdpo, "pairs", has_reference=True),
        "spin": NamedLoss(_dpo, "pairs", has_reference=True),
        "reference_free": NamedLoss(_reference_free, "pairs"),
        "ipo": NamedLoss(ipo, "pairs", has_reference=True),
        "hinge": NamedLoss(hinge, "pairs", has_reference=True),
        "slic": NamedLoss(slic, "pairs"),
        "sppo_hard": NamedLoss(sppo, "pairs", has_reference=True),
        "simpo": NamedLoss(simpo, "pairs"),
        "orpo": NamedLoss(orpo, "pairs"),
        "rpo": NamedLoss(rpo, "pairs", has_reference=True),
        "kto": NamedLoss(kto, "pairs", has_reference=True, takes_unpaired=True),
        "gated_dpo": NamedLoss(gated_dpo, "pairs", has_reference=True),
        "reinforce": NamedLoss(lambda: reinforce, "samples"),
        "grpo": NamedLoss(grpo, "samples"),
    }
)


def make_loss(name: str, **options: float | str) -> Callable[..., Any]:
    """A loss by its name.

    Args:
      name: One of `LOSSES`.
      **options: Coefficients of that loss, and its `reduction` where it has one,
        instead of its defaults.

    Returns:
      `loss_fn(logits, batch) -> scalar` in nats.

    Raises:
      ValueError: If there is no such loss, if it has no such coefficient, or if one is
        out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ldjax import Sequences
      >>> answer = Sequences(*jnp.zeros((2, 1, 1), int), jnp.ones((1, 1), bool))
      >>> z = {"chosen": jnp.zeros((1, 1, 4)), "rejected": jnp.zeros((1, 1, 4))}
      >>> make_loss("simpo", gamma=0.0)(z, {"chosen": answer, "rejected": answer})
      Array(0.693..., dtype=...)
    """
    if name not in LOSSES:
        raise ValueError(f"there is no loss {name!r}; there are {', '.join(LOSSES)}.")
    known = LOSSES[name].options
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(
            f"the loss {name!r} has no coefficient {unknown[0]!r}; it has "
            f"{', '.join(known) or 'none'}."
        )
    return LOSSES[name].make(**options)
