"""The proof that a layer's structure may be used, from the traced program."""

__all__: list[str] = []
