"""The two sides of a kernel of Linen logits, their layers in step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldjax.equation.subset import Weights, leaf_paths
from ldjax.linen import LinenLogits
from ldjax.ntk.layers.proof.certificate import Certified, HeadLayer, certify, trace
from ldjax.ntk.layers.proof.mixing import refuse_mixing
from ldjax.ntk.layers.side import Side, TappedLayer
from ldjax.ntk.layers.taps import CallKey, Example, Site, examples_of


def require_linen(probe_fn: Any, update_fn: Any, *, method: str) -> None:
    """Refuses functions whose module is not known, or not the same."""
    for name, fn in (("probe_fn", probe_fn), ("update_fn", update_fn)):
        if not isinstance(fn, LinenLogits):
            raise TypeError(
                f'`method="{method}"` looks into a Linen module, so `{name}` must come '
                f"from `ldjax.linen.logits_fn`, got {type(fn).__name__}. For any other "
                'function there are "lazy", "jacobian" and "ntk_vp".'
            )
    if probe_fn.module != update_fn.module:
        raise ValueError(
            "`probe_fn` and `update_fn` must run the same module, got "
            f"{type(probe_fn.module).__name__} and {type(update_fn.module).__name__} "
            "(or other attributes)."
        )


# For each `Sequences` of the probe, and of the update.
Proofs = tuple[list[Certified], list[Certified]]


def prove(probe_fn: LinenLogits, update_fn: LinenLogits, params: Any) -> Proofs:
    """The certificates of both sides of a kernel.

    Args:
      probe_fn: Logits of the watched examples.
      update_fn: Logits of the trained examples.
      params: The parameters.

    Raises:
      ValueError: If an example's logits depend on the others of its batch.
    """
    module, models = probe_fn.module, {}

    def of_part(part: Example) -> Certified:
        first = jax.tree.map(_one_of, part)
        leaves, treedef = jax.tree.flatten(first)
        key = treedef, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in models:  # most parts are alike
            models[key] = trace(module, params, first)
        refuse_mixing(models[key], module, params, part)
        return certify(models[key])

    probe, update = (
        [of_part(part) for part in examples_of(fn)] for fn in (probe_fn, update_fn)
    )
    return probe, update


def _one_of(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(array)[1:], jnp.result_type(array))


def make_sides(
    probe_fn: LinenLogits,
    update_fn: LinenLogits,
    params: Any,
    weights: Weights,
    *,
    proofs: Proofs,
    head: HeadLayer | None = None,
) -> tuple[list[Side], list[Side]]:
    """Both sides of a kernel, one `Side` for each `Sequences`.

    Args:
      probe_fn: Logits of the watched examples.
      update_fn: Logits of the trained examples.
      params: The parameters.
      weights: The part of the parameters that takes part, and its preconditioner.
      proofs: The certificates of both sides, from `prove`.
      head: The layer whose inputs are the outputs, instead of the logits, and whose own
        parameters are left out; None for the logits. What flows through the embedded
        tokens stays, of an embedding that is tied to it too.
    """
    every = [certified for side in proofs for certified in side]
    indices = {path: i for i, path in enumerate(leaf_paths(params))}
    tied = {(*head.path, "embedding")} if head and head.is_attend else set()
    usable = frozenset.intersection(*(c.leaves | (c.shared & tied) for c in every))
    served = frozenset.intersection(*(_names(c, head) for c in every))
    usable &= frozenset((*path, leaf) for path, _, leaves in served for leaf in leaves)
    own = {path for path in indices if head and path[:-1] == head.path}
    plain = tuple(
        i
        for path, i in indices.items()
        if weights.chosen[i] and path not in usable | own
    )

    def weight(site: Site, leaf: str) -> Array | bool:
        path = (*site.path, leaf)
        if path not in usable or leaf not in site.layer.leaves:
            return False
        factor = weights.of(indices[path])
        if isinstance(factor, bool):
            return factor
        layer = site.layer
        return layer.bias_rows(factor) if leaf == "bias" else layer.kernel_rows(factor)

    def side(part: Example, certified: Certified) -> Side:
        layers = (
            TappedLayer(site, weight(site, site.layer.leaves[0]), weight(site, "bias"))
            for site in certified.sites
            if _name(site) in served
        )
        return Side(
            probe_fn.module,
            params,
            part,
            tuple(
                layer
                for layer in layers
                if layer.kernel is not False or layer.bias is not False
            ),
            plain,
            tuple(weights.of(i) for i in plain),
            _logits if head is None else functools.partial(_hidden, certified, head),
        )

    probe, update = (
        [side(*both) for both in zip(examples_of(fn), proof, strict=True)]
        for fn, proof in zip((probe_fn, update_fn), proofs, strict=True)
    )
    return probe, update


def _name(site: Site) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    return site.path, type(site.layer).__name__, site.layer.leaves


def _names(certified: Certified, head: HeadLayer | None) -> frozenset[Any]:
    return frozenset(
        _name(site) for site in certified.sites if head is None or not head.is_of(site)
    )


def _logits(logits: Array, inputs: dict[CallKey, Array], example: Example) -> Array:
    del inputs, example
    return logits


def _hidden(
    certified: Certified,
    head: HeadLayer,
    logits: Array,
    inputs: dict[CallKey, Array],
    example: Example,
) -> Array:
    """What the head reads, `[pos, width]`, at the positions of the logits."""
    del logits
    (site,) = filter(head.is_of, certified.sites)
    hidden = site.rows_in(inputs)[:, 0]
    if example.positions is not None:
        hidden = jnp.take(hidden, example.positions, axis=0)
    return hidden
