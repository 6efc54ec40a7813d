"""Optimizers that ask for more than a gradient: for a loss, or a function of it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from witnesses.closeness import assert_close

from ldjax import Sequences, losses, make_step
from ldjax.equation.update_parts import PARTS

IMAGES = Sequences(jnp.eye(3), jnp.array([[0], [1], [1]]), jnp.ones((3, 1), bool))
UPHILL = optax.chain(contrib.normalize(), optax.sgd(0.01))


def apply_fn(params, images):
    return jnp.tanh(images.tokens @ params)[:, None, :]


def _steps(optimizer, parts, count=3):
    init, step = make_step(apply_fn, losses.sft, optimizer, parts=parts)
    state = init(jnp.asarray(np.random.default_rng(0).normal(size=(3, 4))))
    found = [state.loss]
    comparison = None
    for _ in range(count):
        state, comparison = step(state, IMAGES, IMAGES)
        found.append(state.loss)
    assert comparison
    return comparison, np.array(found[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "rest"),
    [
        (contrib.sam(optax.sgd(0.1), UPHILL), {"history", "weight_decay"}),
        (contrib.sophia(0.1), {"history", "weight_decay"}),
        (
            optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
            set(),
        ),
        (optax.polyak_sgd(0.1), set()),
    ],
    ids=["sam", "sophia", "backtracking", "polyak"],
)
def test_what_asks_for_the_loss_is_split(optimizer, rest):
    comparison, _ = _steps(optimizer, "side")
    assert comparison.parts.keys() == {"update", "rounding", *rest}
    assert_close(sum(comparison.parts.values()), comparison.predicted)
    # What is stored is the whole of these parts but for its last place.
    others = max(abs(np.asarray(part)).max() for part in comparison.parts.values())
    assert abs(np.asarray(comparison.parts["rounding"])).max() < 1e-12 * others


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [optax.lbfgs(memory_size=2), contrib.sam(optax.sgd(0.1), UPHILL, opaque_mode=True)],
    ids=["lbfgs", "sam in one"],
)
def test_what_cannot_be_split_is_refused_in_one_line_and_explained_as_a_whole(
    optimizer,
):
    with pytest.raises(
        ValueError, match=r"cannot be split.*because of.*parts=None"
    ) as e:
        _steps(optimizer, "side")
    assert "\n" not in str(e.value)
    comparison, found = _steps(optimizer, None)
    assert found[-1] < found[0]
    assert np.isfinite(comparison.predicted).all()


def test_a_side_cannot_have_the_name_of_a_part():
    for name in (*PARTS, "rounding"):
        init, step = make_step(apply_fn, losses.sft, optax.sgd(0.1))
        state = init(jnp.zeros((3, 4)))
        with pytest.raises(ValueError, match="cannot be called"):
            step(state, {name: IMAGES}, IMAGES)
