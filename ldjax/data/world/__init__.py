"""The toy world: a language small enough to know every answer."""

from ldjax.data.world.judge import Statement, Verdict, judge
from ldjax.data.world.world import PRESETS, Document, World, WorldSize, make_world

__all__ = [
    "PRESETS",
    "Document",
    "Statement",
    "Verdict",
    "World",
    "WorldSize",
    "judge",
    "make_world",
]
