"""The dense kernels: against brute force, and planned before they are made."""

import importlib.metadata
import logging
import resource
import subprocess
import sys
import types

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import references
from witnesses.closeness import assert_close
from zoo.cases import make_case

from ldjax import empirical_ntk, jacobian
from ldjax.ntk import plan
from ldjax.ntk.neural_tangents import load_neural_tangents

METHODS = ["jacobian", "ntk_vp"]


def _fns(case):
    return case.logits_fn(case.probe), case.logits_fn(case.update)


def _assert_equals_brute_force(name, dense):
    case = make_case(name)
    blocks = dense if isinstance(case.probe, dict) else {"update": {"update": dense}}
    for probe_side, row in blocks.items():
        for update_side, block in row.items():
            expected = references.kernel(case, case.params, probe_side, update_side)
            assert_close(block, expected, rtol=1e-12)


# LeNet's turn, with its prediction, is in test_decompose.
@pytest.mark.parametrize("name", ["tanh_mlp", "toy", "pair"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_brute_force(name, method):
    case = make_case(name)
    dense = jax.jit(lambda p: empirical_ntk(*_fns(case), p, method=method).dense())
    _assert_equals_brute_force(name, dense(case.params))


def _tiny(num, seed):
    """A nonlinear model of six parameters: cheap to run uncompiled."""
    inputs = jnp.asarray(np.random.default_rng(seed).normal(size=(num, 2)))
    return lambda w: jnp.sin(inputs @ w)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("swapped", [False, True])
def test_equals_the_lazy_kernel_under_jit_whichever_side_is_narrower(method, swapped):
    left, right = _tiny(3, 0), _tiny(1, 1)
    probe_fn, update_fn = lambda w: {"a": left(w), "b": [right(w)]}, _tiny(2, 2)
    if swapped:
        probe_fn, update_fn = update_fn, probe_fn

    @jax.jit
    def both(params):
        dense = empirical_ntk(probe_fn, update_fn, params, method=method)
        lazy = jacobian(probe_fn, params) @ jacobian(update_fn, params).T
        v = jax.tree.map(lambda s: jnp.ones(s.shape), dense.in_struct)
        return (dense @ v, dense.dense()), (lazy @ v, lazy.dense())

    assert_close(*both(jnp.ones((2, 3))), rtol=1e-12)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_is_never_averaged_or_traced(method):
    inputs = np.array([[1.0, 2.0], [3.0, 5.0]])
    fn = lambda w: jnp.asarray(inputs) @ w  # [pos, vocab], linear in w
    kernel = empirical_ntk(fn, fn, jnp.ones((2, 3)), method=method)
    expected = np.einsum("ml,vw->mvlw", inputs @ inputs.T, np.eye(3))
    assert_close(kernel.dense(), expected, terms=6)


@pytest.mark.parametrize("method", METHODS)
def test_float32_kernels_are_float32(method):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    fn = lambda w: jnp.tanh(w @ jnp.ones((3, 2), jnp.float32))
    kernel = empirical_ntk(fn, fn, weights, method=method)
    assert kernel.dense().dtype == jnp.float32
    lazy = (jacobian(fn, weights) @ jacobian(fn, weights).T).dense()
    assert_close(kernel.dense(), lazy, terms=12)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_parameter_may_be_a_number(method):
    kernel = empirical_ntk(jnp.sin, jnp.cos, 0.5, method=method)
    assert_close(kernel.dense(), -np.cos(0.5) * np.sin(0.5))


TINY = (_tiny(3, 0), _tiny(1, 1), jnp.ones((2, 3)))


def _assert_is_tiny(kernel):
    probe, update = (np.asarray(jax.jacobian(fn)(TINY[2])) for fn in TINY[:2])
    expected = np.einsum("mvij,lwij->mvlw", probe, update)
    assert_close(kernel.dense(), expected, terms=6)


@pytest.mark.slow
def test_auto_takes_the_fastest_that_fits_and_says_so(caplog):
    plans = [one for one in plan(*TINY) if not one.refusal]
    least = min(one.peak_bytes for one in plans)
    with caplog.at_level(logging.INFO, logger="ldjax"):
        _assert_is_tiny(empirical_ntk(*TINY))
        assert f'method="{plans[0].method}"' in caplog.text
        caplog.clear()
        empirical_ntk(*TINY, memory_limit=least)
        fitting = [one.method for one in plans if one.peak_bytes <= least]
        assert f'method="{fitting[0]}"' in caplog.text
        caplog.clear()
        lazy = empirical_ntk(*TINY, memory_limit=least - 1)
        assert 'method="lazy": all entries need at least' in caplog.text
    _assert_is_tiny(lazy)


def test_the_linen_methods_say_why_they_cannot_serve_a_plain_function():
    refusals = {one.method: one.refusal for one in plan(*TINY)}
    assert set(refusals) == {"jacobian", "ntk_vp", "lazy", "structured", "factored"}
    for method in ("structured", "factored"):
        assert "must come from `ldjax.linen.logits_fn`" in refusals[method]
        with pytest.raises(TypeError, match=f'method="{method}".*"lazy"'):
            empirical_ntk(*TINY, method=method)


def _vast(width):
    """Logits of `width` positions by 1000, from one parameter for each label."""
    return lambda w: jnp.ones((width, 1)) * w[None]


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_fit_is_refused_with_its_size_before_it_is_allocated(method):
    fn, params = _vast(1000), jnp.ones(1000)  # 10**12 entries, 8 TB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MemoryError, match=r"8 TB.*limit of .*lazy"):
        empirical_ntk(fn, fn, params, method=method)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 50_000, f"{grown} kB were allocated on the way to a refusal"


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_is_a_bound_on_result_and_work(method):
    total = {p.method: p for p in plan(*TINY)}[method].peak_bytes
    _assert_is_tiny(empirical_ntk(*TINY, method=method, memory_limit=total))
    with pytest.raises(MemoryError, match=f'method="{method}"'):
        empirical_ntk(*TINY, method=method, memory_limit=total - 1)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'dense'.*'auto', 'factored', 'jacobian'"):
        empirical_ntk(jnp.sin, jnp.sin, jnp.ones(2), method="dense")


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_narrow_logits_and_integer_parameters_are_refused(method):
    narrow = lambda w: w.astype(jnp.bfloat16)
    with pytest.raises(TypeError, match="bfloat16"):
        empirical_ntk(jnp.sin, narrow, jnp.ones(2), method=method)
    with pytest.raises(TypeError, match="int64"):
        empirical_ntk(
            lambda w: w * 1.0, lambda w: w * 1.0, jnp.arange(2), method=method
        )


# The loader.


@pytest.fixture
def without_neural_tangents(monkeypatch):
    """As if it was neither imported nor installed."""
    for name in [n for n in sys.modules if n.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "neural_tangents":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])


@pytest.mark.parametrize("method", METHODS)
def test_without_neural_tangents_the_error_names_versions_and_what_remains(
    without_neural_tangents, method
):
    fn, params = jnp.sin, jnp.ones(2)
    version = importlib.metadata.version("neural-tangents")
    with pytest.raises(
        ImportError, match=rf"{version}.*{jax.__version__}.*What remains: the lazy"
    ):
        empirical_ntk(fn, fn, params, method=method)


def test_uninstalled_neural_tangents_is_said_to_be(
    without_neural_tangents, monkeypatch
):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"is not installed.*pip install"):
        load_neural_tangents()


@pytest.mark.slow
def test_without_neural_tangents_auto_is_lazy_and_right(
    without_neural_tangents, caplog
):
    with caplog.at_level(logging.INFO, logger="ldjax"):
        kernel = empirical_ntk(*TINY)
    assert 'method="lazy"' in caplog.text
    _assert_is_tiny(kernel)


def test_an_import_blocked_by_none_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    with pytest.raises(ImportError, match="What remains"):
        load_neural_tangents()


def test_a_module_that_is_already_imported_is_left_alone(monkeypatch):
    mine = types.ModuleType("neural_tangents")
    monkeypatch.setitem(sys.modules, "neural_tangents", mine)
    before = set(sys.modules), set(vars(jax.core))
    assert load_neural_tangents() is mine
    assert (set(sys.modules), set(vars(jax.core))) == before


_TAKES_BACK = """
import sys, jax, jax.core, jax.interpreters.ad
{first}
watched = lambda: (set(vars(jax.core)), set(vars(jax.interpreters.ad)),
                   "util" in vars(jax), "jax.util" in sys.modules)
before = watched()
from ldjax.ntk.neural_tangents import load_neural_tangents
nt = load_neural_tangents()
assert nt.__version__ == "0.6.5" and load_neural_tangents() is nt
added = [a - b for a, b in zip(watched()[:2], before[:2])]
assert added == [set(), set()] and watched()[2:] == before[2:], added
assert "neural_tangents.experimental" not in sys.modules
assert not [n for n in sys.modules if n.split(".")[0] in ("tensorflow", "tf2jax")]
assert nt.NtkImplementation["JACOBIAN_CONTRACTION"]
"""


@pytest.mark.parametrize(
    "first",
    [
        "",
        pytest.param(
            "try:\n    import neural_tangents\nexcept Exception:\n    pass",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fresh", "after a plain import that failed"],
)
def test_the_loader_takes_back_every_name_it_lent(first):
    code = _TAKES_BACK.format(first=first)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
