r"""Proof, for a given model, that taps account for its parameters.

The factorisation of `ldjax.ntk.layers.taps` holds for a plain layer. Whether it holds
for *this* model (a wrapper may rewrite the matrix, a subclass may do more, a parameter
may be read elsewhere) is read off the program that the model traces to, for every
kernel anew:

* A leaf may enter the logits through calls of its layer only, as `x W` (or `b`) with
  nothing but fixed numbers beside it, `x` what the layer reads (`terms`). This looks
  at no parameter and no token, so it holds for all of them, traced ones too.
* What is left to be compared are those fixed numbers: at drawn whole `x`, `W` and `b`,
  in float32, a call must give `x W + b` (`claims`).

A leaf that fails is differentiated plainly and named in a warning. A head is the last
layer if the logits are made of its outputs alone, by fixed numbers, and those are one
multiple.

Why that is a proof: docs/theory/certificate.md.
"""

import hashlib
import math
import warnings
from collections import Counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax.equation.spaces import struct_of
from ldjax.equation.subset import leaf_paths
from ldjax.ntk.layers.products import Attend, Embed
from ldjax.ntk.layers.proof.claims import Claim, is_one, ratios, whole_numbers
from ldjax.ntk.layers.proof.flat import Flat, flatten
from ldjax.ntk.layers.proof.pieces import cut
from ldjax.ntk.layers.proof.terms import ROWS, Call, Path, Term, Terms, Walk
from ldjax.ntk.layers.taps import Example, Site, find_sites, run


class HeadLayer(NamedTuple):
    """The last layer, of which the logits are a multiple.

    Attributes:
      path: The path of its module.
      is_attend: Whether it is a transposed embedding.
      scale: The multiple that the logits are of its outputs.
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
      sites: All sites found in the model.
      leaves: Paths of the leaves that exactly one site accounts for.
      shared: Paths of the embeddings that their two uses account for together (a tied
        head).
      head: The layer that is the head; or, in words, why there is none.
    """

    sites: tuple[Site, ...]
    leaves: frozenset[Path]
    shared: frozenset[Path]
    head: HeadLayer | str


class Use(NamedTuple):
    """One call of a layer in a program.

    Attributes:
      site: The layer that is called.
      tap: The number of the call's tap.
      reads: The number of the value that it reads.
    """

    site: Site
    tap: int
    reads: int

    @property
    def allowed(self) -> Terms:
        """The terms that its outputs may be made of."""
        layer, path = self.site.layer, self.site.path
        kernel, *bias = ((*path, name) for name in layer.leaves)
        terms: list[set[Any]] = [{leaf} for leaf in bias]
        if not isinstance(layer, Embed):
            terms.append({kernel, self.reads})
        elif layer.is_plain:
            # Of a single row Flax makes copies, whatever the ids.
            terms.append({kernel} if layer.num_rows == 1 else {kernel, ROWS})
        return frozenset(map(Term, terms))


class Traced(NamedTuple):
    """A model with taps as a program.

    Attributes:
      kind: The class of the model's module.
      sites: The layers of the model.
      program: The function `leaves, taps, example -> logits, what each call reads`.
      paths: Paths of all leaves of the parameters.
      text: A digest that tells one program from another.
    """

    kind: type
    sites: tuple[Site, ...]
    program: Flat
    paths: tuple[Path, ...]
    text: str

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return self.kind.__name__

    @property
    def leaves(self) -> dict[Path, int]:
        """Numbers of the leaves of all sites."""
        numbers = dict(zip(self.paths, self.program.inputs, strict=False))
        own = (path for site in self.sites for path in site.leaf_paths)
        return {path: numbers[path] for path in own}

    @property
    def uses(self) -> list[Use]:
        """Every call of every layer."""
        sites = [site for site in self.sites for _ in site.calls]
        taps = self.program.inputs[len(self.paths) :]
        reads = self.program.outputs[1:]
        return [Use(*use) for use in zip(sites, taps, reads, strict=False)]


def trace(module: nn.Module, params: Any, example: Example) -> Traced:
    """The program of a model on one example of these shapes.

    Args:
      module: The model.
      params: Its parameters, of which only shapes and dtypes matter.
      example: One example, of which only shapes and dtypes matter.

    Raises:
      ValueError: If the logits are no function of parameters and inputs alone.
    """
    params, example = struct_of((params, example._replace(positions=None)))
    sites = find_sites(module, params, example)
    keys = [key for site in sites for key in site.calls]
    shapes = [shape for site in sites for shape in site.shapes]

    def traced(params: Any, taps: list[Any], example: Example) -> Any:
        given = dict(zip(keys, taps, strict=True))
        logits, inputs = run(module, params, given, example)
        return logits, [inputs[key] for key in keys]

    closed = jax.make_jaxpr(traced)(params, shapes, example)
    program, paths = flatten(closed), tuple(leaf_paths(params))
    layers = [(type(s.layer), sorted(vars(s.layer).items())) for s in sites]
    digest = hashlib.sha256(f"{closed} {paths} {keys} {layers}".encode())
    for array in program.constants.values():
        digest.update(np.asarray(array).tobytes())
    return Traced(
        type(module),
        sites,
        program,
        paths,
        digest.hexdigest(),
    )


def certify(model: Traced) -> Certified:
    """The certificate of a model; made once for each program.

    Args:
      model: The model's program, from `trace`.

    Warns:
      UserWarning: Once, with the names of leaves that look tappable and are not.
    """
    if model.text not in _certificates:
        _certificates[model.text] = _certify(model)
    certified, failed = _certificates[model.text]
    if failed and (model.kind, *failed) not in _named:
        _named.add((model.kind, *failed))
        warnings.warn(
            f"{model.name}: {', '.join(failed)} of a layer that looks "
            "linear does not act as its matrix (or bias) alone; differentiated "
            "plainly: exact, only slower.",
            stacklevel=2,
        )
    return certified


_certificates: dict[str, tuple[Certified, list[str]]] = {}
_named: set[tuple[Any, ...]] = set()


def _certify(model: Traced) -> tuple[Certified, list[str]]:
    calls = {use.tap: Call(use.reads, use.allowed) for use in model.uses}
    walk = Walk(model.program, {n: path for path, n in model.leaves.items()}, calls)
    lost = set(walk.lost)
    claims = [
        (path, _leaf_claim(model, walk, use, path))
        for use in model.uses
        for path in use.site.leaf_paths
        if path not in lost
    ]
    found = ratios([claim for _, claim in claims])
    for (path, _), ratio in zip(claims, found, strict=True):
        if not is_one(ratio):
            lost.add(path)
    held = model.leaves.keys() - lost
    users = Counter(path for site in model.sites for path in site.leaf_paths)
    certified = Certified(
        model.sites,
        frozenset(path for path in held if users[path] == 1),
        frozenset(path for path in held if users[path] > 1),
        _head(model, walk, held),
    )
    return certified, sorted("/".join(path) for path in lost)


def _leaf_claim(model: Traced, walk: Walk, use: Use, path: Path) -> Claim:
    """That a call is the layer's product (or sum) with a leaf."""
    layer, shapes = use.site.layer, model.program.shapes
    leaf, reads, before = model.leaves[path], use.reads, walk.before[use.tap]
    piece = cut(model.program, walk.terms, (reads, leaf), before)
    is_all = walk.terms[before] <= use.allowed
    is_embed, is_bias = isinstance(layer, Embed), path[-1] == "bias"
    if isinstance(layer, Embed):
        rng = np.random.default_rng(1)
        inputs = rng.integers(layer.num_rows, size=shapes[reads])
    else:
        inputs = whole_numbers(shapes[reads], 1)

    def sides(drawn: Array, inputs: Array) -> tuple[Array, Array]:
        drawn = drawn.astype(jnp.float32)
        inputs = inputs if is_embed else inputs.astype(jnp.float32)
        found = piece({reads: inputs, leaf: drawn})
        if not is_all:  # of something added, the difference is left
            found = found - piece({reads: inputs, leaf: jnp.zeros_like(drawn)})
        found, rows = layer.rows_out(found), layer.rows_in(inputs)
        if is_bias:
            return found, jnp.broadcast_to(layer.bias_rows(drawn)[None], found.shape)
        if is_embed:
            return found, drawn[rows][:, None]
        return found, jnp.einsum("sgi,gio->sgo", rows, layer.kernel_rows(drawn))

    about = type(layer).__name__, sorted(vars(layer).items()), path[-1], is_all
    return Claim(
        f"{about} {shapes[reads]} {shapes[leaf]} {piece.text((reads, leaf))}",
        sides,
        (whole_numbers(shapes[leaf], 0), inputs),
        num_terms=1 if is_embed or is_bias else use.site.matrix_shape[1],
    )


def _head(model: Traced, walk: Walk, held: set[Path]) -> HeadLayer | str:
    """The last layer if the logits are a fixed multiple of its outputs."""
    logits = model.program.outputs[0]
    for use in model.uses:
        after = walk.after.get(use.tap)
        is_all = walk.terms.get(logits) == frozenset([frozenset([after])])
        if after is None or not is_all or not _may_be_head(model, walk, use, held):
            continue
        (scale,) = ratios([_head_claim(model, walk, after)])
        if scale:
            return HeadLayer(use.site.path, isinstance(use.site.layer, Attend), scale)
    return (
        f"the logits of {model.name} are not a fixed multiple of the "
        f"outputs of a last `Dense` (or `Embed.attend`){_why_not(model, walk, held)}"
    )


def _why_not(model: Traced, walk: Walk, held: set[Path]) -> str:
    """What stands between the outputs of a last layer and the logits, in words."""
    taps = walk.after.keys()
    heads = [
        u for u in model.uses if u.tap in taps and _may_be_head(model, walk, u, held)
    ]
    if heads:
        made, names = {walk.after[heads[-1].tap]}, []
        for op in model.program.ops:
            if made.intersection(op.inputs):
                made.update(op.outputs)
                names.append(op.eqn.primitive.name)
        if "tanh" in names:
            layer = "/".join(heads[-1].site.path)
            return f": after {layer} comes a soft cap ({', '.join(names)})"
    return ", as with a soft cap, a learned temperature, or something added to them"


def _may_be_head(model: Traced, walk: Walk, use: Use, held: set[Path]) -> bool:
    """Whether a call is one matrix (and bias) that has a column for each logit."""
    shapes, site = model.program.shapes, use.site
    outputs, logits = shapes[walk.before[use.tap]], shapes[model.program.outputs[0]]
    return (
        not isinstance(site.layer, Embed)
        and held.issuperset((*site.path, name) for name in site.layer.leaves)
        and walk.terms[walk.before[use.tap]] <= use.allowed
        and len(site.calls) == 1
        and site.matrix_shape[::2] == (1, logits[-1])
        and math.prod(outputs) == math.prod(logits)
    )


def _head_claim(model: Traced, walk: Walk, after: int) -> Claim:
    """That the logits are a multiple of these outputs of a layer."""
    logits, shape = model.program.outputs[0], model.program.shapes[after]
    piece = cut(model.program, walk.terms, (after,), logits)

    def sides(outputs: Array) -> tuple[Array, Array]:
        outputs = outputs.astype(jnp.float32)
        found = piece({after: outputs})
        return found, outputs.reshape(found.shape)

    text = f"head {shape} {piece.text((after,))}"
    return Claim(text, sides, (whole_numbers(shape, 2),), num_terms=1)
