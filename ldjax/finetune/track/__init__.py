"""Updates that are accounted for, and what is observed between them."""

__all__: list[str] = []
