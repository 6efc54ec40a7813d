"""An optimizer's computation as a program that is linear with its scales frozen.

`Program` reads a jaxpr once, without any value, and learns of every number whether it
is *linear* in the inputs that carry shares, or *frozen*: a scale that this step used
(`ldjax.programs.rules`). Then it runs on values, and `respond` sends any share of its
inputs through the linear numbers alone. What the shares are called is
`ldjax.equation.update_parts`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ldjax.programs.calls import CALLS
from ldjax.programs.rules import (
    NOISE,
    Fact,
    fact_of_constant,
    frozen,
    linear,
    linear_together,
    rule,
)

_MAX_UNROLLED = 64  # steps of a loop


class _Op(NamedTuple):
    """One operation: its operands and results by number.

    `varying` are the places of the operands that it is linear in, None if the results
    are frozen; `is_ratio` if the share is that of the operand times result / operand.
    """

    run: Callable[..., Sequence[Any]]
    ins: Sequence[int]
    outs: Sequence[int]
    varying: Sequence[int] | None
    is_ratio: bool = False


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

    def run(self, inputs: Sequence[Any], wanted: Sequence[int]) -> dict[int, Any]:
        """The values of all numbers that those wanted depend on."""
        values = dict(enumerate(inputs)) | self.constants
        for op in self._needed(wanted):
            results = op.run(*(values[i] for i in op.ins))
            values |= zip(op.outs, results, strict=True)
        return values

    def respond(
        self,
        values: Mapping[int, Any],
        parts: Mapping[int, Any],
        wanted: Sequence[int],
    ) -> list[Any]:
        """The share of the numbers wanted that comes from these parts of the inputs.

        An input that is not among `parts` contributes nothing; `parts[NOISE]` (of any
        value) stands for all that was drawn at random.
        """
        shares = {i: part for i, part in parts.items() if i != NOISE}
        for op in self._needed(wanted):
            if op.varying is None:
                continue
            if not op.varying:  # noise
                if NOISE in parts:
                    shares[op.outs[0]] = values[op.outs[0]]
                continue
            if not any(op.ins[i] in shares for i in op.varying):
                continue
            operands = [
                _share(shares, values, number) if i in op.varying else values[number]
                for i, number in enumerate(op.ins)
            ]
            if op.is_ratio:
                (i,) = op.varying
                results = [
                    _ratio_share(operands[i], values[op.ins[i]], values[op.outs[0]])
                ]
            else:
                results = op.run(*operands)
            shares |= zip(op.outs, results, strict=True)
        return [_share(shares, values, number) for number in wanted]

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
        is_ratio: bool = False,
    ) -> list[int]:
        outs = [self._number(fact) for fact in facts]
        self.ops.append(_Op(run, ins, outs, varying, is_ratio))
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
        if name == "optimization_barrier":
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

        def run(*operands: Any) -> Sequence[Any]:
            results = eqn.primitive.bind(*operands, **eqn.params)
            return results if eqn.primitive.multiple_results else (results,)

        facts = [fact] * len(eqn.outvars)
        return self._emit(run, args, facts, varying, is_ratio=is_ratio)

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
            results += self._emit(choose, [index, *cases], [fact], varying)
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


def _share(shares: Mapping[int, Any], values: Mapping[int, Any], number: int) -> Any:
    return shares[number] if number in shares else jnp.zeros_like(values[number])


def _ratio_share(part: Any, value: Any, result: Any) -> Any:
    """`part * (result / value)`; nothing where `value` is zero, as `result` is then."""
    zero = jnp.zeros_like(value)
    is_zero = value == zero
    share = part / lax.select(is_zero, jnp.ones_like(value), value) * result
    return lax.select(is_zero, zero, share)
