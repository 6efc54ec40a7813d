"""Write a page about runs: `python -m ldjax.report RUN [RUN ...] [--out FILE]`.

One self-contained file that any browser opens, with no network: what happened, curves,
every watched response, signatures, settings. Several runs are laid over each other, as
are the stages of a pipeline, whose folder stands for them.
"""

import sys
from pathlib import Path

import tyro

from ldjax.report.page import write_page
from ldjax.runs import Run, open_run


def main(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Write a self-contained HTML page about runs.

    Args:
      runs: Run folders, the main one first; that of a pipeline stands for its stages.
      out: File to write; by default report.html in the first folder.

    Returns:
      The exit status.
    """
    try:
        if not runs:
            raise ValueError("name at least one run folder")
        folders = [folder.expanduser() for folder in runs]
        opened = [run for folder in folders for run in _with_metrics(folder)]
        path = write_page(opened, (out or folders[0] / "report.html").expanduser())
    except (OSError, ValueError, MemoryError) as mistake:
        sys.exit(f"ldjax.report: {' '.join(str(mistake).split())}")
    except KeyboardInterrupt:
        print("\nldjax.report: stopped by Ctrl-C; no page was written", file=sys.stderr)
        return 130
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _with_metrics(folder: Path) -> list[Run]:
    """The run of a folder, or those inside it in the order they were begun."""
    run = open_run(folder)
    stages = [path.parent for path in folder.glob("[!.]*/metrics.parquet")]
    if not stages or (folder / "metrics.parquet").is_file():
        return [run]
    begun = lambda path: (path / "config.json").stat().st_mtime_ns
    return [open_run(path) for path in sorted(stages, key=begun)]


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m ldjax.report"))
