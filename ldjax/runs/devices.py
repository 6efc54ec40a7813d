"""Several devices: the rows of a batch over all of them, the parameters on each.

Everything here treats the examples of a batch alike and independently, so a step, an
observation or a kernel needs no code of its own for several devices: XLA divides the
work of a compiled function as its *arguments* lie. Rows (of the update, of the probes)
are divided over the mesh axis `data`; parameters and optimizer state are on every
device, and XLA adds up the gradients.

Pass what is divided as an argument. Arrays that a compiled function closes over are
constants of its program: every device gets them whole and computes all rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

__all__ = ["data_mesh", "fill_up", "laid_out", "layout_of", "replicate", "shard"]

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Devices in a row, with the one axis `data`.

    Args:
      devices: Which; by default all that JAX sees.

    Examples:
      >>> data_mesh().axis_names
      ('data',)
    """
    devices = jax.devices() if devices is None else list(devices)
    # `Explicit`, the default of newer JAX, would ask of every operation inside a model
    # how its result lies; with `Auto` XLA finds out.
    return jax.make_mesh(
        (len(devices),), (_AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def shard(tree: Any, mesh: Mesh) -> Any:
    """The rows of every leaf divided over the devices.

    Args:
      tree: Pytree of arrays `[row, ...]`, such as `Sequences` or a dict of them.
      mesh: The mesh of devices (`data_mesh`).

    Returns:
      The same numbers; row `i` of `n` is on device `i * devices // n`.

    Raises:
      ValueError: If the number of rows is not a multiple of the number of devices.

    Examples:
      >>> shard({"x": jnp.zeros((8, 3))}, data_mesh(jax.devices()[:1]))["x"].shape
      (8, 3)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = jnp.shape(leaf)
        if not shape or shape[0] % mesh.size:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name or 'An array'} of shape {shape} cannot be divided by rows over "
                f"{mesh.size} devices: their number must be a multiple of "
                f"{mesh.size}. Choose such a batch size for what is trained on (or "
                "`replicate` it: every device then computes all of it); probes can be "
                "brought to it by `fill_up`."
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(_AXIS)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf whole on every device: for parameters and optimizer state.

    Args:
      tree: Pytree of arrays.
      mesh: The mesh of devices (`data_mesh`).

    Returns:
      The same numbers.

    Examples:
      >>> mesh = data_mesh(jax.devices()[:1])
      >>> replicate(jnp.ones(2), mesh).is_fully_replicated
      True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def fill_up(probe: Any, mesh: Mesh) -> Any:
    """Probes with rows that score nothing, up to a multiple of the devices.

    Not for a batch that is trained on, whose loss is a mean over its rows.

    Args:
      probe: `Sequences`, or a pytree of them.
      mesh: The mesh of devices (`data_mesh`).

    Returns:
      The probes, then rows of zeros, masked everywhere; whatever is measured on them
      is to be cut off.

    Examples:
      >>> from ldjax import Sequences
      >>> ids, mask = jnp.ones((3, 5), int), jnp.ones((3, 5), bool)
      >>> fill_up(Sequences(ids, ids, mask), data_mesh()).mask.sum()
      Array(15, dtype=...)
    """

    def filled(leaf: Array) -> Array:
        missing = -len(leaf) % mesh.size
        zeros = jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, zeros]) if missing else leaf

    return jax.tree.map(filled, probe)


def layout_of(array: Any) -> dict[str, Any] | None:
    """How an array lies on a mesh of devices, as JSON has it; None where it has none.

    Args:
      array: A JAX array, or one of the host.

    Raises:
      TypeError: If it lies on several devices by another sharding than a
        `NamedSharding`.

    Examples:
      >>> layout_of(jnp.ones(2)) is None
      True
      >>> mesh = data_mesh(jax.devices()[:1])
      >>> layout = layout_of(shard(jnp.ones(2), mesh))
      >>> tuple(laid_out(jnp.ones(2), layout).sharding.spec)
      ('data',)
    """
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        if sharding is None or len(sharding.device_set) == 1:
            return None
        raise TypeError(
            f"An array lies on {len(sharding.device_set)} devices by a "
            f"{type(sharding).__name__}. Only a `jax.sharding.NamedSharding` can be "
            "kept: `device_put` it by one."
        )
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)  # there is an array on it
    return {
        "axes": dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)),
        "axis_types": [kind.name for kind in mesh.axis_types],
        "devices": [device.id for device in mesh.devices.flat],
        "spec": [*sharding.spec],
    }


def laid_out(array: Any, layout: Mapping[str, Any]) -> Array:
    """An array where another one lay.

    Args:
      array: Any array.
      layout: From `layout_of`, perhaps by way of JSON.

    Raises:
      ValueError: If there are not those devices.
    """
    here = {device.id: device for device in jax.devices()}
    if missing := [i for i in layout["devices"] if i not in here]:
        raise ValueError(
            f"of the devices {layout['devices']} that it lay on {missing} are not here"
        )
    axes = layout["axes"]
    devices = np.array([here[i] for i in layout["devices"]]).reshape(*axes.values())
    types = tuple(AxisType[name] for name in layout["axis_types"])
    spec = [tuple(of) if isinstance(of, list) else of for of in layout["spec"]]
    mesh = Mesh(devices, tuple(axes), axis_types=types)
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
