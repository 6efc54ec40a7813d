"""The account of a falling chosen answer: the script, and what it says of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from shell.scripts import run_script
from zoo.cases import apply_toy, sentences, toy_params

from ldjax import Sequences, losses, make_step, sequence_log_probs
from ldjax.origins import Ledger, Responses, Training, Trajectory, account
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.displacement import measure, results, study


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
    alone = {"alone:measured", "alone:own", "alone:floor"}
    assert alone <= set(metrics["quantity"])
    (balance,) = (each["balance"] for each in run.summary["rates"].values())
    pairs = sum(balance[name] for name in results.PAIRS)
    rest = sum(balance[name] for name in results.REST)
    assert pairs + rest == pytest.approx(balance["measured"])
    assert abs(rest) < 1e-3 * abs(balance["others chosen"])
    (ledger,) = out.glob("ledger_*")
    assert Ledger.read(ledger).sum()["measured"].mean() == balance["measured"]
    assert all(check["holds"] for check in run.summary["checks"])
    bits = np.load(out / "labels_small.npz")
    assert {"step", "chosen_rises", "rejected_rises"} == set(bits)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"why", "criterion", "labels"}


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
    config = study.parse(["--out", str(tmp_path / "run"), *args])
    with pytest.raises(SystemExit, match=r"^displacement: [^\n]*$") as error:
        study.main(config)
    assert part in str(error.value)
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
    return {k: v._replace(reference=jnp.full(3, -5.0)) for k, v in sides.items()}


def account_of(optimizer, num_steps=1):
    """The account of a short training on all of the pairs."""
    watched, how = make_watched(), (apply_toy, losses.dpo(), optimizer)
    init, step = measure.make_watched_step(*how, watched)
    alone_fn = measure.make_alone_fn(*how, watched)
    state = start = init(toy_params())
    tables = {"alone": [alone_fn(state)], "train": []}
    for _ in range(num_steps):
        state, metrics = step(state, watched)
        tables["train"].append(metrics)
    table = {
        name: {"step": np.arange(len(rows))}
        | {k: np.stack([np.asarray(row[k]) for row in rows]) for k in rows[0]}
        for name, rows in tables.items()
    }
    chosen, names = watched["chosen"].plain, [f"train/{i}" for i in range(3)]
    before, after = (
        sequence_log_probs(apply_toy(params, chosen), chosen.targets, chosen.mask)
        for params in (start.params, state.params)
    )
    run = Trajectory(
        num_steps, start, step, lambda _: watched, names_of=lambda _: names
    )
    probes = Responses(tuple(names), ("chosen",) * 3, chosen)
    ledger = account(Training(*how), run, probes)
    return results.Account(table, np.asarray(after - before), ledger, 3)


@pytest.mark.slow
def test_a_step_on_a_pair_alone_is_the_step_that_would_be_taken():
    """From the same state, each by itself; its own sides are without the momentum."""
    watched, optimizer = make_watched(), optax.adam(1e-3)
    init, step = make_step(apply_toy, losses.dpo(), optimizer)
    alone_fn = measure.make_alone_fn(apply_toy, losses.dpo(), optimizer, watched)
    probe = watched["chosen"].plain
    state, _ = step(init(toy_params()), watched, probe)
    found = alone_fn(state)
    for place in range(3):
        one = jax.tree.map(lambda leaf, at=place: leaf[at : at + 1], watched)
        _, comparison = step(state, one, one["chosen"].plain)
        own = comparison.parts["chosen"] + comparison.parts["rejected"]
        for name, change in (("measured", comparison.measured), ("own", own)):
            np.testing.assert_allclose(found[name][place], change.sum(), rtol=1e-9)


@pytest.mark.slow
def test_a_criterion_that_is_wrong_is_seen():
    """As by the products of another pair."""
    found = account_of(optax.sgd(1e-4))
    assert all(each.holds for each in results.check_identities("slow", found))
    claims = results.check_claims("slow", found, loss="dpo")
    assert [each.holds for each in claims] == [True, True]
    counted = results.Alone.of(found.table).counts()
    assert (counted["taken"], counted["said_to_fall"], counted["fell"]) == (3, 1, 1)
    train = found.table["train"]
    for name in ("product:chosen", "product:cross"):
        train[name] = np.roll(train[name], 1, axis=1)
    claims = results.check_claims("slow", found, loss="dpo")
    assert [each.holds for each in claims] == [True, False]


@pytest.mark.slow
def test_a_balance_that_does_not_close_is_seen():
    """The momentum has its origins; one of them lost, or left to the nodes, is told."""
    found = account_of(optax.adam(1e-2), num_steps=6)
    ledger = found.ledger

    def holds(account):
        return [c.holds for c in results.check_identities("small", account)]

    assert holds(found) == [True, True, True]
    balance = ledger.sum()
    whole = balance["own"] + balance["others"] + balance["quadrature"]
    np.testing.assert_allclose(whole, found.change, rtol=1e-9)
    lost = ledger.table.filter(pl.col("example") != "train/0")
    without = found._replace(ledger=ledger._replace(table=lost))
    assert holds(without) == [False, True, True]
    probes = [probe | {"quadrature": 0.1} for probe in ledger.about["probes"]]
    left = found._replace(
        ledger=ledger._replace(about=ledger.about | {"probes": probes})
    )
    assert holds(left) == [True, False, True]
    # A tenth of what every example did, in no one's name.
    is_paid = pl.col("origin") == "gradient"
    unpaid = pl.when(is_paid).then(pl.lit("rounding")).otherwise("origin")
    value = pl.col("value")
    table = pl.concat(
        [
            ledger.table.with_columns(
                pl.when(is_paid).then(value * 0.9).otherwise(value)
            ),
            ledger.table.filter(is_paid).with_columns(
                unpaid.alias("origin"), value * 0.1
            ),
        ]
    )
    wrongly = found._replace(ledger=ledger._replace(table=table))
    assert holds(wrongly) == [True, True, False]


def test_no_step_that_tells_is_no_claim_that_holds():
    one = np.ones((2, 2))
    train = {"step": np.arange(2), "product:chosen": one, "product:cross": 0 * one}
    table = {
        "train": train | {"measured": one},
        "alone": {"step": np.arange(2), "own": 0 * one, "measured": one, "floor": one},
    }
    assert not results._check_alone("slow", results.Alone.of(table)).holds
