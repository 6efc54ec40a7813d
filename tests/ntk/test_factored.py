"""The factored kernel against dense Jacobians: heads, ties, norms and spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from witnesses.references import flat, unflat
from zoo.kernel_checks import (
    LEARNING_RATE,
    RTOL,
    assert_keeps_the_contract,
    blocks,
    dense,
    exact_or_refused,
    expected_dense,
    make_kernel,
    position,
    prediction,
)
from zoo.kernel_models import (
    DECODERS,
    HEADLESS,
    HEADS,
    compiled,
    drawn,
    make_model,
)

from ldjax.ntk.layers.saved import load_kernel, save_kernel

pytestmark = pytest.mark.slow

FAST = "tied"
REFUSED = ("capped", "tied capped")
# LeNet is in test_structured; as a head an MLP is as good, and faster.
names = [name for name in [*HEADS, *DECODERS] if name != "lenet"]
LONG = ("gpt2 tied", "gpt2 untied", "llama pair", "llama remat")
LONG += ("neox padded", "qwen2 padded")
saved = [
    pytest.param(name, marks=pytest.mark.exhaustive) if name in LONG else name
    for name in names
    if name != FAST
]
directly = [
    name if name == FAST else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in names
]


@functools.cache
def _blocks(name):
    """`[probe position, vocab, update position, vocab]`, and the spaces."""
    model = make_model(name)
    spaces = model.space(model.probe), model.space(model.update)
    return blocks(model.kernel(), *spaces), *spaces


def _each_block(name, number):
    """A number of every block, `[probe batch, pos, update batch, pos]`."""
    array, probe, update = _blocks(name)
    rows, _, columns, _ = array.shape
    table = np.array(
        [[number(array[m, :, l], m, l) for l in range(columns)] for m in range(rows)]
    )
    return _by_position(table, probe, update)


def _by_position(table, probe, update):
    """Positions of all parts as the axes of each part, nested like the kernel."""
    result = []
    for leaf in jax.tree.leaves(probe):
        num = int(np.prod(leaf.shape[:-1]))
        part, table = table[:num], table[num:]
        row = []
        for other in jax.tree.leaves(update):
            width = int(np.prod(other.shape[:-1]))
            block, part = part[:, :width], part[:, width:]
            row.append(
                block.reshape(leaf.shape[:-1] + other.shape[:-1] + block.shape[2:])
            )
        result.append(jax.tree.structure(update).unflatten(row))
    return jax.tree.structure(probe).unflatten(result)


def _distance(block, *_):
    """From the nearest multiple of the identity."""
    return np.linalg.norm(block - np.trace(block) / len(block) * np.eye(len(block)))


@pytest.mark.parametrize("name", directly)
def test_every_number_equals_brute_force(name):
    model = make_model(name)
    _assert_the_head_adds_a_multiple_of_the_identity(name)

    @compiled
    def read(params):
        kernel = make_kernel(model, params, method="factored")
        numbers = _numbers(kernel, model, name)
        covector = drawn(model.space(model.probe), 4)
        numbers["rmv"] = kernel.T @ covector
        numbers["structured"] = make_kernel(model, params, method="structured").dense()
        return numbers

    actual = read(model.params)
    _assert_all_right(actual, model, name)


@pytest.mark.parametrize("name", saved)
def test_every_number_of_a_saved_kernel_equals_brute_force(name, tmp_path):
    """All models through all factors, which are compiled once; on the way, the file."""
    model = make_model(name)
    _assert_the_head_adds_a_multiple_of_the_identity(name)
    made = make_kernel(model, model.params, method="factored")
    save_kernel(tmp_path / "kernel.npz", made, provenance={"model": name})
    kernel = load_kernel(tmp_path / "kernel.npz")
    assert kernel.provenance["model"] == name
    assert kernel.out_struct == model.space(model.probe)
    assert kernel.in_struct == model.space(model.update)

    @compiled
    def read():
        numbers = _numbers(kernel, model, name)
        numbers["rmv"] = kernel.T @ drawn(model.space(model.probe), 4)
        return numbers

    _assert_all_right(read(), model, name)


def _numbers(kernel, model, name):
    """What a factored kernel tells."""
    (m, _), (l, _) = position(kernel.out_struct), position(kernel.in_struct, 1)
    residual = drawn(kernel.in_struct, 3)
    return {
        "summary": kernel.block_summary(),
        "singular values": kernel.singular_values(m, l)._asdict(),
        "entries": kernel.entries(*_chosen_tokens(name)),
        "block": kernel.block(m, l),
        "prediction": kernel.predict(residual, LEARNING_RATE),
        "mv": kernel @ residual,
        "dense": kernel.dense(),
        "norm": kernel.frobenius_norm(),
    }


def _chosen_tokens(name):
    vocab = _blocks(name)[0].shape[1]
    return np.array([vocab - 1, 1, 1, 0]), np.array([2, 0, vocab - 1])


def _assert_all_right(actual, model, name):
    array, probe, update = _blocks(name)
    rows, columns = _chosen_tokens(name)
    (_, row), (_, column) = position(probe), position(update, 1)
    spectrum = actual.pop("singular values")
    actual["summary"] = _by_field(actual["summary"])
    matrix = model.kernel()
    image = unflat(matrix @ flat(drawn(update, 3)), probe)
    picked = array[:, rows][..., columns].swapaxes(1, 2)
    entries = jax.tree.map(
        lambda leaf: np.moveaxis(leaf, -2, -2 - (leaf.ndim - 2) // 2),
        _by_position(picked, probe, update),
    )
    expected = {
        "summary": _summary(name),
        "entries": entries,
        "block": array[row, :, column],
        "prediction": prediction(model, image),
        "mv": image,
        "rmv": unflat(matrix.T @ flat(drawn(probe, 4)), update),
        "dense": expected_dense(model),
        "norm": np.linalg.norm(matrix),
        "structured": expected_dense(model),
    }
    assert_close(actual, {what: expected[what] for what in actual}, rtol=RTOL)
    head = model.head_coefficients[row, column]
    _assert_are_the_singular_values(spectrum, array[row, :, column], head)


def _summary(name):
    """What is known of every block."""
    model = make_model(name)
    head, identity = model.head_coefficients, np.eye(_blocks(name)[0].shape[1])
    numbers = {
        "norm": lambda block, *_: np.linalg.norm(block),
        "trace": lambda block, *_: np.trace(block),
        "distance": _distance,
        "body_norm": lambda block, m, l: np.linalg.norm(block - head[m, l] * identity),
        "identity": lambda _, m, l: head[m, l],
    }
    return {what: _each_block(name, number) for what, number in numbers.items()}


def _by_field(summaries):
    """Fields outside, sides of a pair inside."""
    is_summary = lambda node: hasattr(node, "_fields")
    first = jax.tree.leaves(summaries, is_leaf=is_summary)[0]
    read = lambda what: lambda summary: getattr(summary, what)
    return {
        what: jax.tree.map(read(what), summaries, is_leaf=is_summary)
        for what in first._fields
    }


def _assert_are_the_singular_values(spectrum, block, head):
    """All of them, with how often the head's own occurs."""
    values, multiplicity = np.asarray(spectrum["values"]), int(spectrum["multiplicity"])
    assert multiplicity >= 0
    assert len(values) + multiplicity == len(block)
    assert (np.diff(values) <= 0).all()
    everything = np.append(values, np.full(multiplicity, spectrum["rest"]))
    expected = np.linalg.svd(block, compute_uv=False)
    assert_close(np.sort(everything)[::-1], expected, rtol=RTOL)
    if multiplicity:
        assert_close(np.asarray(spectrum["rest"]), np.abs(head), rtol=RTOL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["tied", "scaled"])
def test_keeps_the_contract_of_linear_maps(name):
    assert_keeps_the_contract(make_model(name), method="factored")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["tied", "mlp"])
def test_a_batch_with_itself(name):
    model = make_model(name)

    @compiled
    def read(params):
        kernel = make_kernel(model, params, method="factored", probe=model.update)
        return kernel.trace(), kernel.dense()

    jacobian = np.concatenate(list(model.jacobians[1].values()), axis=1)
    space = model.space(model.update)
    expected = (jacobian @ jacobian.T).reshape(space.shape * 2)
    assert_close(read(model.params), (np.sum(jacobian**2), expected), rtol=RTOL)


@pytest.mark.parametrize("name", REFUSED)
def test_a_soft_cap_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"(?i)\bcap\b|tanh"):
        dense(make_model(name), method="factored")


@pytest.mark.parametrize(
    "name",
    [
        n if n == "temperature" else pytest.param(n, marks=pytest.mark.exhaustive)
        for n in HEADLESS
        if n not in REFUSED
    ],
)
def test_logits_that_are_not_a_plain_head_are_exact_or_refused(name):
    model = make_model(name)
    exact_or_refused(
        expected_dense(model),
        model.params,
        lambda params: make_kernel(model, params, method="factored"),
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["remat", "general", "scan"])
def test_any_trunk_under_a_dense_head(name):
    model = make_model(name)
    actual = dense(model, method="factored")
    assert_close(actual, expected_dense(model), rtol=RTOL)


# The witnesses themselves.


def _assert_the_head_adds_a_multiple_of_the_identity(name):
    """By brute force: the rest of a block has rank n, and a tie is felt."""
    model = make_model(name)
    array, _, _ = _blocks(name)
    vocab = array.shape[1]
    head = model.head_coefficients
    if model.head:
        own = [path for path in model.paths if path.startswith(f"{model.head}/")]
        matrix = model.kernel(own).reshape(array.shape)
        expected = np.einsum("ml,vw->mvlw", head, np.eye(vocab))
        assert_close(matrix, expected, rtol=RTOL)
        ranks = model.params[model.head]["kernel"].shape[0]
    else:
        table = model.paths.index(next(p for p in model.paths if "embed" in p))
        width = jax.tree.leaves(model.params)[table].shape[-1]
        sides = model.probe.parts[0], model.update.parts[0]
        tokens = sum(part.tokens.shape[1] for part in sides)
        ranks = width + tokens
    body = array - np.einsum("ml,vw->mvlw", head, np.eye(vocab))
    rank = np.linalg.matrix_rank(body.swapaxes(1, 2), tol=1e-10 * abs(array).max())
    assert rank.max() <= min(ranks, vocab)
    assert rank.max() >= min(2, vocab)
    assert jnp.isfinite(head).all()
