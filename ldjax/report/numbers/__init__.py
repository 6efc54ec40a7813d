"""The numbers of a page: means over prompts with their errors, and what they sum.

`lines` is about observed prompts, `balance` about the tracked responses.
"""

from ldjax.report.numbers.balance import balances
from ldjax.report.numbers.lines import mean_lines, per_token

__all__ = ["balances", "mean_lines", "per_token"]
