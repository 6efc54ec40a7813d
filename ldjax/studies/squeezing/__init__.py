"""The squeezing effect on logits alone: Figures 2 and 12."""

__all__: list[str] = []
