"""A small decoder, pretrained where none is given."""

__all__: list[str] = []
