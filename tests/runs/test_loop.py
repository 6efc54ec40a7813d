"""The training loop: resumable to the bit, stopped by what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnesses.closeness import assert_close

from ldjax import Sequences, token_log_probs
from ldjax.runs.checkpoints import Checkpoints, Progress
from ldjax.runs.loop import (
    NonFiniteError,
    Observer,
    every,
    make_batch_fn,
    make_train_step,
    mean_token_loss,
    train,
)

VOCAB, NUM_STEPS = 7, 12


def make_rows(num_rows=10, length=5):
    ids = jax.random.randint(jax.random.key(0), (num_rows, length + 1), 0, VOCAB)
    mask = jnp.arange(length)[None, :] < 1 + jnp.arange(num_rows)[:, None] % length
    return Sequences(ids[:, :-1], ids[:, 1:], mask)


def bigram_logits(params, batch):
    return params["table"][batch.tokens] + params["bias"][None, None]


def make_params(dtype=jnp.float64):
    table = jax.random.normal(jax.random.key(1), (VOCAB, VOCAB), dtype)
    return {"table": table, "bias": jnp.zeros(VOCAB, dtype)}


def run(checkpoints=None, *, dtype=jnp.float64, step_fn=None, **settings):
    """Every progress of a small run."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    init, step = make_train_step(bigram_logits, mean_token_loss, optimizer)
    arguments = {
        "num_steps": NUM_STEPS,
        "save_every": 4,
        "step_fn": step_fn or step,
        "batch_fn": make_batch_fn(make_rows(), batch_size=4, seed=3),
        "checkpoints": checkpoints,
        "observers": {"norm": Observer(norm, every(3))},
    }
    return train(init(make_params(dtype)), **(arguments | settings))


def norm(state):
    return {"bias": jnp.abs(state.params["bias"]), "sum": state.params["table"].sum()}


def on_host(progress):
    return jax.device_get(progress)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for found, wanted in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()


def test_a_step_is_the_optimizer_on_the_gradient_of_the_mean_token_loss():
    rows = make_rows()
    init, step = make_train_step(bigram_logits, mean_token_loss, optax.sgd(0.5))
    params = make_params()
    state, metrics = step(init(params), rows)

    tokens, targets, mask, *_ = jax.tree.map(np.asarray, rows)
    logits = np.asarray(params["table"])[tokens]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    picked = np.take_along_axis(probs, targets[..., None], -1)[..., 0]
    assert_close(metrics["loss"], -np.log(picked[mask]).mean(), terms=VOCAB)
    residual = (probs - np.eye(VOCAB)[targets])[mask] / mask.sum()
    table = np.array(params["table"])
    np.add.at(table, tokens[mask], -0.5 * residual)
    expected = {"table": table, "bias": -0.5 * residual.sum(0)}
    assert_close(state.params, expected, terms=mask.sum())
    moved = jax.tree.map(np.subtract, expected, jax.device_get(params))
    size = np.sqrt(sum((leaf**2).sum() for leaf in moved.values()))
    assert_close(metrics["update_norm"], size, terms=mask.sum())
    assert int(state.step) == 1


def test_the_step_leaves_the_callers_parameters_alone():
    params = make_params()
    init, step = make_train_step(bigram_logits, mean_token_loss, optax.sgd(0.5))
    step(init(params), make_rows())
    assert jnp.isfinite(params["table"]).all()  # not deleted


def test_masked_targets_do_not_matter():
    rows = make_rows()
    garbage = rows._replace(targets=jnp.where(rows.mask, rows.targets, -100))
    logits = bigram_logits(make_params(), rows)
    loss = mean_token_loss(logits, rows)
    assert loss == mean_token_loss(logits, garbage)
    total = token_log_probs(logits, rows.targets, rows.mask).sum()
    assert_close(loss, -total / rows.mask.sum())


def test_the_table_is_what_a_plain_loop_measures():
    *_, last = run()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    init, step = make_train_step(bigram_logits, mean_token_loss, optimizer)
    state = init(make_params())
    batch_fn = make_batch_fn(make_rows(), batch_size=4, seed=3)
    losses, sums = [], [np.asarray(state.params["table"].sum())]
    for number in range(NUM_STEPS):
        state, metrics = step(state, batch_fn(number))
        losses.append(np.asarray(metrics["loss"]))
        if (number + 1) % 3 == 0:
            sums.append(np.asarray(state.params["table"].sum()))
    assert_same_bits(last.state, state)
    assert last.table["train"]["loss"].tolist() == [float(loss) for loss in losses]
    assert last.table["train"]["step"].tolist() == list(range(NUM_STEPS))
    assert last.table["norm"]["step"].tolist() == [0, 3, 6, 9, 12]
    assert last.table["norm"]["sum"].tolist() == [float(value) for value in sums]
    assert last.table["norm"]["bias"].shape == (5, VOCAB)


def test_progress_comes_after_every_checkpoint_and_at_the_end(tmp_path):
    steps = [progress.step for progress in run(save_every=5)]
    assert steps == [5, 10, 12]
    checkpoints = Checkpoints(tmp_path / "c")
    assert [progress.step for progress in run(checkpoints, save_every=5)] == steps
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["10", "12"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "num_saved", [1, pytest.param(2, marks=pytest.mark.exhaustive), 3]
)
def test_a_run_that_stops_and_resumes_has_the_same_bits(tmp_path, num_saved, dtype):
    *_, whole = run(dtype=dtype)
    whole = on_host(whole)
    checkpoints = Checkpoints(tmp_path / "c")
    stopped = run(checkpoints, dtype=dtype)
    for _ in range(num_saved):
        next(stopped)
    stopped.close()
    assert checkpoints.newest_step() == 4 * num_saved
    *_, resumed = run(checkpoints, dtype=dtype)
    assert_same_bits(on_host(resumed), whole)
    saved = checkpoints.restore(resumed.state)
    assert_same_bits(on_host(saved), whole)


def test_what_a_killed_run_left_behind_is_harmless(tmp_path):
    *_, whole = run()
    checkpoints = Checkpoints(tmp_path / "c")
    stopped = run(checkpoints)
    next(stopped)
    next(stopped)
    half_written = checkpoints.folder / "12.orbax-checkpoint-tmp" / "state"
    half_written.mkdir(parents=True)
    half_deleted = checkpoints.folder / "4" / "_CHECKPOINT_METADATA"
    half_deleted.unlink()
    *_, resumed = run(checkpoints)
    assert_same_bits(on_host(resumed), on_host(whole))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["12", "8"]


def test_the_step_is_traced_once_also_after_a_resume(tmp_path):
    traces = []

    def logits_fn(params, batch):
        traces.append(batch.tokens.shape)
        return bigram_logits(params, batch)

    _, step = make_train_step(logits_fn, mean_token_loss, optax.adam(0.1))
    init, _ = make_train_step(bigram_logits, mean_token_loss, optax.adam(0.1))
    settings = {
        "step_fn": step,
        "batch_fn": make_batch_fn(make_rows(), batch_size=4, seed=0),
        "save_every": 3,
        "checkpoints": Checkpoints(tmp_path / "c"),
    }
    list(train(init(make_params()), num_steps=6, **settings))
    list(train(init(make_params()), num_steps=9, **settings))
    assert traces == [(4, 5)]


@pytest.mark.parametrize("quantity", ["loss", "update_norm"])
def test_what_is_not_finite_stops_the_run_with_its_step(tmp_path, quantity):
    def step_fn(state, batch):
        del batch
        metrics = {"loss": 1.0, "update_norm": 0.1}
        if state == 6:
            metrics[quantity] = float("nan")
        return state + 1, metrics

    checkpoints = Checkpoints(tmp_path / "c")
    message = rf"step 6: {quantity} .*nan.*good checkpoint is that of step 4 in .*/c"
    with pytest.raises(NonFiniteError, match=message) as error:
        list(
            train(
                jnp.zeros((), jnp.int32),
                num_steps=20,
                step_fn=step_fn,
                batch_fn=float,
                save_every=4,
                checkpoints=checkpoints,
            )
        )
    assert "\n" not in str(error.value)
    kept = checkpoints.restore()
    assert kept is not None
    assert (kept.step, int(kept.state)) == (4, 4)
    assert np.isfinite(kept.table["train"]["loss"]).all()


def test_an_observation_that_is_not_finite_stops_the_run():
    observers = {"held_out": Observer(lambda state: {"loss": np.inf}, every(5))}
    with pytest.raises(NonFiniteError, match=r"loss \(held_out\).*no checkpoint yet"):
        list(run(observers=observers))


def test_a_rate_is_not_blamed_for_what_is_so_before_the_first_update():
    def step_fn(state, batch):
        return state, {"loss": np.nan if state < 0 else batch, "norms": np.ones(3)}

    def message(start, batch_fn):
        settings = {"num_steps": 2, "step_fn": step_fn, "batch_fn": batch_fn}
        with pytest.raises(NonFiniteError) as error:
            list(train(start, **settings, save_every=1))
        return str(error.value)

    assert "before the first update" in message(-1, float)
    assert "learning rate may help" not in message(-1, float)
    assert "lower learning rate may help" in message(
        1, lambda step: [0.5, np.inf][step]
    )


def test_many_numbers_that_are_not_finite_are_one_line():
    observers = {
        "all": Observer(lambda state: {"norms": np.full(5000, np.nan)}, every(5))
    }
    with pytest.raises(NonFiniteError, match=r"is nan in 5000 of 5000 places") as error:
        list(run(observers=observers))
    assert "\n" not in str(error.value)


def test_the_table_is_handed_out_at_every_observation():
    written = []

    def on_table(table):
        series = {name: values["step"].tolist() for name, values in table.items()}
        written.append((series["seen"][-1], len(series.get("train", []))))

    observers = {"seen": Observer(lambda state: {"norm": 1.0}, every(3))}
    list(run(num_steps=8, save_every=4, observers=observers, on_table=on_table))
    assert written == [(0, 0), (3, 3), (3, 4), (6, 6), (8, 8)]


def test_the_first_numbers_are_handed_out_before_an_update_is_compiled():
    events = []

    def step_fn(state, batch):
        events.append("update")
        return state + batch, {"loss": state}

    def ahead(state, following, metrics):
        return {"gain": following - state}

    observers = {
        "here": Observer(lambda state: {"total": state}, every(2)),
        "ahead": Observer(ahead, every(2), looks_ahead=True),
    }
    arguments = {"num_steps": 1, "step_fn": step_fn, "batch_fn": float, "save_every": 1}
    on_table = lambda table: events.append([*table])
    list(train(jnp.zeros(()), observers=observers, on_table=on_table, **arguments))
    assert events[:3] == [["here"], "update", ["here", "ahead"]]


def test_what_looks_ahead_sees_the_update_that_the_loop_then_takes():
    taken = []

    def step_fn(total, batch):
        taken.append(batch)
        return total + batch, {"loss": total}

    def ahead(state, following, metrics):
        return {"gain": following - state, "loss": metrics["loss"]}

    arguments = {"num_steps": 5, "step_fn": step_fn, "batch_fn": float}
    observers = {
        "ahead": Observer(ahead, every(2), looks_ahead=True),
        "here": Observer(lambda state: {"total": state}, every(2)),
    }
    plain, watched = (
        list(train(jnp.zeros(()), save_every=4, observers=each, **arguments))[-1]
        for each in ({}, observers)
    )
    assert taken == 2 * [0.0, 1.0, 2.0, 3.0, 4.0]  # each update is taken once
    assert_same_bits(watched.state, plain.state)
    assert_same_bits(watched.table["train"], plain.table["train"])
    assert list(watched.table) == ["ahead", "here", "train"]
    # None follows the last one.
    assert watched.table["ahead"]["step"].tolist() == [0, 2, 4]
    assert watched.table["here"]["step"].tolist() == [0, 2, 4, 5]
    assert watched.table["ahead"]["gain"].tolist() == [0.0, 2.0, 4.0]


def test_an_exploding_run_ends_with_a_finite_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    rate = lambda count: jnp.where(count == 3, jnp.inf, 0.1)
    init, step = make_train_step(bigram_logits, mean_token_loss, optax.sgd(rate))
    rows = make_rows()
    with pytest.raises(NonFiniteError, match=r"step 3: update_norm.*that of step 3"):
        list(
            train(
                init(make_params()),
                num_steps=50,
                step_fn=step,
                batch_fn=lambda step: rows,
                save_every=1,
                checkpoints=checkpoints,
            )
        )
    kept = checkpoints.restore()
    assert kept is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.state))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    list(run(checkpoints))
    message = r"another model.*is float64\[7\] there and float32\[7\] here"
    with pytest.raises(ValueError, match=message):
        list(run(checkpoints, dtype=jnp.float32))
    for like in ({"params": jnp.ones(2)}, jnp.ones(2), ()):
        with pytest.raises(ValueError, match="another model"):
            checkpoints.restore(like)


def test_checkpoints_keep_every_dtype_to_the_bit(tmp_path):
    state = {
        "half": jnp.array([1.1, -0.0, jnp.inf], jnp.bfloat16),
        "single": jnp.array(jnp.nan, jnp.float32),
        "double": jnp.array([jnp.pi], jnp.float64),
        "count": jnp.array(3, jnp.int32),
        "flag": jnp.array([True]),
    }
    table = {"train": {"step": np.arange(3), "loss": np.array([1, 2, 3], np.float32)}}
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(Progress(1, state, table))
    assert_same_bits(checkpoints.restore(state), Progress(1, state, table))
    assert_same_bits(checkpoints.restore(), Progress(1, state, table))


def test_there_is_nothing_in_an_empty_folder(tmp_path):
    assert Checkpoints(tmp_path).restore() is None
    assert Checkpoints(tmp_path / "nowhere").restore() is None
    assert not (tmp_path / "nowhere").exists()


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.integers(0, 2**32 - 1)
)
def test_the_batch_depends_on_seed_and_step_alone(num_rows, batch_size, step, seed):
    batch_size = min(batch_size, num_rows)
    rows = {"row": np.arange(num_rows)}
    make = make_batch_fn(rows, batch_size=batch_size, seed=seed)
    other = make_batch_fn(rows, batch_size=batch_size, seed=seed)
    other(step + 1)
    other(0)
    assert make(step)["row"].tolist() == other(step)["row"].tolist()
    steps_per_epoch = num_rows // batch_size
    first = step // steps_per_epoch * steps_per_epoch
    epoch = [make(first + i)["row"] for i in range(steps_per_epoch)]
    assert len(set(np.concatenate(epoch).tolist())) == steps_per_epoch * batch_size


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match="between 1 and the number of rows, 10"):
        make_batch_fn(make_rows(), batch_size=batch_size, seed=0)
