r"""How the values of a model are made of the leaves of its layers.

Every value is written as a sum of terms, each a product of *labels*: the leaves in it,
the *marked* values in it (what layers read and, behind their taps, what they give), and
everything else, which is not looked into. Only the names count, not the numbers: a term
`{kernel, x}` is any function that is linear in the kernel and in the value `x` and has
no further dependence on anything, so its coefficients are fixed numbers, the same for
all parameters and all tokens. A leaf that enters otherwise than linearly (twice in a
product, a norm, a comparison, a branch) is *lost*.

This is what makes a certificate hold at every parameter and token: the walk reads none.

Why names are enough: docs/theory/certificate.md#terms.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ldjax.ntk.layers.proof.flat import Flat, Op

Path = tuple[str, ...]
# A path names a leaf, a number a marked value.
Label = Path | int | str
Term = frozenset[Label]
Terms = frozenset[Term]

OTHER = "other"  # anything that is not looked into
ROWS = "rows"  # of a leaf itself, picked by ids that are not looked into

_FIXED: Terms = frozenset([frozenset()])  # the same number always
_ZERO: Terms = frozenset()
_UNKNOWN: Terms = frozenset([frozenset([OTHER])])

_LINEAR = frozenset(
    (
        *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "copy", "copy_p"),
        *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev"),
        *("slice", "pad", "concatenate", "split", "sharding_constraint"),
    )
)
_PRODUCTS = frozenset(("mul", "dot_general", "conv_general_dilated"))
_CHOICES = frozenset(("gather", "dynamic_slice"))  # of an operand, by indices


class Call(NamedTuple):
    """One call of a layer in a walk.

    Attributes:
      reads: The number of the value that the layer reads.
      allowed: The terms with its leaves that its outputs may have.
    """

    reads: int
    allowed: Terms


class Walk:
    """Terms of all values of a program.

    Args:
      program: A model with taps.
      leaves: The paths of the leaves, by their numbers.
      calls: The calls of layers, by the number of their tap.

    Attributes:
      terms: The terms of each value, by its number.
      lost: The leaves that some call does not account for.
      before: The value that a tap is added to, by the tap's number.
      after: The sum of both, by the tap's number.
    """

    def __init__(
        self, program: Flat, leaves: Mapping[int, Path], calls: Mapping[int, Call]
    ):
        self.terms: dict[int, Terms] = {}
        self.lost: set[Path] = set()
        self.before: dict[int, int] = {}
        self.after: dict[int, int] = {}
        self._calls = calls
        self._tables = set(leaves)  # leaves as they are, perhaps cast
        self._read = {call.reads for call in calls.values()}
        for value in program.inputs:
            label = leaves.get(value, OTHER)
            self._note(value, frozenset([frozenset([label])]))
        for value, array in program.constants.items():
            self._note(value, _FIXED if np.any(np.asarray(array)) else _ZERO)
        for op in program.ops:
            self._do(op)
        # What reaches the end past all taps, or meets a tap elsewhere.
        for value in program.outputs:
            self._lose(self._of(value))
        uses = Counter(value for op in program.ops for value in op.inputs)
        for tap, call in calls.items():
            if uses[tap] != 1 or tap not in self.before:
                self._lose(call.allowed)

    def _of(self, value: int) -> Terms:
        return self.terms.get(value, _UNKNOWN)

    def _note(self, value: int, terms: Terms) -> None:
        if value in self._read:
            self._lose(terms)
            terms = frozenset([frozenset([value])])
        self.terms[value] = terms

    def _lose(self, terms: Iterable[Term]) -> None:
        self.lost.update(
            label for term in terms for label in term if isinstance(label, tuple)
        )

    def _do(self, op: Op) -> None:
        name = op.eqn.primitive.name
        taps = [value for value in op.inputs if value in self._calls]
        if name in ("add", "add_any") and len(taps) == 1:
            self._tap(op, taps[0])
            return
        made = self._made(op, name, [self._of(value) for value in op.inputs])
        for value in op.outputs:
            self._note(value, made)

    def _tap(self, op: Op, tap: int) -> None:
        """Past its tap a layer's output is a value of its own, free of its leaves."""
        (before,) = (value for value in op.inputs if value != tap)
        (after,) = op.outputs
        self.before[tap], self.after[tap] = before, after
        self._lose(self._of(before) - self._calls[tap].allowed)
        self._note(after, frozenset([frozenset([after])]))

    def _made(self, op: Op, name: str, given: list[Terms]) -> Terms:
        is_cast = name == "convert_element_type" and _keeps(op, given)
        if is_cast and op.inputs[0] in self._tables:
            self._tables.update(op.outputs)
        if name in _LINEAR or is_cast:
            return frozenset().union(*given)
        if name in _PRODUCTS:
            return self._product(*given)
        if name == "div":
            return self._product(given[0], _coefficient(given[1:]))
        if name in _CHOICES:
            operand, *indices = given
            is_table = name == "gather" and op.inputs[0] in self._tables
            label = ROWS if is_table else OTHER
            return self._product(operand, _coefficient(indices, label))
        if name == "select_n":
            cases = frozenset().union(*given[1:])
            return self._product(cases, _coefficient(given[:1]))
        for terms in given:
            self._lose(terms)
        return _coefficient(given)

    def _product(self, one: Terms, other: Terms) -> Terms:
        terms = set()
        for left in one:
            for right in other:
                twice = left & right
                self._lose([twice])
                terms.add(_simple(left | right | ({OTHER} if twice else frozenset())))
        return frozenset(terms)


def has_leaf(terms: Terms) -> bool:
    """Whether a leaf is in any of the terms."""
    return any(isinstance(label, tuple) for term in terms for label in term)


def _simple(term: Term) -> Term:
    """Without a leaf, a product is not looked into."""
    keeps = len(term) <= 1 or any(isinstance(label, tuple) for label in term)
    return term if keeps else frozenset([OTHER])


def _coefficient(given: Iterable[Terms], label: str = OTHER) -> Terms:
    """What depends on these values in some way."""
    is_fixed = all(terms <= _FIXED for terms in given)
    return _FIXED if is_fixed else frozenset([frozenset([label])])


def _keeps(op: Op, given: list[Terms]) -> bool:
    """Whether a cast is from one floating-point format to another, or of a constant."""
    floats = (
        jnp.issubdtype(atom.aval.dtype, jnp.floating)
        for atom in (op.eqn.invars[0], op.eqn.outvars[0])
    )
    return all(floats) or given[0] <= _FIXED
