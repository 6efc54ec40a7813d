"""Chat templates: the texts that a model's own template makes of conversations."""

__all__: list[str] = []
