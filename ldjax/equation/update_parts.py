r"""What an optimizer's update is made of: gradient, history, weight decay.

An optax update is rarely linear in the gradient, but it is once its *scale factors*
(Adam's and RMSprop's preconditioner, the clip factor, a schedule, a trust ratio) are
held at the values this step used. Then

    update = scale * (own gradient) + scale' * history + scale'' * parameters

which sums exactly. Which factors are scales is read off the computation itself: the
gradient, the moments of the optimizer's state and the parameters are *linear* inputs;
sums, scalings and selections of linear values stay linear; anything else (a square, a
norm, a root) is a number that this step used, and is frozen. So the split holds for
any chain of transforms, including ones this module has never heard of, and an
optimizer whose update is not of this form is refused by the name of the operation in
the way.

**Monotone functions that are zero at zero** (a sign, a clip by value, a tanh) are
`x * (phi(x) / x)`, the quotient frozen and never negative. A function that loses the
sign measures a size: `|x|` and `x^2` are scales, else second moments would be shares.
A product of two linear numbers is a scale too; so Muon's iterations,
`X <- (a I + b X X' + c (X X')^2) X`, are linear with the left factor frozen, and
`x^3 = x^2 * x` agrees with the rule for functions. Where such a function multiplies
what is linear without it (`sign(m) * g`), it is the scale.

**Moments.** A leaf of the state is history if its *new* value is linear as well, in
the gradient or the parameters through whatever number of leaves, and if it starts at
zero, at another constant or at the parameters. All else is a scale: second moments,
step sizes such as Rprop's, rates and counts. What starts at the parameters (an average
of them, an anchor) counts by its *distance* from where the present parameters would
have started it: that is what earlier steps did, and it is zero at the start. What
is left is the response to the parameters with their copies equal to them,
which is weight decay; nothing, to rounding, where the parameters are only compared with
their copies. (An average of parameters that starts at zero is not seen as one.)

**Accumulation.** A leaf that counts alone switch off in its own next value, in an
update that they switch on, holds the gradients of earlier micro-batches of the very
same update: `"accumulated"`, not history (`optax.MultiSteps`, `optax.apply_every`). The
momentum inside `MultiSteps` goes on from update to update and is history.

Frozen scales are a *convention*: the split says who took part in the step that was
made, in proportion, not what the step would have been without somebody. The scales were
made by all examples together, and a part computed with them (`parts="example"`, token
maps) is exact only given them. For element-wise optimizers without memory the share of
`g_i` is `phi(g) / g * g_i`, the Aumann-Shapley share: the only division of the step
that is complete, linear and symmetric along the straight path from no gradient. With
momentum, norms or matrices it is one convention among others.

Note that `optax.masked(transform, mask)` hands on the *raw gradient* where the mask is
false: in a chain without a rate that is a step uphill, and it is accounted as such.
`optax.partition` with `optax.set_to_zero()` is what leaves parameters as they are.

With less about the code: docs/theory/optimizers.md#parts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldjax.programs.linear import Program
from ldjax.programs.rules import NOISE, Fact

__all__ = ["PARTS", "frozen_update"]

# The parts that are not the gradient's own, in this order.
PARTS = ("history", "accumulated", "weight_decay", "noise")

# Operations that freeze what is linear in either operand: which of the two is a scale
# may be known once another leaf is.
_PRODUCTS = frozenset({"`mul`", "`div`", "`dot_general`"})


def frozen_update(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: Any,
    state: Any,
    params: Any,
    **extra_args: Any,
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    r"""Split an optimizer's update, its scale factors frozen at this step's values.

    .. math:: \Delta\theta = P\,c\,g + \text{history} + \text{weight decay}

    Args:
      optimizer: An optax transformation (`optax.with_extra_args_support`).
      gradient: The gradient of this step, shaped like `params`.
      state: The optimizer's state before the step.
      params: The parameters before the step.
      **extra_args: Passed to `optimizer.update`, as in the step itself.

    Returns:
      `(own, rest)`: `own(part_of_gradient)` is the linear map that took the gradient
      to its share of the update (apply it to the gradient of one side or one
      example); `rest` holds the other parts that the optimizer has, by their names in
      `PARTS`: `"history"` (moments and traces of earlier updates, and how far the
      parameters are from copies of them in the state; zero at `optimizer.init`),
      `"accumulated"` (gradients of earlier micro-batches of this very update),
      `"weight_decay"` (the parameters themselves) and `"noise"` (drawn at random).
      `own(gradient)` and the values of `rest` sum to the update.

    Raises:
      ValueError: If the update is not linear even with frozen scales, `state` is not
        one of `optimizer.init`, or `gradient` has another structure than `params`.

    References:
      Aumann & Shapley 1974, "Values of Non-Atomic Games", for monotone functions.

    Examples:
      >>> optimizer = optax.with_extra_args_support(optax.sgd(0.5, momentum=0.5))
      >>> theta = jnp.array([1.0, 2.0])
      >>> state = optimizer.init(theta)
      >>> own, rest = frozen_update(optimizer, jnp.array([4.0, 2.0]), state, theta)
      >>> own(jnp.array([4.0, 1.0]))
      Array([-2. , -0.5], dtype=...)
      >>> list(rest)
      ['history']

      A sign is a rate that the whole gradient sets:

      >>> optimizer = optax.with_extra_args_support(optax.sign_sgd(0.5))
      >>> state = optimizer.init(theta)
      >>> own, _ = frozen_update(optimizer, jnp.array([4.0, 2.0]), state, theta)
      >>> own(jnp.array([1.0, 4.0]))  # a quarter of the first, twice the second
      Array([-0.125, -1.   ], dtype=...)
    """
    if jax.tree.structure(gradient) != jax.tree.structure(params):
        raise ValueError(
            "The gradient has another structure than the parameters, so it cannot be "
            "said which of them are trained and which are copies (as in "
            "`optax.lookahead`). The total prediction still works: pass `parts=None`."
        )
    arrays = {k: v for k, v in extra_args.items() if _is_arrays(v)}
    others = {k: v for k, v in extra_args.items() if k not in arrays}
    inputs = (gradient, state, params, arrays)
    start = _Start.of(optimizer, state, params)
    closed, (out_shape, _) = jax.make_jaxpr(
        lambda g, s, p, e: optimizer.update(g, s, p, **e, **others), return_shape=True
    )(*inputs)
    places = _Places.of(*inputs)
    program, moments = _read(closed, places, start)
    wanted = program.outputs[: len(program.outputs) - len(places.state)]
    updates = [program.facts[number] for number in wanted]
    _refuse_frozen(updates)

    leaves = dict(enumerate(jax.tree.leaves(inputs)))
    values = program.run(list(leaves.values()), wanted)

    def respond(parts: dict[int, Any]) -> Any:
        shares = program.respond(values, parts, wanted)
        return jax.tree.unflatten(jax.tree.structure(out_shape), shares)

    def own(part: Any) -> Any:
        return respond(dict(zip(places.gradient, jax.tree.leaves(part), strict=True)))

    copies = {
        places.state[i]: value.astype(leaves[places.state[i]].dtype)
        for i, value in start.copies(params).items()
        if places.state[i] in moments
    }
    moved = {i: leaves[i] - copies[i] if i in copies else leaves[i] for i in moments}
    accumulated = _accumulated(program, places, moments - copies.keys(), updates)
    parts = (
        {i: part for i, part in moved.items() if i not in accumulated},
        {i: part for i, part in moved.items() if i in accumulated},
        {i: leaves[i] for i in places.params} | copies,
        {NOISE: None},
    )
    sources = set().union(*(fact.sources or () for fact in updates))
    rest = {
        label: respond(part)
        for label, part in zip(PARTS, parts, strict=True)
        if sources & part.keys()
    }
    return own, rest


def _is_arrays(value: Any) -> bool:
    return all(
        isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)
        for leaf in jax.tree.leaves(value)
    )


class _Places(NamedTuple):
    """Where the leaves of each input are among all."""

    gradient: range
    state: range
    params: range
    extra: range

    @classmethod
    def of(cls, *trees: Any) -> "_Places":
        ends = np.cumsum([0, *(len(jax.tree.leaves(tree)) for tree in trees)]).tolist()
        return cls(*map(range, ends[:-1], ends[1:]))


class _Start(NamedTuple):
    """What `optimizer.init` would make of the parameters, leaf by leaf of the state."""

    program: Program
    names: Sequence[str]
    may_be_moment: Sequence[bool]

    @classmethod
    def of(cls, optimizer: Any, state: Any, params: Any) -> "_Start":
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
        return self.program.facts[self.program.outputs[leaf]].touched

    def is_copy(self, leaf: int) -> bool:
        fact = self.program.facts[self.program.outputs[leaf]]
        return self.may_be_moment[leaf] and bool(fact.sources)

    def copies(self, params: Any) -> dict[int, jax.Array]:
        """The values of the leaves that start at the parameters, or linear in them."""
        wanted = {
            i: number
            for i, number in enumerate(self.program.outputs)
            if self.is_copy(i)
        }
        values = self.program.run(jax.tree.leaves(params), list(wanted.values()))
        return {i: jnp.asarray(values[number]) for i, number in wanted.items()}


def _read(closed: Any, places: _Places, start: _Start) -> tuple[Program, set[int]]:
    """The program, with the leaves of the state that carry shares.

    They are found by trial: all that might are taken for such, and those that the
    program does not bear out are dropped until it agrees.
    """
    facts = [Fact(None)] * places.extra.stop
    for i in (*places.gradient, *places.params):
        facts[i] = Fact({i: frozenset()}, touched=True)
    for i in places.extra:
        facts[i] = Fact(None, touched=True, obstacle="a number given to `update`")
    for i, leaf in enumerate(places.state):
        obstacle = f"the state's `{start.names[i]}`"
        facts[leaf] = Fact(None, touched=start.is_touched(i), obstacle=obstacle)

    _find_clocks(closed, places, facts)
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


def _find_clocks(closed: Any, places: _Places, facts: list[Fact]) -> None:
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


def _new_state(program: Program, places: _Places) -> dict[int, Fact]:
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


def _accumulated(
    program: Program, places: _Places, moments: set[int], updates: list[Fact]
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


def _refuse_frozen(updates: list[Fact]) -> None:
    obstacles = sorted({fact.obstacle for fact in updates if not fact.is_linear})
    if obstacles:
        raise ValueError(
            "This optimizer's update cannot be split into parts: even with its scale "
            "factors frozen it is not linear in the gradient, its moments and the "
            f"parameters, because of {', '.join(obstacles)}. The total prediction "
            "still works: pass `parts=None`."
        )
