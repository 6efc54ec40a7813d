"""The exact kernel between two texts, and what a step on one does to the other."""

__all__: list[str] = []
