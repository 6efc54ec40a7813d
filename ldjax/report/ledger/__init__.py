"""The ledger of a run on its page: which training examples moved each response."""

from ldjax.report.ledger.content import ledger_content

__all__ = ["ledger_content"]
