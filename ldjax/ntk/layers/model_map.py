"""What kernels that are made from a Linen model share: the model, and `K v`."""

import functools
from typing import Any

import jax

from ldjax import memory
from ldjax.equation.linear_map import LinearMap
from ldjax.equation.sequences import LogitsFn
from ldjax.equation.subset import Weights
from ldjax.ntk.layers.pairing import prove, require_linen
from ldjax.ntk.lazy import lazy_ntk


class ModelMap(LinearMap):
    """A kernel between two `LinenLogits` of one module.

    `mv` and `rmv` are a backward and a forward pass by the parameters, as in the lazy
    kernel.
    """

    def __init__(
        self,
        probe_fn: LogitsFn,
        update_fn: LogitsFn,
        params: Any,
        weights: Weights,
        memory_limit: memory.Bytes | None,
        *,
        method: str,
    ):
        require_linen(probe_fn, update_fn, method=method)
        # Checked just now, which a type checker cannot see.
        arguments: Any = probe_fn, update_fn, params, weights
        self._arguments = arguments
        self._memory_limit = memory_limit
        self.in_struct = jax.eval_shape(update_fn, params)
        self.out_struct = jax.eval_shape(probe_fn, params)
        self._proofs = prove(*arguments[:3])

    def mv(self, vector: Any) -> Any:
        """The image of `vector`."""
        return self._lazy.mv(vector)

    def rmv(self, covector: Any) -> Any:
        """The image of `covector` under the transpose."""
        return self._lazy.rmv(covector)

    @property
    def _transposed_arguments(self) -> tuple[Any, Any, Any, Any]:
        probe_fn, update_fn, params, weights = self._arguments
        return update_fn, probe_fn, params, weights

    @property
    def _limit(self) -> memory.Bytes:
        if self._memory_limit is None:
            return memory.default_limit()
        return self._memory_limit

    @functools.cached_property
    def _lazy(self) -> LinearMap:
        return lazy_ntk(*self._arguments)
