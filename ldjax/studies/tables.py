"""Tables in Markdown."""

from collections.abc import Sequence

__all__ = ["markdown"]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns.

    Examples:
      >>> print(markdown(["loss", "nats"], [["gated dpo", "-9.2"], ["ipo", "1"]]))
      | loss      | nats |
      |-----------|------|
      | gated dpo | -9.2 |
      | ipo       | 1    |
    """
    table = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in table]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
