"""What a kernel of the zoo must give, and the comparison with it."""

import warnings
from typing import Any

import jax
import numpy as np
from witnesses import references
from witnesses.closeness import assert_close
from zoo.kernel_models import compiled, drawn, nested

from ldjax import empirical_ntk, jacobian, linen, log_softmax

RTOL = 1e-10
LEARNING_RATE = 0.3


def make_fn(model, side):
    """`params -> logits`, as the exact methods take it."""
    return linen.logits_fn(
        model.module, side.sequences, positions=side.positions, **side.inputs
    )


def make_kernel(model, params, *, method, probe=None, update=None, **options) -> Any:
    """The kernel under test; `"lazy"` is the one that every check must let pass."""
    sides = probe or model.probe, update or model.update
    if method == "lazy":
        probe_fn, update_fn = (
            lambda p, side=side: model.logits(p, side) for side in sides
        )
        return jacobian(probe_fn, params) @ jacobian(update_fn, params).T
    probe_fn, update_fn = (make_fn(model, side) for side in sides)
    return empirical_ntk(probe_fn, update_fn, params, method=method, **options)


def dense(model, **options):
    """All entries, compiled."""
    return compiled(lambda p: make_kernel(model, p, **options).dense())(model.params)


def expected_dense(model, matrix=None):
    """All entries by brute force, or of another matrix, nested alike."""
    spaces = model.space(model.probe), model.space(model.update)
    return nested(model.kernel() if matrix is None else matrix, *spaces)


def blocks(matrix, probe_space, update_space):
    """`[probe position, vocab, update position, vocab]`, positions of all parts."""
    sizes = [jax.tree.leaves(s)[0].shape[-1] for s in (probe_space, update_space)]
    rows, columns = matrix.shape
    return matrix.reshape(rows // sizes[0], sizes[0], columns // sizes[1], sizes[1])


def position(space, index=-1):
    """The name of a position, and its place among all positions of the space."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(space):
        keys = tuple(key.key for key in path)
        names += [keys + where for where in np.ndindex(*leaf.shape[:-1])]
    return names[index], range(len(names))[index]


def assert_keeps_the_contract(model, **options):
    """Everything that every representation of a kernel offers."""
    probe, update = model.space(model.probe), model.space(model.update)
    v, u = drawn(update, 1), drawn(probe, 2)
    (m, row), (l, column) = position(probe), position(update, 1)

    @compiled
    def numbers(params):
        kernel = make_kernel(model, params, **options)
        adaptation = jacobian(log_softmax, model.logits(params, model.probe))
        assert kernel.in_struct == kernel.T.out_struct == update
        assert kernel.out_struct == kernel.T.in_struct == probe
        return {
            "mv": kernel.mv(v),
            "applied": kernel @ v,
            "scaled": (2.5 * kernel * 2) @ v,
            "negated": -kernel @ v,
            "rmv": kernel.rmv(u),
            "transposed": kernel.T @ u,
            "transposed twice": kernel.T.T @ v,
            "scaled, transposed": (2.5 * kernel).T @ u,
            "predicted": -LEARNING_RATE * adaptation @ kernel @ v,
            "dense": kernel.dense(),
            "block": kernel.block(m, l),
            "transposed block": kernel.T.block(l, m),
            "norm": kernel.frobenius_norm(),
        }

    matrix = model.kernel()
    wide, tall = references.flat(v), references.flat(u)
    image, pulled = (
        references.unflat(matrix @ wide, probe),
        references.unflat(matrix.T @ tall, update),
    )
    times = lambda scalar, tree: jax.tree.map(lambda leaf: scalar * leaf, tree)
    block = blocks(matrix, probe, update)[row, :, column]
    expected = {
        "mv": image,
        "applied": image,
        "scaled": times(5, image),
        "negated": times(-1, image),
        "rmv": pulled,
        "transposed": pulled,
        "transposed twice": image,
        "scaled, transposed": times(2.5, pulled),
        "predicted": prediction(model, image),
        "dense": nested(matrix, probe, update),
        "block": block,
        "transposed block": block.T,
        "norm": np.linalg.norm(matrix),
    }
    assert_close(numbers(model.params), expected, rtol=RTOL)


def prediction(model, image):
    """`-eta A (K G)` from brute force."""

    def adapt(logits, moved):
        adaptation = references.adaptation(np.asarray(logits))
        return -LEARNING_RATE * np.einsum("...vw,...w->...v", adaptation, moved)

    return jax.tree.map(adapt, model.logits(model.params, model.probe), image)


def assert_each_leaf_matters(model):
    """A kernel without one of the leaves would not pass for K."""
    largest = abs(model.kernel()).max()
    for path in model.paths:
        share = abs(model.kernel([path])).max() / largest
        silent = path in model.silent
        assert (share < 1e-15) if silent else (share > 1e-5), (path, share)


def exact_or_refused(expected, params, make):
    """Whether a kernel was refused with a reason; one that was made is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            actual = compiled(lambda p: make(p).dense())(params)
        except (NotImplementedError, TypeError, ValueError) as error:
            return bool(str(error))
    assert_close(actual, expected, rtol=RTOL)
    return False
