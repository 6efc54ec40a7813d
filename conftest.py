"""Strict JAX for every test: float64, no silent rank promotion, derandomised draws."""

import importlib
import os
import pkgutil

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=20, print_blob=True
)
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("default"), derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import ldjax, type-checked, before doctests import its files one by one."""
    del session
    import ldjax

    for module in pkgutil.walk_packages(ldjax.__path__, "ldjax."):
        importlib.import_module(module.name)
