"""What the sinks hold is what the run's table holds, whatever stopped the run."""

import importlib
import importlib.util
import json
import socket
import struct
from typing import Any

import numpy as np
import polars as pl
import pytest
from shell.scripts import run_script

from ldjax.runs.folder import METRIC_COLUMNS, create_run, open_run
from ldjax.runs.sinks import Sink, check_sinks, make_sink, scalars

pytest.importorskip("tensorboardX")
pytest.importorskip("wandb")


def make_run(path):
    return create_run(path / "mine", {"learning_rate": 0.5, "loss": "sft"})


def rows_until(step):
    """A run's rows up to an observation: losses before it, as `finetune.py` writes."""
    sets = [("train", 3, (0, 2, 4)), ("test", 2, (0, 2, 4)), ("tracked", 1, range(6))]
    rows = [(s, 4 * s, "", "", "loss", 1 / (s + 1)) for s in range(step)]
    for name, count, steps in sets:
        rows += [
            (s, 4 * s, f"{name}/{i:04d}", type_, quantity, np.sin(s + 10 * i + place))
            for s in steps
            if s < step or (s == step and name != "tracked")
            for i in range(count)
            for place, type_ in enumerate(("chosen", "rejected"))
            for quantity in ("log_prob", "part:history")
        ]
    return rows


def by_hand(metrics):
    """Means over the probes of a set, in Python loops."""
    values = {}
    for step, _, probe, type_, quantity, value in metrics.rows():
        name = f"{probe.split('/')[0]}/{type_}/{quantity}" if probe else quantity
        values.setdefault((step, name), []).append(value)
    return {key: np.mean(of) for key, of in values.items()}


def read_events(folder):
    """Every number of every event file, by a reader of our own: `(step, name)`."""
    event_type = importlib.import_module("tensorboardX.proto.event_pb2").Event
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = event_type.FromString(data[at + 12 : at + 12 + length])
            at += 8 + 4 + length + 4
            found += [
                ((event.step, v.tag), v.simple_value) for v in event.summary.value
            ]
    return found


def read_wandb(folder):
    """Every number of every history record, and the configuration, of offline runs."""
    record_type = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found, config = [], {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = record_type.FromString(data)
            config |= {item.key: item.value_json for item in record.run.config.update}
            items = record.history.item
            row = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in items
            }
            row = {name: value for name, value in row.items() if name[0] != "_"}
            if row:
                step = row.pop("step")
                found += [((step, name), value) for name, value in row.items()]
    return found, {name: json.loads(text) for name, text in config.items()}


def leveldb_records(data):
    """Records of LevelDB's log format: blocks of 32 KiB, after a header of 7 bytes."""
    at, pending = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield pending
            pending = b""


def write_once(name, run, rows):
    run.write_metrics(rows)
    sink = make_sink(name, run)
    assert isinstance(sink, Sink)
    sink.write(run.metrics())
    sink.close()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No login, and a connection is an error, in this process and in W&B's."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    connect = socket.socket.connect

    def refuse(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_scalars_are_means_over_the_probes_of_a_set():
    rows = [*rows_until(4), (0, 0, "4", "9", "kernel_norm", 2.5)]
    metrics = pl.DataFrame(rows, schema=METRIC_COLUMNS, orient="row")
    found = {(step, name): value for step, name, value in scalars(metrics).rows()}
    assert found.pop((0, "kernel_norm/4/9")) == 2.5
    expected = by_hand(metrics.filter(pl.col("quantity") != "kernel_norm"))
    assert found == pytest.approx(expected, rel=1e-14)


def test_events_are_the_table_after_a_kill_and_a_resume(tmp_path):
    run = make_run(tmp_path)
    write_once("tensorboard", run, rows_until(2))
    # Killed here: half a record behind the last whole one.
    (file,) = (run.path / "tensorboard").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    # Numbers that changed would tell if a step were written again.
    write_once("tensorboard", run, rows_until(5))
    file.write_bytes(whole)
    found = read_events(run.path / "tensorboard")
    expected = by_hand(run.metrics())
    assert len(found) == len(dict(found)) == len(expected)
    for key, value in found:
        assert value == np.float32(expected[key]), key
    assert (0, "train/chosen/part:history") in expected


def test_a_sink_that_stays_open_writes_what_is_new(tmp_path):
    run = make_run(tmp_path)
    sink = make_sink("tensorboard", run)
    for step in (2, 2, 5):
        run.write_metrics(rows_until(step))
        sink.write(run.metrics())
        # Each time on disk: nothing is lost when the run is killed now.
        found = read_events(run.path / "tensorboard")
        assert sorted(dict(found)) == sorted(by_hand(run.metrics()))
        assert len(found) == len(dict(found))
    sink.close()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_has_the_table_and_the_settings_offline(tmp_path):
    run = make_run(tmp_path)
    for step in (2, 5):
        write_once("wandb", run, rows_until(step))
    # W&B writes its files in a process of its own, for which `finish` does not wait.
    importlib.import_module("wandb").teardown()
    found, config = read_wandb(run.path / "wandb")
    expected = by_hand(run.metrics())
    assert len(found) == len(dict(found)) == len(expected)
    assert dict(found) == pytest.approx(expected, rel=1e-14)
    assert config["learning_rate"] == 0.5
    assert config["loss"] == "sft"
    folders = [path.name for path in (run.path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert len({name.rsplit("-")[-1] for name in folders}) == 1  # one run of W&B


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_message_before_the_run(name, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    package = {"tensorboard": "tensorboardX", "wandb": "wandb"}[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda of: None if of == package else find(of)
    )
    with pytest.raises(ValueError, match=f"`log={name}` needs .*pip install {package}"):
        check_sinks([name])
    with pytest.raises(ValueError, match="pip install"):
        make_sink(name, make_run(tmp_path))


@pytest.mark.exhaustive
def test_an_experiment_logs_where_it_is_asked_to(tmp_path):
    out = tmp_path / "run"
    args = ("--smoke", "--out", out, "--log", "tensorboard", "wandb")
    settings: dict[str, Any] = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    settings |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    done = run_script("mnist.py", *args, **settings)
    assert done.returncode == 0, done.stderr
    expected = {
        (step, f"{quantity}/{probe}/{type_}"): value
        for step, _, probe, type_, quantity, value in open_run(out).metrics().rows()
    }
    found = dict(read_events(out / "tensorboard"))
    assert found.keys() == expected.keys()
    assert dict(read_wandb(out / "wandb")[0]) == pytest.approx(expected)
