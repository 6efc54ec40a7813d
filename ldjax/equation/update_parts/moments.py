"""Which leaves of an optimizer's state carry shares of past gradients.

Found by trial on the optimizer's program: all that might are taken for moments, and
those that the program does not bear out are dropped until it agrees.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.programs.linear import Program
from ldjax.programs.rules import NOISE, Fact

__all__ = ["Places", "Reading", "Start", "read"]

# Operations that freeze what is linear in either operand: which of the two is a scale
# may be known once another leaf is.
_PRODUCTS = frozenset({"`mul`", "`div`", "`dot_general`"})


class Places(NamedTuple):
    """Where the leaves of each input are among all."""

    gradient: range
    state: range
    params: range
    extra: range

    @classmethod
    def of(cls, *trees: Any) -> "Places":
        """Of the inputs of an update, in this order."""
        ends = np.cumsum([0, *(len(jax.tree.leaves(tree)) for tree in trees)]).tolist()
        return cls(*map(range, ends[:-1], ends[1:]))


class Start(NamedTuple):
    """What `optimizer.init` would make of the parameters, leaf by leaf of the state."""

    program: Program
    names: Sequence[str]
    may_be_moment: Sequence[bool]

    @classmethod
    def of(cls, optimizer: Any, state: Any, params: Any) -> "Start":
        """Raises ValueError if it makes another number of leaves than `state` has."""
        closed = jax.make_jaxpr(optimizer.init)(params)
        inputs = [
            Fact({i: frozenset()}, touched=True)
            for i, _ in enumerate(jax.tree.leaves(params))
        ]
        program = Program(closed, inputs)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        if len(leaves) != len(program.outputs):
            raise ValueError(
                f"The optimizer's state has {len(leaves)} leaves, where "
                f"`optimizer.init(params)` makes {len(program.outputs)}: it is not a "
                "state of this optimizer for these parameters."
            )
        facts = [program.facts[number] for number in program.outputs]
        may_be_moment = [
            bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
            and (fact.is_linear or not (fact.touched or fact.noise))
            for (_, leaf), fact in zip(leaves, facts, strict=True)
        ]
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        return cls(program, names, may_be_moment)

    def is_touched(self, leaf: int) -> bool:
        """Whether a leaf starts at a number that depends on the parameters."""
        return self.program.facts[self.program.outputs[leaf]].touched

    def is_copy(self, leaf: int) -> bool:
        """Whether a leaf starts at the parameters, or linear in them."""
        fact = self.program.facts[self.program.outputs[leaf]]
        return self.may_be_moment[leaf] and bool(fact.sources)


class Reading(NamedTuple):
    """An optimizer's program, and the leaves of its state that carry shares.

    Attributes:
      program: Of `optimizer.update`.
      places: Where each input's leaves are.
      start: What `optimizer.init` makes.
      moments: The leaves that carry shares to an update, now or later, by place.
      copies: Those of them that start at the parameters.
      accumulated: Those that hold gradients of this very update, and nothing older.
    """

    program: Program
    places: Places
    start: Start
    moments: Sequence[int]
    copies: Set[int]
    accumulated: Set[int]

    @property
    def has_noise(self) -> bool:
        """Whether anything drawn at random is in the update or the next moments."""
        return NOISE in self.in_updates | self.in_next_moments

    @property
    def updates(self) -> Sequence[int]:
        """The numbers of the update's leaves."""
        return self.program.outputs[: -len(self.places.state) or None]

    @property
    def next_moments(self) -> Sequence[int]:
        """The numbers of the moments' next values."""
        first = len(self.program.outputs) - self.places.state.stop
        return [self.program.outputs[first + leaf] for leaf in self.moments]

    @property
    def starts_of_copies(self) -> Sequence[int]:
        """The numbers of the copies' starts, in the program of `start`."""
        first = self.places.state.start
        return [
            self.start.program.outputs[leaf - first] for leaf in sorted(self.copies)
        ]

    @property
    def in_updates(self) -> set[int]:
        """The sources of the update."""
        return self._sources(self.updates)

    @property
    def in_next_moments(self) -> set[int]:
        """The sources of the next moments; copies are left behind by the update."""
        sources = self._sources(self.next_moments)
        return sources | self.in_updates if self.copies else sources

    def _sources(self, numbers: Sequence[int]) -> set[int]:
        facts = [self.program.facts[number] for number in numbers]
        return {source for fact in facts for source in fact.sources or {}}

    def name(self, leaf: int) -> str:
        """Of a leaf of the state, as its path."""
        return self.start.names[leaf - self.places.state.start]


def read(closed: Any, places: Places, start: Start) -> Reading:
    """The program of `closed`, and which leaves of the state carry shares."""
    facts = [Fact(None)] * places.extra.stop
    for i in (*places.gradient, *places.params):
        facts[i] = Fact({i: frozenset()}, touched=True)
    for i in places.extra:
        facts[i] = Fact(None, touched=True, obstacle="a number given to `update`")
    for i, leaf in enumerate(places.state):
        obstacle = f"the state's `{start.names[i]}`"
        facts[leaf] = Fact(None, touched=start.is_touched(i), obstacle=obstacle)

    _find_clocks(closed, places, facts)
    program, moments = _agree(closed, places, start, facts)
    updates = [program.facts[n] for n in program.outputs[: -len(places.state) or None]]
    copies = {leaf for i, leaf in enumerate(places.state) if start.is_copy(i)}
    accumulated = _accumulated(program, places, moments - copies, updates)
    reaching = _reaching(program, places, moments, updates)
    return Reading(
        program=program,
        places=places,
        start=start,
        moments=sorted(reaching),
        copies=reaching & copies,
        accumulated=reaching & accumulated,
    )


def _agree(
    closed: Any, places: Places, start: Start, facts: list[Fact]
) -> tuple[Program, set[int]]:
    """The program and the moments that it bears out."""
    facts = list(facts)
    moments = {
        leaf
        for i, leaf in enumerate(places.state)
        if facts[leaf].touched and start.may_be_moment[i]
    }
    # Parameters alone do not make a moment: what holds them and did not start at them
    # is no measure of what earlier steps did.
    copies = {leaf for i, leaf in enumerate(places.state) if start.is_copy(i)}
    seeds = {*places.gradient} | copies
    names = dict(zip(places.state, start.names, strict=True))
    while True:
        for leaf in moments:
            facts[leaf] = facts[leaf]._replace(sources={leaf: frozenset()})
        program = Program(closed, facts)
        scales = _scales(_new_state(program, places), moments, seeds)
        if not scales:
            return program, moments
        for leaf, why in scales.items():
            obstacle = why or f"the state's `{names[leaf]}`"
            facts[leaf] = Fact(None, touched=True, obstacle=obstacle)
        moments -= scales.keys()


def _find_clocks(closed: Any, places: Places, facts: list[Fact]) -> None:
    """Correct `facts` of the state: which leaves are counts, schedules and keys.

    These are what no gradient ever reaches; what is drawn from a key is noise.
    """
    changed = True
    while changed:
        changed = False
        for leaf, new in _new_state(Program(closed, facts), places).items():
            now = facts[leaf]
            facts[leaf] = now._replace(
                touched=now.touched or new.touched, noise=now.noise or new.noise
            )
            changed |= facts[leaf] != now
    for leaf in places.state:
        if not facts[leaf].touched:
            facts[leaf] = Fact(None, noise=facts[leaf].noise)


def _new_state(program: Program, places: Places) -> dict[int, Fact]:
    """What is known of the next value of each leaf of the state."""
    outputs = program.outputs[len(program.outputs) - len(places.state) :]
    return {
        leaf: program.facts[number]
        for leaf, number in zip(places.state, outputs, strict=True)
    }


def _scales(new: dict[int, Fact], moments: set[int], seeds: set[int]) -> dict[int, str]:
    """Leaves taken for moments that are not, with what says so.

    Those with a next value that is not linear, or that no gradient flows into. One that
    fails by a product may be linear once the other factor is known to be a scale: these
    come last.
    """
    failing = {i: new[i].obstacle for i in moments if not new[i].is_linear}
    reached = seeds | failing.keys()
    grew = True
    while grew:
        more = {i for i in moments - reached if reached & (new[i].sources or {}).keys()}
        reached |= more
        grew = bool(more)
    idle = dict.fromkeys(moments - reached, "")
    surely = {i: why for i, why in failing.items() if why not in _PRODUCTS}
    return surely | idle or failing


def _reaching(
    program: Program, places: Places, moments: set[int], updates: list[Fact]
) -> set[int]:
    """The moments that are in the update, or in the next value of one that is."""
    new = _new_state(program, places)
    reaching: set[int] = set()
    facts = updates
    while (
        more := {i for fact in facts for i in fact.sources or {}} & moments - reaching
    ):
        reaching |= more
        facts = [new[i] for i in more]
    return reaching


def _accumulated(
    program: Program, places: Places, moments: set[int], updates: list[Fact]
) -> set[int]:
    """The moments that hold gradients of this very update, and nothing older."""
    new = _new_state(program, places)

    def is_emitted(leaf: int) -> bool:
        """A switch decides when it and the gradient enter the update."""
        sources = [fact.sources or {} for fact in updates]
        return all(
            frozenset.intersection(
                *(case[i] for i in (leaf, *places.gradient) if i in case)
            )
            for case in sources
            if leaf in case
        )

    held = {i for i in moments if (new[i].sources or {}).get(i) and is_emitted(i)}
    while older := {
        i for i in held if (new[i].sources or {}).keys() & (set(places.state) - held)
    }:
        held -= older
    return held
