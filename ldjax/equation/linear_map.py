r"""Linear maps between pytrees: the one abstraction everything else is arithmetic on.

A Jacobian is a linear map, the empirical NTK is a product of two, and the paper's
equation is a product of three applied to a residual:

    A = jacobian(log_softmax, probe_fn(params))
    K = jacobian(probe_fn, params) @ jacobian(update_fn, params).T
    delta = -learning_rate * A @ K @ G

Nothing is stored but closures, and nothing is compiled: wrap the computation that
uses a map in `jax.jit`. A map made inside `jit` holds tracers and must stay there.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ldjax import memory
from ldjax.equation.spaces import (
    Struct,
    Vector,
    add,
    basis_vector,
    conform,
    dtype_of,
    ravel,
    same_space,
    scale,
    size_of,
    unravel,
    unravel_matrix,
)
from ldjax.precision import exact_products

__all__ = ["DenseMap", "FunctionMap", "LinearMap"]

# Names a position: an integer or a tuple; for a pytree of logits its keys come first,
# as in `("chosen", 0, 3)`.
Position = Any


class LinearMap(abc.ABC):
    r"""A matrix known by what it does: `mv` and its transpose `rmv`.

    Every representation (lazy closures, a dense array, ...) keeps this contract:
    `mv`, `rmv`, `.T`, `@`, `+`, `-`, scalar `*`, `.dense()`, `.block(m, l)`,
    `.trace()`, `.frobenius_norm()`, `in_struct`, `out_struct`. The methods below that
    form numbers apply the map to basis vectors, `batch_size` at a time, over the side
    with fewer of them.

    Attributes:
      in_struct: Pytree of `jax.ShapeDtypeStruct`: what `mv` takes.
      out_struct: Pytree of `jax.ShapeDtypeStruct`: what `mv` returns.

    Examples:
      >>> from ldjax import jacobian
      >>> square = jacobian(lambda x: x**2, jnp.array([1.0, 2.0]))
      >>> 0.5 * square @ jnp.array([1.0, 1.0])
      Array([1., 2.], dtype=...)
      >>> (square @ square.T - 4 * square).dense()
      Array([[-4.,  0.],
             [ 0.,  0.]], dtype=...)
    """

    in_struct: Struct
    out_struct: Struct

    # numpy must not take `np.float64(0.1) * A` for itself.
    __array_ufunc__ = None

    @abc.abstractmethod
    def mv(self, vector: Vector) -> Vector:
        """The image of `vector`."""

    @abc.abstractmethod
    def rmv(self, covector: Vector) -> Vector:
        """The image of `covector` under the transpose."""

    @property
    def T(self) -> "LinearMap":
        """The transpose."""
        return FunctionMap(self.rmv, self.mv, self.out_struct, self.in_struct)

    def __matmul__(self, other: Any) -> Any:
        """Compose with a `LinearMap`; apply to anything else."""
        if not isinstance(other, LinearMap):
            return self.mv(other)
        if not same_space(self.in_struct, other.out_struct):
            raise ValueError(
                f"Cannot compose `left @ right`: `left` takes {self.in_struct} but "
                f"`right` returns {other.out_struct}. For a kernel, take both "
                "Jacobians at the same `params`."
            )
        return FunctionMap(
            lambda vector: self.mv(other.mv(vector)),
            lambda covector: other.rmv(self.rmv(covector)),
            other.in_struct,
            self.out_struct,
        )

    def __mul__(self, scalar: Any) -> "LinearMap":
        """Scale by a number (a Python, numpy or JAX scalar), from either side."""
        if not _is_scalar(scalar):
            return NotImplemented
        return FunctionMap(
            lambda vector: scale(scalar, self.mv(vector)),
            lambda covector: scale(scalar, self.rmv(covector)),
            self.in_struct,
            self.out_struct,
        )

    def __rmul__(self, scalar: Any) -> "LinearMap":
        return self * scalar

    def __add__(self, other: Any) -> "LinearMap":
        """The sum of two maps between the same spaces, as of a kernel's groups."""
        if not isinstance(other, LinearMap):
            return NotImplemented
        self._require_same_spaces(other)
        return FunctionMap(
            lambda vector: add(self.mv(vector), other.mv(vector)),
            lambda covector: add(self.rmv(covector), other.rmv(covector)),
            self.in_struct,
            self.out_struct,
        )

    def __sub__(self, other: Any) -> "LinearMap":
        if not isinstance(other, LinearMap):
            return NotImplemented
        return self + -other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_struct} -> {self.out_struct})"

    def __neg__(self) -> "LinearMap":
        return self * -1

    def dense(
        self, *, memory_limit: memory.Bytes | None = None, batch_size: int = 32
    ) -> Any:
        """All entries, nested like `jax.jacobian`'s result.

        For two arrays that is one array of shape `out.shape + in.shape`, for a kernel
        `[probe_pos, vocab, update_pos, vocab]`; for pytrees, a pytree of pytrees.

        Args:
          memory_limit: Refuse above this many bytes; by default a fraction of the
            free memory of the device (`ldjax.memory.default_limit`).
          batch_size: How many basis vectors are applied at once.

        Raises:
          MemoryError: If the result cannot fit; nothing was allocated.
        """
        rows, columns = size_of(self.out_struct), size_of(self.in_struct)
        memory.refuse_above(
            memory_limit,
            rows * columns * dtype_of(self.out_struct, self.in_struct).itemsize,
            what=f"the dense matrix of a {rows} x {columns} linear map",
            instead="apply the map (`@`), or take `.block(m, l)`, `.trace()` or "
            "`.frobenius_norm()`, which never form it",
        )
        return unravel_matrix(
            self.as_matrix(batch_size), self.out_struct, self.in_struct
        )

    def block(
        self, m: Position, l: Position, *, batch_size: int = 32
    ) -> Inexact[Array, "vocab_out vocab_in"]:
        """The entries between output position `m` and input position `l`.

        Args:
          m: Index into all but the last axis of the output: an integer or a tuple;
            for a pytree of outputs its keys first, as in `("chosen", 0, 3)`.
          l: Likewise for the input.
          batch_size: How many basis vectors are applied at once.

        Examples:
          >>> from ldjax import jacobian
          >>> K = jacobian(lambda x: jnp.outer(x, x), jnp.array([1.0, 2.0]))
          >>> (K @ K.T).block(0, 1)
          Array([[4., 0.],
                 [5., 4.]], dtype=...)
        """
        picked = _pick(self.out_struct, m) @ self @ _pick(self.in_struct, l).T
        return picked.as_matrix(batch_size)

    def trace(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Sum of the diagonal entries; input and output spaces must be the same."""
        self.require_square()
        size = size_of(self.in_struct)

        def diagonal_entry(index):
            return ravel(self.mv(basis_vector(self.in_struct, index)))[index]

        return _map(diagonal_entry, size, batch_size).sum()

    def frobenius_norm(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Square root of the sum of all squared entries, without storing them."""
        apply, struct = self._narrow_side()

        def squared_norm(index):
            return jnp.sum(ravel(apply(basis_vector(struct, index))) ** 2)

        return jnp.sqrt(_map(squared_norm, size_of(struct), batch_size).sum())

    def require_square(self) -> None:
        """Refuses a map from one space to another one.

        Raises:
          ValueError: If the input and output spaces differ.
        """
        if not same_space(self.in_struct, self.out_struct):
            raise ValueError(
                "A trace needs a map from a space to itself, but this one takes "
                f"{self.in_struct} and returns {self.out_struct}. For a kernel, use "
                "the same examples as probe and update."
            )

    def _require_same_spaces(self, other: "LinearMap") -> None:
        spaces = (self.in_struct, self.out_struct), (other.in_struct, other.out_struct)
        if not all(map(same_space, *spaces)):
            raise ValueError(
                f"Cannot add maps between different spaces: {self!r} and {other!r}. "
                "For the kernels of two groups, take the same examples."
            )

    def _narrow_side(self) -> tuple[Callable[[Vector], Vector], Struct]:
        """`mv` or `rmv`, whichever needs fewer basis vectors, and its space."""
        if size_of(self.in_struct) <= size_of(self.out_struct):
            return self.mv, self.in_struct
        return self.rmv, self.out_struct

    def as_matrix(self, batch_size: int = 32) -> Inexact[Array, "rows columns"]:
        """The entries as one matrix over the ravelled spaces, whatever its size."""
        apply, struct = self._narrow_side()
        lines = _map(
            lambda index: ravel(apply(basis_vector(struct, index))),
            size_of(struct),
            batch_size,
        )
        return lines.T if struct is self.in_struct else lines


class FunctionMap(LinearMap):
    """A linear map given by two functions, each the transpose of the other.

    Args:
      mv: The map.
      rmv: Its transpose.
      in_struct: Pytree of `jax.ShapeDtypeStruct` that `mv` takes.
      out_struct: Pytree of `jax.ShapeDtypeStruct` that `mv` returns.

    Examples:
      >>> space = jax.ShapeDtypeStruct((3,), jnp.float32)
      >>> reverse = FunctionMap(lambda v: v[::-1], lambda v: v[::-1], space, space)
      >>> reverse @ jnp.array([1.0, 2.0, 3.0], jnp.float32)
      Array([3., 2., 1.], dtype=float32)
    """

    def __init__(
        self,
        mv: Callable[[Vector], Vector],
        rmv: Callable[[Vector], Vector],
        in_struct: Struct,
        out_struct: Struct,
    ):
        self._mv, self._rmv = mv, rmv
        self.in_struct, self.out_struct = in_struct, out_struct

    def mv(self, vector: Vector) -> Vector:
        """The image of `vector`."""
        return self._mv(conform(vector, self.in_struct))

    def rmv(self, covector: Vector) -> Vector:
        """The image of `covector` under the transpose."""
        return self._rmv(conform(covector, self.out_struct))


class DenseMap(LinearMap):
    """A linear map stored as a matrix over the ravelled spaces.

    Args:
      matrix: `[rows, columns]`, rows over the ravelled output.
      in_struct: Pytree of `jax.ShapeDtypeStruct` that `mv` takes.
      out_struct: Pytree of `jax.ShapeDtypeStruct` that `mv` returns.

    Examples:
      >>> space = jax.ShapeDtypeStruct((2,), jnp.float32)
      >>> DenseMap(jnp.ones((2, 2), jnp.float32), space, space).trace()
      Array(2., dtype=float32)
    """

    def __init__(
        self,
        matrix: Inexact[Array, "rows columns"],
        in_struct: Struct,
        out_struct: Struct,
    ):
        if matrix.shape != (size_of(out_struct), size_of(in_struct)):
            raise ValueError(
                f"`matrix` has shape {matrix.shape}, but a map from {in_struct} to "
                f"{out_struct} is {size_of(out_struct)} x {size_of(in_struct)}."
            )
        self.matrix = matrix
        self.in_struct, self.out_struct = in_struct, out_struct

    def mv(self, vector: Vector) -> Vector:
        """The image of `vector`."""
        ravelled = ravel(conform(vector, self.in_struct))
        with exact_products():
            return unravel(self.matrix @ ravelled, self.out_struct)

    def rmv(self, covector: Vector) -> Vector:
        """The image of `covector` under the transpose."""
        return self.T.mv(covector)

    @property
    def T(self) -> "DenseMap":
        """The transpose, stored likewise."""
        return DenseMap(self.matrix.T, self.out_struct, self.in_struct)

    def __mul__(self, scalar: Any) -> "DenseMap":
        """Scale by a number, from either side."""
        if not _is_scalar(scalar):
            return NotImplemented
        return DenseMap(scale(scalar, self.matrix), self.in_struct, self.out_struct)

    def __add__(self, other: Any) -> LinearMap:
        """The sum, stored where both are."""
        if not isinstance(other, DenseMap):
            return super().__add__(other)
        self._require_same_spaces(other)
        return DenseMap(self.matrix + other.matrix, self.in_struct, self.out_struct)

    def trace(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Sum of the diagonal entries; input and output spaces must be the same."""
        del batch_size  # the entries are here
        self.require_square()
        return jnp.trace(self.matrix)

    def frobenius_norm(self, *, batch_size: int = 32) -> Inexact[Array, ""]:
        """Square root of the sum of all squared entries."""
        del batch_size
        return jnp.linalg.norm(self.matrix)

    def as_matrix(self, batch_size: int = 32) -> Inexact[Array, "rows columns"]:
        """The matrix itself."""
        del batch_size
        return self.matrix


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def _map(fn: Callable[[Any], Any], size: int, batch_size: int) -> Any:
    return jax.lax.map(fn, jnp.arange(size), batch_size=max(1, min(batch_size, size)))


def _pick(struct: Struct, position: Position) -> LinearMap:
    """The map that reads one position's last axis out of a pytree."""
    index = position if isinstance(position, tuple) else (position,)

    def read(tree: Vector) -> Array:
        rest = index
        while not hasattr(tree, "shape"):
            if not rest:
                raise ValueError(position_message(position, struct))
            tree, rest = tree[rest[0]], rest[1:]
        if len(rest) != len(tree.shape) - 1 or not all(
            -size <= i < size for i, size in zip(rest, tree.shape, strict=False)
        ):
            raise ValueError(position_message(position, struct))
        return tree[rest]

    try:
        picked = jax.eval_shape(read, struct)
    except (KeyError, TypeError) as error:
        raise ValueError(position_message(position, struct)) from error
    transposed = jax.linear_transpose(read, struct)
    return FunctionMap(read, lambda row: transposed(row)[0], struct, picked)


def position_message(position: Position, struct: Struct) -> str:
    return (
        f"{position!r} does not name a position of {struct}: give the keys of the "
        "pytree (if it is one), then an index for every axis but the last."
    )
