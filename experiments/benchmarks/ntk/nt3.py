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
from typing import Any

import numpy as np

from experiments.benchmarks.ntk.process import Timed, serve_kernel

__all__ = ["NETWORKS", "prepare"]

Params = dict[str, Any]


def prepare(network: str, params: Params, inputs: Any) -> tuple[Timed, float]:
    """The kernel of a network as a matrix, and the seconds of its compilation.

    Args:
      network: A name of `NETWORKS`.
      params: Parameters by their path, as ours are.
      inputs: Of the probe side and of the update side.
    """
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
    arguments = probe, update, jax.tree_map(jnp.asarray, params)
    start = time.perf_counter()
    compiled = jax.jit(kernel).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Timed(lambda: compiled(*arguments).block_until_ready(), _as_matrix), seconds


def _as_matrix(blocks: Any) -> np.ndarray:
    """`[probe, update, outputs, outputs]` as `[outputs, outputs]` of the two sides."""
    num_probe, num_update, num_outputs, _ = blocks.shape
    shape = (num_probe * num_outputs, num_update * num_outputs)
    return np.asarray(blocks).transpose(0, 2, 1, 3).reshape(shape)


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
    serve_kernel(prepare)
