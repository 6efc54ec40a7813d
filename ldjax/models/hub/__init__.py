"""Hugging Face folders: configuration, tensors and adapters as the hub lays them out.

`ldjax.models.load` and `ldjax.models.save` are what users call.
"""

__all__: list[str] = []
