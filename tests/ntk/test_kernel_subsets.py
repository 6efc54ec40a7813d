"""Parts of a kernel: groups of parameters, a filter, and a preconditioner."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from witnesses.references import flat, unflat
from zoo.cases import apply_toy, sentences, toy_params
from zoo.kernel_checks import RTOL, expected_dense, make_fn, make_kernel
from zoo.kernel_models import compiled, drawn, make_model, positive

from ldjax import ntk

pytestmark = pytest.mark.slow

METHODS = ("structured", "factored")
CONTRACTIONS = ("operator", "gram", "instantiated")

slow = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def _by_group(model, **options):
    fns = make_fn(model, model.probe), make_fn(model, model.update)

    @compiled
    def kernels(params):
        groups = ntk.by_group(*fns, params, **options)
        return {name: kernel.dense() for name, kernel in groups.items()}

    return kernels(model.params)


def _assert_sums_to_the_kernel(by_name, model):
    expected = expected_dense(model)
    parts = [jax.tree.leaves(part) for part in by_name.values()]
    sums = [sum(leaves) for leaves in zip(*parts, strict=True)]
    assert_close(sums, jax.tree.leaves(expected), rtol=RTOL)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("tied", "factored"),
        slow("scaled", "structured"),
        slow("convolutions", "structured"),
        slow("gpt2 tied", "factored"),
        slow("neox padded", "structured"),
    ],
)
def test_layers_sum_to_the_kernel_and_each_is_its_own(name, method):
    model = make_model(name)
    by_layer = _by_group(model, method=method)
    leaves = {}
    for path in model.paths:
        leaves.setdefault(path.rpartition("/")[0], []).append(path)
    assert set(by_layer) == set(leaves)
    expected = {
        layer: expected_dense(model, model.kernel(own)) for layer, own in leaves.items()
    }
    # A layer that cannot matter has a kernel of zero, to rounding.
    scale = abs(model.kernel()).max()
    assert_close(by_layer, expected, rtol=RTOL, scale=scale)
    for layer, own in leaves.items():
        if not set(own) <= set(model.silent):
            assert_close(by_layer[layer], expected[layer], rtol=1e-8)
    _assert_sums_to_the_kernel(by_layer, model)


def test_groups_add_up_to_the_kernel_as_maps():
    """Nothing dense: the sum of the groups' maps is a map like the kernel."""
    params, batch = toy_params(), sentences(0, 2, 3)
    fn = functools.partial(apply_toy, sequences=batch)
    groups = ntk.by_group(fn, fn, params, groups=_of_matrices, method="lazy")
    total = functools.reduce(operator.add, groups.values())
    kernel = ntk.empirical_ntk(fn, fn, params, method="lazy")
    assert_close(total.dense(), kernel.dense(), rtol=RTOL)
    rest = kernel - groups["matrix"]
    assert_close(rest.dense(), groups["vector"].dense(), rtol=RTOL, scale=1.0)


def _of_matrices(params):
    """Labels by shape, as `optax.multi_transform` takes them."""
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)


@pytest.mark.parametrize(
    ("how", "method"),
    [
        ("tree", "structured"),
        slow("tree", "factored"),
        slow("prefix", "structured"),
        slow("function", "factored"),
    ],
)
def test_named_groups(how, method):
    model = make_model("tied")
    groups, leaves = {
        "tree": (
            _of_matrices(model.params),
            {"matrix": ["embed/embedding", "mix/kernel"], "vector": ["mix/bias"]},
        ),
        "prefix": (
            {"embed": "table", "mix": "layer"},
            {"table": ["embed/embedding"], "layer": ["mix/kernel", "mix/bias"]},
        ),
        "function": (
            _of_matrices,
            {"matrix": ["embed/embedding", "mix/kernel"], "vector": ["mix/bias"]},
        ),
    }[how]
    by_name = _by_group(model, groups=groups, method=method)
    expected = {
        name: expected_dense(model, model.kernel(own)) for name, own in leaves.items()
    }
    assert_close(by_name, expected, rtol=RTOL)
    _assert_sums_to_the_kernel(by_name, model)


# The filter.

FILTERS = {
    "tied": {
        "a prefix: the table": ({"embed": True, "mix": False}, ["embed/embedding"]),
        "a function": (
            lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            ["embed/embedding", "mix/kernel"],
        ),
        "everything": (True, ["embed/embedding", "mix/kernel", "mix/bias"]),
        "a tree: no table": (
            {"embed": {"embedding": False}, "mix": {"kernel": True, "bias": False}},
            ["mix/kernel"],
        ),
        "a function to a prefix": (
            lambda params: {name: name == "mix" for name in params},
            ["mix/kernel", "mix/bias"],
        ),
    },
    "scaled": {
        "the bias of the head": (
            {"embed": False, "head": {"kernel": False, "bias": True}},
            ["head/bias"],
        ),
        "the trunk": ({"embed": True, "head": False}, ["embed/embedding"]),
        "the head": ({"embed": False, "head": True}, ["head/kernel", "head/bias"]),
        "half of the head": (
            {"embed": True, "head": {"kernel": True, "bias": False}},
            ["embed/embedding", "head/kernel"],
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "num"),
    [("tied", 2), ("scaled", 1), slow("tied", None), slow("scaled", None)],
)
def test_a_filter_gives_the_kernel_of_the_kept_leaves(name, num):
    model = make_model(name)
    filters = dict(list(FILTERS[name].items())[:num])
    v = drawn(model.space(model.update), 1)

    @compiled
    def read(params):
        kernels = {
            (how, method): make_kernel(model, params, method=method, where=where)
            for how, (where, _) in filters.items()
            for method in METHODS
        }
        return {key: (kernel.dense(), kernel @ v) for key, kernel in kernels.items()}

    expected = {}
    for how, (_, leaves) in filters.items():
        matrix = model.kernel(leaves)
        image = unflat(matrix @ v.ravel(), model.space(model.probe))
        for method in METHODS:
            expected[how, method] = expected_dense(model, matrix), image
    assert_close(read(model.params), expected, rtol=RTOL)


def _assert_equals(model, matrix, **options):
    """Dense, applied and transposed: they are computed in different ways."""
    probe, update = model.space(model.probe), model.space(model.update)
    v, u = drawn(update, 1), drawn(probe, 2)

    @compiled
    def read(params):
        kernel = make_kernel(model, params, **options)
        return kernel.dense(), kernel @ v, kernel.T @ u, kernel.frobenius_norm()

    expected = (
        expected_dense(model, matrix),
        unflat(matrix @ flat(v), probe),
        unflat(matrix.T @ flat(u), update),
        np.linalg.norm(matrix),
    )
    assert_close(read(model.params), expected, rtol=RTOL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
def test_a_filter_on_a_decoder(method):
    model = make_model("gpt2 tied")
    kept = (
        "blocks_0/attention/query/kernel",
        "blocks_0/mlp/up/bias",
        "final_norm/bias",
        "token_embedding/embedding",
    )
    where = jax.tree.unflatten(
        jax.tree.structure(model.params), [path in kept for path in model.paths]
    )
    _assert_equals(model, model.kernel(list(kept)), method=method, where=where)


def test_a_filter_of_another_structure_is_refused():
    model = make_model("tied")
    fns = make_fn(model, model.probe), make_fn(model, model.update)
    with pytest.raises(ValueError, match="where"):
        ntk.empirical_ntk(
            *fns, model.params, method="structured", where={"embed": True}
        )


# The preconditioner.


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("tied", "factored"),
        slow("scaled", "factored"),
        slow("tied scaled", "factored"),
        slow("mlp", "factored"),
        slow("tied", "structured"),
        slow("positions", "structured"),
        slow("general", "structured"),
        slow("scan", "structured"),
        slow("qwen2 padded", "factored"),
        slow("neox padded", "factored"),
    ],
)
def test_a_preconditioned_kernel(name, method):
    model = make_model(name)
    weights = positive(model.params, 1)
    _assert_equals(
        model, model.kernel(weights=weights), method=method, preconditioner=weights
    )


@pytest.mark.parametrize("name", ["dense twice", slow("convolutions")])
def test_every_contraction_of_a_preconditioned_kernel(name):
    model = make_model(name)
    weights = positive(model.params, 2)

    @compiled
    def kernels(params):
        return {
            way: make_kernel(
                model,
                params,
                method="structured",
                contraction=way,
                preconditioner=weights,
            ).dense()
            for way in CONTRACTIONS
        }

    expected = expected_dense(model, model.kernel(weights=weights))
    assert_close(
        kernels(model.params), dict.fromkeys(CONTRACTIONS, expected), rtol=RTOL
    )


@pytest.mark.parametrize("name", [slow("tied"), slow("scaled")])
def test_norms_and_spectra_of_a_preconditioned_kernel(name):
    model = make_model(name)
    weights = positive(model.params, 3)
    probe, update = model.space(model.probe), model.space(model.update)
    vocab = probe.shape[-1]

    @compiled
    def read(params):
        kernel = make_kernel(model, params, method="factored", preconditioner=weights)
        summary = kernel.block_summary()
        return {
            "norm": summary.norm,
            "trace": summary.trace,
            "distance": summary.distance,
            "entries": kernel.entries(np.array([1, 0]), np.array([2])),
            "block": kernel.block((1, 2), (0, 1)),
        }

    array = model.kernel(weights=weights).reshape(probe.shape + update.shape)
    array = np.moveaxis(array, 2, 4)  # [..., ..., vocab, vocab]
    traces = np.trace(array, axis1=-2, axis2=-1)
    multiples = traces[..., None, None] / vocab * np.eye(vocab)
    expected = {
        "norm": np.linalg.norm(array, axis=(-2, -1)),
        "trace": traces,
        "distance": np.linalg.norm(array - multiples, axis=(-2, -1)),
        "entries": np.moveaxis(array[..., [1, 0], :][..., [2]], 4, 2),
        "block": array[1, 2, 0, 1],
    }
    assert_close(read(model.params), expected, rtol=RTOL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
def test_a_filter_and_a_preconditioner_together(method):
    model = make_model("tied")
    weights = positive(model.params, 4)
    leaves = ["embed/embedding", "mix/bias"]
    where = {"embed": True, "mix": {"kernel": False, "bias": True}}
    matrix = model.kernel(leaves, weights)
    _assert_equals(model, matrix, method=method, where=where, preconditioner=weights)


@pytest.mark.exhaustive
def test_preconditioned_layers_sum_to_the_preconditioned_kernel():
    model = make_model("dense twice")
    weights = positive(model.params, 5)
    by_layer = _by_group(model, method="structured", preconditioner=weights)
    total = sum(by_layer.values())
    expected = expected_dense(model, model.kernel(weights=weights))
    assert_close(total, expected, rtol=RTOL)


def test_a_preconditioner_of_ones_changes_nothing_and_zeros_filter():
    model = make_model("tied")
    ones = jax.tree.map(jnp.ones_like, model.params)
    ones["mix"]["kernel"] = jnp.zeros_like(ones["mix"]["kernel"])
    matrix = model.kernel(["embed/embedding", "mix/bias"])
    assert_close(model.kernel(weights=ones), matrix, rtol=RTOL)
