"""Neural-tangents' structured derivatives, its third implementation, on an old JAX.

They need JAX <= 0.4.20, which ldjax does not run on: this script is run by a Python of
its own (`study --nt3-python`), and knows the networks of the cases that they
can do in plain JAX. In a fresh environment:
`pip install jax==0.4.20 jaxlib==0.4.20 neural-tangents==0.6.5 'numpy<2' 'scipy<1.13'
psutil`.
"""

# That JAX is absent where the types are checked.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.ntk.process import PeakResident, Process, serve

__all__ = ["NETWORKS", "StructuredDerivatives"]

_HERE = "experiments.benchmarks.ntk.nt3"

Params = dict[str, Any]


class StructuredDerivatives:
    """A kernel in the other process.

    Args:
      python: Its interpreter.
      network: A name of `NETWORKS`.
      params: Parameters by their path, as ours are.
      inputs: Of the probe side and of the update side.
    """

    def __init__(
        self,
        python: Path,
        network: str,
        params: dict[str, np.ndarray],
        inputs: tuple[np.ndarray, np.ndarray],
    ):
        self._process = Process(_HERE, python)
        question = (network, params, inputs)
        self.compile_seconds = self._process.ask(question)

    def first(self) -> tuple[np.ndarray, float, int]:
        """The kernel as a matrix, the seconds of a run, the highest resident bytes."""
        return self._process.ask("first")

    def seconds(self) -> float:
        """The seconds of one more run."""
        return self._process.ask("again")

    def close(self) -> None:
        """End the process."""
        self._process.close()


class Worker:
    """The other process: computes the kernel whenever it is asked to."""

    def __call__(self, question: Any) -> Any:
        """What `StructuredDerivatives` is told."""
        if isinstance(question, tuple):
            return self._compile(*question)
        with PeakResident() as resident:
            start = time.perf_counter()
            result = self._compiled(*self._arguments)
            result.block_until_ready()
            seconds = time.perf_counter() - start
        if question == "first":
            # [probe, update, outputs, outputs] -> [outputs, outputs] of the two sides
            num_probe, num_update, num_outputs, _ = result.shape
            shape = (num_probe * num_outputs, num_update * num_outputs)
            matrix = np.asarray(result).transpose(0, 2, 1, 3).reshape(shape)
            return matrix, seconds, resident.peak
        return seconds

    def _compile(self, network: str, params: Params, inputs: Any) -> float:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # it looks for a GPU, and says so
        import jax
        import jax.numpy as jnp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import neural_tangents as nt

        jax.config.update("jax_default_matmul_precision", "highest")
        kernel = nt.empirical_ntk_fn(
            NETWORKS[network],
            trace_axes=(),
            diagonal_axes=(),
            vmap_axes=0,
            implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        )
        probe, update = (jnp.asarray(x) for x in inputs)
        self._arguments = probe, update, jax.tree_map(jnp.asarray, params)
        start = time.perf_counter()
        self._compiled = jax.jit(kernel).lower(*self._arguments).compile()
        return time.perf_counter() - start


def fully_connected(params: Params, x: Any) -> Any:
    """Case A, and C after flattening."""
    import jax

    x = x.reshape(x.shape[0], -1)
    last = sum(name.endswith("kernel") for name in params) - 1
    for i in range(last):
        x = jax.nn.relu(_dense(params, f"Dense_{i}", x))
    return _dense(params, f"Dense_{last}", x)


def conv_net(params: Params, x: Any) -> Any:
    """Case B."""
    import jax

    for i in range(3):
        x = jax.nn.relu(_conv(params, f"Conv_{i}", x, "VALID"))
    return _dense(params, "Dense_0", x.reshape(x.shape[0], -1))


def lenet(params: Params, x: Any) -> Any:
    """LeNet."""
    import jax.numpy as jnp
    from jax import lax

    def pool(x: Any) -> Any:
        window = (1, 2, 2, 1)
        return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / 4

    x = pool(jnp.tanh(_conv(params, "Conv_0", x[..., None], "SAME")))
    x = pool(jnp.tanh(_conv(params, "Conv_1", x, "VALID")))
    x = jnp.tanh(_dense(params, "Dense_0", x.reshape(x.shape[0], -1)))
    return _dense(params, "Dense_2", jnp.tanh(_dense(params, "Dense_1", x)))


def _dense(params: Params, name: str, x: Any) -> Any:
    return x @ params[f"{name}.kernel"] + params[f"{name}.bias"]


def _conv(params: Params, name: str, x: Any, padding: str) -> Any:
    from jax import lax

    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    strides = (1, 1)
    x = lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=dimensions
    )
    return x + bias


NETWORKS = {
    "A": fully_connected,
    "B": conv_net,
    "C": fully_connected,
    "LeNet": lenet,
}


if __name__ == "__main__":
    serve(Worker())
