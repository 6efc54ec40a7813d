"""An optimizer's computation as a program that is linear with its scales frozen.

`Program` reads a jaxpr once, without any value, and learns of every number whether it
is *linear* in the inputs that carry shares, or *frozen*: a scale that this step used
(`ldjax.programs.rules`). Then it runs on values, and `respond` sends any share of its
inputs through the linear numbers alone; it may be transposed (`jax.vjp`). What the
shares are called is `ldjax.equation.update_parts`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ldjax.programs.calls import CALLS
from ldjax.programs.rules import (
    NOISE,
    Fact,
    fact_of_constant,
    frozen,
    is_identity,
    linear,
    linear_together,
    rule,
)

_MAX_UNROLLED = 64  # steps of a loop


class _Op(NamedTuple):
    """One operation: its operands and results by number.

    `varying` are the places of the operands that it is linear in, None if the results
    are frozen; `is_ratio` if the share is that of the operand times result / operand.
    `spread` is `run` on shares, which may be wider than the values.
    """

    run: Callable[..., Sequence[Any]]
    spread: Callable[..., Sequence[Any]]
    ins: Sequence[int]
    outs: Sequence[int]
    varying: Sequence[int] | None
    is_ratio: bool = False
    is_choice: bool = False
    is_quotient: bool = False


class Program:
    """A jaxpr whose numbers know what they are linear in."""

    def __init__(self, closed: Any, inputs: Sequence[Fact]) -> None:
        """Read `closed` with these facts about its inputs."""
        self.facts = list(inputs)
        self.num_inputs = len(self.facts)
        self.ops: list[_Op] = []
        self.constants: dict[int, Any] = {}
        outputs = self._walk(closed.jaxpr, closed.consts, range(self.num_inputs))
        self.outputs = [self._admit_noise(number) for number in outputs]
        self._droppable = self._find_droppable()

    def run(self, inputs: Sequence[Any], wanted: Sequence[int]) -> dict[int, Any]:
        """The values of all numbers that those wanted depend on."""
        values = dict(enumerate(inputs)) | self.constants
        for op in self._needed(wanted):
            results = op.run(*(values[i] for i in op.ins))
            values |= zip(op.outs, results, strict=True)
        return values

    def usable_scales(
        self, values: Mapping[int, Any], wanted: Sequence[int]
    ) -> dict[tuple[int, bool], Any]:
        """Scales on the way to what a choice may drop, and whether they divide.

        In a branch that was not taken they may be no numbers; then they let nothing
        through. What they make is dropped; backward, zero times infinity would not be.
        """
        return {
            (number, op.is_quotient): _usable(values[number], op.is_quotient)
            for op in self._needed(wanted)
            if op.varying and not self._droppable.isdisjoint(op.outs)
            for i, number in enumerate(op.ins)
            if i not in op.varying
        }

    def respond(
        self,
        values: Mapping[int, Any],
        parts: Mapping[int, Any],
        wanted: Sequence[int],
        *,
        scales: Mapping[tuple[int, bool], Any] | None = None,
    ) -> list[Any]:
        """The share of the numbers wanted that comes from these parts of the inputs.

        An input that is not among `parts` contributes nothing; `parts[NOISE]` (of any
        value) stands for all that was drawn at random. Shares are of the numbers' own
        types and rounded as they are; with `scales` (`usable_scales`) in float32 at
        least, by a map that may be transposed.
        """
        is_wide = scales is not None
        widen = wide if is_wide else lambda value: value
        shares = {i: widen(part) for i, part in parts.items() if i != NOISE}

        def share(number: int) -> Any:
            if number in shares:
                return shares[number]
            return widen(jnp.zeros_like(values[number]))

        def scale(op: _Op, number: int) -> Any:
            usable = (scales or {}).get((number, op.is_quotient), values[number])
            return widen(usable)

        def spread(op: _Op) -> Sequence[Any]:
            operands = (
                share(number) if i in (op.varying or ()) else scale(op, number)
                for i, number in enumerate(op.ins)
            )
            return op.spread(*operands) if is_wide else op.run(*operands)

        for op in self._needed(wanted):
            if op.varying is None:
                continue
            if not op.varying:  # noise
                if NOISE in parts:
                    shares[op.outs[0]] = widen(values[op.outs[0]])
            elif any(op.ins[i] in shares for i in op.varying):
                if op.is_ratio:
                    number = op.ins[op.varying[0]]
                    x, phi = (widen(values[n]) for n in (number, op.outs[0]))
                    results = [_ratio_share(share(number), x, phi)]
                else:
                    results = spread(op)
                shares |= zip(op.outs, results, strict=True)
        return [share(number) for number in wanted]

    def _find_droppable(self) -> set[int]:
        """The linear numbers that a choice may drop: their scales may be no numbers."""
        droppable: set[int] = set()
        for op in reversed(self.ops):
            if op.varying and (op.is_choice or not droppable.isdisjoint(op.outs)):
                droppable.update(op.ins[i] for i in op.varying)
        return droppable

    def _needed(self, wanted: Sequence[int]) -> list[_Op]:
        """The operations that lead to these numbers, in order."""
        needed, ops = set(wanted), []
        for op in reversed(self.ops):
            if needed.intersection(op.outs):
                needed.update(op.ins)
                ops.append(op)
        return ops[::-1]

    def _number(self, fact: Fact) -> int:
        self.facts.append(fact)
        return len(self.facts) - 1

    def _constant(self, value: Any) -> int:
        number = self._number(fact_of_constant(value))
        self.constants[number] = value
        return number

    def _emit(
        self,
        run: Callable[..., Sequence[Any]],
        ins: Sequence[int],
        facts: Sequence[Fact],
        varying: Sequence[int] | None,
        *,
        spread: Callable[..., Sequence[Any]] | None = None,
        **kind: bool,
    ) -> list[int]:
        outs = [self._number(fact) for fact in facts]
        self.ops.append(_Op(run, spread or run, ins, outs, varying, **kind))
        return outs

    def _admit_noise(self, number: int) -> int:
        """The number itself; if it was drawn at random, as a part of its own."""
        fact = self.facts[number]
        if fact.is_linear or fact.touched or not fact.noise:
            return number
        admitted = fact._replace(sources={NOISE: frozenset()}, soft=True)
        return self._emit(lambda value: (value,), [number], [admitted], ())[0]

    def _walk(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[int]) -> list:
        numbers = dict(zip(jaxpr.invars, args, strict=True))
        numbers |= zip(jaxpr.constvars, map(self._constant, consts), strict=True)

        def read(atom: Any) -> int:
            # A literal carries its value; a variable has none.
            return self._constant(atom.val) if hasattr(atom, "val") else numbers[atom]

        for eqn in jaxpr.eqns:
            results = self._apply(eqn, [read(atom) for atom in eqn.invars])
            numbers |= zip(eqn.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, eqn: Any, args: list[int]) -> Sequence[int]:
        """One operation: linear where it is linear in its linear operands."""
        name = eqn.primitive.name
        if name in CALLS:
            body = eqn.params[CALLS[name]]
            return self._walk(
                getattr(body, "jaxpr", body), getattr(body, "consts", ()), args
            )
        if is_identity(eqn):
            return args
        if name == "cond":
            return self._apply_cond(eqn, args)
        if name == "scan" and self._is_short(eqn, args):
            return self._unroll(eqn, args)
        return self._apply_primitive(eqn, args)

    def _apply_primitive(self, eqn: Any, args: list[int]) -> list[int]:
        together = linear_together(eqn)
        if together and any(self.facts[args[i]].is_linear for i in together):
            for i in together:
                args[i] = self._admit_noise(args[i])
        facts = [self.facts[number] for number in args]
        varying, is_ratio = rule(eqn, facts, together)
        fact = (
            frozen(eqn, facts)
            if varying is None
            else linear(eqn, facts, varying, is_ratio=is_ratio)
        )

        return self._emit(
            functools.partial(_bind, eqn, eqn.params),
            *(args, [fact] * len(eqn.outvars), varying),
            spread=functools.partial(
                _bind, eqn, {k: _widened(v) for k, v in eqn.params.items()}
            ),
            is_ratio=is_ratio,
            is_choice=eqn.primitive.name == "select_n",
            is_quotient=eqn.primitive.name == "div",
        )

    def _apply_cond(self, eqn: Any, args: list[int]) -> list[int]:
        """All branches, then the one that was taken; as it is if all are frozen."""
        index, *operands = args
        mark = len(self.ops)
        branches = [
            self._walk(branch.jaxpr, branch.consts, operands)
            for branch in eqn.params["branches"]
        ]
        if not any(self.facts[n].is_linear for case in branches for n in case):
            del self.ops[mark:]
            return self._apply_primitive(eqn, args)

        def choose(index: Any, *cases: Any) -> Sequence[Any]:
            last = jnp.asarray(len(cases) - 1, index.dtype)
            within = lax.clamp(jnp.zeros_like(index), index, last)
            return (lax.select_n(within, *cases),)

        results = []
        for cases in zip(*branches, strict=True):
            cases = [self._admit_noise(case) for case in cases]
            facts = [self.facts[number] for number in (index, *cases)]
            if all(fact.is_linear for fact in facts[1:]):
                varying = range(1, len(facts))
                fact = linear(eqn, facts, varying)
            else:
                varying, fact = None, frozen(eqn, facts)
            operands = [index, *cases]
            results += self._emit(choose, operands, [fact], varying, is_choice=True)
        return results

    def _is_short(self, eqn: Any, args: list[int]) -> bool:
        """A loop that may be unrolled: shares enter it, and it has few steps."""
        enters = any(self.facts[number].sources for number in args)
        return enters and 0 < eqn.params["length"] <= _MAX_UNROLLED

    def _unroll(self, eqn: Any, args: list[int]) -> list[int]:
        """A loop's steps one after the other; as it is if all results are frozen."""
        mark = len(self.ops)
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]
        consts = args[:num_consts]
        carry = args[num_consts : num_consts + num_carry]
        slices = args[num_consts + num_carry :]
        stacks: list[list[int]] = []
        steps = range(length)
        for step in reversed(steps) if eqn.params["reverse"] else steps:

            def at_step(leaf: Any, step: int = step) -> Sequence[Any]:
                return (lax.index_in_dim(leaf, step, keepdims=False),)

            now = []
            for number in slices:
                fact = self.facts[number]
                varying = (0,) if fact.is_linear else None
                now += self._emit(at_step, [number], [fact], varying)
            results = self._walk(body.jaxpr, body.consts, [*consts, *carry, *now])
            carry = results[:num_carry]
            stacks.append(results[num_carry:])
        if eqn.params["reverse"]:
            stacks.reverse()
        columns = zip(*stacks, strict=True)
        results = [*carry, *(self._stack(eqn, column) for column in columns)]
        if any(self.facts[number].is_linear for number in results):
            return results
        del self.ops[mark:]
        return self._apply_primitive(eqn, args)

    def _stack(self, eqn: Any, column: Sequence[int]) -> int:
        def stack(*leaves: Any) -> Sequence[Any]:
            return (
                lax.concatenate([lax.expand_dims(leaf, (0,)) for leaf in leaves], 0),
            )

        facts = [self.facts[number] for number in column]
        if all(fact.is_linear for fact in facts):
            varying = range(len(column))
            fact = linear(eqn, facts, varying)
        else:
            varying, fact = None, frozen(eqn, facts)
        return self._emit(stack, column, [fact], varying)[0]


def _bind(eqn: Any, params: Mapping[str, Any], *operands: Any) -> Sequence[Any]:
    """The results of an operation, with these parameters, on values."""
    results = eqn.primitive.bind(*operands, **params)
    return results if eqn.primitive.multiple_results else (results,)


def _widened(param: Any) -> Any:
    """A dtype that an operation is to return, for shares."""
    return (
        np.dtype(np.float32)
        if isinstance(param, np.dtype) and _is_narrow(param)
        else param
    )


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def wide(value: Any) -> Any:
    """A share in float32 at least: what is added up over a run must not be rounded."""
    return value.astype(jnp.float32) if _is_narrow(jnp.result_type(value)) else value


def _usable(scale: Any, is_divisor: bool) -> Any:
    """A scale, or one that lets nothing through where it is no number."""
    if not jnp.issubdtype(jnp.result_type(scale), jnp.floating):
        return scale
    scale = jnp.asarray(scale)
    is_usable = (
        jnp.isfinite(scale) & (scale != 0) if is_divisor else jnp.isfinite(scale)
    )
    return jnp.where(is_usable, scale, jnp.inf if is_divisor else 0)


def _ratio_share(part: Any, value: Any, result: Any) -> Any:
    """`part * (result / value)`; nothing where `value` is zero, as `result` is then."""
    is_idle = (value == 0) | ~jnp.isfinite(value)
    share = part / lax.select(is_idle, jnp.ones_like(value), value) * result
    return lax.select(is_idle, jnp.zeros_like(share), share)
