"""The settings of a finetuning run."""

__all__: list[str] = []
