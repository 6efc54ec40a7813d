"""The account of a falling chosen answer: the script, and what it says of labels."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import EXPERIMENTS, run_script

from ldjax import Sequences
from ldjax.runs import METRIC_COLUMNS, open_run


@pytest.mark.slow
def test_a_smoke_run_is_whole_and_its_identities_hold(tmp_path):
    out = tmp_path / "run"
    result = run_script(
        "displacement.py", "--smoke", "--out", out, "--cache", tmp_path / "cache"
    )
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics["value"].is_finite().all()
    assert {name.split("/")[0] for name in metrics["probe"]} == {"small"}
    parts = {q for q in metrics["quantity"].unique() if q.startswith("part:")}
    origins = {"own chosen", "own rejected", "others", "history"}
    assert parts == {f"part:{origin}" for origin in origins}
    assert all(check["holds"] for check in run.summary["checks"])
    bits = np.load(out / "labels_small.npz")
    assert {"step", "chosen_rises", "rejected_rises"} == set(bits)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"why", "criterion", "labels"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--loss", "sft"], "--loss sft is not a loss of pairs"),
        (["--loss", "grpo"], "--loss grpo is not a loss of pairs"),
        (["--observations", "0"], "--observations must be at least 1"),
        (["--init", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, args, part):
    result = run_script("displacement.py", *args, "--out", tmp_path / "run")
    assert result.returncode == 1
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("displacement_measure")


@pytest.mark.parametrize("is_pushed_down", [True, False])
def test_where_the_kernel_is_a_multiple_of_the_identity_its_theory_is_right(
    measure, is_pushed_down
):
    """One softmax, moved by its own push alone: all labels as the theory says."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(2 * rng.normal(size=(3, 4, 9)))
    targets = jnp.asarray(rng.integers(9, size=(3, 4)))
    mask = jnp.asarray([[True] * 4, [True] * 2 + [False] * 2, [False] * 3 + [True]])
    probs = jax.nn.softmax(logits)
    push = probs - jax.nn.one_hot(targets, 9)
    step = (1e-4 if is_pushed_down else -1e-4) * push
    before = jax.nn.log_softmax(logits)
    measured = jax.nn.log_softmax(logits + step) - before
    predicted = step - (probs * step).sum(-1, keepdims=True)
    found = measure.label_quantities(
        before,
        predicted,
        measured,
        1e-14 * jnp.ones_like(measured),
        Sequences(targets, targets, mask),
        is_pushed_down=is_pushed_down,
    )
    np.testing.assert_array_equal(found["multiple"], 1)
    np.testing.assert_array_equal(found["exact"], 1)
    rises = np.asarray((measured > 0) & mask[..., None])
    np.testing.assert_array_equal(found["rises"], rises)
    for probe in range(3):
        scored = np.asarray(mask[probe])
        share = rises[probe][scored].mean()
        assert found["rising"][probe] == pytest.approx(share)
    gained = np.asarray(jnp.exp(before + measured) - jnp.exp(before))
    others = np.where(np.asarray(targets)[..., None] == np.arange(9), 0, probs)
    top = others.argmax(-1)[..., None]
    share = np.take_along_axis(np.maximum(gained, 0), top, -1)[..., 0]
    share = share / np.maximum(gained, 0).sum(-1)
    for probe in range(3):
        expected = share[probe][np.asarray(mask[probe])].mean()
        assert found["to_greedy"][probe] == pytest.approx(expected, rel=1e-6)


def test_wrong_signs_are_counted(measure):
    """Half of the labels predicted to go the other way."""
    change = jnp.asarray([[[1.0, -1.0, 2.0, -2.0]]])
    one = jnp.ones((1, 1), int)
    found = measure.label_quantities(
        jnp.log(jnp.asarray([[[0.4, 0.3, 0.2, 0.1]]])),
        change * jnp.asarray([[[1, 1, -1, -1]]]),
        change,
        0.5 * jnp.ones_like(change),
        Sequences(one, one, one > 0),
        is_pushed_down=True,
    )
    assert found["exact"] == pytest.approx(0.5)
    assert found["rising"] == pytest.approx(0.5)
