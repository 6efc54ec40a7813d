"""What the notebooks share: a look at the machine they run on, and at figures."""

import importlib.metadata
import platform
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from IPython.display import Image, display

from ldjax import linen
from ldjax.equation.sequences import Sequences
from ldjax.ntk.empirical import empirical_ntk
from ldjax.ntk.plan import METHODS

__all__ = ["describe", "kernel_methods", "show"]

_PACKAGES = ("ldjax", "jax", "flax", "neural-tangents")
_WIDTH = 900  # pixels; the files are larger, to be sharp on any screen


def describe() -> str:
    """Versions, devices, and the ways to a kernel that this JAX supports."""
    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    devices = jax.devices()
    problems = kernel_methods()
    usable = [name for name, problem in problems.items() if not problem]
    lines = [
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"{devices[0].platform.upper()}: {len(devices)} x {devices[0].device_kind}",
        f"kernel methods: {', '.join(usable)}",
    ]
    lines += [f"not here: {name} ({why})" for name, why in problems.items() if why]
    return "\n".join(lines)


def kernel_methods() -> dict[str, str]:
    """Every method of `ldjax.empirical_ntk`, and why it cannot be used here, if so.

    Each is traced for a tiny model, which needs all of JAX that it is built on.
    """
    module = nn.Dense(2)
    zeros = jnp.zeros((1, 1), jnp.int32)
    inputs = Sequences(jnp.ones((1, 1, 3)), zeros, jnp.ones((1, 1), bool))
    params = module.init(jax.random.key(0), inputs.tokens)["params"]
    fn = linen.logits_fn(module, inputs)

    def problem(method: str) -> str:
        def entries(at: object) -> jax.Array:
            return empirical_ntk(fn, fn, at, method=method).dense()

        try:
            jax.eval_shape(entries, params)
        except Exception as error:  # whatever a future JAX may raise
            return str(error).partition(", so")[0].splitlines()[0]
        return ""

    return {method: problem(method) for method in METHODS}


def show(path: Path) -> None:
    """A figure of a run, below the cell."""
    display(Image(filename=str(path), width=_WIDTH))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
