"""How much the kernel changes during finetuning, and what its proxies bound."""

__all__: list[str] = []
