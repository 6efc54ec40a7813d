"""A recorder under hostile input: an error that says what, or the right numbers."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hostile.world import contents

import ldjax
import ldjax.files.locks
from ldjax.data.batches import Example
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.watch.probes import Probe

VOCAB = 5
PARAMS = {"w": jnp.linspace(-1.0, 1.0, VOCAB)}


def _logits(params, sequences):
    return jnp.broadcast_to(params["w"], (*sequences.tokens.shape[:2], VOCAB))


def _probe(prompt, response, name="train/0000"):
    return Probe(name, "chosen", Example(prompt, response))


GOOD = _probe((1, 2), (3,))
MODELS = {
    "a classifier": lambda params, s: _logits(params, s)[:, 0],
    "no logits": lambda params, s: None,
    "a tuple": lambda params, s: (_logits(params, s), 0),
    "integers": lambda params, s: jnp.zeros((*s.tokens.shape, VOCAB), int),
    "positions first": lambda params, s: _logits(params, s).swapaxes(0, 1)[:0],
    "one position too few": lambda params, s: _logits(params, s)[:, 1:],
    "one number": lambda params, s: params["w"].sum(),
}
PROBES = {
    "an id beyond the vocabulary": _probe((1, 2), (VOCAB,)),
    "an id far beyond it": _probe((1,), (10**6,)),
    "a negative id": _probe((1,), (-100,)),
    "numbers that are no ids": _probe((0.5, 1.7), (2,)),
    "an image": _probe(np.zeros((2, 2)), (2,)),
    "no response": _probe((1, 2), ()),
    "a text": _probe("ab", "c"),
    "no set": _probe((1,), (2,), "other/0"),
}


def _record(path, apply_fn, probe, params=PARAMS):
    with ldjax.Recorder(path, apply_fn, [probe]) as recorder:
        recorder(0, params, params)
    return recorder.run


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_language_model_is_refused_by_its_shape(tmp_path, name):
    with pytest.raises((ValueError, TypeError), match=r"logits|shape|\[batch, pos"):
        _record(tmp_path / "run", MODELS[name], GOOD)
    assert not (tmp_path / "run" / "metrics.parquet").exists()


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_cannot_be_scored_is_refused(tmp_path, name):
    with pytest.raises((ValueError, TypeError)):
        _record(tmp_path / "run", _logits, PROBES[name])
    assert not (tmp_path / "run" / "metrics.parquet").exists()


def test_a_classifier_with_one_position_has_the_right_numbers(tmp_path):
    run = _record(tmp_path / "run", _logits, _probe((1,), (3,)))
    found = run.metrics().to_dicts()
    (value,) = {row["value"] for row in found if row["quantity"] == "log_prob"}
    expected = PARAMS["w"] - jnp.log(jnp.exp(PARAMS["w"]).sum())
    assert value == pytest.approx(float(expected[3]), rel=1e-12)
    assert tuple(found[0]) == METRIC_COLUMNS


def test_a_loop_that_fails_at_once_gives_the_old_run_back(tmp_path):
    _record(tmp_path / "run", _logits, GOOD)
    before = contents(tmp_path / "run")
    with (
        pytest.raises(ZeroDivisionError),
        ldjax.Recorder(tmp_path / "run", _logits, [GOOD], overwrite=True),
    ):
        raise ZeroDivisionError
    assert contents(tmp_path / "run") == before


def test_a_setting_that_cannot_be_written_leaves_the_old_run(tmp_path):
    _record(tmp_path / "run", _logits, GOOD)
    before = contents(tmp_path / "run")
    for settings in ({"inf": np.inf, (1,): 2}, {"a": {1, 2}, (3,): 4}):
        with pytest.raises(TypeError):
            ldjax.Recorder(
                tmp_path / "run",
                _logits,
                [GOOD],
                settings=settings,
                overwrite=True,
            )
    assert contents(tmp_path / "run") == before
    with pytest.raises(FileExistsError, match=r"`resume=True` .*`overwrite=True`"):
        ldjax.Recorder(tmp_path / "run", _logits, [GOOD])


def test_a_folder_that_another_process_records_in_is_refused(tmp_path):
    hold = (
        "import runpy, sys, time; from pathlib import Path; "
        f"lock = runpy.run_path({ldjax.files.locks.__file__!r})['lock_folder']"
        "(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"
    )
    _record(tmp_path / "run", _logits, GOOD)
    before = contents(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "):
                ldjax.Recorder(
                    tmp_path / "run",
                    _logits,
                    [GOOD],
                    resume=resume,
                    overwrite=not resume,
                )
        holder.kill()
    assert contents(tmp_path / "run") == before
    with ldjax.Recorder(tmp_path / "run", _logits, [GOOD], overwrite=True) as recorder:
        recorder(0, PARAMS, PARAMS)
    assert not (tmp_path / "run" / ".lock").exists()  # closed: others may
    assert open_run(tmp_path / "run").metrics().height
