"""What each operation of an optimizer does to a number that is linear in shares.

A number is *linear* in some inputs or *frozen*: a scale that a step used. `rule` says
of an operation which of its operands the shares go through, `linear` and `frozen` what
is then known of its result. All of it is known before any value is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

NOISE = -1  # the source of what was drawn at random; inputs are numbered from 0
_CONSTANT = "a constant term"

_IDENTITIES = frozenset(
    ("optimization_barrier", "stop_gradient", "name", "copy", "copy_p")
)
# Linear in all operands together, or in those at these places with any others.
_LINEAR = {
    **dict.fromkeys(("add", "add_any", "sub", "neg", "concatenate")),
    **dict.fromkeys(("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "rev")),
    **dict.fromkeys(("transpose", "slice", "split", "reduce_sum", "cumsum")),
    **dict.fromkeys(("reduce_window_sum", "stack", "unstack", "tile", "psum", "pvary")),
    **dict.fromkeys(("sharding_constraint", "reshard")),
    **dict.fromkeys(("gather", "dynamic_slice"), (0,)),
    **dict.fromkeys(("dynamic_update_slice", "pad"), (0, 1)),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), (0, 2)),
    "triangular_solve": (1,),
}
# Linear in one operand with the other frozen.
_BILINEAR = frozenset(
    {"mul", "dot_general", "ragged_dot_general", "conv_general_dilated"}
)
# Monotone, and zero at zero: x times the frozen number phi(x) / x, which is not
# negative. Functions that lose the sign (an absolute value, a square) measure a size:
# these are scales.
_MONOTONE = frozenset(
    (
        *("sign", "tanh", "sinh", "asinh", "atan", "atanh", "erf", "cbrt", "expm1"),
        *("log1p", "round", "reduce_precision"),
    )
)
_KEEPS_SIGN = frozenset(
    (
        *("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "slice"),
        *("reduce_sum", "reduce_max", "reduce_min", "copy", "expand_dims"),
    )
)
_KEEPS_SWITCH = frozenset(
    ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "sub", "mul")
)
_RANDOM = ("random_", "threefry", "rng_")
_NOT_NEGATIVE, _NOT_POSITIVE = 1, 2  # bits of a sign; a zero has both


# A condition on counts, as a bool or as a 0 or 1; or, with False, one less that. What
# it turns off is off where it is 0.
Switch = tuple[object, bool]


class Fact(NamedTuple):
    """What is known of a number before its value is.

    Attributes:
      sources: The inputs it is linear in (none for a known zero), each with the
        switches that turn its contribution off. None if the number is frozen.
      touched: Whether it depends on any input that is not a clock or a key.
      soft: Linear through a monotone function or by noise: a scale where it multiplies
        a number that is linear without.
      noise: Whether something drawn at random went into it.
      sign: `_NOT_NEGATIVE` and `_NOT_POSITIVE`, as far as known.
      switch: Which one it is, and not its opposite, if it is a switch.
      obstacle: If frozen, the operation that is not linear.
    """

    sources: Mapping[int, frozenset[Switch]] | None
    touched: bool = False
    soft: bool = False
    noise: bool = False
    sign: int = 0
    switch: Switch | None = None
    obstacle: str = _CONSTANT

    @property
    def is_linear(self) -> bool:
        """Whether shares go through it."""
        return self.sources is not None


def fact_of_constant(value: Any) -> Fact:
    """Of a literal or a captured array; while it is traced nothing is known of it."""
    if isinstance(value, Tracer):
        return Fact(None)
    if isinstance(value, jax.Array) and (
        not value.is_fully_addressable
        or jnp.issubdtype(value.dtype, jax.dtypes.extended)
    ):
        return Fact(None)
    known = np.asarray(value)
    if known.dtype == bool or not np.issubdtype(known.dtype, np.number):
        return Fact(None)
    sign = _NOT_NEGATIVE * bool(np.all(known >= 0))
    sign |= _NOT_POSITIVE * bool(np.all(known <= 0))
    is_zero = sign == _NOT_NEGATIVE | _NOT_POSITIVE
    return Fact({} if is_zero else None, sign=sign)


def is_identity(eqn: Any) -> bool:
    """Whether an operation hands on its operands, if not their derivatives."""
    is_first_power = eqn.primitive.name == "integer_pow" and eqn.params["y"] == 1
    return is_first_power or eqn.primitive.name in _IDENTITIES


def linear_together(eqn: Any) -> Sequence[int] | None:
    """The operands that an operation is jointly linear in, whatever the others are."""
    name, places = eqn.primitive.name, range(len(eqn.invars))
    if name == "convert_element_type":
        dtypes = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
        return places if all(jnp.issubdtype(d, jnp.inexact) for d in dtypes) else None
    if name == "select_n":
        return places[1:]
    if name not in _LINEAR:
        return None
    return places if _LINEAR[name] is None else _LINEAR[name]


def rule(
    eqn: Any, facts: Sequence[Fact], together: Sequence[int] | None
) -> tuple[Sequence[int] | None, bool]:
    """The operands that vary with the shares, and whether by the ratio rule.

    None for the operands where the operation freezes its result.
    """
    name = eqn.primitive.name
    linear = [i for i, fact in enumerate(facts) if fact.is_linear]
    zeros = [i for i in linear if not facts[i].sources]
    if together is not None:
        return (together if set(together) <= set(linear) else None), False
    if name == "convert_element_type" and zeros:
        return zeros, False
    if name in _BILINEAR:
        if zeros:  # zero times anything
            return zeros[:1], False
        hard = [i for i in linear if not facts[i].soft]
        factors = linear if len(linear) == 1 else hard
        return (factors if len(factors) == 1 else None), False
    if name == "div":
        if linear == [0] or (len(linear) == 2 and facts[1].soft > facts[0].soft):
            return (0,), False
        return None, False
    return _monotone(eqn, facts), True


def _monotone(eqn: Any, facts: Sequence[Fact]) -> Sequence[int] | None:
    """The operand of a monotone function that is zero at zero."""
    name = eqn.primitive.name
    if name == "clamp":
        low, x, high = facts
        encloses_zero = low.sign & _NOT_POSITIVE and high.sign & _NOT_NEGATIVE
        is_bounded = not low.sources and not high.sources and encloses_zero
        return (1,) if x.is_linear and is_bounded else None
    if name in ("max", "min"):
        bound = _NOT_POSITIVE if name == "max" else _NOT_NEGATIVE
        for x, other in ((0, 1), (1, 0)):
            if facts[x].sources and not facts[other].sources:
                return (x,) if facts[other].sign & bound else None
        return None
    is_odd_power = name == "integer_pow" and eqn.params["y"] in range(3, 100, 2)
    return (0,) if (name in _MONOTONE or is_odd_power) and facts[0].is_linear else None


def linear(
    eqn: Any, facts: Sequence[Fact], varying: Sequence[int], *, is_ratio: bool = False
) -> Fact:
    """A number that is linear in these operands, the others frozen."""
    cases = [facts[i].sources or {} for i in varying]
    switches = {fact.switch for fact in facts if fact.switch}
    return Fact(
        {s: _off(s, eqn, cases, switches) for case in cases for s in case},
        touched=any(fact.touched for fact in facts),
        soft=is_ratio or any(facts[i].soft for i in varying),
        noise=any(fact.noise for fact in facts),
        sign=_sign(eqn, facts),
    )


def _off(
    source: int,
    eqn: Any,
    cases: Sequence[Mapping[int, frozenset[Switch]]],
    switches: set[Switch],
) -> frozenset[Switch]:
    """The switches that turn off what a source contributes to a linear number."""
    name = eqn.primitive.name
    states = [case[source] for case in cases if source in case]
    if name == "mul":
        return states[0] | switches
    if name not in ("select_n", "cond"):
        return frozenset.intersection(*states)
    # In one of the cases is enough; also where another case is without it.
    where_missing = (
        _opposite(switch) if source in cases[0] else switch
        for switch in switches
        if len(states) < len(cases) == 2
    )
    return frozenset().union(*states, where_missing)


def frozen(eqn: Any, facts: Sequence[Fact]) -> Fact:
    """A number that this step used; remembers what first stood in the way."""
    name = eqn.primitive.name
    inherited = [fact.obstacle for fact in facts if not fact.is_linear]
    is_first = any(fact.sources for fact in facts)
    if is_first and (linear_together(eqn) is None or not inherited):
        to = f" to {eqn.params['new_dtype']}" if name == "convert_element_type" else ""
        obstacle = f"`{name}`{to}"
    else:
        named = (obstacle for obstacle in inherited if obstacle != _CONSTANT)
        obstacle = next(named, _CONSTANT)
    return Fact(
        None,
        touched=any(fact.touched for fact in facts),
        noise=any(fact.noise for fact in facts) or name.startswith(_RANDOM),
        sign=_sign(eqn, facts),
        switch=_switch(eqn, facts),
        obstacle=obstacle,
    )


def _switch(eqn: Any, facts: Sequence[Fact]) -> Switch | None:
    """A new switch, one that is handed on or reversed, or none."""
    operands = [
        (fact, atom.aval.dtype)
        for atom, fact in zip(eqn.invars, facts, strict=False)
        if not hasattr(atom, "val")
    ]
    if eqn.outvars[0].aval.dtype == bool:
        is_known = all(
            fact.switch or not fact.touched or jnp.issubdtype(dtype, jnp.integer)
            for fact, dtype in operands
        )
        return (object(), True) if is_known else None
    name = eqn.primitive.name
    first, *others = [fact.switch for fact, _ in operands] or [None]
    if name not in _KEEPS_SWITCH or first is None or not all(others):
        return None
    if name != "sub":
        return first
    literals = [atom.val for atom in eqn.invars if hasattr(atom, "val")]
    return _opposite(first) if literals == [1] else None


def _opposite(switch: Switch) -> Switch:
    token, is_on = switch
    return token, not is_on


def _sign(eqn: Any, facts: Sequence[Fact]) -> int:
    """What is known of the sign of the result."""
    name, signs = eqn.primitive.name, [fact.sign for fact in facts]
    if name in _KEEPS_SIGN:
        return signs[0]
    if name in ("abs", "sqrt", "exp", "square"):
        return _NOT_NEGATIVE
    if name == "integer_pow" and eqn.params["y"] % 2 == 0:
        return _NOT_NEGATIVE
    if name == "pow":  # of a negative number it is not a number
        exponent = getattr(eqn.invars[1], "val", 0)
        return _NOT_NEGATIVE if exponent % 1 else signs[0] & _NOT_NEGATIVE
    if name == "neg":
        return _flip(signs[0])
    if name in ("mul", "div"):
        if signs[1] & _NOT_NEGATIVE:
            return signs[0]
        return _flip(signs[0]) if signs[1] & _NOT_POSITIVE else 0
    if name == "max":
        return (signs[0] | signs[1]) & _NOT_NEGATIVE | signs[0] & signs[1]
    if name == "min":
        return (signs[0] | signs[1]) & _NOT_POSITIVE | signs[0] & signs[1]
    return signs[0] & signs[1] if name == "add" else 0


def _flip(sign: int) -> int:
    return (sign & 1) << 1 | sign >> 1
