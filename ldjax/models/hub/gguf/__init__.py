"""GGUF files: one file with a model's tensors, settings and tokenizer.

The `gguf` package reads and dequantises. What is here says what a file means: its
metadata as a `config.json`, its tensors under the hub's names and in the hub's layout,
its tokenizer. `ldjax.models.load` is what users call.
"""

__all__: list[str] = []
