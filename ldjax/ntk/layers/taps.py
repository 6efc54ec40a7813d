r"""Taps: zero perturbations added to the outputs of a Linen module's layers.

With a tap `eps` on a layer `y = x W`, the derivative of the logits by `W` factorises
through the derivative by `eps`, which is small:

    dz/dW = sum_s  x[s] (outer) dz/deps[s]

so a kernel needs no gradient in the shape of a weight matrix.
The model's code is not touched: `nn.intercept_methods` adds the taps and sows the
inputs into a private collection. A lifted transform that does not pass that collection
on (`nn.scan`, `nn.vmap`) has no taps inside; its parameters are then ordinary ones.

Derived in docs/theory/kernel.md#layers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation.sequences import is_sequences
from ldjax.linen import LinenLogits, apply_module
from ldjax.ntk.layers.products import Embed, Layer, layer_of

_TAPS, _INPUTS = "ldjax_taps", "ldjax_inputs"

# Module path, method, and which of its calls.
CallKey = tuple[tuple[str, ...], str, int]


class Example(NamedTuple):
    """What a module reads of one example, or of several stacked.

    Attributes:
      tokens: The tokens (or images) of the example.
      positions: The positions whose logits are asked for; None for all.
      inputs: Further arguments of the module, by name.
    """

    tokens: Any
    positions: Any
    inputs: Mapping[str, Any]


def examples_of(logits_fn: LinenLogits) -> list[Example]:
    """The examples of each `Sequences` of a logits function, stacked.

    Raises:
      ValueError: If rows share their prompts: the layers are called once for those.
    """
    if any(
        sequences.prompts is not None
        for sequences in jax.tree.leaves(logits_fn.sequences, is_leaf=is_sequences)
    ):
        raise ValueError(
            "Kernels through the layers read whole texts: give each row its prompt, or "
            "choose another `method`, such as lazy."
        )
    return [
        Example(sequences.tokens, logits_fn.positions, logits_fn.inputs)
        for sequences in jax.tree.leaves(logits_fn.sequences, is_leaf=is_sequences)
    ]


class Site(NamedTuple):
    """A layer whose parameters are reached through taps: all its calls of one kind.

    Attributes:
      path: The path of the module, whose leaves are `(*path, name)`.
      layer: The product of rows that a call is.
      calls: The calls of the layer, in order.
      shapes: The shape and dtype of the outputs of each call.
      matrix_shape: The shape `groups, in, out` of its matrix.
    """

    path: tuple[str, ...]
    layer: Layer
    calls: tuple[CallKey, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    matrix_shape: tuple[int, int, int]

    @property
    def leaf_paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths of all its parameters."""
        return tuple((*self.path, name) for name in self.layer.leaves)

    def leaf(self, params: Any, name: str) -> Any:
        """The parameter of this name."""
        for key in (*self.path, name):
            params = params[key]
        return params

    def rows_in(self, inputs: Mapping[CallKey, Array]) -> Array:
        """The rows that its matrix is multiplied by, over all calls."""
        return jnp.concatenate([self.layer.rows_in(inputs[c]) for c in self.calls])

    def rows_out(self, taps: Mapping[CallKey, Array]) -> Array:
        """Its taps (or their cotangents) as rows `[pos, groups, out]`."""
        return jnp.concatenate([self.layer.rows_out(taps[c]) for c in self.calls])

    def to_taps(self, rows: Array) -> dict[CallKey, Array]:
        """The inverse of `rows_out`."""
        taps, start = {}, 0
        for call, shape in zip(self.calls, self.shapes, strict=True):
            stop = start + jax.eval_shape(self.layer.rows_out, shape).shape[0]
            taps[call] = self.layer.from_rows(rows[start:stop], shape.shape).astype(
                shape.dtype
            )
            start = stop
        return taps

    @property
    def num_rows(self) -> int:
        """The number of positions of all calls."""
        return sum(
            jax.eval_shape(self.layer.rows_out, shape).shape[0] for shape in self.shapes
        )

    def zero_taps(self) -> dict[CallKey, Array]:
        """Taps that change nothing."""
        return {
            call: jnp.zeros(shape.shape, shape.dtype)
            for call, shape in zip(self.calls, self.shapes, strict=True)
        }


def run(
    module: nn.Module, params: Any, taps: Mapping[CallKey, Array], example: Example
) -> tuple[Array, dict[CallKey, Array]]:
    """Logits `[pos, vocab]` of one example, with taps; and the layers' inputs."""
    variables = {"params": params, _TAPS: _nested(taps)}
    with nn.intercept_methods(_tap):
        logits, sown = apply_module(
            module, variables, *_batch_of_one(example), mutable=[_INPUTS]
        )
    return logits[0], _flat(sown.get(_INPUTS, {}))


def find_sites(module: nn.Module, params: Any, example: Example) -> tuple[Site, ...]:
    """The layers of a module that can be tapped, from shapes alone.

    Args:
      module: The module that is looked into.
      params: The parameters of the module, arrays or structs.
      example: One example, arrays or structs.
    """
    calls: dict[CallKey, tuple[Layer, Any]] = {}

    def listen(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        key = _call_key(context)
        outputs = _tap(call, args, kwargs, context)
        layer = args and layer_of(context.module, context.method_name, args[0])
        if layer and _is_recorded(context):
            calls[key] = (layer, jax.ShapeDtypeStruct(outputs.shape, outputs.dtype))
        return outputs

    def traced(params: Any, example: Example) -> dict[CallKey, Array]:
        with nn.intercept_methods(listen):
            _, sown = apply_module(
                module, {"params": params}, *_batch_of_one(example), mutable=[_INPUTS]
            )
        return _flat(sown.get(_INPUTS, {}))

    inputs = jax.eval_shape(traced, params, example)
    groups: dict[tuple[tuple[str, ...], str], list[CallKey]] = {}
    for path, method, index in calls:
        groups.setdefault((path, method), []).append((path, method, index))
    sites = (_site(calls, keys, inputs, params) for keys in groups.values())
    return tuple(site for site in sites if site is not None)


def _site(
    calls: Mapping[CallKey, tuple[Layer, Any]],
    keys: list[CallKey],
    inputs: Mapping[CallKey, Any],
    params: Any,
) -> Site | None:
    """The site of these calls; None where their rows do not match the leaf.

    That happens under a lifted transform that stacks parameters along an axis.
    """
    path, layer = keys[0][0], calls[keys[0]][0]
    try:
        layer_params = params
        for name in path:
            layer_params = layer_params[name]
        leaf = layer_params[layer.leaves[0]]
        # A subclass may claim a bias and have none.
        layer.leaves = tuple(name for name in layer.leaves if name in layer_params)
        matrix = jax.eval_shape(layer.kernel_rows, leaf).shape
        for key in keys:
            rows_in = jax.eval_shape(layer.rows_in, inputs[key]).shape
            rows_out = jax.eval_shape(layer.rows_out, calls[key][1]).shape
            is_product = rows_in[0] == rows_out[0] and (
                isinstance(layer, Embed) or rows_in[1:] == matrix[:2]
            )
            if not is_product or rows_out[1:] != (matrix[0], matrix[2]):
                return None
    except (KeyError, TypeError, ValueError):
        return None
    return Site(path, layer, tuple(keys), tuple(calls[k][1] for k in keys), matrix)


def _batch_of_one(example: Example) -> tuple[Any, Any, Mapping[str, Any]]:
    return jax.tree.map(lambda array: array[None], tuple(example))


def _call_key(context: Any) -> CallKey:
    scope, method = context.module.scope, context.method_name
    read = scope.get_variable(_INPUTS, method) if scope is not None else None
    return (context.module.path, method, len(read or ()))


def _is_recorded(context: Any) -> bool:
    return context.module.scope.is_mutable_collection(_INPUTS)


def _tap(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """The interceptor: records the input of a layer and adds the tap, if it has one."""
    layer = args and layer_of(context.module, context.method_name, args[0])
    if not layer:
        return call(*args, **kwargs)
    key = _call_key(context)
    outputs = call(*args, **kwargs)
    scope = context.module.scope
    if scope.is_mutable_collection(_INPUTS):
        context.module.sow(_INPUTS, context.method_name, args[0])
    name = _tap_name(key)
    if scope.has_variable(_TAPS, name):
        outputs = outputs + scope.get_variable(_TAPS, name)
    return outputs


def _tap_name(key: CallKey) -> str:
    return f"{key[1]}_{key[2]}"


def _nested(taps: Mapping[CallKey, Array]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, tap in taps.items():
        node = tree
        for name in key[0]:
            node = node.setdefault(name, {})
        node[_tap_name(key)] = tap
    return tree


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[CallKey, Array]:
    """Sown inputs by call."""
    flat = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            flat |= _flat(node, (*path, name))
        else:
            flat |= {(path, name, i): array for i, array in enumerate(node)}
    return flat
