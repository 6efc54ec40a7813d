"""The pretraining experiment as its users run it, and as a machine kills it."""

import gzip
import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shell.killing import kill_at, start_script
from shell.scripts import run_script

from ldjax.finetune.pretrain import run as pretrain
from ldjax.models import load
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import METRIC_COLUMNS, open_run


def deterministic_metrics(run):
    metrics = run.metrics()
    return metrics.filter(metrics["quantity"] != "tokens_per_second")


def assert_one_line(result, *parts):
    assert result.returncode == 1
    message = result.stderr.strip()
    assert message.startswith("pretrain: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("pretrain") / "run"
    return run_script("pretrain.py", "--smoke", "--out", out, cache=cache), out


@pytest.mark.slow
def test_smoke_leaves_a_whole_run(smoke):
    result, out = smoke
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    quantities = {"loss", "update_norm", "held_out_loss", "tokens_per_second"}
    assert set(metrics["quantity"]) == quantities
    assert metrics["value"].is_finite().all()
    assert metrics.filter(metrics["quantity"] == "loss").height == 12
    assert all(check["holds"] for check in run.summary["identities"])
    assert (out / "figures" / "loss.png").is_file()
    loss = run.summary["held_out_loss"]
    assert f"model   {loss['model']:.4f}" in result.stdout
    assert f"bigram  {loss['bigram']:.4f}" in result.stdout


@pytest.mark.slow
def test_the_pretrained_model_opens_by_one_function(smoke):
    _, out = smoke
    model, params, _, tokenizer = load(out)
    assert tokenizer is not None
    tokens = jnp.array([tokenizer.encode(" question : what")])
    logits = jnp.asarray(model.apply({"params": params}, tokens))
    assert logits.shape == (*tokens.shape, tokenizer.vocab_size)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.exhaustive
def test_an_existing_run_is_not_touched(smoke):
    _, out = smoke
    before = (out / "config.json").read_bytes()
    assert_one_line(
        run_script("pretrain.py", "--smoke", "--out", out), "already holds a run"
    )
    assert_one_line(
        run_script(
            "pretrain.py", "--smoke", "--out", out, "--resume", "--learning-rate", "0.1"
        ),
        "cannot resume",
        "learning_rate was 0.001, now 0.1",
    )
    assert (out / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, cache):
    out = tmp_path / "run"
    args = ("--smoke", "--out", out, "--learning-rate", "1e30")
    result = run_script("pretrain.py", *args, cache=cache)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert len(lines) == 1
    assert "At step 1: " in lines[0]
    with pytest.raises(ValueError, match="stopped at step 0 of 12; go on"):
        load(out)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--preset", "7B"], "--preset must be one of 0.1M, 0.4M"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--resume", "--overwrite"], "contradict"),
        (["--world", "huge"], "--world must be one of demo, small, paper"),
        (["--held-out-share", "1", "--documents", "50"], "between 0 and 1"),
        (
            ["--batch-size", "999", "--documents", "50"],
            "--batch-size must be at most the number of rows",
        ),
        (["--text", "nowhere.txt"], "no file nowhere.txt"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, args, part):
    out = tmp_path / "run"
    config = pretrain.parse(["--out", str(out), *args])
    with pytest.raises(SystemExit, match=r"^pretrain: [^\n]*$") as error:
        pretrain.main(config)
    assert part in str(error.value)
    assert not out.exists()


def test_a_bad_line_of_the_text_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a"}\n{"chosen": "b"}\n')
    args = ("--text", str(file), "--field", "prompt", "--out", str(tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"^pretrain: [^\n]*$") as error:
        pretrain.main(pretrain.parse(args))
    assert "a.jsonl:2: no field 'prompt'; it has chosen" in str(error.value)


@pytest.mark.exhaustive
def test_help_shows_defaults():
    result = run_script("pretrain.py", "--help")
    assert result.returncode == 0
    assert "--weight-decay" in result.stdout
    assert "(default: 128)" in result.stdout


@pytest.mark.slow
def test_text_of_ones_own_and_a_tokenizer_of_ones_own(tmp_path, smoke, cache):
    _, base = smoke
    file = tmp_path / "a.jsonl.gz"
    rows = [{"prompt": f"Is {i} more than {i // 2}? “Yes.”"} for i in range(60)]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    args = ("--text", file, "--field", "prompt", "--tokenizer", base, "--smoke")
    result = run_script("pretrain.py", *args, "--out", tmp_path / "run", cache=cache)
    assert result.returncode == 0, result.stderr
    made, used = (
        (path / "tokenizer.json").read_bytes() for path in (tmp_path / "run", base)
    )
    assert made == used


STEPS, DRAWS = 120, 5


@pytest.mark.exhaustive  # that of finetune.py, by the same loop, is in CI
def test_a_run_killed_five_times_ends_with_the_same_bits(tmp_path, cache):
    """Killed at moments drawn over the run: between steps, and while saving."""
    args = ("--smoke", "--steps", STEPS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    draw = random.Random(os.environ.get("KILL_SEED", "0"))
    steps = sorted(draw.sample(range(0, STEPS - 40), DRAWS))
    for step in steps:
        process = start_script(
            "pretrain.py", *args, "--out", killed, "--resume", cache=cache
        )
        kill_at(process, killed / "checkpoints", step, draw.uniform(0, 0.2))
    end = Checkpoints(killed / "checkpoints").newest_step()
    assert end is not None
    assert steps[-1] <= end < STEPS
    resumed = run_script("pretrain.py", *args, "--out", killed, "--resume", cache=cache)
    assert resumed.returncode == 0, resumed.stderr
    # Without the cache: compiled anew, it must still be the same program.
    assert run_script("pretrain.py", *args, "--out", whole).returncode == 0

    found, wanted = (
        Checkpoints(out / "checkpoints").restore() for out in (killed, whole)
    )
    assert found is not None
    assert wanted is not None
    for progress in (found, wanted):
        del progress.table["speed"]  # the clock's, not the run's
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    tables = [deterministic_metrics(open_run(out)) for out in (killed, whole)]
    assert tables[0].equals(tables[1])
    assert open_run(killed).summary == open_run(whole).summary
    for name in ("tokenizer.json", "figures/loss.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
