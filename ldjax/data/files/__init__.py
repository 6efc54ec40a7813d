"""Files of rows, whatever their format, and rows of every type that is trained on."""

__all__: list[str] = []
