"""The paper's figures and claims, each with what would refute it."""

__all__: list[str] = []
