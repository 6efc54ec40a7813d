"""What is watched: probes, a recorder for a loop of one's own, maps of tokens."""

from ldjax.watch.probes import (
    Probe,
    ProbeSet,
    make_change_fn,
    make_floor_fn,
    make_observe_fn,
)
from ldjax.watch.recorder import Recorder

__all__ = [
    "Probe",
    "ProbeSet",
    "Recorder",
    "make_change_fn",
    "make_floor_fn",
    "make_observe_fn",
]
