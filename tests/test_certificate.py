"""What the structured kernels take for granted holds where they are used."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from kernel_checks import RTOL, expected_dense, make_fn
from kernel_impostors import (
    HEADLESS,
    NAMES,
    changed,
    make_impostor,
)
from kernel_models import compiled

from ldjax import empirical_ntk
from ldjax.ntk.linen import _certificate

pytestmark = pytest.mark.slow

METHODS = ("structured", "factored")
FIRST = ("max norm", "clipped kernel", "branch", "mean", "negative ids, tied")
FIRST += ("clipped logits", "loud inputs")


@pytest.fixture(autouse=True)
def _nothing_named_yet(monkeypatch):
    monkeypatch.setattr(_certificate, "_named", set())


def _dense(model, method, params, probe_tokens, update_tokens):
    """All entries, of whatever is traced."""
    probe_fn, update_fn = (make_fn(model, side) for side in (model.probe, model.update))
    probe_fn.sequences = probe_fn.sequences._replace(tokens=probe_tokens)
    update_fn.sequences = update_fn.sequences._replace(tokens=update_tokens)
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
    model, witness = changed(cubed, 2.0, dtype), changed(cubed, 2.0)
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
