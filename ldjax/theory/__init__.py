"""What the paper says of a run: squeezing, displacement, influence, its signatures."""

from ldjax.theory.curves import Curves
from ldjax.theory.displacement import PairProducts, pair_products, split_by_origin
from ldjax.theory.signatures import REGIMES, SIGNATURES, Signature, Verdict, evaluate

__all__ = [
    "REGIMES",
    "SIGNATURES",
    "Curves",
    "PairProducts",
    "Signature",
    "Verdict",
    "evaluate",
    "pair_products",
    "split_by_origin",
]
