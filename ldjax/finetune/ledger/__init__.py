"""The ledger of a finetuning run, or of a loop of one's own: `ldjax.ledger`."""

__all__: list[str] = []
