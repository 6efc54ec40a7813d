"""A run: its folder, checkpoints, loop, sinks and devices."""

from ldjax.runs.devices import data_mesh, fill_up, replicate, shard
from ldjax.runs.folder import METRIC_COLUMNS, Run, create_run, open_run, start_run

__all__ = [
    "METRIC_COLUMNS",
    "Run",
    "create_run",
    "data_mesh",
    "fill_up",
    "open_run",
    "replicate",
    "shard",
    "start_run",
]
