"""The account of a falling chosen answer: the script, and what it says of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shell.scripts import run_script
from zoo.cases import apply_toy, sentences, toy_params

from ldjax import Sequences, losses, make_step, sequence_log_probs
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.displacement import measure, results


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
    origins = {"own chosen", "own rejected", "others", "history", "rounding"}
    alone = {"alone:measured", "alone:own", "alone:floor"}
    assert alone <= set(metrics["quantity"])
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


@pytest.mark.parametrize("is_pushed_down", [True, False])
def test_where_the_kernel_is_a_multiple_of_the_identity_its_theory_is_right(
    is_pushed_down,
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


def test_wrong_signs_are_counted():
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


def make_watched():
    """Three pairs; the answers of the second are so alike that they fall together."""
    chosen, rejected = sentences(4, 3, 4), sentences(54, 3, 4)
    alike = chosen.targets[1].at[2].set(1)
    rejected = Sequences(
        rejected.tokens.at[1].set(chosen.tokens[1]),
        rejected.targets.at[1].set(alike),
        rejected.mask.at[1].set(chosen.mask[1]),
    )
    sides = {"chosen": chosen, "rejected": rejected}
    return measure.Batch(
        {k: v._replace(reference=jnp.full(3, -5.0)) for k, v in sides.items()},
        np.arange(3),
    )


@pytest.mark.slow
def test_a_step_on_a_pair_alone_is_the_step_that_would_be_taken():
    """From the same state, each by itself; its own sides are without the momentum."""
    watched, optimizer = make_watched(), optax.adam(1e-3)
    init, step = make_step(apply_toy, losses.dpo(), optimizer)
    alone_fn = measure.make_alone_fn(apply_toy, losses.dpo(), optimizer, watched)
    probe = watched.pairs["chosen"].plain
    state, _ = step(init(toy_params()), watched.pairs, probe)
    found = alone_fn(state)
    for place in range(3):
        one = jax.tree.map(lambda leaf, at=place: leaf[at : at + 1], watched.pairs)
        _, comparison = step(state, one, one["chosen"].plain)
        own = comparison.parts["chosen"] + comparison.parts["rejected"]
        for name, change in (("measured", comparison.measured), ("own", own)):
            np.testing.assert_allclose(found[name][place], change.sum(), rtol=1e-9)


@pytest.mark.slow
def test_a_criterion_that_is_wrong_is_seen():
    """As by the products of another pair."""
    watched, optimizer = make_watched(), optax.sgd(1e-4)
    init, step = measure.make_origin_step(apply_toy, losses.dpo(), optimizer, watched)
    alone_fn = measure.make_alone_fn(apply_toy, losses.dpo(), optimizer, watched)
    state, start = init(toy_params()), toy_params()
    alone = {"step": np.array([0])} | {
        name: np.asarray(values)[None] for name, values in alone_fn(state).items()
    }
    state, metrics = step(state, watched)
    train = {"step": np.array([0])} | {
        name: np.asarray(values)[None] for name, values in metrics.items()
    }
    chosen = watched.pairs["chosen"]
    before, after = (
        sequence_log_probs(apply_toy(params, chosen), chosen.targets, chosen.mask)
        for params in (start, state.params)
    )
    account = results.Account(
        {"train": train, "alone": alone}, np.asarray(after - before), 3
    )
    assert all(each.holds for each in results.check_identities("slow", account))
    claims = results.check_claims("slow", account, loss="dpo")
    assert [each.holds for each in claims] == [True, True]
    counted = results.Alone.of(account.table).counts()
    assert (counted["taken"], counted["said_to_fall"], counted["fell"]) == (3, 1, 1)
    for name in ("product:chosen", "product:cross"):
        train[name] = np.roll(train[name], 1, axis=1)
    claims = results.check_claims("slow", account, loss="dpo")
    assert [each.holds for each in claims] == [True, False]


def test_no_step_that_tells_is_no_claim_that_holds():
    one = np.ones((2, 2))
    train = {"step": np.arange(2), "product:chosen": one, "product:cross": 0 * one}
    table = {
        "train": train | {"measured": one, "part:own chosen": one},
        "alone": {"step": np.arange(2), "own": 0 * one, "measured": one, "floor": one},
    }
    account = results.Account(table, one[0], 2)
    assert not results._check_alone("slow", results.Alone.of(account.table)).holds
