"""Vector spaces as pytrees of shapes, and their vectors as pytrees of arrays.

A space is a pytree of `jax.ShapeDtypeStruct`. Its ravelled form, one long vector, is
where dense matrices and basis vectors live.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

Struct = Any
Vector = Any


def struct_of(tree: Any) -> Struct:
    """The space that a pytree of arrays is a vector of."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


def _shapes(struct: Struct) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
    leaves, treedef = jax.tree.flatten(struct)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def same_space(left: Struct, right: Struct) -> bool:
    """Whether structure, shapes and dtypes agree."""
    return _shapes(left) == _shapes(right)


def conform(vector: Vector, struct: Struct) -> Vector:
    """`vector` in the dtypes of `struct`; an error if it is of another space."""
    given = struct_of(vector)
    treedef, expected = _shapes(struct)
    given_treedef, found = _shapes(given)
    fits = given_treedef == treedef and all(
        shape == given_shape and _promoted(dtype, given_dtype) == dtype
        for (shape, dtype), (given_shape, given_dtype) in zip(
            expected, found, strict=True
        )
    )
    if not fits:
        raise ValueError(
            f"This linear map takes {struct}, but it was applied to {given}. Check "
            "which side the vector belongs to (`.T` applies to the other one) and "
            "cast a wider dtype yourself."
        )
    return jax.tree.map(
        lambda leaf, space: jnp.asarray(leaf, space.dtype), vector, struct
    )


def cast_like(vector: Vector, point: Vector) -> Vector:
    """A vector in the dtypes of a point, such as a direction to be followed from it."""
    return jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), vector, point)


def scale(scalar: Any, vector: Vector) -> Vector:
    """A number times a vector, in the vector's dtypes."""
    return jax.tree.map(lambda leaf: jnp.asarray(scalar, leaf.dtype) * leaf, vector)


def add(left: Vector, right: Vector) -> Vector:
    """The sum of two vectors of one space."""
    return jax.tree.map(jnp.add, left, right)


def size_of(struct: Struct) -> int:
    """The dimension of a space."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(struct))


def _promoted(*dtypes: Any) -> Any:
    # Conversions here are explicit, so they are allowed under strict promotion too.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def dtype_of(*structs: Struct) -> Any:
    """The widest dtype of some spaces."""
    return _promoted(*(leaf.dtype for leaf in jax.tree.leaves(structs)))


def ravel(tree: Vector) -> Float[Array, " size"]:
    """A vector as one array, in the widest dtype of its leaves."""
    leaves = jax.tree.leaves(tree)
    dtype = dtype_of(tree)
    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])


def _slices(struct: Struct) -> list[tuple[slice, Any]]:
    """Where each leaf of a space lies in its ravelled vector."""
    leaves = jax.tree.leaves(struct)
    ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))
    starts = [0, *ends[:-1]]
    return [
        (slice(start, end), leaf)
        for start, end, leaf in zip(starts, ends, leaves, strict=True)
    ]


def unravel(vector: Float[Array, " size"], struct: Struct) -> Vector:
    """The inverse of `ravel`."""
    return jax.tree.structure(struct).unflatten(
        vector[part].reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in _slices(struct)
    )


def unravel_matrix(
    matrix: Inexact[Array, "rows columns"], out_struct: Struct, in_struct: Struct
) -> Any:
    """A matrix as a pytree (of `out_struct`) of pytrees (of `in_struct`)."""
    return jax.tree.structure(out_struct).unflatten(
        jax.tree.structure(in_struct).unflatten(
            matrix[rows, columns].reshape(out_leaf.shape + in_leaf.shape)
            for columns, in_leaf in _slices(in_struct)
        )
        for rows, out_leaf in _slices(out_struct)
    )


def basis_vector(struct: Struct, index: Any) -> Vector:
    """The vector whose ravelled form is one at `index` and zero elsewhere."""
    ravelled = jnp.zeros(size_of(struct), dtype_of(struct)).at[index].set(1)
    return unravel(ravelled, struct)
