"""What the structured kernels take for granted holds where they are used."""

import dataclasses
import logging
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.closeness import assert_close
from zoo.kernel_checks import RTOL, expected_dense, make_fn
from zoo.kernel_impostors import (
    HEADLESS,
    NAMES,
    Crowded,
    Switched,
    changed,
    make_impostor,
    make_switched,
)
from zoo.kernel_models import compiled, make_model, random_params, vectors

from ldjax import empirical_ntk, linen
from ldjax.models import Transformer
from ldjax.ntk.layers import load_kernel, save_kernel
from ldjax.ntk.layers.pairing import prove
from ldjax.ntk.layers.proof import certificate

pytestmark = pytest.mark.slow

METHODS = ("structured", "factored")
FIRST = ("max norm", "clipped kernel", "branch", "mean", "negative ids, tied")
FIRST += ("clipped logits", "loud inputs")


@pytest.fixture(autouse=True)
def _nothing_named_yet(monkeypatch):
    monkeypatch.setattr(certificate, "_named", set())


def _dense(model, method, params, probe_tokens, update_tokens):
    """All entries, of whatever is traced."""
    fns = (
        make_fn(
            model,
            dataclasses.replace(side, sequences=side.sequences._replace(tokens=tokens)),
        )
        for side, tokens in (
            (model.probe, probe_tokens),
            (model.update, update_tokens),
        )
    )
    probe_fn, update_fn = fns
    return empirical_ntk(probe_fn, update_fn, params, method=method).dense()


def _read(model, method, how):
    """The entries, and what was warned of."""
    tokens = [side.sequences.tokens for side in (model.probe, model.update)]
    fn = {
        "eager": lambda: _dense(model, method, model.params, *tokens),
        "parameters": lambda: compiled(lambda p: _dense(model, method, p, *tokens))(
            model.params
        ),
        "everything": lambda: compiled(lambda *a: _dense(model, method, *a))(
            model.params, *tokens
        ),
    }[how]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fn()
    return found, [str(warning.message) for warning in caught]


slow = lambda *case: pytest.param(*case, marks=pytest.mark.exhaustive)
names = [name if name in FIRST else slow(name) for name in NAMES]


@pytest.mark.parametrize("name", names)
@pytest.mark.parametrize("how", ["everything", slow("parameters"), slow("eager")])
def test_what_acts_as_a_matrix_at_most_places_only_is_exact_and_named(name, how):
    model = make_impostor(name)
    if name.startswith("negative") and how != "everything":
        with pytest.raises(ValueError, match="at least 0"):  # ids that can be seen
            _read(model, "structured", how)
        return
    found, said = _read(model, "structured", how)
    assert_close(found, expected_dense(model), rtol=RTOL)
    for path in model.paths:
        named = [text for text in said if re.search(rf"(?<![\w/]){path}(?!\w)", text)]
        assert len(named) == (path in model.warned), (path, said)


@pytest.mark.parametrize("name", names)
def test_the_factored_kernel_of_it_is_exact_or_refused(name):
    model = make_impostor(name)
    if name in HEADLESS:
        with pytest.raises(ValueError, match="not a fixed multiple of the outputs"):
            _read(model, "factored", "everything")
        return
    found, _ = _read(model, "factored", "everything")
    assert_close(found, expected_dense(model), rtol=RTOL)


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16")])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_few_bits_are_held_to_the_same(method, dtype):
    cubed = lambda x, k: x @ k.astype(x.dtype) ** 3
    model, witness = changed(cubed, dtype=dtype), changed(cubed)
    params = jax.tree.map(lambda x: x.astype("float32"), model.params)
    kernel = params["layer"]["kernel"].astype(dtype)
    model = dataclasses.replace(model, params=params | {"layer": {"kernel": kernel}})
    exact = jax.tree.map(lambda x: x.astype("float64"), model.params)
    witness = dataclasses.replace(witness, params=exact)
    found, said = _read(model, method, "parameters")
    assert ["layer/kernel" in text for text in said] == [True]
    # Each entry of a gradient is rounded once on its way through the narrow leaf.
    rounding = float(jnp.finfo(dtype).eps)
    assert_close(np.asarray(found, float), expected_dense(witness), rtol=rounding)


@pytest.mark.parametrize("style", ["gpt2 tied", slow("neox padded"), "llama remat"])
@pytest.mark.parametrize("dtype", ["bfloat16", slow("float32")])
def test_the_layers_of_decoders_are_proven_in_any_format(style, dtype):
    model = make_model(style)
    config = dataclasses.replace(
        model.module.config, dtype=dtype, param_dtype=dtype, remat=True
    )
    model = dataclasses.replace(model, module=Transformer(config))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
    fn = make_fn(model, model.probe)
    (proof,), _ = prove(fn, fn, params)
    proven = {"/".join(path) for path in proof.leaves | proof.shared}
    norms = {path for path in model.paths if "norm" in path}
    assert proven == set(model.paths) - norms
    assert proof.head[0] == ("token_embedding" if config.tied_head else "unembedding",)


def test_a_module_that_became_another_one_is_proven_anew(monkeypatch):
    model = make_switched()
    found, said = _read(model, "structured", "everything")
    assert_close(found, expected_dense(model), rtol=RTOL)
    assert not said
    monkeypatch.setitem(Switched.switch, "factor", 2.0)
    model = make_switched()
    found, said = _read(model, "structured", "everything")
    assert_close(found, expected_dense(model), rtol=RTOL)
    assert "layer/kernel" in said[0]


def test_examples_that_see_each_other_here_only_are_refused(caplog):
    batch = vectors(0, 3, 4)
    params = random_params(Crowded(), batch.tokens)
    quiet = linen.logits_fn(Crowded(), batch)
    loud = batch._replace(tokens=batch.tokens.at[1].multiply(1e3))
    loud_fn = linen.logits_fn(Crowded(), loud)
    empirical_ntk(quiet, quiet, params, method="structured")
    for method in METHODS:
        with pytest.raises(ValueError, match="depend on the other examples"):
            empirical_ntk(quiet, loud_fn, params, method=method)
    with caplog.at_level(logging.INFO, logger="ldjax"):
        kernel = empirical_ntk(loud_fn, loud_fn, params, memory_limit=1)
    assert 'method="lazy"' in caplog.text
    assert "depend on the other examples" in caplog.text
    jacobian = jax.jacrev(lambda p: loud_fn(p).ravel())(params)
    rows = np.hstack([np.reshape(leaf, (15, -1)) for leaf in jax.tree.leaves(jacobian)])
    assert_close(np.reshape(kernel.dense(), (15, 15)), rows @ rows.T, rtol=RTOL)


def test_ids_count_from_either_end(tmp_path):
    model = make_model("tied")
    fns = make_fn(model, model.probe), make_fn(model, model.update)
    kernel = empirical_ntk(*fns, model.params, method="factored")
    vocab = kernel.in_struct.shape[-1]
    rows, columns = np.array([0, vocab - 1]), np.array([vocab - 2, 1])
    entries = kernel.entries(rows, columns)
    assert_close(kernel.entries(rows - vocab, columns - vocab), entries)
    with pytest.raises(ValueError, match=r"must lie in -6 to 5; got 0 to 6"):
        kernel.entries(rows, np.array([vocab, 0]))
    save_kernel(tmp_path / "new.npz", kernel, provenance={})
    with np.load(tmp_path / "new.npz") as file:
        arrays = dict(file)
    for side in ("left_0_0", "right_0_0"):  # as they were given, once
        arrays[side] = arrays[side] - vocab * (arrays[side] % 2)
    np.savez(tmp_path / "old.npz", **arrays)
    old: Any = load_kernel(tmp_path / "old.npz")
    assert_close(old.entries(rows, columns), entries)
