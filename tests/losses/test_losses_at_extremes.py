"""Every loss and its residual where a target is certain, impossible or not there.

The witness is `loss_witnesses`, in decimals. What honest arithmetic may be off by: a
log-prob is a difference of logits, so its error is a few units in the last place of the
largest of them (and of the log-probs it is compared with), once for each token that is
summed. A loss inherits that by its derivative, and each entry of a residual, which is a
product of exponentials of such numbers, as a relative error.
"""

import functools
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import losses as witnesses

from ldjax import Sequences, losses

ROWS, POS, VOCAB = 5, 3, 8
# The lead of a target over the other logits (or its lag), and by how much the
# reference, or the policy that drew, differs from the policy.
CASES = [
    *((lead, 0.3) for lead in (0.0, 17.5, 40.0, 100.0, 1e3, 1e4)),
    *((lead, shift) for lead in (0.0, 100.0) for shift in (90.0, 1e3)),
]
SAME_AS_DPO = ("sigmoid", "spin")
#: What the losses of a kind read besides.
ALSO = {"responses": [], "pairs": [], "samples": ["advantages", "old_log_probs"]}


def _side(rng, lead, shift, empty, dtype, also):
    """Rows that are certain, impossible and mixed, one of them `empty`."""
    targets = rng.integers(VOCAB, size=(ROWS, POS))
    mask = rng.random((ROWS, POS)) < 0.8
    mask[:, 0] = True
    mask[empty] = False
    signs = rng.choice([-1, 1], size=(ROWS, POS))
    signs[0], signs[1] = 1, -1
    logits = rng.normal(size=(ROWS, POS, VOCAB))
    np.put_along_axis(logits, targets[..., None], (lead * signs)[..., None], -1)
    logits = jnp.asarray(logits, dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    exact = np.asarray(logits.astype(jnp.float64))
    log_probs = exact - np.logaddexp.reduce(exact, axis=-1, keepdims=True)
    picked = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0] * mask
    moved = lambda x: x + shift * rng.choice([-1, 1], size=x.shape)
    fields = {
        "tokens": jnp.zeros((ROWS, POS), int),
        "targets": jnp.asarray(np.where(mask, targets, -100)),
        "mask": jnp.asarray(mask),
        "reference": jnp.asarray(moved(picked.sum(-1)), wide),
        "advantages": jnp.asarray(rng.choice([-1.5, 0, 1], size=(ROWS, POS)), wide),
        "old_log_probs": jnp.asarray(moved(picked), wide),
    }
    return logits, Sequences(
        **{name: fields[name] for name in ("tokens", "targets", "mask", *also)}
    )


def _drawn(name, lead, shift, dtype):
    """Logits and batch of a loss: of a pair one row lacks each side, one lacks both."""
    rng = np.random.default_rng((int(lead), int(shift)))
    loss = losses.LOSSES[name]
    also = ["reference"] if loss.has_reference else ALSO[loss.trains_on]
    if loss.trains_on != "pairs":
        return _side(rng, lead, shift, [2], dtype, also)
    chosen = _side(rng, lead, shift, [2, 4], dtype, also)
    rejected = _side(rng, lead, shift, [3, 4], dtype, also)
    columns = zip(chosen, rejected, strict=True)
    return tuple({"chosen": x, "rejected": y} for x, y in columns)


def _in_numpy(tree):
    """Half precision, which NumPy does not have, as floats that hold it."""
    widen = lambda x: x.astype(float) if x.dtype == jnp.bfloat16 else x
    return jax.tree.map(lambda x: np.asarray(widen(x)), tree)


def _by_side(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {"all": tree}


def _given(sequences):
    """Its fields by name, but for those that it lacks."""
    return {k: v for k, v in sequences._asdict().items() if v is not None}


def _exact(name, logits, batch, dtype):
    """Value, residual and the sizes of all pushes, by the witness."""
    logits, batch = (_by_side(_in_numpy(tree)) for tree in (logits, batch))
    rows = {
        side: witnesses.responses(z, _given(batch[side])) for side, z in logits.items()
    }
    loss: Any = witnesses.BY_NAME[name]
    if name == "grpo":
        most = witnesses.largest_log_ratio(jnp.promote_types(dtype, jnp.float32))
        loss = witnesses.grpo(Decimal("0.2"), most)
    value, pushes = loss(*rows.values())
    pushes = _by_side(pushes)
    residual = {
        side: witnesses.gradient(rows[side], pushes[side], z.shape)
        for side, z in logits.items()
    }
    sizes = [abs(float(x)) for side in pushes.values() for row in side for x in row]
    return float(value), residual, sizes


@functools.cache
def _compiled(name):
    return jax.jit(jax.value_and_grad(losses.make_loss(name)))


def test_every_loss_has_a_witness():
    assert witnesses.BY_NAME.keys() == losses.LOSSES.keys()


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param("float64", marks=pytest.mark.slow),
        pytest.param("bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", [n for n in losses.LOSSES if n not in SAME_AS_DPO])
def test_value_and_residual_at_the_ends_are_those_of_decimals(name, dtype):
    for case in CASES:
        _check(name, dtype, case)


def _check(name, dtype, case):
    lead, shift = case
    logits, batch = _drawn(name, lead, shift, dtype)
    value, residual, pushes = _exact(name, logits, batch, dtype)
    with jax.numpy_dtype_promotion("strict"):
        found, grads = _compiled(name)(logits, batch)
    wide = jnp.finfo(jnp.promote_types(dtype, jnp.float32))
    assert found.dtype == wide.dtype
    floats = [x for x in jax.tree.leaves((logits, batch)) if x.dtype.kind != "i"]
    largest = max(float(jnp.abs(x).max()) for x in floats if x.dtype != bool)
    error = 8 * POS * float(wide.eps) * (1 + largest)
    allowed = error * (sum(pushes) + abs(value)) + float(wide.tiny)
    assert abs(float(found) - value) <= allowed, (case, float(found), value, allowed)
    grads = _by_side(_in_numpy(grads))
    rounded = float(jnp.finfo(dtype).eps)  # of the residual itself, as it is stored
    # Below the smallest number there is nothing, before it is multiplied as after.
    nothing = 8 * float(wide.tiny) * max(1, *pushes)
    for side, expected in residual.items():
        off = abs(grads[side] - expected)
        allowed = (4 * error + 2 * rounded) * abs(expected) + nothing
        at = np.unravel_index((off - allowed).argmax(), off.shape)
        assert np.isfinite(grads[side]).all(), (case, side)
        assert (off <= allowed).all(), (
            case,
            side,
            at,
            grads[side][at],
            expected[at],
            allowed[at],
        )
