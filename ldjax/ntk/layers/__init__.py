"""Kernels of Linen modules, through the inputs and outputs of their layers.

From the bottom: a layer as a product (`_layers`), taps (`_taps`), one side of a kernel
(`_side`); a model as a list of operations (`_flat`), what its values are made of
(`_terms`), pieces of it (`_pieces`), what is claimed of those (`_claims`), the proof
that taps account for a model (`_certificate`) and that its examples are by themselves
(`_mixing`); both sides (`_sides`), what all kernels of a model share (`_model_map`); a
layer's share (`_layer_share`), their contraction (`_contract`) and the `structured`
kernel; blocks in factors (`_blocks`), how they are made (`_factorise`), the `factored`
kernel, and how it is `saved`.
"""

from ldjax.ntk.layers.blocks import BlockSummary, SingularValues
from ldjax.ntk.layers.factored import FactoredMap
from ldjax.ntk.layers.saved import StoredFactoredMap, load_kernel, save_kernel
from ldjax.ntk.layers.structured import StructuredMap

__all__ = [
    "BlockSummary",
    "FactoredMap",
    "SingularValues",
    "StoredFactoredMap",
    "StructuredMap",
    "load_kernel",
    "save_kernel",
]
