"""Why the chosen answer falls under DPO."""

__all__: list[str] = []
