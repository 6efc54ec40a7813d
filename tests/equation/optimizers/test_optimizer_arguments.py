"""Optimizers that ask for more than gradients get it, or are refused by name."""

import functools

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from witnesses.closeness import assert_close
from zoo.cases import make_case

from ldjax import make_pending_step, make_step

CASE = make_case("toy")
SGD = optax.sgd(1e-5)
ASCENT = optax.chain(optax.contrib.normalize(), SGD)


def without_state(params):
    del params
    return ()


def first_step(optimizer, parts=None):
    init, step = make_step(CASE.apply_fn, CASE.loss_fn, optimizer, parts=parts)
    return step(init(CASE.params), CASE.update, CASE.probe)


ASKING = {
    # takes neither `value` nor any other argument but its own
    "sam": optax.contrib.sam(SGD, ASCENT),
    "opaque sam": optax.contrib.sam(SGD, ASCENT, opaque_mode=True),
    "lbfgs": optax.chain(optax.lbfgs(), optax.scale(1e-5)),
    "plain lbfgs": optax.chain(optax.lbfgs(linesearch=None), optax.scale(1e-6)),
    "sophia": optax.contrib.sophia(1e-6),
    "plateau": optax.chain(SGD, optax.contrib.reduce_on_plateau()),
    "polyak": optax.polyak_sgd(1e-6),
}


@pytest.mark.parametrize("name", [*ASKING])
def test_what_an_optimizer_asks_for_is_passed(name):
    state, comparison = first_step(ASKING[name])
    moved = jax.tree.map(jnp.subtract, state.params, CASE.params)
    assert any(leaf.any() for leaf in jax.tree.leaves(moved))
    # At these rates first order is all there is.
    assert_close(comparison.measured, comparison.predicted, rtol=1e-3)


def test_the_line_search_gets_the_loss_of_this_batch():
    """Beside optax alone, with the functions written by hand."""
    optimizer = optax.lbfgs()
    state, _ = first_step(optimizer)
    loss_fn = lambda p: CASE.loss_fn(CASE.apply_fn(p, CASE.update), CASE.update)

    @jax.jit
    def witness(params):
        value, grad = jax.value_and_grad(loss_fn)(params)
        updates, _ = optimizer.update(
            *(grad, optimizer.init(params), params),
            **{"value": value, "grad": grad, "value_fn": loss_fn},
        )
        return optax.apply_updates(params, updates)

    assert_close(state.params, witness(CASE.params), rtol=1e-10)
    assert loss_fn(state.params) < loss_fn(CASE.params)


def test_a_line_search_cannot_be_split():
    with pytest.raises(ValueError, match=r"cannot be split.*parts=None"):
        first_step(optax.lbfgs(), parts="side")


def test_what_ldjax_does_not_have_is_named():
    def update(updates, state, params=None, *, moon_phase):
        del params, moon_phase
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(
        without_state,
        update,  # type: ignore[arg-type]
    )
    with pytest.raises(TypeError, match=r"moon_phase.*ldjax passes `value`"):
        first_step(optimizer)
    bound = functools.partial(update, moon_phase=0.5)
    first_step(optax.GradientTransformation(without_state, bound))


def test_a_mistake_within_an_optimizer_stays_what_it_is():
    def update(updates, state, params=None, **extra_args):
        del updates, state, params, extra_args
        raise TypeError("nonsense")

    optimizer = optax.GradientTransformationExtraArgs(without_state, update)
    with pytest.raises(TypeError, match="nonsense"):
        first_step(optimizer)


@pytest.mark.parametrize("form", ["immediate", "pending"])
def test_an_integer_leaf_is_named_at_once(form):
    params = {**CASE.params, "count": jnp.array(3)}
    make = {"immediate": make_step, "pending": make_pending_step}[form]
    init = make(CASE.apply_fn, CASE.loss_fn, SGD)[0]
    rest = () if form == "immediate" else (CASE.update, CASE.probe)
    with pytest.raises(TypeError, match=r"count.*int64.*where="):
        init(params, *rest)


def test_an_integer_leaf_that_is_not_trained_may_stay():
    params = {**CASE.params, "count": jnp.array(3)}
    where = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), params)
    init, step = make_step(CASE.apply_fn, CASE.loss_fn, SGD, parts=None, where=where)
    state, comparison = step(init(params), CASE.update, CASE.probe)
    assert state.params["count"] == 3
    _, expected = first_step(SGD)
    assert_close(comparison, expected, rtol=1e-12)
