"""Learning dynamics of handwritten digits: Figure 1."""

__all__: list[str] = []
