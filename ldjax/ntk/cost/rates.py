"""How fast this machine is, measured once, in a few milliseconds for each rate."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.ntk.cost.estimate import Cost, estimate
from ldjax.precision import exact_products

__all__ = ["Rates", "machine_rates"]

_REPEATS = 4
# Of a kernel that is shared out among threads, or sent to an accelerator.
_START_SECONDS = 5e-6


class Rates(NamedTuple):
    """Work done in a second.

    Attributes:
      product: FLOPs of matrix products.
      convolution: FLOPs of convolutions.
      naive: FLOPs of convolutions that have no fast kernel.
      bandwidth: Bytes read and written in memory that is in use already.
      fresh: Bytes of memory taken into use.

    Examples:
      >>> Rates(1e11, 1e10, 1e9, 1e10, 4e9).seconds(Cost(2 * 10**11, *6 * (0,)))
      2.0
    """

    product: float
    convolution: float
    naive: float
    bandwidth: float
    fresh: float

    def seconds(self, cost: Cost) -> float:
        """How long a computation takes, its parts one after the other.

        Args:
          cost: From `estimate`.

        Examples:
          >>> rates = Rates(1e11, 1e10, 1e9, 1e10, 4e9)
          >>> rates.seconds(estimate(jnp.sum, jnp.zeros(5))) > 0
          True
        """
        return (
            (cost.flops - cost.convolution_flops) / self.product
            + (cost.convolution_flops - cost.naive_flops) / self.convolution
            + cost.naive_flops / self.naive
            + cost.traffic_bytes / self.bandwidth
            + cost.peak_bytes / self.fresh
            + cost.kernels * _START_SECONDS
        )


def machine_rates(dtype: Any = np.float32) -> Rates:
    """Measured rates of the default device, remembered while the process lives.

    May be called while a function is traced.

    Args:
      dtype: What is computed with.

    Examples:
      >>> machine_rates() is machine_rates()
      True
    """
    return _measure(jax.local_devices()[0], np.dtype(dtype))


@functools.cache
def _measure(device: Any, dtype: np.dtype) -> Rates:
    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype)

    with (
        jax.ensure_compile_time_eval(),
        jax.default_device(device),
        exact_products(),
    ):
        product = _rate("flops", jnp.matmul, ones(512, 512), ones(512, 512))
        filters = ones(3, 3, 16, 16)
        convolution = _rate("flops", _convolve, ones(8, 16, 16, 16), filters)
        naive = _rate("flops", _convolve_in_loop, ones(2, 16, 16, 16, 4), filters)
        bandwidth = _rate("traffic_bytes", _overwrite(16), ones(2**20))
        large = ones(2**23)
        # A result that was never written before, at the cost of its first writing.
        slowness = 1 / _rate("peak_bytes", jnp.negative, large) - 2 / bandwidth
    fresh = min(1 / slowness, 10 * bandwidth) if slowness > 0 else 10 * bandwidth
    return Rates(product, convolution, naive, bandwidth, fresh)


def _rate(field: str, fn: Callable[..., Array], *args: np.ndarray) -> float:
    """What a function asks for, in a second of its fastest run."""
    compiled = jax.jit(fn).lower(*args).compile()
    arrays = [jnp.asarray(arg) for arg in args]
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        compiled(*arrays).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return getattr(estimate(fn, *args), field) / min(seconds)


def _convolve(images: Array, filters: Array, order: str = "NHWC") -> Array:
    layouts = (order, "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, filters, (1, 1), "VALID", dimension_numbers=layouts
    )


def _convolve_in_loop(images: Array, filters: Array) -> Array:
    """With axes in an order that only the slow kernel takes there."""
    return jax.lax.map(lambda x: _convolve(x, filters, "HWCN"), images)


def _overwrite(times: int) -> Callable[[Array], Array]:
    return lambda x: jax.lax.fori_loop(0, times, lambda _, x: 0.5 * x + 1, x)
