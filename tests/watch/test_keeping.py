"""A loop of somebody's, kept for its ledger: as if the engine had been given it."""

import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from shell.scripts import run_script
from zoo.cases import apply_toy, toy_params

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.losses import make_loss
from ldjax.origins import Responses, Training, Trajectory, account
from ldjax.origins.replay import ReplayError
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.devices import data_mesh, replicate, shard
from ldjax.watch import Probe, ProbeSet
from ldjax.watch.keeping import KeptLoop

NAMES = [f"train/{i}" for i in range(4)]
CHOSEN = [Example((i, 2), (3, 1)) for i in range(4)]
REJECTED = [Example((i, 2), (0,)) for i in range(4)]
PROBES = [
    Probe("train/1", "chosen", CHOSEN[1]),
    Probe("train/1", "rejected", REJECTED[1]),
    Probe("test/0", "chosen", Example((4, 4), (1, 3))),
]
NUM_STEPS, KEEP_EVERY = 7, 3
RESPONSES = Responses.of(ProbeSet.of(PROBES, max_length=4, batch_size=None))


class State(NamedTuple):
    params: Any
    opt_state: Any


class Loop(NamedTuple):
    """How somebody trains."""

    training: Training
    step_fn: Any
    batch_fn: Any


def make_loop(loss_name):
    """A loop of plain optax, two rows at a time."""
    loss_fn = make_loss(loss_name)
    optimizer = optax.adam(0.05)

    @jax.jit
    def step_fn(state, batch):
        def loss_of(params):
            if loss_name == "sft":
                return loss_fn(apply_toy(params, batch), batch)
            logits = {side: apply_toy(params, batch[side]) for side in batch}
            return loss_fn(logits, batch)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    def batch_fn(step):
        rows = rows_of(step)
        chosen = to_sequences([CHOSEN[i] for i in rows], max_length=4)
        if loss_name == "sft":
            return chosen
        rejected = to_sequences([REJECTED[i] for i in rows], max_length=4)
        reference = jnp.zeros(len(rows))
        return {
            "chosen": chosen._replace(reference=reference),
            "rejected": rejected._replace(reference=reference - 1),
        }

    return Loop(Training(apply_toy, loss_fn, optimizer), step_fn, batch_fn)


def rows_of(step):
    return [step % 4, (step + 1) % 4]


def start_of(loop):
    return State(toy_params(), loop.training.optimizer.init(toy_params()))


def record(loop, path, steps=range(NUM_STEPS), state=None, **options):
    """Record steps of a loop; the state after them."""
    state = start_of(loop) if state is None else state
    options = {"keep_every": KEEP_EVERY, **options}
    with ldjax.Recorder(path, apply_toy, PROBES, **options) as recorder:
        for step in steps:
            batch = loop.batch_fn(step)
            new, _ = loop.step_fn(state, batch)
            recorder(step, state.params, new.params)
            names = [NAMES[i] for i in rows_of(step)]
            recorder.keep(step, state, new, batch=batch, names=names)
            state = new
    return state


def ledger_of(loop, path, state=None, **options):
    return ldjax.ledger(
        path,
        ["train", "test"],
        training=loop.training,
        step_fn=loop.step_fn,
        state=start_of(loop) if state is None else state,
        **options,
    )


def account_of(loop, start):
    """What the engine says that is given the loop itself."""
    return account(
        loop.training,
        Trajectory(
            num_steps=NUM_STEPS,
            start=start,
            step_fn=loop.step_fn,
            batch_fn=loop.batch_fn,
            names_of=lambda step: [NAMES[i] for i in rows_of(step)],
        ),
        RESPONSES,
    )


@pytest.mark.parametrize(
    "loss_name", [pytest.param("sft", marks=pytest.mark.slow), "dpo"]
)
def test_the_ledger_of_a_loop_is_that_of_the_engine(tmp_path, loss_name):
    loop = make_loop(loss_name)
    record(loop, tmp_path / "mine")
    found = ledger_of(loop, tmp_path / "mine")
    wanted = account_of(loop, start_of(loop))
    assert found.table.equals(wanted.table)
    assert found.about == wanted.about
    example = KeptLoop(tmp_path / "mine").examples()["train/1"]
    sides = (
        {"chosen": "3 1", "rejected": "0"} if loss_name == "dpo" else {"update": "3 1"}
    )
    assert example == {"prompt": "1 2", "sides": sides}


def test_what_was_kept_is_what_there_was(tmp_path):
    loop = make_loop("dpo")
    last = record(loop, tmp_path / "mine")
    kept = KeptLoop(tmp_path / "mine")
    assert kept.num_steps == NUM_STEPS
    assert kept.states.steps() == [0, 3, 6, 7]
    for step in range(NUM_STEPS):
        found, wanted = kept.batch(step), loop.batch_fn(step)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        same = jax.tree.map(
            lambda a, b: a.dtype == b.dtype and (a == b).all(), found, wanted
        )
        assert all(jax.tree.leaves(same))
    state = kept.states.read(NUM_STEPS, start_of(loop)).state
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state, last)
    assert all(jax.tree.leaves(same))
    assert [(*p[:2], *map(tuple, p.example[:2])) for p in kept.probes()] == [
        (*p[:2], *p.example[:2]) for p in PROBES
    ]


def test_a_loop_that_was_stopped_goes_on_from_a_state_that_was_kept(tmp_path):
    loop = make_loop("sft")
    record(loop, tmp_path / "whole")
    record(loop, tmp_path / "mine", range(5))  # with a state after 5, another one
    state = KeptLoop(tmp_path / "mine").states.read(3, start_of(loop)).state
    steps = range(3, NUM_STEPS)
    record(loop, tmp_path / "mine", steps, state, resume=True)
    found, wanted = KeptLoop(tmp_path / "mine"), KeptLoop(tmp_path / "whole")
    assert found.num_steps == NUM_STEPS
    assert found.states.steps() == wanted.states.steps() == [0, 3, 6, 7]
    ends = [of.states.read(NUM_STEPS).state["params"] for of in (found, wanted)]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *ends)))
    assert found.examples() == wanted.examples()


@pytest.mark.slow
def test_the_first_updates_alone_can_be_accounted_for(tmp_path):
    loop = make_loop("sft")
    record(loop, tmp_path / "mine")
    assert set(ledger_of(loop, tmp_path / "mine", updates=4).table["step"]) == set(
        range(4)
    )
    with pytest.raises(ValueError, match="at least 1 and at most 7"):
        ledger_of(loop, tmp_path / "mine", updates=8, overwrite=True)


def test_another_step_function_misses_the_states_that_were_kept(tmp_path):
    loop = make_loop("sft")
    record(loop, tmp_path / "mine")

    def other(state, batch):
        new, loss = loop.step_fn(state, batch)
        return new._replace(
            params=jax.tree.map(lambda p: p * (1 + 1e-9), new.params)
        ), loss

    with pytest.raises(ReplayError, match=r"step 3.*params"):
        ledger_of(loop._replace(step_fn=other), tmp_path / "mine")


def test_what_cannot_be_kept_is_refused(tmp_path):
    loop = make_loop("sft")
    state, batch = start_of(loop), loop.batch_fn(0)
    recorder = ldjax.Recorder(tmp_path / "mine", apply_toy, PROBES)
    with recorder, pytest.raises(ValueError, match="keep_every="):
        recorder.keep(0, state, state, batch=batch, names=NAMES[:2])
    with pytest.raises(FileNotFoundError, match="keep_every="):
        ledger_of(loop, tmp_path / "mine")
    path = tmp_path / "kept"
    with ldjax.Recorder(path, apply_toy, PROBES, keep_every=2) as recorder:
        keep = functools.partial(recorder.keep, batch=batch, names=NAMES[:2])
        with pytest.raises(ValueError, match="update 2 was not"):
            keep(3, state, state)
        with pytest.raises(ValueError, match="3 names for 2 rows"):
            keep(0, state, state, names=NAMES[:3])
        with pytest.raises(TypeError, match="a dict of them"):
            keep(0, state, state, batch=[batch])
    with pytest.raises(RuntimeError, match="closed"):
        keep(0, state, state)
    with pytest.raises(ValueError, match="`keep_every` must be"):
        ldjax.Recorder(tmp_path / "none", apply_toy, PROBES, keep_every=0)
    with pytest.raises(TypeError, match="`step_fn` and `state`"):
        ldjax.ledger(path, training=loop.training, step_fn=loop.step_fn)


def test_a_state_that_was_donated_is_not_kept(tmp_path):
    loop = make_loop("sft")
    state, batch = start_of(loop), loop.batch_fn(0)
    new, _ = loop.step_fn(state, batch)
    recorder = ldjax.Recorder(tmp_path / "mine", apply_toy, PROBES, keep_every=4)
    recorder.keep(0, state, new, batch=batch, names=NAMES[:2])
    jax.tree.map(lambda leaf: leaf.delete(), new)
    recorder.close()
    assert Checkpoints(tmp_path / "mine" / "kept" / "states").steps() == [0]


def test_a_batch_that_was_damaged_is_named(tmp_path):
    loop = make_loop("sft")
    record(loop, tmp_path / "mine")
    path = tmp_path / "mine" / "kept" / "batches" / "00000002.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00000002\.npz is damaged"):
        KeptLoop(tmp_path / "mine").batch(2)


def main(path):
    """Keeps a loop on all devices, each with its rows, and accounts for it."""
    jax.config.update("jax_enable_x64", True)
    mesh, loop = data_mesh(), make_loop("dpo")
    start, rows_of_batch = replicate(start_of(loop), mesh), loop.batch_fn
    loop = loop._replace(batch_fn=lambda step: shard(rows_of_batch(step), mesh))
    record(loop, path, state=start)
    found, wanted = ledger_of(loop, path, start), account_of(loop, start)
    batches = KeptLoop(path).batch(1), loop.batch_fn(1)
    lies = jax.tree.map(lambda a, b: a.sharding == b.sharding, *batches)
    told = {"ledger": found.table.equals(wanted.table), "lies": jax.tree.leaves(lies)}
    print(json.dumps(told | {"devices": mesh.size}))


@pytest.mark.slow
def test_batches_lie_on_devices_as_they_lay(tmp_path):
    flag = "--xla_force_host_platform_device_count=2"
    done = run_script(__file__, tmp_path / "mine", xla_flags=flag, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"ledger": True, "lies": [True] * 8, "devices": 2}
    # Here there is one.
    with pytest.raises(ValueError, match=r"\[0, 1\] that it lay on \[1\] are not here"):
        ledger_of(make_loop("dpo"), tmp_path / "mine", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
