"""Figures and pages about runs, drawn from their run folders.

`write_page` writes one self-contained page; `python -m ldjax.report RUN` calls it.
`figures` is the look of figures, and draws by matplotlib.
"""

from ldjax.report.page import write_page

__all__ = ["write_page"]
