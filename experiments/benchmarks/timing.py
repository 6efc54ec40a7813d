"""How the benchmarks take time."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ["interleaved_medians"]


def interleaved_medians(
    functions: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Median seconds of each function, all of them in turn in every round.

    A machine that is busy for a while then slows all alike, and their ratios hold.
    Each function is called once before, to compile.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}
