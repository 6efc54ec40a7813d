"""The empirical neural tangent kernel in its representations.

The kernels of Linen modules (`FactoredMap`, `StructuredMap` and what they return) are
in `ldjax.ntk.layers`, which is imported when one is first made.
"""

from ldjax.ntk.empirical import by_group, empirical_ntk
from ldjax.ntk.plan import Plan, plan

__all__ = ["Plan", "by_group", "empirical_ntk", "plan"]
