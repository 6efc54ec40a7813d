r"""Linear layers as matrix products: what a layer's parameters are multiplied by.

A call of a layer is `y = x W (+ b)` row by row, in `groups` independent products:

    rows_out[p, g] = rows_in[p, g] @ kernel[g] + bias[g]

with `p` over whatever positions the call has: those of a sentence, the pixels of an
image. For a convolution `rows_in` are unfolded patches. An embedding's rows are ids,
which stand for one-hot vectors. Only layers of the kinds below are known; what a
subclass or a wrapper does beyond this is found out by the certificate.

Why rows are enough: docs/theory/kernel.md#layers.
"""

import abc
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int


def layer_of(module: nn.Module, method: str, inputs: Any) -> "Layer | None":
    """How this call of a module is a matrix product; None if it is not known to be.

    Args:
      module: The module that is called.
      method: The name of its method.
      inputs: The first argument of the call, an array or its struct.

    Examples:
      >>> layer_of(nn.Dense(3), "__call__", jnp.ones((1, 2))).leaves
      ('kernel', 'bias')
      >>> layer_of(nn.LayerNorm(), "__call__", jnp.ones((1, 2))) is None
      True
    """
    if isinstance(module, nn.Embed) and method == "attend":
        return Attend()
    if method != "__call__" or not hasattr(inputs, "shape"):
        return None
    if isinstance(module, nn.Embed):
        is_plain = type(module).__call__ is nn.Embed.__call__
        return Embed(module.num_embeddings, is_plain)
    if isinstance(module, nn.Dense):
        return General(module.use_bias, num_contracted=1)
    if isinstance(module, nn.DenseGeneral):
        return _general(module, inputs.ndim)
    if isinstance(module, nn.Conv):
        return _conv(module, inputs.ndim)
    return None


class Layer(abc.ABC):
    """One call of a layer as a product of rows; see the module's text.

    Attributes:
      leaves: The names of the layer's parameters, the matrix first.

    Examples:
      >>> General(use_bias=False, num_contracted=1).rows_in(jnp.ones((1, 4, 3))).shape
      (4, 1, 3)
    """

    leaves: tuple[str, ...]

    @abc.abstractmethod
    def rows_in(self, inputs: Array) -> Array:
        """The inputs row by row, `[pos, groups, in]`; of an embedding ids, `[pos]`."""

    @abc.abstractmethod
    def rows_out(self, outputs: Array) -> Inexact[Array, "pos groups fan_out"]:
        """The outputs (or a cotangent of them) row by row."""

    def from_rows(
        self, rows: Inexact[Array, "pos groups fan_out"], shape: tuple[int, ...]
    ) -> Array:
        """The inverse of `rows_out`."""
        return rows.reshape(shape)

    @abc.abstractmethod
    def kernel_rows(self, leaf: Array) -> Inexact[Array, "groups fan_in fan_out"]:
        """The matrix (or a pytree leaf shaped like it) in the order of the rows."""

    def bias_rows(self, leaf: Array) -> Inexact[Array, "groups fan_out"]:
        """The bias (or a leaf shaped like it) in the order of the rows."""
        return leaf.reshape(1, -1)


class Embed(Layer):
    """Rows of a table, picked by id.

    Args:
      num_rows: The number of rows of the table.
      is_plain: Whether a call is Flax's own, which picks the row of every id by itself.
    """

    leaves = ("embedding",)

    def __init__(self, num_rows: int, is_plain: bool = True):
        self.num_rows, self.is_plain = num_rows, is_plain

    def rows_in(self, inputs: Int[Array, "..."]) -> Int[Array, " pos"]:
        """Ids from 0 up; negative ones count from the end of the table."""
        wide = jnp.promote_types(inputs.dtype, jnp.int32)
        return jnp.mod(inputs.reshape(-1).astype(wide), self.num_rows)

    def rows_out(self, outputs: Array) -> Inexact[Array, "pos groups fan_out"]:
        """The outputs as one group of rows."""
        return outputs.reshape(-1, 1, outputs.shape[-1])

    def kernel_rows(self, leaf: Array) -> Inexact[Array, "groups fan_in fan_out"]:
        """The table as one group."""
        return leaf[None]


class Attend(Layer):
    """A product with the transposed table of an embedding."""

    leaves = ("embedding",)

    def rows_in(self, inputs: Array) -> Float[Array, "pos groups fan_in"]:
        """The inputs as one group of rows."""
        return inputs.reshape(-1, 1, inputs.shape[-1])

    def rows_out(self, outputs: Array) -> Inexact[Array, "pos groups fan_out"]:
        """The outputs as one group of rows."""
        return outputs.reshape(-1, 1, outputs.shape[-1])

    def kernel_rows(self, leaf: Array) -> Inexact[Array, "groups fan_in fan_out"]:
        """The transposed table as one group."""
        return leaf.T[None]


class General(Layer):
    """`Dense`, or a `DenseGeneral` over its last axes, perhaps with batch axes first.

    Args:
      use_bias: Whether there is a bias.
      num_contracted: The number of last axes that are contracted.
      num_features: The number of axes that the product adds.
      num_batch: The number of first axes that have matrices of their own.
    """

    def __init__(
        self,
        use_bias: bool,
        num_contracted: int,
        num_features: int = 1,
        num_batch: int = 0,
    ):
        self.leaves = ("kernel", "bias") if use_bias else ("kernel",)
        self._num_contracted, self._num_features = num_contracted, num_features
        self._num_batch = num_batch

    def rows_in(self, inputs: Array) -> Float[Array, "pos groups fan_in"]:
        """The inputs with contracted axes as one, batch axes as groups."""
        return self._rows(inputs, self._num_contracted)

    def rows_out(self, outputs: Array) -> Inexact[Array, "pos groups fan_out"]:
        """The outputs with feature axes as one, batch axes as groups."""
        return self._rows(outputs, self._num_features)

    def from_rows(
        self, rows: Inexact[Array, "pos groups fan_out"], shape: tuple[int, ...]
    ) -> Array:
        """The outputs whose rows these are, groups first again."""
        return jnp.moveaxis(rows, 1, 0).reshape(shape)

    def kernel_rows(self, leaf: Array) -> Inexact[Array, "groups fan_in fan_out"]:
        """The matrix with batch, contracted and feature axes as one each."""
        groups = math.prod(leaf.shape[: self._num_batch])
        features = math.prod(leaf.shape[leaf.ndim - self._num_features :])
        return leaf.reshape(groups, -1, features)

    def bias_rows(self, leaf: Array) -> Inexact[Array, "groups fan_out"]:
        """The bias with batch and feature axes as one each."""
        return leaf.reshape(math.prod(leaf.shape[: self._num_batch]), -1)

    def _rows(self, array: Array, num_last: int) -> Array:
        groups = math.prod(array.shape[: self._num_batch])
        last = math.prod(array.shape[array.ndim - num_last :])
        return jnp.moveaxis(array.reshape(groups, -1, last), 0, 1)


def _general(module: nn.DenseGeneral, ndim: int) -> Layer | None:
    axes = _as_tuple(module.axis)
    features, batch = _as_tuple(module.features), _as_tuple(module.batch_dims)
    last = tuple(range(ndim - len(axes), ndim))
    first = tuple(range(len(batch)))
    if tuple(axis % ndim for axis in axes) != last or batch != first:
        return None  # its outputs' axes are in another order
    return General(module.use_bias, len(axes), len(features), len(batch))


class Conv(Layer):
    """A convolution as the product of patches with the filters.

    Args:
      use_bias: Whether there is a bias.
      window: The size of the filter along each spatial axis.
      strides: The stride along each spatial axis.
      padding: `"SAME"`, `"VALID"`, or pairs (low, high) of zeros.
      input_dilation: The dilation of the inputs along each spatial axis.
      kernel_dilation: The dilation of the filter along each spatial axis.
      groups: The number of groups of features.
    """

    def __init__(
        self,
        use_bias: bool,
        *,
        window: tuple[int, ...],
        strides: tuple[int, ...],
        padding: Any,
        input_dilation: tuple[int, ...],
        kernel_dilation: tuple[int, ...],
        groups: int,
    ):
        self.leaves = ("kernel", "bias") if use_bias else ("kernel",)
        self._window, self._strides, self._padding = window, strides, padding
        self._dilation, self._input_dilation = kernel_dilation, input_dilation
        self._groups = groups

    def rows_in(self, inputs: Array) -> Float[Array, "pos groups fan_in"]:
        """Patches; a patch is ordered as a filter is: spatial axes, then channels."""
        channels = inputs.shape[-1]
        spatial = inputs.shape[-1 - len(self._window) : -1]
        images = inputs.reshape(-1, *spatial, channels)
        images = self._padded(images)
        extent = [
            (w - 1) * d for w, d in zip(self._window, self._dilation, strict=True)
        ]
        patches = []
        for offset in itertools.product(*map(range, self._window)):
            start = [o * d for o, d in zip(offset, self._dilation, strict=True)]
            stop = [
                size - reach + begin
                for size, reach, begin in zip(
                    images.shape[1:-1], extent, start, strict=True
                )
            ]
            patches.append(
                jax.lax.slice(
                    images,
                    (0, *start, 0),
                    (images.shape[0], *stop, channels),
                    (1, *self._strides, 1),
                )
            )
        stacked = jnp.stack(patches, axis=-2)  # [batch, *spatial, window, channels]
        in_group = channels // self._groups
        split = stacked.reshape(-1, len(patches), self._groups, in_group)
        return jnp.moveaxis(split, 2, 1).reshape(
            -1, self._groups, len(patches) * in_group
        )

    def _padded(self, images: Array) -> Array:
        dilated = [
            (size - 1) * d + 1
            for size, d in zip(images.shape[1:-1], self._input_dilation, strict=True)
        ]
        padding = self._padding
        if isinstance(padding, str):
            reach = [
                (w - 1) * d + 1
                for w, d in zip(self._window, self._dilation, strict=True)
            ]
            padding = jax.lax.padtype_to_pads(dilated, reach, self._strides, padding)
        interior = [
            (low, high, d - 1)
            for (low, high), d in zip(padding, self._input_dilation, strict=True)
        ]
        return jax.lax.pad(
            images, jnp.zeros((), images.dtype), [(0, 0, 0), *interior, (0, 0, 0)]
        )

    def rows_out(self, outputs: Array) -> Inexact[Array, "pos groups fan_out"]:
        """The output channels in groups."""
        return outputs.reshape(-1, self._groups, outputs.shape[-1] // self._groups)

    def kernel_rows(self, leaf: Array) -> Inexact[Array, "groups fan_in fan_out"]:
        """The filters `[*window, in, groups * out]` by group."""
        by_group = leaf.reshape(*leaf.shape[:-1], self._groups, -1)
        first = jnp.moveaxis(by_group, -2, 0)
        return first.reshape(self._groups, -1, first.shape[-1])

    def bias_rows(self, leaf: Array) -> Inexact[Array, "groups fan_out"]:
        """The bias by group."""
        return leaf.reshape(self._groups, -1)


def _conv(module: nn.Conv, ndim: int) -> Layer | None:
    window = _as_tuple(module.kernel_size)
    num_axes = len(window)
    padding = module.padding
    if isinstance(padding, int):
        padding = ((padding, padding),) * num_axes
    elif not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
        padding = padding * (num_axes if len(padding) == 1 else 1)
    elif padding not in ("SAME", "VALID"):
        return None  # wraps, reflects or pads on one side: by the plain path
    if ndim < num_axes + 1:
        return None

    def along(value: Any) -> tuple[int, ...]:
        value = 1 if value is None else value
        return (value,) * num_axes if isinstance(value, int) else tuple(value)

    return Conv(
        module.use_bias,
        window=window,
        strides=along(module.strides),
        padding=padding,
        input_dilation=along(module.input_dilation),
        kernel_dilation=along(module.kernel_dilation),
        groups=module.feature_group_count,
    )


def _as_tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
