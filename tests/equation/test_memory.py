"""Programs in the order that takes the least memory, and what is given back."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import psutil
import pytest

from ldjax import memory
from ldjax.memory import give_back, lean

UNKNOWN = {"xla_cpu_scheduler_of_tomorrow": "x"}


@pytest.fixture
def _of_another_compiler(monkeypatch):
    memory._has_lean.cache_clear()
    monkeypatch.setattr(memory, "_LEAN", UNKNOWN)
    yield
    memory._has_lean.cache_clear()


def wide(x):
    """Many results that wait for one reader, if they are made at once."""
    total = x
    for i in range(8):
        total = total @ (x @ (x + i))
    return total


def test_results_do_not_wait_for_their_reader():
    x = jnp.eye(64)

    def temporaries(program):
        found: Any = program.lower(x).compile().memory_analysis()
        return found.temp_size_in_bytes

    assert temporaries(lean(wide)(x)) < temporaries(jax.jit(wide)) / 2
    assert (lean(wide)(x)(x) == jax.jit(wide)(x)).all()


@pytest.mark.usefixtures("_of_another_compiler")
def test_a_compiler_without_that_order_takes_its_own():
    assert lean(jnp.sin)(1.0)(1.0) == jnp.sin(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux holds it")
def test_what_was_freed_is_given_back():
    resident = lambda: psutil.Process().memory_info().rss
    # Too small to be mapped on their own; the last one keeps the heap from shrinking.
    blocks = [bytearray(100_000) for _ in range(2000)]
    last = blocks[-1]
    blocks.clear()
    held = resident()
    give_back()
    assert resident() < held - 150e6
    assert len(last) == 100_000
