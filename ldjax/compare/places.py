"""Where in a decoder a parameter is: its layer, and the kind of matrix that it is of.

Every parameter is at one place, so sums over layers, over kinds and over parameters are
the same. The two factors of an adapter are one kind: only their product is a change of
the model, and how it is shared between them is arbitrary.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldjax.equation.subset import leaf_paths

__all__ = ["ADAPTER", "Place", "Places", "place_of", "places_of"]

#: What the kind of an adapter ends with.
ADAPTER = " adapter"

_BLOCK = re.compile(r"blocks_(\d+)")
_FACTOR = re.compile(r"_lora_[ab]$")
_LAYERS = {
    "token_embedding": "embedding",
    "position_embedding": "embedding",
    "final_norm": "final norm",
    "unembedding": "head",
}
_KINDS = {
    "token_embedding": "embedding",
    "position_embedding": "positions",
    "unembedding": "head",
}
#: In the order in which a token passes them.
_ORDER = (
    *("embedding", "positions", "query", "key", "value", "qkv", "out"),
    *("gate", "up", "gate_up", "down", "norm", "bias", "head"),
)


class Place(NamedTuple):
    """Where a parameter is.

    Attributes:
      layer: `"embedding"`, `"block 3"`, `"final norm"` or `"head"`.
      kind: Of a block `"query"`, `"key"`, `"value"`, `"out"`, `"gate"`, `"up"`,
        `"down"`, each also with `" adapter"` behind it; `"norm"` and `"bias"`
        everywhere, `"embedding"`, `"positions"` and `"head"` outside of blocks.

    Examples:
      >>> place_of(("blocks_3", "mlp", "up", "kernel"))
      Place(layer='block 3', kind='up')
    """

    layer: str
    kind: str


class Places(NamedTuple):
    """The places of a model's parameters.

    Attributes:
      places: In the order of the layers, each once.
      of_leaf: The number of each leaf's place, in the order of `jax.tree.leaves`.

    Examples:
      >>> found = places_of({"final_norm": {"bias": 0.0, "scale": 1.0}})
      >>> found.places, found.of_leaf.tolist()
      ((Place(layer='final norm', kind='norm'),), [0, 0])
    """

    places: tuple[Place, ...]
    of_leaf: np.ndarray

    def sums(self, of_leaves: np.ndarray) -> np.ndarray:
        """What is at each place, `[..., place]`, from what is of each leaf."""
        sums = np.zeros((*of_leaves.shape[:-1], len(self.places)))
        for leaf, place in enumerate(self.of_leaf):
            sums[..., place] += of_leaves[..., leaf]
        return sums

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, each once, in order."""
        return tuple(dict.fromkeys(place.layer for place in self.places))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds, each once, in order."""
        return tuple(sorted({place.kind for place in self.places}, key=_kind_order))

    @property
    def layer_of_leaf(self) -> np.ndarray:
        """The number of each leaf's layer among `layers`."""
        numbers = {layer: number for number, layer in enumerate(self.layers)}
        of_place = [numbers[place.layer] for place in self.places]
        return np.asarray(of_place)[self.of_leaf]


def places_of(params: Any) -> Places:
    """The place of every parameter of a decoder.

    Args:
      params: Its parameters, or their shapes.

    Examples:
      >>> places_of({"blocks_0": {"mlp": {"up": {"kernel": 1.0}}}}).kinds
      ('up',)
    """
    of_leaf = [place_of(path) for path in leaf_paths(params)]
    places = sorted(
        set(of_leaf), key=lambda p: (_layer_order(p.layer), _kind_order(p.kind))
    )
    numbers = {place: number for number, place in enumerate(places)}
    return Places(tuple(places), np.array([numbers[place] for place in of_leaf]))


def place_of(path: Sequence[str]) -> Place:
    """The place of a parameter.

    Args:
      path: The names on the way to it.

    Examples:
      >>> place_of(("blocks_0", "attention", "query_lora_a", "kernel"))
      Place(layer='block 0', kind='query adapter')
      >>> place_of(("unembedding", "bias"))
      Place(layer='head', kind='bias')
    """
    first, module, leaf = path[0], path[-2], path[-1]
    block = _BLOCK.fullmatch(first)
    layer = f"block {block[1]}" if block else _LAYERS.get(first, first)
    if module.endswith("norm"):
        return Place(layer, "norm")
    if leaf == "bias":
        return Place(layer, "bias")
    matrix, is_factor = _FACTOR.subn("", module)
    return Place(layer, _KINDS.get(matrix, matrix) + ADAPTER * is_factor)


def _layer_order(layer: str) -> tuple[int, int]:
    if layer.startswith("block "):
        return 1, int(layer.removeprefix("block "))
    return {"embedding": 0, "final norm": 2}.get(layer, 3), 0


def _kind_order(kind: str) -> tuple[int, str]:
    bare = kind.removesuffix(ADAPTER)
    place = _ORDER.index(bare) if bare in _ORDER else len(_ORDER)
    return 2 * place + (bare != kind), kind
