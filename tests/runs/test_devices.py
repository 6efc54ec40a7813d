"""Eight devices compute what one does, and each an eighth of it.

Run as a script, this file measures that on eight virtual devices and prints JSON.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shell.scripts import run_script
from witnesses.references import exact_parts
from zoo.decoders import VOCAB, make_decoder, random_tokens

import ldjax
from ldjax.data.batches import Example
from ldjax.models import MLP
from ldjax.runs.devices import data_mesh, fill_up, replicate, shard
from ldjax.runs.folder import open_run
from ldjax.theory.quantities import sequence_quantities, token_quantities
from ldjax.watch.probes import (
    Probe,
    ProbeSet,
    make_change_fn,
    make_observe_fn,
    shard_probes,
)

DEVICES = 8
STEPS = ("sft", "dpo")
METHODS = ("ntk_vp", "factored", "structured", "structured, images")


def relative(found, wanted):
    """The largest difference, relative to the largest number."""
    both = jax.tree.leaves(jax.device_get((found, wanted)))
    half = len(both) // 2
    pairs = list(zip(both[:half], both[half:], strict=True))
    scale = max(np.abs(b).max() for _, b in pairs)
    return float(max(np.abs(a - b).max() for a, b in pairs) / scale)


def cost(program):
    """FLOPs (a loop's body once) and bytes of one device."""
    memory = program.memory_analysis()
    return {
        "flops": program.cost_analysis()["flops"],
        "bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
    }


def sentences(num, length, seed):
    tokens = jnp.array(random_tokens(num * (length + 1), seed), jnp.int32)
    tokens = tokens.reshape(num, length + 1)
    mask = jnp.arange(length)[None, :] >= 1 + jnp.arange(num)[:, None] % 2
    return ldjax.Sequences(tokens[:, :-1], tokens[:, 1:], mask)


def measure_step(model, params, loss):
    """A second step: from a state that the first one left."""
    # Filled up, all at once; or in chunks.
    num_probes, chunk = (13, None) if loss == "sft" else (32, 16)
    update = {"chosen": sentences(16, 6, 1), "rejected": sentences(16, 6, 2)}
    if loss == "dpo":
        loss_fn = ldjax.losses.make_loss("dpo")
        reference = jnp.linspace(-20.0, -10.0, 16)
        update = {
            name: side._replace(reference=reference) for name, side in update.items()
        }
    else:
        loss_fn, update = ldjax.losses.sft, update["chosen"]
    init, step = ldjax.make_step(
        ldjax.linen.apply_fn(model),
        loss_fn,
        optax.adamw(1e-2),
        probe_batch_size=chunk,
    )
    state, probe = init(params), sentences(num_probes, 6, 3)
    mesh = data_mesh()
    arguments = {
        "one": (state, update, probe),
        "all": (
            replicate(state, mesh),
            shard(update, mesh),
            shard(fill_up(probe, mesh), mesh),
        ),
    }
    results, costs = {}, {}
    for name, (state, update, probe) in arguments.items():
        program = jax.jit(step).lower(state, update, probe).compile()
        state, _ = program(state, update, probe)
        results[name] = program(state, update, probe)
        costs[name] = cost(program)
    state, comparison = results["all"]
    values = comparison.predicted
    wanted_state, wanted = results["one"]
    own = jax.tree.map(lambda leaf: leaf[:num_probes], comparison)
    return {
        "costs": costs,
        "errors": {
            "params": relative(state.params, wanted_state.params),
            "loss": relative(state.loss, wanted_state.loss),
            "predicted": relative(own.predicted, wanted.predicted),
            "measured": relative(own.measured, wanted.measured),
        }
        | {
            f"part {name}": relative(own.parts[name], part)
            for name, part in exact_parts(wanted).items()
        },
        "parts": sorted(wanted.parts),
        "filling": float(jnp.abs(values[num_probes:]).sum()),
        "rows on a device": values.addressable_shards[0].data.shape[0],
        "rows": values.shape[0],
        "is state on each device": all(
            leaf.is_fully_replicated for leaf in jax.tree.leaves(state)
        ),
    }


def measure_observation(model, params):
    apply_fn, mesh = ldjax.linen.apply_fn(model), data_mesh()
    probes = [
        Probe(f"train/{i}", "chosen", Example(random_tokens(3 + i % 5, i), (5, 1 + i)))
        for i in range(19)
    ]
    probes = ProbeSet.of(probes, max_length=16, batch_size=5)
    moved = jax.tree.map(lambda leaf: leaf * 1.001, params)
    found = {}
    for name, at, probe_set in (
        ("one", (params, moved), probes),
        ("all", replicate((params, moved), mesh), shard_probes(probes, mesh)),
    ):
        found[name] = (
            make_observe_fn(apply_fn, probe_set)(at[0]),
            make_change_fn(apply_fn, probe_set)(*at),
        )

    @jax.jit
    def observe(params, batch):
        logits = apply_fn(params, batch)
        tokens = token_quantities(logits, batch.targets, batch.mask)
        return sequence_quantities(tokens, batch.mask, vocab_size=VOCAB)

    batch = sentences(32, 6, 0)
    arguments = {
        "one": (params, batch),
        "all": (replicate(params, mesh), shard(batch, mesh)),
    }
    return {
        "costs": {
            name: cost(observe.lower(*args).compile())
            for name, args in arguments.items()
        },
        "errors": {
            name: relative(values, found["one"][i][name])
            for i, numbers in enumerate(found["all"])
            for name, values in numbers.items()
        },
    }


def measure_kernel(model, params, sides, method):
    def numbers(params, probe, update):
        probe_fn = ldjax.linen.logits_fn(model, probe)
        update_fn = ldjax.linen.logits_fn(model, update)
        kernel: Any = ldjax.empirical_ntk(probe_fn, update_fn, params, method=method)
        summary = kernel.block_summary() if method == "factored" else ()
        return {"dense": kernel.dense(), "summary": tuple(summary)}

    mesh = data_mesh()
    arguments = {
        "one": (params, *sides),
        "all": (replicate(params, mesh), *shard(sides, mesh)),
    }
    programs = {
        name: jax.jit(numbers).lower(*args).compile()
        for name, args in arguments.items()
    }
    found = {name: programs[name](*args) for name, args in arguments.items()}
    return {
        "costs": {name: cost(program) for name, program in programs.items()},
        "errors": {
            name: relative(found["all"][name], found["one"][name])
            for name in ("dense", *["summary"] * (method == "factored"))
        },
    }


def refusal():
    try:
        shard({"chosen": sentences(9, 4, 0)}, data_mesh())
    except ValueError as error:
        return str(error)
    return ""


def main():
    jax.config.update("jax_enable_x64", True)
    model, params = make_decoder("gpt2", num_layers=1)
    results = {name: measure_step(model, params, name) for name in STEPS}
    results["observation"] = measure_observation(model, params)
    texts = sentences(16, 3, 4), sentences(8, 3, 5)
    for method in METHODS[:-1]:
        results[method] = measure_kernel(model, params, texts, method)
    images = jax.random.uniform(jax.random.key(0), (16, 28, 28))
    mlp, labels = MLP((32, 32)), jnp.zeros((16, 1), int)
    images = ldjax.Sequences(images, labels, labels == 0)
    weights = mlp.init(jax.random.key(1), images.tokens)["params"]
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), weights)
    results[METHODS[-1]] = measure_kernel(mlp, weights, (images, images), "structured")
    print(json.dumps(results | {"refusal": refusal()}))


def virtual(num_devices) -> dict[str, Any]:
    """The environment that shows one CPU as several devices."""
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    return {"xla_flags": flag, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def results():
    run = run_script(__file__, **virtual(DEVICES))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STEPS, "observation", *METHODS])
def test_all_devices_compute_what_one_does(results, name):
    assert results[name]["errors"]
    for quantity, error in results[name]["errors"].items():
        assert error < 1e-10, quantity


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STEPS, "observation", *METHODS])
def test_a_device_has_its_share_of_the_work_and_of_the_memory(results, name):
    one, all_ = (results[name]["costs"][key] for key in ("one", "all"))
    # Never quite an eighth: the parameters and what has their size are everywhere,
    # with `ntk_vp` for each of its basis vectors.
    assert all_["flops"] < one["flops"] / 5
    assert all_["bytes"] < one["bytes"] * 0.7


@pytest.mark.slow
def test_a_step_splits_into_its_parts_on_several_devices(results):
    assert results["sft"]["parts"] == ["history", "rounding", "update", "weight_decay"]
    sides = ["chosen", "history", "rejected", "rounding", "weight_decay"]
    assert results["dpo"]["parts"] == sides


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_step_leaves_things_where_they_were(results, name):
    # So the next step needs no other program.
    assert results[name]["is state on each device"]
    assert results[name]["rows on a device"] == results[name]["rows"] // DEVICES


@pytest.mark.slow
def test_probes_are_filled_up_with_rows_that_score_nothing(results):
    assert results["sft"]["rows"] == 16  # of 13 probes
    assert results["sft"]["filling"] == 0


@pytest.mark.slow
def test_rows_that_cannot_be_divided_are_refused_by_name(results):
    assert results["refusal"].startswith(
        "['chosen'].tokens of shape (9, 4) cannot be divided by rows over 8 devices"
    )


def test_on_one_device_nothing_changes():
    mesh, rows = data_mesh(jax.devices()[:1]), sentences(3, 4, 0)
    for placed in (
        shard(rows, mesh),
        replicate(rows, mesh),
        fill_up(rows, mesh),
    ):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, placed, rows))


def finetune(out, cache, num_devices):
    args = ("--smoke", "--out", out, "--cache", cache)
    run = run_script("finetune.py", *args, cache=cache, **virtual(num_devices))
    assert run.returncode == 0, run.stderr
    return run.stdout, open_run(out).metrics()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_on_several_devices_has_the_metrics_of_one(tmp_path):
    _, wanted = finetune(tmp_path / "1", tmp_path, 1)
    for num, rows in ((2, "2 rows"), (8, "all 4 rows")):  # a batch of 4
        said, metrics = finetune(tmp_path / str(num), tmp_path, num)
        assert said.startswith(f"{num} devices, on each {rows} of an update")
        assert metrics.drop("value").equals(wanted.drop("value"))
        for name in wanted["quantity"].unique():
            values, expected = (
                table.filter(table["quantity"] == name)["value"].to_numpy()
                for table in (metrics, wanted)
            )
            # Float32, of sums over up to 50 tokens.
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(values, expected, atol=1e-5 * scale, rtol=0)


if __name__ == "__main__":
    main()
