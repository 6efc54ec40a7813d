"""What the paper says of a run: squeezing, displacement, influence, its signatures."""

from ldjax.theory.curves import Curves
from ldjax.theory.displacement import PairProducts, pair_products, split_by_origin
from ldjax.theory.fidelity import Fidelity, fidelity, r_squared
from ldjax.theory.signatures import REGIMES, SIGNATURES, Signature, Verdict, evaluate

__all__ = [
    "REGIMES",
    "SIGNATURES",
    "Curves",
    "Fidelity",
    "PairProducts",
    "Signature",
    "Verdict",
    "evaluate",
    "fidelity",
    "pair_products",
    "r_squared",
    "split_by_origin",
]
