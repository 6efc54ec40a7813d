"""Plain text that a base model is pretrained on, and the bigram model to beat."""

__all__: list[str] = []
