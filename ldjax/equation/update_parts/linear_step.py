r"""An optimizer's step as a linear map of what went into it, its scales frozen.

With gradient :math:`g`, linear state (*moments*) :math:`s` and parameters
:math:`\theta`,

.. math:: \Delta\theta = D g + C s + E \theta, \qquad s' = B g + A s + F \theta

is exact where the matrices are made with the scales that this step used. So any
division of :math:`g` divides the update, and what it leaves in the moments for later
ones: shares that follow the same recurrence sum to it at every step.

**Distances.** A moment that starts at a copy :math:`c(\theta)` of the parameters (an
average of them, an anchor) is worked with as its distance
:math:`d = \sigma - c(\theta)` from where the present parameters would have started it.
The parameters move along, so its next value is

.. math:: d' = \sigma' - c(\theta + \Delta\theta)

of which a share of :math:`g` or of :math:`s` has :math:`\sigma'` less
:math:`c(\Delta\theta)`, and the share of the parameters (with all copies equal to them)
has :math:`\sigma' - c(\theta)` less :math:`c(\Delta\theta)`, where :math:`\Delta\theta`
is that share's own update: its weight decay, mostly nothing. What storing
:math:`\theta + \Delta\theta` rounds off is in none of them.

**Choices.** A branch that was not taken lets nothing through, forward or backward,
whatever it would have computed (`optax.apply_if_finite`).

Derived in docs/theory/optimizers.md#carried-on.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from ldjax.equation.update_parts.moments import Places, Reading, Start, read
from ldjax.programs.linear import wide
from ldjax.programs.rules import NOISE

__all__ = ["PARTS", "FrozenStep", "LinearStep", "linear_step"]

# What goes into a step beside the gradient, in this order.
PARTS = ("history", "accumulated", "weight_decay", "noise")

Moments = dict[str, Array]
#: A share of the update, and of the moments after it.
Shares = tuple[Any, Moments]


class LinearStep(NamedTuple):
    r"""An optimizer's step as a linear map, its scales frozen.

    `carry(gradient, moments, params)`, plus `noise`, is the update and the moments
    after it. It may be transposed: `jax.vjp`.

    Attributes:
      moments: What the optimizer's linear state held before the step, by the leaf's
        name, in float32 at least; the distance from the parameters where a leaf starts
        at them. Only what reaches an update, now or later.
      carry: `(gradient, moments, params) -> (update, new_moments)`: linear. Any
        argument may be None, for zero; `moments` may lack some. The share of `params`
        is the response to the parameters with their copies equal to them (weight
        decay).
      noise: The share of what was drawn at random, or None.
      accumulated: The moments that hold gradients of this very update.
      in_update: Which of `PARTS` the update has.
      in_moments: Which of `PARTS` the moments after it have.

    Examples:
      >>> import jax.numpy as jnp
      >>> optimizer = optax.sgd(1.0, momentum=0.5)
      >>> theta = {"w": jnp.array([1.0, 2.0])}
      >>> state = optimizer.init(theta)
      >>> step = linear_step(optimizer, {"w": jnp.ones(2)}, state, theta)
      >>> list(step.moments)
      ["[0].trace['w']"]
      >>> share = {"w": jnp.array([0.25, 0.0])}
      >>> step.carry(share, None, None)[1]  # a quarter of one of the gradients
      {"[0].trace['w']": Array([0.25, 0.  ], dtype=...)}
      >>> _, transposed = jax.vjp(lambda s: step.carry(None, s, None), step.moments)
      >>> watched = {"w": jnp.array([1.0, 0.0])}, step.moments
      >>> transposed(watched)[0]  # what a unit of the trace does to the update
      {"[0].trace['w']": Array([-0.5,  0. ], dtype=...)}
    """

    moments: Moments
    carry: Callable[[Any, Moments | None, Any], Shares]
    noise: Shares | None
    accumulated: frozenset[str]
    in_update: frozenset[str]
    in_moments: frozenset[str]


def linear_step(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    state: Any,
    params: Any,
    **extra_args: Any,
) -> LinearStep:
    r"""Read off how an optimizer's step carries on, its scale factors frozen.

    .. math:: \Delta\theta = D g + C s + E \theta, \qquad s' = B g + A s + F \theta

    Args:
      optimizer: An optax transformation.
      gradient: The gradient of this step, shaped like `params`.
      state: The optimizer's state before the step.
      params: The parameters before the step.
      **extra_args: Passed to `optimizer.update`, as in the step itself.

    Returns:
      The step: `carry(gradient, step.moments, params)` and `step.noise` sum to the
      update and to the `moments` that a next step from the optimizer's new state and
      `params + update` has, to rounding (of the state, where it is stored in less).

    Raises:
      ValueError: If the update is not linear even with frozen scales, `state` is not
        one of `optimizer.init`, or `gradient` has another structure than `params`.

    Examples:
      The share of the first gradient in Adam's second update:

      >>> import jax.numpy as jnp
      >>> adam, theta = optax.adam(0.1), jnp.array([1.0, 2.0])
      >>> gradient = jnp.array([4.0, -2.0])
      >>> first = linear_step(adam, gradient, adam.init(theta), theta)
      >>> update, moments = first.carry(gradient, None, None)
      >>> _, state = adam.update(gradient, adam.init(theta), theta)
      >>> second = linear_step(adam, 0 * gradient, state, theta + update)
      >>> second.carry(None, moments, None)[0].round(4)
      Array([-0.067,  0.067], dtype=...)
    """
    step = FrozenStep.of(optimizer, gradient, state, params, extra_args)
    return LinearStep(
        moments=step.moments,
        carry=step.carry,
        noise=step.advance({NOISE: None}, None) if step.reading.has_noise else None,
        accumulated=frozenset(map(step.reading.name, step.reading.accumulated)),
        in_update=step.labels(step.reading.in_updates),
        in_moments=step.labels(step.reading.in_next_moments),
    )


class FrozenStep(NamedTuple):
    """An optimizer's program with all of its numbers, and shares on their way through.

    Attributes:
      reading: The program, and which leaves of the state carry shares.
      values: Its numbers.
      scales: Those of them that a choice may drop, for shares that go on.
      start_values: Those of the program of `optimizer.init`.
      leaves: The inputs of the update.
      structure: Of the update.
    """

    reading: Reading
    values: Mapping[int, Any]
    scales: Mapping[tuple[int, bool], Any]
    start_values: Mapping[int, Any]
    leaves: list[Any]
    structure: Any

    @classmethod
    def of(
        cls,
        optimizer: optax.GradientTransformation,
        gradient: Any,
        state: Any,
        params: Any,
        extra_args: Mapping[str, Any],
        *,
        carries_on: bool = True,
    ) -> "FrozenStep":
        """Of the arguments of `linear_step`; with the moments after it or without."""
        if jax.tree.structure(gradient) != jax.tree.structure(params):
            raise ValueError(
                "The gradient has another structure than the parameters, so it cannot "
                "be said which of them are trained and which are copies (as in "
                "`optax.lookahead`). The total prediction still works: pass "
                "`parts=None`."
            )
        optimizer = optax.with_extra_args_support(optimizer)
        arrays = {k: v for k, v in extra_args.items() if _is_arrays(v)}
        others = {k: v for k, v in extra_args.items() if k not in arrays}
        inputs = (gradient, state, params, arrays)
        start = Start.of(optimizer, state, params)
        closed, (structure, _) = jax.make_jaxpr(
            lambda g, s, p, e: optimizer.update(g, s, p, **e, **others),
            return_shape=True,
        )(*inputs)
        reading = read(closed, Places.of(*inputs), start)
        _refuse_frozen(reading)
        leaves = jax.tree.leaves(inputs)
        wanted = [*reading.updates, *(reading.next_moments if carries_on else ())]
        values = reading.program.run(leaves, wanted)
        scales = reading.program.usable_scales(values, wanted) if carries_on else {}
        return cls(
            reading=reading,
            values=values,
            scales=scales,
            start_values=start.program.run(
                jax.tree.leaves(params), reading.starts_of_copies
            ),
            leaves=leaves,
            structure=structure,
        )

    @property
    def moments(self) -> Moments:
        """Those before the step."""
        held = {i: wide(self.leaves[i]) for i in self.reading.moments}
        for i, copy in self._copies([self.leaves[i] for i in self._places.params]):
            held[i] = held[i] - copy
        return {self.reading.name(i): value for i, value in held.items()}

    def carry(self, gradient: Any, moments: Moments | None, params: Any) -> Shares:
        """What these shares do to the update, and leave in the moments."""
        return self.advance(self.parts(gradient, moments, params), params)

    def parts(
        self, gradient: Any = None, moments: Moments | None = None, params: Any = None
    ) -> dict[int, Any]:
        """Shares of the program's inputs, by place."""
        parts = {}
        if gradient is not None:
            parts |= zip(self._places.gradient, jax.tree.leaves(gradient), strict=True)
        if moments is not None:
            named = {self.reading.name(i): i for i in self.reading.moments}
            parts |= {named[name]: share for name, share in moments.items()}
        if params is not None:
            leaves = jax.tree.leaves(params)
            parts |= zip(self._places.params, leaves, strict=True)
            for i, copy in self._copies(leaves):
                parts[i] = parts[i] + copy if i in parts else copy
        return parts

    def update(self, parts: Mapping[int, Any]) -> Any:
        """The share of the update, in the types that it is computed in."""
        reading = self.reading
        parts = {
            i: part if i == NOISE else part.astype(self.leaves[i].dtype)
            for i, part in parts.items()
        }
        shares = reading.program.respond(self.values, parts, reading.updates)
        return jax.tree.unflatten(jax.tree.structure(self.structure), shares)

    def advance(self, parts: Mapping[int, Any], params: Any) -> Shares:
        """The share of the update and of the moments after it."""
        reading = self.reading
        wanted = [*reading.updates, *reading.next_moments]
        shares = reading.program.respond(self.values, parts, wanted, scales=self.scales)
        updates = shares[: len(reading.updates)]
        after = dict(zip(reading.moments, shares[len(updates) :], strict=True))
        moved = updates
        if params is not None:
            leaves = jax.tree.leaves(params)
            moved = [p + u for p, u in zip(leaves, updates, strict=True)]
        for i, copy in self._copies(moved):
            after[i] = after[i] - copy
        update = jax.tree.unflatten(jax.tree.structure(self.structure), updates)
        return update, {reading.name(i): share for i, share in after.items()}

    def labels(self, sources: set[int]) -> frozenset[str]:
        """Which of `PARTS` these inputs are."""
        reading = self.reading
        inputs = (
            {*reading.moments} - reading.accumulated,
            reading.accumulated,
            {*reading.places.params} | reading.copies,
            {NOISE},
        )
        return frozenset(
            label for label, those in zip(PARTS, inputs, strict=True) if sources & those
        )

    @property
    def _places(self) -> Places:
        return self.reading.places

    def _copies(self, params: list[Any]) -> list[tuple[int, Any]]:
        """What the copies would be of these parameters, or of a share of them."""
        reading = self.reading
        shares = reading.start.program.respond(
            self.start_values,
            dict(enumerate(params)),
            reading.starts_of_copies,
            scales={},
        )
        return [
            (i, share.astype(wide(self.leaves[i]).dtype))
            for i, share in zip(sorted(reading.copies), shares, strict=True)
        ]


def _is_arrays(value: Any) -> bool:
    return all(
        isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)
        for leaf in jax.tree.leaves(value)
    )


def _refuse_frozen(reading: Reading) -> None:
    updates = [reading.program.facts[number] for number in reading.updates]
    obstacles = sorted({fact.obstacle for fact in updates if not fact.is_linear})
    if obstacles:
        raise ValueError(
            "This optimizer's update cannot be split into parts: even with its scale "
            "factors frozen it is not linear in the gradient, its moments and the "
            f"parameters, because of {', '.join(obstacles)}. The total prediction "
            "still works: pass `parts=None`."
        )
