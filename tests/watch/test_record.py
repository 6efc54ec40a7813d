"""The vocabulary of a run's table: written and read by the same rules."""

import numpy as np
import polars as pl
import pytest

from ldjax.data.batches import Example
from ldjax.runs.folder import METRIC_COLUMNS
from ldjax.watch import record
from ldjax.watch.probes import Probe

PROBES = [
    Probe("train/0001", "chosen", Example((1, 2), (3, 0))),
    Probe("test/why/1", "rejected", Example((2,), (0,))),
]


def test_names_are_read_as_they_are_written():
    assert record.row_name(record.TRAIN, 7) == "train/0007"
    assert record.set_of("test/why/1") == record.TEST
    assert record.prompt_of("test/why/1") == "why/1"
    assert record.set_of("train") == ""
    assert record.tracked_name("train/0001") == "tracked/0001"
    assert record.observed_name("tracked/0001") == "train/0001"
    assert record.observed_name("test/tracked/") == "test/tracked/"
    assert record.is_part(record.part("noise"))
    assert not record.is_part("apart:noise")
    assert record.part_name(record.part("noise")) == "noise"


def test_rows_of_a_table_are_filtered_by_set():
    numbers = {
        "log_prob": np.array([[-1.0, -2.0], [-3.0, -4.0]], np.float32),
        "loss": np.array([0.5, 0.25]),
    }
    table = record.table_rows(np.array([0, 5]), numbers, PROBES, examples_per_step=3)
    assert tuple(table.columns) == METRIC_COLUMNS
    assert table.filter(record.in_set(record.TRAIN)).rows() == [
        (0, 0, "train/0001", "chosen", "log_prob", -1.0),
        (5, 15, "train/0001", "chosen", "log_prob", -3.0),
    ]
    assert table.filter(pl.col("probe") == "")["value"].to_list() == [0.5, 0.25]


def test_the_last_floor_is_found_by_probe():
    tracked = PROBES[0]._replace(prompt_name="tracked/0001")
    floors = np.array([[1e-6], [2e-6]])
    table = record.table_rows(
        np.array([0, 64]), {record.FLOOR: floors}, [tracked], examples_per_step=1
    )
    np.testing.assert_array_equal(record.last_floor(table, PROBES), [2e-6, np.nan])
    assert record.last_floor(table.head(0), PROBES) is None


def test_lines_about_probes_come_back(tmp_path):
    told = [("Why?", " Só.\u2028"), ("", "")]
    lines = [
        record.probe_line(probe, *texts, source="a:1")
        for probe, texts in zip(PROBES, told, strict=True)
    ]
    record.write_probe_lines(tmp_path, lines)
    assert [(of["prompt"], of["text"]) for of in record.read_probe_lines(tmp_path)] == (
        told
    )
    record.write_probe_lines(tmp_path, [])
    with pytest.raises(ValueError, match="empty"):
        record.read_probe_lines(tmp_path)
