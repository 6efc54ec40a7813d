"""Refuses models whose examples see each other: no kernel between examples exists.

Unlike a certificate this is found out by numbers, and so where they are: of the very
parameters and tokens of a kernel where they are known; inside of `jax.jit`, where they
are not, of drawn ones.

Why not by the program: docs/theory/certificate.md#mixing.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.linen import apply_module
from ldjax.ntk.layers.products import Embed
from ldjax.ntk.layers.proof.certificate import Traced
from ldjax.ntk.layers.taps import Example
from ldjax.precision import exact_products

# Two honest computations differ by rounding, an example that sees others by its own
# size: far above the former in any format, and below the latter. In 16 bits, where a
# number has but three digits, a percentage is all that can be asked for.
_UNITS, _LARGEST = 2000, 0.05


def refuse_mixing(
    model: Traced, module: nn.Module, params: Any, examples: Example
) -> None:
    """An error if an example's logits depend on the others of its batch.

    Args:
      model: The module on one example.
      module: The module that is run.
      params: The parameters of the module.
      examples: The stacked examples. Known numbers are used; of traced ones, drawn ones
        of their shapes, twice.

    Raises:
      ValueError: If an example's logits do.
    """
    examples = examples._replace(positions=None)
    if _is_known((params, examples)):
        if len(examples.tokens) > 1:
            _refuse(model, module, params, examples)
        return
    pair = jax.tree.map(_first_and_last, examples)
    for seed in range(2):
        drawn = _drawn_examples(pair, model, seed)
        arrays = ((x.shape, str(x.dtype), x.tobytes()) for x in jax.tree.leaves(drawn))
        key = (*_key(model, module), seed, *arrays)
        if key not in _passed:
            _refuse(model, module, _drawn_params(params, seed), drawn)
            _passed.add(key)


def _key(model: Traced, module: nn.Module) -> tuple[Any, ...]:
    """What tells one computation of a batch from another one.

    The program of one example does not tell everything of a batch.
    """
    try:
        hash(module)
    except TypeError:  # an attribute that cannot be hashed
        return model.text, id(module)
    return model.text, module


def _refuse(model: Traced, module: nn.Module, params: Any, examples: Example) -> None:
    difference, size = _compare(model, module, params, examples)
    if difference > min(_LARGEST, _UNITS * _coarsest(model)) * size:
        raise ValueError(
            f"An example's logits under {model.name} depend on the other "
            "examples of its batch, so no kernel between examples exists. Take "
            "out what mixes them (batch statistics, for one)."
        )


_passed: set[Any] = set()
_compiled: dict[Any, Callable[..., Any]] = {}


def _compare(
    model: Traced, module: nn.Module, params: Any, examples: Example
) -> tuple[float, float]:
    """Largest difference between logits in a batch and alone; and largest logit."""
    key = _key(model, module)
    if key not in _compiled:
        _compiled[key] = jax.jit(functools.partial(_difference, module))
    # Also while somebody's `jit` is being traced.
    with jax.ensure_compile_time_eval():
        difference, size = _compiled[key](params, examples)
        return float(difference), float(size)


@exact_products()
def _difference(
    module: nn.Module, params: Any, examples: Example
) -> tuple[Array, Array]:
    def logits(examples: Example) -> Array:
        return apply_module(module, {"params": params}, *examples)[0]

    together = logits(examples)
    alone = jax.lax.map(
        lambda example: logits(jax.tree.map(lambda x: x[None], example))[0], examples
    )
    same = (together == alone) | (jnp.isnan(together) & jnp.isnan(alone))
    size = jnp.where(jnp.isfinite(alone), jnp.abs(alone), 0)
    return jnp.where(same, 0, jnp.abs(together - alone)).max(), size.max()


def _coarsest(model: Traced) -> float:
    """The largest unit in the last place of the formats that the model computes in."""
    formats = {atom.aval.dtype for op in model.program.ops for atom in op.eqn.outvars}
    return max(
        float(jnp.finfo(one).eps)
        for one in formats
        if jnp.issubdtype(one, jnp.floating)
    )


def _is_known(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return not any(
        isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in leaves
    )


def _first_and_last(array: Any) -> Any:
    # What is known is picked by NumPy: inside `jit`, JAX would make it unknown.
    is_known = not isinstance(array, jax.core.Tracer)
    return (np.asarray(array) if is_known else array)[np.array([0, -1])]


def _drawn_params(params: Any, seed: int) -> Any:
    """Numbers of the right shapes at which nothing vanishes by accident."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            return np.zeros(shape, dtype)
        values = rng.standard_normal(shape, np.float32)
        if len(shape) < 2:
            return np.asarray(1 + 0.3 * values, dtype)
        return np.asarray(values / np.sqrt(np.prod(shape[:-1])), dtype)

    return jax.tree.map(draw, params)


def _drawn_examples(examples: Example, model: Traced, seed: int) -> Example:
    """Known arrays as they are; traced ones replaced by drawn ones of their shape."""
    rng = np.random.default_rng(seed)
    tables = [
        site.layer.num_rows for site in model.sites if isinstance(site.layer, Embed)
    ]
    num_ids = min(tables, default=2)  # all of them exist in any table

    def draw(array: Any) -> Any:
        if not isinstance(array, jax.core.Tracer):
            return np.asarray(array)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return np.asarray(rng.standard_normal(array.shape), array.dtype)
        if array.dtype == bool:  # a mask
            return np.ones(array.shape, bool)
        return np.asarray(rng.integers(num_ids, size=array.shape), array.dtype)

    return jax.tree.map(draw, examples)
