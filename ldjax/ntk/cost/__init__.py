"""What a computation asks for, before it is done: operations, bytes and seconds."""

from ldjax.ntk.cost.estimate import Cost, cost_of, estimate, peak_bytes

__all__ = ["Cost", "cost_of", "estimate", "peak_bytes"]
