"""The paper's phenomena, each with exact numbers."""

__all__: list[str] = []
