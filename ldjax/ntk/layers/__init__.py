r"""Kernels of Linen modules, through the inputs and outputs of their layers.

A layer `y = x W` gives a kernel `<x, x'> <dz/dy, dz'/dy>`: two small inner products in
place of two gradients in the shape of `W`. The modules, in the order in which they are
best read, each with its mathematics at its top:

1. What a layer is. `products`: a call as a product of rows. `taps`: how a derivative by
   its outputs is taken without touching the model.
2. That it may be used. `proof.flat`, a model as a list of operations; `proof.terms`,
   what its values are made of; `proof.pieces` and `proof.claims`, what is compared in
   numbers; `proof.certificate`, the proof that taps account for a model's leaves;
   `proof.mixing`, that its examples are by themselves.
3. A kernel by layers. `side`: the examples of one side and their derivatives.
   `pairing`: both sides, in step. `model_map`: what all kernels of a model share.
   `share`: a layer's share of a kernel. `contract`: three orders of the products.
   `structured`: the kernel of any Linen model.
4. A kernel at vocabulary scale. `blocks`: low rank plus diagonal, and its exact
   numbers. `factors`: how blocks are made. `factored`: the kernel of a model with a
   linear head. `saved`: the same on disk.
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
