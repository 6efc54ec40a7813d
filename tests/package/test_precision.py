"""Whatever is watched multiplies with all digits, so that its numbers can be compared.

On this machine the default has all digits too: what is asked for is read off the
programs.
"""

import functools
import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo.cases import VOCAB, images, sentences

from ldjax import decompose, empirical_ntk, linen, losses
from ldjax.data.batches import Example
from ldjax.data.reference import add_reference
from ldjax.equation.account import Account
from ldjax.equation.linear_map import DenseMap
from ldjax.equation.path import path_integral
from ldjax.models import MLP
from ldjax.models.decoder.scoring import make_score_fn
from ldjax.theory.displacement import pair_products
from ldjax.theory.influence import make_influence_fn, make_step_fn
from ldjax.watch import token_maps
from ldjax.watch.probes import (
    Probe,
    ProbeSet,
    make_change_fn,
    make_floor_fn,
    make_observe_fn,
)

BATCH = sentences(0, 2, 3)
PAIR = {"chosen": BATCH, "rejected": sentences(1, 2, 3)}
PROBES = ProbeSet.of(
    [Probe("a", "chosen", Example((1, 2), (0, 1)))], max_length=4, batch_size=1
)
SGD = optax.sgd(0.1)


def looked_up(params, sequences):
    """What is trained: no product in it."""
    return params["table"][sequences.tokens]


def multiplied(params, sequences):
    return jnp.tanh(looked_up(params, sequences)) @ params["matrix"]


def make_params():
    rng = np.random.default_rng(0)
    names = ("table", "matrix")
    return {name: jnp.asarray(rng.normal(size=(VOCAB, VOCAB))) for name in names}


def make_account():
    return Account.checked(
        looked_up, losses.sft, SGD, watch_fn=multiplied, nodes="simpson"
    )


def of_account(verb):
    account = make_account()
    state = account.trainer.init(make_params())
    new_state, reasons = account.trainer.train(state, BATCH)
    observed, *_ = account.explain(state.params, reasons, BATCH)
    call, *arguments = {
        "explain": (account.explain, state.params, reasons, BATCH),
        "arrive": (account.arrive, new_state.params, account.awaited(reasons), BATCH),
        "log_probs": (account.watcher.log_probs, state.params, BATCH),
        "noise": (account.watcher.noise, state, BATCH, observed),
    }[verb]
    jax.jit(call)(*arguments)


def of_token_maps(kept_bytes):
    token_map = token_maps.TokenMaps(
        apply_fn=looked_up,
        loss_fn=losses.sft,
        optimizer=SGD,
        watch_fn=multiplied,
        batch_size=2,
        kept_bytes=kept_bytes,
    )
    state = make_account().trainer.init(make_params())
    token_map(state, BATCH, [batch for _, batch in PROBES.batches])


def of_terms(params):
    logits_fn = functools.partial(multiplied, sequences=BATCH)
    loss_fn = functools.partial(losses.sft, batch=BATCH)
    return decompose(logits_fn, logits_fn, params, loss_fn=loss_fn).predict(1.0)


def of_kernel(method):
    logits_fn = linen.logits_fn(MLP((3,)), images(0, 2))
    params = MLP((3,)).init(jax.random.key(0), images(0, 2).tokens)["params"]
    kernel = lambda p: empirical_ntk(logits_fn, logits_fn, p, method=method)
    jax.jit(lambda p: kernel(p).dense())(params)


def of_dense_map():
    space = jax.ShapeDtypeStruct((2,), jnp.float64)
    jax.jit(lambda v: DenseMap(jnp.ones((2, 2)), space, space) @ v)(jnp.ones(2))


PATHS = {
    **{
        verb: functools.partial(of_account, verb)
        for verb in ("explain", "arrive", "log_probs", "noise")
    },
    "path integral": lambda: jax.jit(
        lambda old: path_integral(lambda p: multiplied(p, BATCH), old, make_params())
    )(make_params()),
    "observe": lambda: make_observe_fn(multiplied, PROBES)(make_params()),
    "change": lambda: make_change_fn(multiplied, PROBES)(make_params(), make_params()),
    "floor": lambda: make_floor_fn(multiplied, PROBES)(make_params()),
    "score": lambda: make_score_fn(multiplied)(make_params(), BATCH),
    "reference": lambda: add_reference(multiplied, make_params(), PAIR, batch_size=2),
    "moved tokens": lambda: token_maps.moved_tokens(
        *(multiplied, make_params(), make_params(), PROBES), probe_batch_size=1
    ),
    "token map along": lambda: of_token_maps(0),
    "token map against": lambda: of_token_maps(2**20),
    "pair products": lambda: jax.jit(
        lambda p: pair_products(multiplied, p, PAIR, preconditioner=p)
    )(make_params()),
    "influence": lambda: make_influence_fn(multiplied)(make_params(), BATCH, BATCH),
    "influence of all": lambda: make_step_fn(multiplied)(make_params(), BATCH, BATCH),
    "decompose": lambda: jax.jit(of_terms)(make_params()),
    "lazy": lambda: of_kernel("lazy"),
    "structured": lambda: of_kernel("structured"),
    "factored": lambda: of_kernel("factored"),
    "dense map": of_dense_map,
}


@pytest.fixture
def programs(monkeypatch):
    """The texts of all programs that are run."""
    texts, jit = [], jax.jit

    def recorded(fn=None, **options):
        if fn is None:
            return functools.partial(recorded, **options)
        compiled = jit(fn, **options)

        def call(*args, **kwargs):
            texts.append(compiled.lower(*args, **kwargs).as_text())
            return compiled(*args, **kwargs)

        function: Any = call
        function.lower, function.trace = compiled.lower, compiled.trace
        return function

    monkeypatch.setattr(jax, "jit", recorded)
    importlib.reload(token_maps)  # its functions become programs as it is imported
    yield texts
    monkeypatch.undo()
    importlib.reload(token_maps)


@pytest.mark.parametrize("path", PATHS)
def test_products_have_all_digits(path, programs):
    PATHS[path]()
    text = "\n".join(programs)
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    assert products
    assert [line for line in products if "[HIGHEST, HIGHEST]" not in line] == []


def test_what_is_trained_is_as_its_user_has_it(programs):
    account = Account.checked(multiplied, losses.sft, SGD)
    trainer = account.trainer
    jax.jit(lambda s: trainer.train(s, BATCH)[0])(trainer.init(make_params()))
    assert "dot_general" in programs[-1]
    assert "HIGHEST" not in programs[-1]
