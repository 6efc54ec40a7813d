"""A finetuning run with its whole account, from the settings to the page."""

__all__: list[str] = []
