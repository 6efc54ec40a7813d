"""Write a page about runs: `python -m ldjax.report RUN [RUN ...] [--out FILE]`.

One self-contained file that any browser opens, with no network: what happened, curves,
every watched response, signatures, settings. Several runs are laid over each other.
"""

import sys
from pathlib import Path

import tyro

from ldjax.report.page import write_page
from ldjax.runs import open_run


def main(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Write a self-contained HTML page about runs.

    Args:
      runs: Run folders, the main one first.
      out: File to write; by default report.html in the folder of the first run.

    Returns:
      The exit status.
    """
    try:
        if not runs:
            raise ValueError("name at least one run folder")
        path = write_page([open_run(run) for run in runs], out)
    except (OSError, ValueError) as mistake:
        sys.exit(f"ldjax.report: {mistake}")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m ldjax.report"))
