"""What the next update is made of: the clip and the loss of a Trainer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses.parity import library

from ldjax.compare.next import loss_of
from ldjax.compare.settings import Training
from ldjax.compare.update import clip_as_torch
from ldjax.equation.sequences import Sequences


@pytest.mark.parametrize("norm", [0.7, 0.1, 30.0])
def test_the_clip_is_that_of_torch(norm):
    """In float64, in which its millionth is far above rounding."""
    torch = library("torch")
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    params = [torch.zeros(of.shape, dtype=torch.float64) for of in grads.values()]
    for param, of in zip(params, grads.values(), strict=True):
        param.grad = torch.tensor(of)
    torch.nn.utils.clip_grad_norm_(params, norm)
    clip = clip_as_torch(norm)
    found, _ = clip.update(jax.tree.map(jnp.asarray, grads), clip.init(grads))
    for of, param in zip(jax.tree.leaves(found), params, strict=True):
        np.testing.assert_allclose(of, param.grad.numpy(), rtol=1e-12)


def test_tokens_weigh_the_same_as_trl_has_them_or_rows_do():
    """By hand, of rows that differ in length."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 4, 5))
    targets = rng.integers(5, size=(2, 4))
    mask = np.array([[True] * 4, [False, True, False, False]])
    batch = Sequences(jnp.asarray(targets), jnp.asarray(targets), jnp.asarray(mask))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    losses = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0] * mask
    by_hand: dict[Any, float] = {
        "tokens": losses.sum() / mask.sum(),
        "rows": losses.sum() / 2,
    }
    for reduction, wanted in by_hand.items():
        loss_fn = loss_of(Training(loss="sft", reduction=reduction))
        found = float(loss_fn(jnp.asarray(logits), batch))
        assert found == pytest.approx(wanted, rel=1e-12)
