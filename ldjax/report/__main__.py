"""Write a page about runs: `python -m ldjax.report RUN [RUN ...] [--out FILE]`.

One self-contained file that any browser opens, with no network: what happened, curves,
every watched response, signatures, settings. Several runs are laid over each other, as
are the stages of a pipeline, whose folder stands for them.
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ldjax import command
from ldjax.report.page import write_page
from ldjax.runs.folder import Run, open_run


@dataclass(frozen=True)
class Config:
    """Write a self-contained HTML page about runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, the main one first; that of a pipeline stands for its stages."""
    out: Path | None = None
    """File to write; by default report.html in the first folder."""


def main(config: Config) -> int:
    """Write the page; the exit status."""
    try:
        if not config.runs:
            raise ValueError("name at least one run folder")
        folders = [folder.expanduser() for folder in config.runs]
        opened = [run for folder in folders for run in _with_metrics(folder)]
        out = config.out or folders[0] / "report.html"
        path = write_page(opened, out.expanduser())
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


parse = functools.partial(command.parse, Config, __doc__)

if __name__ == "__main__":
    sys.exit(main(parse(called="python -m ldjax.report")))
