r"""History with a date: what each side of earlier updates did through the moments.

Beside an optimizer's moments :math:`s` one labelled copy :math:`s^o` is kept for each
origin: each side of the updates, and weight decay and noise where they enter the
moments. A copy follows the recurrence of the moments with its origin's gradient
(`ldjax.equation.update_parts.linear_step`),

.. math:: \Delta\theta^o = D g^o + C s^o, \qquad s'^o = B g^o + A s^o ,

so that the copies sum to what the moments took up since the first was made. What they
leave, :math:`s - \sum_o s^o`, is from before: zero, to rounding, in a run that began
at `optimizer.init`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldjax.equation.update_parts.linear_step import PARTS, LinearStep, Moments

__all__ = ["Origins", "dated_parts", "is_side"]

#: The labelled copies of the moments.
Origins = dict[str, Moments]

_HISTORY_OF = "history of "
# Each is one part, its own history included.
_TERMS = ("weight_decay", "noise")
# Parts of a step that are no side of its update, by name.
_REST = frozenset({*PARTS, "before", "rounding"})


def is_side(part: str) -> bool:
    """Whether a part of a step is a side of its update."""
    return part not in _REST and not part.startswith(_HISTORY_OF)


def dated_parts(
    step: LinearStep,
    gradients: Mapping[str, Any],
    params: Any,
    origins: Origins | None,
) -> tuple[dict[str, Any], Origins]:
    """The parts of an update, its history by origin; and the labelled copies after it.

    Args:
      step: The optimizer's step.
      gradients: The gradient of each side of the update; they sum to the step's.
      params: The parameters before the step.
      origins: The copies before the step, zero where there are none: all that the
        moments hold is then from before.

    Returns:
      The parts by name: each side, `"history of SIDE"`, `"before"`, `"accumulated"`,
      `"weight_decay"` and `"noise"` with what they did through the moments, as far as
      the update has them; they sum to the update. And the copies after the step: a
      copy of the moments for each side and for weight decay and noise where they enter
      the moments. None where no earlier update has a share in a later one.
    """
    fresh = {side: step.carry(g, None, None) for side, g in gradients.items()}
    if "weight_decay" in step.in_update | step.in_moments:
        fresh["weight_decay"] = step.carry(None, None, params)
    if step.noise is not None:
        fresh["noise"] = step.noise
    parts = {name: update for name, (update, _) in fresh.items()}
    if "accumulated" in step.in_update:
        collected, _ = _by_age(step, step.moments)
        parts["accumulated"], _ = step.carry(None, collected, None)
    if "history" not in step.in_update:
        return parts, {}

    held = _held(step, gradients, origins or {})
    after: Origins = {}
    for name, moments in held.items():
        collected, older = _by_age(step, moments)
        history, kept = step.carry(None, older, None)
        shares = [kept, step.carry(None, collected, None)[1]]
        if name in fresh:
            shares.append(fresh[name][1])
        after[name] = jax.tree.map(lambda *leaves: sum(leaves), *shares)
        if name in _TERMS:
            parts[name] = jax.tree.map(jnp.add, parts[name], history)
        else:
            parts[_HISTORY_OF + name] = history
    _, before = _by_age(step, _left(step.moments, held))
    parts["before"], _ = step.carry(None, before, None)
    return parts, after


def _held(step: LinearStep, sides: Mapping[str, Any], origins: Origins) -> Origins:
    """A copy for each origin: the one that is there, or zero."""
    terms = (name for name in _TERMS if name in step.in_moments)
    nothing: Moments = jax.tree.map(jnp.zeros_like, step.moments)
    return {
        name: origins.get(name, nothing)
        for name in dict.fromkeys((*origins, *sides, *terms))
    }


def _left(moments: Moments, held: Origins) -> Moments:
    """What no copy has of the moments."""
    return {
        name: value - sum(shares[name] for shares in held.values())
        for name, value in moments.items()
    }


def _by_age(step: LinearStep, moments: Moments) -> tuple[Moments, Moments]:
    """The moments that hold gradients of this very update, and the others."""
    collected = {k: v for k, v in moments.items() if k in step.accumulated}
    return collected, {k: v for k, v in moments.items() if k not in collected}
