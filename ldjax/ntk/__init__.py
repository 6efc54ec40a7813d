"""The empirical neural tangent kernel in its representations."""

from ldjax.ntk.empirical import empirical_ntk
from ldjax.ntk.plan import Plan, plan_dense

__all__ = ["Plan", "empirical_ntk", "plan_dense"]
