r"""Proof, for a given model, that taps account for its parameters.

The factorisation of `_taps.py` holds for a plain layer. Whether it holds for *this*
model (a wrapper may rewrite the matrix, a subclass may do more, a parameter may be
read elsewhere) is found out once per model and shapes, on drawn parameters: for a
random cotangent, `sum_s x[s] (outer) g[s]` must equal the gradient that autodiff gives,
leaf by leaf, to rounding. A leaf that fails is differentiated plainly and named in a
warning.
"""

import functools
import warnings
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ldjax._spaces import struct_of
from ldjax.linen import apply_module
from ldjax.ntk.linen._layers import Attend, Embed
from ldjax.ntk.linen._side import Side, TappedLayer
from ldjax.ntk.linen._taps import Example, Site, find_sites

Path = tuple[str, ...]

# Two honest computations of a gradient differ by rounding; a layer that does something
# else differs by its own size. Relative to the sum of the terms' sizes, 2000 units in
# the last place are far above the former and, at drawn parameters, below the latter.
_UNITS = 2000


class Head(NamedTuple):
    """The last layer, of which the logits are a multiple.

    Attributes:
      path: Of the layer.
      is_attend: Whether it is a transposed embedding.
      scale: Logits over the layer's outputs.
    """

    path: Path
    is_attend: bool
    scale: float

    def is_of(self, site: Site) -> bool:
        """Whether a site is this layer."""
        return (site.path, isinstance(site.layer, Attend)) == self[:2]


class Certified(NamedTuple):
    """What the taps of a model account for.

    Attributes:
      sites: All sites found.
      leaves: Paths of the leaves that exactly one site accounts for.
      shared: Paths of the embeddings that their two uses account for together (a tied
        head).
      head: The head; or, in words, why there is none.
    """

    sites: tuple[Site, ...]
    leaves: frozenset[Path]
    shared: frozenset[Path]
    head: Head | str


def certify(module: nn.Module, params: Any, examples: Example) -> Certified:
    """The certificate of a model on examples of these shapes, made once.

    Args:
      module: The model.
      params: Its parameters; only shapes and dtypes matter.
      examples: Stacked. Tokens that are known are used, tokens that are being traced
        are drawn.

    Raises:
      ValueError: If an example's logits depend on the others of its batch.

    Warns:
      UserWarning: Once, with the names of leaves that look tappable and are not.
    """
    # Two examples, whatever the batch: one certificate for both sides of a kernel.
    pair = jax.tree.map(_first_and_last, examples)
    structs = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), (params, pair))
    shapes, treedef = jax.tree.flatten(structs)
    key = (module, tuple(shapes), treedef)
    try:
        if key in _certificates:
            return _certificates[key]
    except TypeError:  # a module with an unhashable attribute
        key = None
    certified = _certify(module, params, _drawn_examples(pair))
    if key is not None:
        _certificates[key] = certified
    return certified


_certificates: dict[Any, Certified] = {}
_named: set[tuple[Any, ...]] = set()


class _Numbers(NamedTuple):
    """What a model computes of one example at drawn parameters.

    Attributes:
      logits: `[pos, vocab]`.
      in_batch: The same, of the example in a batch of two.
      cotangent: Of the logits.
      gradients: Its gradient by all parameters.
      rows: And by each site's taps.
      inputs: Each site's `rows_in`.
      params: The parameters.
    """

    logits: Any
    in_batch: Any
    cotangent: Any
    gradients: Any
    rows: tuple[Any, ...]
    inputs: tuple[Any, ...]
    params: Any


def _certify(module: nn.Module, params: Any, pair: Example) -> Certified:
    first = jax.tree.map(lambda array: array[0], pair)
    sites = find_sites(module, params, first)
    # Compiled ahead and given concrete arrays, so that it runs also while somebody's
    # `jit` is being traced.
    arguments = struct_of((params, pair))
    compute = (
        jax.jit(functools.partial(_compute, module, sites)).lower(*arguments).compile()
    )
    draws = [
        jax.tree.map(np.asarray, compute(_drawn_params(params, seed), pair))
        for seed in range(2)
    ]
    if _error(draws[0].in_batch, draws[0].logits) > _UNITS:
        raise ValueError(
            f"An example's logits under {type(module).__name__} depend on the other "
            "examples of its batch, so no kernel between examples exists. Take out "
            "what mixes them (batch statistics, for one)."
        )
    by_leaf: dict[Path, list[int]] = {}
    for i, site in enumerate(sites):
        for name in site.layer.leaves:
            by_leaf.setdefault((*site.path, name), []).append(i)
    with jax.ensure_compile_time_eval():  # for `kernel_rows`
        holds = {p: _holds(sites, p, users, draws[0]) for p, users in by_leaf.items()}
    failed = sorted("/".join(path) for path, held in holds.items() if not held)
    if failed and (type(module), *failed) not in _named:
        _named.add((type(module), *failed))
        warnings.warn(
            f"{type(module).__name__}: {', '.join(failed)} of a layer that looks "
            "linear does not act as its matrix (or bias) alone; differentiated "
            "plainly: exact, only slower.",
            stacklevel=2,
        )
    certified = [path for path in by_leaf if holds[path]]
    with jax.ensure_compile_time_eval():
        head = _head(module, sites, frozenset(certified), first, draws)
    return Certified(
        sites,
        frozenset(path for path in certified if len(by_leaf[path]) == 1),
        frozenset(path for path in certified if len(by_leaf[path]) > 1),
        head,
    )


def _compute(
    module: nn.Module, sites: tuple[Site, ...], params: Any, pair: Example
) -> _Numbers:
    side = Side(
        module,
        params,
        pair,
        tuple(TappedLayer(site, True, True) for site in sites),
        tuple(range(len(jax.tree.leaves(params)))),
        (),
        lambda logits, inputs, example: logits,
    )
    logits, pull, inputs = side.vjp(side.first)
    cotangent = jnp.asarray(
        np.random.default_rng(0).standard_normal(logits.shape), logits.dtype
    )
    signal = pull(cotangent)
    gradients = jax.tree.structure(params).unflatten(signal.plain)
    with jax.default_matmul_precision("highest"):
        in_batch = apply_module(module, {"params": params}, *pair)[0][0]
    return _Numbers(logits, in_batch, cotangent, gradients, signal.rows, inputs, params)


def _error(found: Any, expected: Any, size: float = 0.0) -> float:
    """The difference, in units in the last place of the largest number."""
    unit = jnp.finfo(expected.dtype).eps * max(size, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max())
    return difference / float(max(unit, jnp.finfo(expected.dtype).tiny))


def _holds(
    sites: tuple[Site, ...], path: Path, users: list[int], draw: _Numbers
) -> bool:
    """Whether the sites' outer products make up the gradient of a leaf."""
    pieces = [
        _leaf_terms(sites[i], path[-1], draw.inputs[i], draw.rows[i]) for i in users
    ]
    site = sites[users[0]]
    gradient = site.leaf(draw.gradients, path[-1])
    if not isinstance(site.layer, Attend | Embed):
        is_bias = path[-1] == "bias"
        rows = site.layer.bias_rows if is_bias else site.layer.kernel_rows
        gradient = np.asarray(rows(jnp.asarray(gradient)))
    size = float(sum(size for _, size in pieces))
    return _error(sum(piece for piece, _ in pieces), gradient, size) <= _UNITS


def _leaf_terms(site: Site, name: str, rows_in: Any, rows: Any) -> tuple[Any, Any]:
    """What a site says the gradient is, and the size of the terms it is summed from."""
    if isinstance(site.layer, Embed):
        table = np.zeros((site.matrix_shape[1], rows.shape[-1]), rows.dtype)
        np.add.at(table, rows_in, rows[:, 0])
        return table, np.abs(rows).sum(0).max()
    if name == "bias":
        return rows.sum(0), np.abs(rows).sum(0).max()
    gradient = np.einsum("sgi,sgo->gio", rows_in, rows, optimize=True)
    size = (np.abs(rows_in).max((1, 2)) * np.abs(rows).max((1, 2))).sum()
    return (gradient[0].T if isinstance(site.layer, Attend) else gradient), size


def _head(
    module: nn.Module,
    sites: tuple[Site, ...],
    certified: frozenset[Path],
    example: Example,
    draws: list[_Numbers],
) -> Head | str:
    """The last layer if the logits are a fixed multiple of its outputs.

    That they are, by the same number at two draws of the parameters, is taken to hold
    everywhere: a learned temperature or anything added would show.
    """
    vocab = draws[0].logits.shape[-1]
    for i in reversed(range(len(sites))):
        site = sites[i]
        leaves = {(*site.path, name) for name in site.layer.leaves}
        could_be = (
            not isinstance(site.layer, Embed)
            and leaves <= certified
            and len(site.calls) == 1
            and site.matrix_shape[::2] == (1, vocab)
            and site.shapes[0].shape[-1] == vocab
        )
        if not could_be:
            continue
        outputs = [_outputs(site, i, example, draw) for draw in draws]
        scales = [
            np.vdot(y, draw.logits) / np.vdot(y, y)
            for y, draw in zip(outputs, draws, strict=True)
        ]
        errors = [
            _error(scales[0] * y, draw.logits)
            for y, draw in zip(outputs, draws, strict=True)
        ]
        if max(errors) <= _UNITS:
            return Head(site.path, isinstance(site.layer, Attend), float(scales[0]))
    return (
        f"the logits of {type(module).__name__} are not a fixed multiple of the "
        "outputs of a last `Dense` (or `Embed.attend`), as with a soft cap, a learned "
        "temperature, or something added to them"
    )


def _outputs(site: Site, index: int, example: Example, draw: _Numbers) -> Any:
    """Outputs of a layer at the positions of the logits."""
    layer = site.layer
    leaf = jnp.asarray(site.leaf(draw.params, layer.leaves[0]))
    matrix = np.asarray(layer.kernel_rows(leaf))[0]
    outputs = draw.inputs[index][:, 0] @ matrix
    if "bias" in layer.leaves:
        outputs = outputs + site.leaf(draw.params, "bias")
    if example.positions is not None:
        outputs = outputs[np.asarray(example.positions)]
    return outputs


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


def _first_and_last(array: Any) -> Any:
    # What is known is picked by NumPy: inside `jit`, JAX would make it unknown.
    is_known = not isinstance(array, jax.core.Tracer)
    return (np.asarray(array) if is_known else array)[np.array([0, -1])]


def _drawn_examples(examples: Example) -> Example:
    """Known arrays as they are; traced ones replaced by drawn ones of their shape."""
    rng = np.random.default_rng(0)

    def draw(array: Any) -> Any:
        if not isinstance(array, jax.core.Tracer):
            return np.asarray(array)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return np.asarray(rng.standard_normal(array.shape), array.dtype)
        # Ids 0 and 1 exist in any table; a mask is all true; positions likewise.
        if array.dtype == bool:
            return np.ones(array.shape, bool)
        return np.asarray(rng.integers(2, size=array.shape), array.dtype)

    return jax.tree.map(draw, examples)
