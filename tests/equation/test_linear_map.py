"""One contract, every representation of a linear map, against a dense NumPy matrix."""

import functools
import operator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses.closeness import assert_close
from witnesses.references import flat, unflat

from ldjax import DenseMap, FunctionMap, LinearMap, jacobian

_space = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float64)
IN = {"x": _space(3), "y": _space(2, 2)}  # 7 numbers
OUT = {"a": _space(2, 3), "b": _space(4)}  # 10 numbers
NARROW = {"c": _space(2, 2)}  # 4 numbers: fewer outputs than inputs


def _draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _vector(seed, struct):
    return unflat(_draw(seed, flat_size(struct)), struct)


def flat_size(struct):
    return sum(leaf.size for leaf in jax.tree.leaves(struct))


def _function(seed, into, out):
    matrix = _draw(seed, flat_size(out), flat_size(into))
    ravel = lambda tree: jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    apply = lambda tree: unflat_jax(matrix @ ravel(tree), out)
    transposed = lambda tree: unflat_jax(matrix.T @ ravel(tree), into)
    return FunctionMap(apply, transposed, into, out), matrix


def unflat_jax(vector, tree):
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = jnp.split(vector, ends[:-1])
    return treedef.unflatten(
        piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)
    )


def _dense(seed, into, out):
    matrix = _draw(seed, flat_size(out), flat_size(into))
    return DenseMap(jnp.asarray(matrix), into, out), matrix


def _jacobian(seed, into, out):
    weights = _draw(seed, flat_size(out), flat_size(into)) / 3
    at = _vector(seed + 1, into)
    ravel = lambda tree: jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    fn = lambda tree: unflat_jax(jnp.sin(weights @ ravel(tree)), out)
    return jacobian(fn, at), np.cos(weights @ flat(at))[:, None] * weights


def _product(seed, into, out):
    left, left_matrix = _dense(seed, NARROW, out)
    right, right_matrix = _jacobian(seed + 5, into, NARROW)
    return left @ right, left_matrix @ right_matrix


def _scaled(make, seed, into, out):
    linear_map, matrix = make(seed, into, out)
    return -(2.5 * linear_map), -2.5 * matrix


def _summed(make, seed, into, out):
    left, left_matrix = make(seed, into, out)
    right, right_matrix = _dense(seed + 9, into, out)
    return left + right - 0.5 * left, left_matrix / 2 + right_matrix


def _transposed(make, seed, into, out):
    linear_map, matrix = make(seed, out, into)
    return linear_map.T, matrix.T


REPRESENTATIONS = {
    "function": _function,
    "dense": _dense,
    "jacobian": _jacobian,
    "product": _product,
    "scaled function": functools.partial(_scaled, _function),
    "scaled dense": functools.partial(_scaled, _dense),
    "sum of functions": functools.partial(_summed, _function),
    "sum of dense": functools.partial(_summed, _dense),
    "transposed dense": functools.partial(_transposed, _dense),
    "transposed jacobian": functools.partial(_transposed, _jacobian),
}

every_representation = pytest.mark.parametrize(
    "make", REPRESENTATIONS.values(), ids=[*REPRESENTATIONS]
)


@every_representation
def test_applies_like_its_matrix(make):
    out = OUT
    linear_map, matrix = make(0, IN, out)
    vector, covector = _vector(1, IN), _vector(2, out)
    assert_close(linear_map.mv(vector), unflat(matrix @ flat(vector), out), terms=7)
    assert_close(linear_map @ vector, unflat(matrix @ flat(vector), out), terms=7)
    expected = unflat(matrix.T @ flat(covector), IN)
    assert_close(linear_map.rmv(covector), expected, terms=10)
    assert_close(linear_map.T @ covector, expected, terms=10)
    assert_close(linear_map.T.T @ vector, linear_map @ vector)
    assert (linear_map.in_struct, linear_map.out_struct) == (IN, out)
    assert (linear_map.T.in_struct, linear_map.T.out_struct) == (out, IN)


@every_representation
@pytest.mark.parametrize(
    ("out", "batch_size"), [(OUT, 3), (NARROW, 100)], ids=["tall", "wide"]
)
def test_materialises_its_matrix(make, out, batch_size):
    linear_map, matrix = make(3, IN, out)
    dense = linear_map.dense(batch_size=batch_size)
    row = 0
    for out_name, out_leaf in out.items():
        column = 0
        for in_name, in_leaf in IN.items():
            block = matrix[row : row + out_leaf.size, column : column + in_leaf.size]
            assert_close(
                dense[out_name][in_name],
                block.reshape(out_leaf.shape + in_leaf.shape),
                terms=10,
            )
            column += in_leaf.size
        row += out_leaf.size
    norm = linear_map.frobenius_norm(batch_size=batch_size)
    assert_close(norm, np.sqrt((matrix**2).sum()), terms=70)


@every_representation
def test_a_block_is_a_slice_of_the_matrix(make):
    linear_map, matrix = make(4, IN, OUT)
    assert_close(linear_map.block(("a", 1), "x"), matrix[3:6, 0:3], terms=10)
    assert_close(linear_map.block(("a", -1), ("x",)), matrix[3:6, 0:3], terms=10)
    assert_close(linear_map.block("b", ("y", 0)), matrix[6:10, 3:5], terms=10)
    assert_close(linear_map.T.block(("y", 1), ("a", 0)), matrix[0:3, 5:7].T, terms=10)


@every_representation
def test_traces_a_map_from_a_space_to_itself(make):
    linear_map, matrix = make(5, IN, IN)
    assert_close(linear_map.trace(), np.trace(matrix), terms=7, scale=abs(matrix).max())
    assert_close(
        linear_map.trace(batch_size=2),
        np.trace(matrix),
        terms=7,
        scale=abs(matrix).max(),
    )


def test_blocks_of_arrays_are_named_by_index():
    linear_map = jacobian(lambda x: x**3, jnp.arange(24.0).reshape(2, 3, 4))
    dense = linear_map.dense()
    assert dense.shape == (2, 3, 4, 2, 3, 4)
    assert_close(linear_map.block((1, 2), (1, 2)), dense[1, 2, :, 1, 2, :])
    vector = jacobian(lambda x: x**3, jnp.arange(3.0))
    assert_close(vector.block((), ()), vector.dense())


draws = st.tuples(
    st.integers(0, 2**16),
    st.sampled_from([("function", OUT), ("dense", NARROW), ("jacobian", OUT)]),
)


@given(draws)
def test_is_linear(draw):
    seed, (name, out) = draw
    linear_map, _ = REPRESENTATIONS[name](seed, IN, out)
    u, v = _vector(seed + 1, IN), _vector(seed + 2, IN)
    combined = jax.tree.map(lambda a, b: 0.3 * a - 2 * b, u, v)
    expected = jax.tree.map(
        lambda a, b: 0.3 * a - 2 * b, linear_map @ u, linear_map @ v
    )
    scale = float(abs(flat(linear_map @ u)).max() + abs(flat(linear_map @ v)).max())
    assert_close(linear_map @ combined, expected, terms=7, scale=scale)


@given(draws)
def test_the_transpose_is_the_adjoint(draw):
    seed, (name, out) = draw
    linear_map, _ = REPRESENTATIONS[name](seed, IN, out)
    v, u = _vector(seed + 1, IN), _vector(seed + 2, out)
    left, right = flat(u) @ flat(linear_map @ v), flat(linear_map.T @ u) @ flat(v)
    scale = np.linalg.norm(flat(u)) * np.linalg.norm(flat(linear_map @ v))
    assert_close(left, right, terms=70, scale=scale)


@given(draws)
def test_the_transpose_of_a_product_is_the_reversed_product(draw):
    seed, (name, out) = draw
    left, _ = REPRESENTATIONS[name](seed, IN, out)
    right, _ = _dense(seed + 1, NARROW, IN)
    covector = _vector(seed + 2, out)
    assert_close((left @ right).T @ covector, right.T @ (left.T @ covector), terms=7)


@pytest.mark.parametrize(
    "scalar",
    [
        *(2, 0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), np.int32(2)),
        *(jnp.array(0.5), jnp.float32(0.5), jnp.array(2)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [_function, _dense], ids=["function", "dense"])
def test_a_scalar_multiplies_from_both_sides(make, scalar):
    linear_map, matrix = make(0, IN, OUT)
    vector = _vector(1, IN)
    expected = unflat(float(scalar) * (matrix @ flat(vector)), OUT)
    for scaled in (scalar * linear_map, linear_map * scalar):
        assert isinstance(scaled, LinearMap)
        assert_close(scaled @ vector, expected, terms=7)
        assert_close(scaled.T.T @ vector, expected, terms=7)
    assert_close(
        -scalar * linear_map @ vector, jax.tree.map(jnp.negative, expected), terms=7
    )


def test_a_traced_scalar_multiplies_from_both_sides():
    linear_map, matrix = _dense(0, IN, OUT)
    vector = _vector(1, IN)
    apply = jax.jit(lambda s: (s * linear_map * s) @ vector)
    assert_close(apply(0.5), unflat(0.25 * matrix @ flat(vector), OUT), terms=7)


def test_narrower_vectors_are_cast_and_keep_the_dtype_of_the_space():
    linear_map, matrix = _dense(0, _space(3), _space(2))
    for vector in (np.arange(3), np.arange(3, dtype=np.float32), jnp.arange(3)):
        image = linear_map @ vector
        assert image.dtype == jnp.float64
        assert_close(image, matrix @ np.arange(3.0), terms=3)


def test_works_under_jit_vmap_and_grad():
    at, vectors = jnp.array(_draw(0, 3)), _draw(1, 4, 3)
    fn = lambda x: jnp.sin(jnp.stack([x[0] * x[1], x[2] ** 2]))
    dense = jax.jacobian(fn)(at)
    apply = lambda at, v: jacobian(fn, at) @ v
    assert_close(jax.jit(apply)(at, vectors[0]), dense @ vectors[0], terms=3)
    assert_close(jax.vmap(jacobian(fn, at).mv)(vectors), vectors @ dense.T, terms=3)
    norm = lambda at: jacobian(fn, at).frobenius_norm()
    gradient = jax.grad(lambda at: jnp.sqrt((jax.jacobian(fn)(at) ** 2).sum()))(at)
    assert_close(jax.jit(jax.grad(norm))(at), gradient, terms=6)


def test_works_under_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        at = {"w": jnp.ones(3, jnp.float32), "b": jnp.ones((), jnp.float32)}
        J = jacobian(lambda p: p["w"] * p["b"] ** 2, at)
        kernel = 0.5 * J @ J.T
        for number in (kernel.trace(), kernel.frobenius_norm(), kernel.block((), ())):
            assert number.dtype == jnp.float32
        assert kernel.dense().dtype == jnp.float32
        assert (kernel @ jnp.ones(3, jnp.int32)).dtype == jnp.float32


def test_parameters_of_several_dtypes_work_under_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        at = {"w": jnp.full(3, 2.0, jnp.float32), "b": jnp.full(1, 3.0, jnp.bfloat16)}
        fn = lambda p: p["w"] * p["b"].astype(jnp.float32)
        J = jacobian(fn, at)
        assert (J.T @ jnp.ones(3, jnp.float32))["b"].dtype == jnp.bfloat16
        assert_close((J @ J.T).trace(), np.float32(3 * 9 + 3 * 4), terms=6)
        assert_close(J.frobenius_norm(), np.float32(39**0.5), terms=6)
        assert_close(J.dense()["w"], 3 * np.eye(3, dtype=np.float32))


def test_composition_of_different_spaces_is_refused_with_both():
    left, right = _dense(0, IN, OUT)[0], _dense(0, IN, OUT)[0]
    with pytest.raises(ValueError, match=r"`left` takes .*'x'.* `right` returns .*'a'"):
        left @ right


def test_maps_between_different_spaces_do_not_add():
    left, right = _dense(0, IN, OUT)[0], _dense(0, OUT, OUT)[0]
    for other in (right, _function(0, OUT, OUT)[0]):
        with pytest.raises(ValueError, match="Cannot add maps between different spac"):
            left + other
        with pytest.raises(ValueError, match="Cannot add maps between different spac"):
            other - left
    with pytest.raises(TypeError, match="unsupported operand"):
        left + 1.0


@pytest.mark.parametrize("make", [_function, _dense], ids=["function", "dense"])
def test_a_sum_is_stored_where_both_are(make):
    left, right = make(0, IN, OUT)[0], _dense(1, IN, OUT)[0]
    assert isinstance(left + right, DenseMap) == isinstance(left, DenseMap)


@pytest.mark.parametrize(
    "vector",
    [
        np.ones(4),
        np.ones((3, 1)),
        {"x": np.ones(3)},
        np.ones(3, complex),
    ],
    ids=["size", "rank", "structure", "wider dtype"],
)
def test_a_vector_of_another_space_is_refused(vector):
    for linear_map in (
        _dense(0, _space(3), _space(2))[0],
        jacobian(jnp.sin, jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"takes .*\(3,\).* applied to"):
            linear_map @ vector
    with pytest.raises(ValueError, match=r"takes .*\(2,\).* applied to"):
        _dense(0, _space(3), _space(2))[0].T @ np.ones(3)


@pytest.mark.parametrize(
    "position",
    [
        0,
        "z",
        (),
        "a",
        ("a", 2),
        ("a", -3),
        ("a", 0, 0),
        ("a", "b"),
        ("b", 0),
        ("a", 0.5),
    ],
    ids=repr,
)
def test_a_position_that_does_not_exist_is_refused(position):
    with pytest.raises(ValueError, match="does not name a position of"):
        _dense(0, IN, OUT)[0].block(position, "x")


def test_a_matrix_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\).* is 2 x 3"):
        DenseMap(jnp.ones((3, 2)), _space(3), _space(2))


def test_a_trace_needs_one_space():
    with pytest.raises(ValueError, match="trace needs a map from a space to itself"):
        _dense(0, IN, OUT)[0].trace()
    with pytest.raises(ValueError, match="trace needs a map from a space to itself"):
        _function(0, IN, OUT)[0].trace()


@pytest.mark.parametrize("make", [_function, _dense], ids=["function", "dense"])
def test_a_dense_matrix_above_the_limit_is_refused_with_its_size(make):
    linear_map, _ = make(0, IN, OUT)
    with pytest.raises(MemoryError, match=r"10 x 7 .*560 B.*limit of 559 B.*frobenius"):
        linear_map.dense(memory_limit=559)
    linear_map.dense(memory_limit=560)


def test_integer_parameters_are_refused_by_name():
    at = {"w": jnp.ones(2), "steps": jnp.array(3)}
    with pytest.raises(TypeError, match=r"int64 at \['steps'\].*close over"):
        jacobian(lambda p: p["w"] * p["steps"], at)


def test_narrow_logits_are_refused_by_name():
    fn = lambda w: {"chosen": w.astype(jnp.bfloat16)}
    with pytest.raises(TypeError, match=r"bfloat16 at \['chosen'\].*float32"):
        jacobian(fn, jnp.ones(2))


@jax.custom_vjp
def _backward_only(x):
    return jnp.sin(x)


_backward_only.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


def test_a_custom_vjp_works_on_the_update_side_only():
    at = jnp.array([0.5, 1.0])
    J = jacobian(_backward_only, at)
    assert_close(J.T @ jnp.ones(2), np.cos(at))
    assert_close(
        (jacobian(jnp.sin, at) @ J.T).trace(), (np.cos(at) ** 2).sum(), terms=2
    )
    with pytest.raises(TypeError, match=r"custom_vjp.*no forward derivative"):
        J @ jnp.ones(2)


def _forward_only(x):
    return jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x)
    )[1]


def test_a_while_loop_works_on_the_probe_side_only():
    at = jnp.array([0.5, 1.0])
    J = jacobian(_forward_only, at)
    assert_close(J @ jnp.ones(2), 4 * np.asarray(at) ** 3, terms=4)
    assert_close(
        (J @ jacobian(jnp.sin, at).T).trace(),
        (4 * np.asarray(at) ** 3 * np.cos(at)).sum(),
        terms=4,
    )
    with pytest.raises(ValueError, match=r"while_loop.*cannot differentiate backwards"):
        J.T @ jnp.ones(2)


@pytest.mark.parametrize("other", [np.ones(2), "ab", None, [1.0]], ids=repr)
def test_only_scalars_multiply(other, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for multiply in (operator.mul, lambda a, b: b * a):
        with pytest.raises(TypeError):
            multiply(_dense(0, IN, OUT)[0], other)
        with pytest.raises(TypeError):
            multiply(_function(0, IN, OUT)[0], other)
