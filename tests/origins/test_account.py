"""The ledger of a run closes, by example, side, token and layer, and can be resumed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from witnesses.closeness import assert_close
from zoo.cases import apply_toy, toy_params
from zoo.small_runs import (
    NAMES,
    by_pairs,
    by_rows,
    responses_of,
    small_run,
    unexplained,
    warmup,
)

from ldjax.equation.path import path_of
from ldjax.equation.update_parts import linear_step
from ldjax.ntk.cost import estimate
from ldjax.origins import Known, Ledger, account, pull
from ldjax.origins.kept import Kept
from ldjax.origins.plan import MOST_PROBES, most_probes
from ldjax.origins.pull import Watch, make_pull_fn, moments_of
from ldjax.origins.replay import Replay, ReplayError

ADAMW = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(warmup, weight_decay=0.1)
)


def pairs_run(optimizer=ADAMW, **options):
    """A run on pairs, and responses that are trained on."""
    training, trajectory = small_run(optimizer, rows=by_pairs(), **options)
    return training, trajectory, responses_of(by_pairs()["chosen"])


@pytest.fixture(scope="module")
def whole():
    """The ledger of a run, one token by itself where it is the first two responses."""
    training, trajectory, probes = pairs_run()
    return account(training, trajectory, probes, by_token=2), trajectory, probes


def measured(trajectory, probes, apply_fn=apply_toy):
    """What the responses changed by, from the states at both ends."""

    def log_probs(state):
        return Watch(apply_fn).all(state.params, probes.sequences).log_probs.sum(-1)

    state = jax.tree.map(jnp.array, trajectory.start)
    for step in range(trajectory.num_steps):
        state, _ = trajectory.step_fn(state, trajectory.batch_fn(step))
    return np.asarray(log_probs(state) - log_probs(trajectory.start))


def test_the_table_sums_to_what_was_measured(whole):
    ledger, trajectory, probes = whole
    balance = ledger.sum()
    assert balance["probe"].to_list() == list(probes.prompt_names)
    assert_close(balance["measured"].to_numpy(), measured(trajectory, probes), terms=99)
    assert balance["weight_decay"].to_numpy().all()
    assert (unexplained(ledger, "gradient", "weight_decay") <= 1e-6).all()
    assert (np.abs(balance["rounding"].to_numpy()) < 1e-12).all()
    of_json = [probe["measured"] for probe in ledger.about["probes"]]
    assert_close(np.array(of_json), balance["measured"].to_numpy(), terms=99)


def test_own_and_others_and_sides_are_the_gradient(whole):
    balance = whole[0].sum()
    both = balance["own"] + balance["others"]
    sides = balance["chosen"] + balance["rejected"]
    for way in (both, sides):
        assert_close(way.to_numpy(), balance["gradient"].to_numpy(), terms=99)
    own = balance["own chosen"] + balance["own rejected"]
    assert_close(own.to_numpy(), balance["own"].to_numpy(), terms=99)
    assert (balance["own chosen"] > 0).all()  # a pair lifts its own chosen response


def test_layers_sum_to_examples_side_by_side(whole):
    ledger, _, _ = whole
    keys = ["probe", "type", "side", "origin"]
    by_example = ledger.by(*keys).filter(
        pl.col("origin").is_in(["gradient", "weight_decay"])
    )
    by_layer = ledger.layers.group_by(keys).agg(pl.col("value").sum())
    both = by_example.join(by_layer, on=keys, nulls_equal=True, validate="1:1")
    assert len(both) == len(by_example) == 3 * 6
    assert_close(both["value_right"].to_numpy(), both["value"].to_numpy(), rtol=1e-12)
    assert ledger.layers["layer"].unique(maintain_order=True).to_list() == sorted(
        toy_params()
    )


def test_tokens_sum_to_examples(whole):
    ledger, _, probes = whole
    assert set(ledger.tokens["rows"]) == set(NAMES)
    assert not set(ledger.tokens) & {"map_2"}
    for k in range(2):
        name = probes.prompt_names[k]
        table = ledger.table.filter(
            (pl.col("probe") == name) & (pl.col("origin") == "gradient")
        )
        sums = table.group_by("example", "side").agg(pl.col("value").sum())
        map_ = ledger.tokens[f"map_{k}"]
        mask = np.asarray(probes.sequences.mask)[k]
        assert map_.dtype == np.float32
        assert map_.shape[0] == mask.sum() == ledger.tokens[f"mask_{k}"].sum()
        by_row = map_.astype(float).sum((0, 3))
        for example, side, value in sums.rows():
            row = ledger.tokens["rows"].tolist().index(example)
            place = ledger.tokens["sides"].tolist().index(side)
            # Kept in float32.
            assert_close(by_row[row, place], value, rtol=1e-5)
        assert not map_[:, ~ledger.tokens["mask"]].any()


def test_a_response_is_the_sum_of_its_tokens(whole):
    by_token, trajectory, probes = whole
    training = pairs_run()[0]
    ledger = account(training, trajectory, probes)
    columns = pl.col("probe", "step", "origin", "example", "side")
    assert ledger.table.select(columns).equals(by_token.table.select(columns))
    assert_close(
        by_token.table["value"].to_numpy(), ledger.table["value"].to_numpy(), rtol=1e-12
    )


def test_a_share_that_is_paid_wrongly_is_more_than_rounding(whole, monkeypatch):
    """The sums close all the same, so it is seen there alone."""

    def forgetful(*args, **extra_args):
        step = linear_step(*args, **extra_args)
        carry = lambda g, m, p: step.carry(g, jax.tree.map(lambda s: 0.9 * s, m), p)
        return step._replace(carry=carry)

    def over(ledger):
        rounding = ledger.sum()["rounding"].to_numpy()
        return np.abs(rounding) / ledger.rounding_bounds()

    monkeypatch.setattr(pull, "linear_step", forgetful)
    ledger = account(*pairs_run())
    assert_close(
        ledger.sum()["measured"].to_numpy(),
        whole[0].sum()["measured"].to_numpy(),
        terms=99,
    )
    assert (over(whole[0]) < 1e-6).all()  # the bound is that of float32
    assert (over(ledger) > 100).all()


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_error_falls_with_the_order_of_the_nodes(nodes):
    def error(rate):
        training, trajectory, probes = pairs_run(optax.sgd(rate, 0.5), num_steps=3)
        ledger = account(training, trajectory, probes, nodes=nodes)
        quadrature = ledger.by("probe", "origin").filter(origin="quadrature")["value"]
        return np.linalg.norm(quadrature.to_numpy())

    # Small enough for the next order not to count, too large for rounding to.
    rate = {1: 0.05, 2: 0.05, 3: 0.1}[nodes]
    order = np.log2(error(rate) / error(rate / 2))
    assert abs(order - (2 * nodes + 1)) < 0.8


@pytest.mark.slow
def test_what_the_run_began_with_is_an_origin():
    training, first = small_run(optax.adam(0.02), num_steps=5)
    state = jax.tree.map(jnp.array, first.start)
    for step in range(5):
        state, _ = first.step_fn(state, first.batch_fn(step))
    _, trajectory = small_run(optax.adam(0.02), start=state)
    probes = responses_of(by_rows(2))
    ledger = account(training, trajectory, probes)
    assert (np.abs(ledger.sum()["before"].to_numpy()) > 1e-3).all()
    assert (unexplained(ledger, "gradient", "before") <= 1e-6).all()


@pytest.mark.slow
def test_noise_is_an_origin():
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adam(0.02))
    training, trajectory, probes = pairs_run(noisy)
    ledger = account(training, trajectory, probes)
    assert ledger.sum()["noise"].to_numpy().all()
    assert (unexplained(ledger, "gradient", "noise") <= 1e-6).all()


@pytest.mark.slow
def test_some_parameters_can_be_trained():
    where = {"embed": True, "kernel": False, "bias": False, "readout": True}
    training, trajectory, probes = pairs_run(where=where)
    ledger = account(training, trajectory, probes)
    assert (unexplained(ledger, "gradient", "weight_decay") <= 1e-6).all()
    assert ledger.layers is not None
    assert set(ledger.layers["layer"]) == {"embed", "readout"}


@pytest.mark.slow
def test_chunks_of_responses_give_the_same_numbers():
    training, trajectory, probes = pairs_run()
    every = account(training, trajectory, probes).table["value"].to_numpy()
    few = account(training, trajectory, probes, probe_batch_size=4)
    assert_close(few.table["value"].to_numpy(), every, rtol=1e-12)


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls", [15, 22, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (5, 31))]
)
def test_a_killed_ledger_goes_on_and_ends_with_the_same_bytes(calls, tmp_path):
    training, trajectory, probes = pairs_run()
    options: dict[str, Any] = {"probe_batch_size": 4, "by_token": 1}
    account(training, trajectory, probes, folder=tmp_path / "a", **options)
    count = 0

    def step_fn(state, batch):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return trajectory.step_fn(state, batch)

    killed = trajectory._replace(step_fn=step_fn)
    with pytest.raises(Killed):
        account(training, killed, probes, folder=tmp_path / "b", **options)
    assert not (tmp_path / "b" / "ledger.parquet").exists()
    made = count
    # As if the memory were another one: the size is that of the beginning.
    options["probe_batch_size"] = None
    account(training, killed, probes, folder=tmp_path / "b", **options)
    files = ["layers.parquet", "ledger.json", "ledger.parquet", "tokens.npz"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == files
    for name in files:
        other = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == other, name
    assert count - made < 12 * 4  # it did not begin anew


@pytest.mark.slow
def test_another_ledger_in_the_folder_is_not_gone_on_with(tmp_path):
    training, trajectory, probes = pairs_run()

    def dies(state, batch):
        raise Killed

    killed = trajectory._replace(step_fn=dies)
    with pytest.raises(Killed):
        account(training, killed, probes, folder=tmp_path, nodes=2)
    found = account(training, trajectory, probes, folder=tmp_path)
    assert Ledger.read(tmp_path).table.equals(found.table)
    assert found.about["nodes"] == 3


@pytest.mark.slow
def test_a_replay_that_misses_a_checkpoint_by_a_bit_says_where():
    training, trajectory, probes = pairs_run()

    def read(step):
        state = jax.tree.map(jnp.array, trajectory.start)
        for t in range(step):
            state, _ = trajectory.step_fn(state, trajectory.batch_fn(t))
        bias = state.params["bias"]
        bias = bias.at[0].set(jnp.nextafter(bias[0], 9.0)) if step == 7 else bias
        return state._replace(params=state.params | {"bias": bias})

    hit = trajectory._replace(known=Known((0, 5, 12), read))
    account(training, hit, probes, nodes=1)
    missed = trajectory._replace(known=Known((5, 7), read))
    with pytest.raises(ReplayError, match=r"step 7, first of all of params/bias\."):
        account(training, missed, probes)


@pytest.mark.slow
def test_a_program_of_changing_numbers_is_noticed():
    training, trajectory, probes = pairs_run()
    count = 0

    def step_fn(state, batch):
        nonlocal count
        count += 1
        state, _ = trajectory.step_fn(state, batch)
        embed = state.params["embed"] * (1 + 1e-15 * (count > 12))
        return state._replace(params=state.params | {"embed": embed}), None

    with pytest.raises(
        ReplayError, match=r"updates 8 to 11, made a second time.*params"
    ):
        account(training, trajectory._replace(step_fn=step_fn), probes)


def test_an_optimizer_that_cannot_be_split_is_refused_before_the_run_is_made():
    quantised = optax.stateless_with_tree_map(
        lambda g, _: jnp.round(8 * g).astype(int) / 8.0
    )
    training, trajectory, probes = pairs_run(optax.chain(quantised, optax.sgd(0.1)))

    def step_fn(state, batch):
        raise AssertionError

    trajectory = trajectory._replace(step_fn=step_fn)
    with pytest.raises(ValueError, match=r"cannot be split.*convert_element_type"):
        account(training, trajectory, probes)


@pytest.mark.slow
def test_one_program_goes_back_over_all_updates():
    traces = []

    def apply_fn(params, sequences):
        traces.append(sequences.tokens.shape)
        return apply_toy(params, sequences)

    def count(num_steps):
        traces.clear()
        training, trajectory, probes = pairs_run(apply_fn=apply_fn, num_steps=num_steps)
        account(training, trajectory, probes, probe_batch_size=2)
        return len(traces)

    assert count(3) == count(11)


@pytest.mark.slow
def test_the_work_is_that_of_the_theory():
    training, trajectory, probes = pairs_run(optax.adam(0.02))
    point = Replay.of(trajectory, Kept(None)).point(trajectory.start)
    batch, rows = trajectory.batch_fn(0), probes.sequences
    watch = Watch.of(training)

    def flops(num_probes, nodes):
        pull = make_pull_fn(training, path_of(nodes))
        adjoint = {
            name: jnp.zeros((num_probes, *moment.shape))
            for name, moment in moments_of(training, point, batch).items()
        }
        some = jax.tree.map(lambda leaf: leaf[:num_probes], rows)
        return estimate(pull, point, point.params, batch, some, adjoint).flops

    one = jax.tree.map(lambda leaf: leaf[0], rows)
    log_prob = lambda params: watch.one(params, one).log_probs.sum()
    backward = estimate(jax.value_and_grad(log_prob), point.params).flops

    def logits_of(params):
        return {name: apply_toy(params, side) for name, side in batch.items()}

    along = lambda params: jax.jvp(logits_of, (params,), (params,))
    jvp = estimate(along, point.params).flops
    for nodes in (1, 3):
        each = flops(2, nodes) - flops(1, nodes)
        assert each <= 1.3 * (nodes * backward + jvp)


def test_as_many_responses_are_in_flight_as_fit():
    each = lambda size: 100 + 10 * size
    assert most_probes(24, each, limit=1e6) == 24
    assert most_probes(24, each, limit=200) == 8  # three turns of eight, not ten
    assert most_probes(MOST_PROBES + 2, each, limit=1e6) == MOST_PROBES // 2 + 1
    with pytest.raises(MemoryError, match="a single response needs 110 B"):
        most_probes(24, each, limit=109)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_the_run_is_made():
    training, trajectory, probes = pairs_run()
    trajectory = trajectory._replace(step_fn=None)
    with pytest.raises(MemoryError, match="single response"):
        account(training, trajectory, probes, memory_limit=1000)


@pytest.mark.slow
def test_names_that_do_not_fit_are_refused():
    training, trajectory, probes = pairs_run()
    short = trajectory._replace(names_of=lambda step: NAMES[:2])
    with pytest.raises(ValueError, match=r"update 0 has \[2, 3\] rows and names"):
        account(training, short, probes)
    twice = probes._replace(prompt_names=("train/0",) * 6)
    with pytest.raises(ValueError, match="Two probes are 'chosen' of 'train/0'"):
        account(training, trajectory, twice)
    nameless = trajectory._replace(names_of=None)
    with pytest.raises(ValueError, match="needs names"):
        account(training, nameless, probes, by_token=1)
    balance = account(training, nameless, probes, nodes=1).sum()
    assert balance["own"].is_null().all()
    assert balance["gradient"].is_not_null().all()
