"""A page about runs: one file with its data, its script and the chart library.

Texts of a run may be anything. They reach the page compressed, become text nodes there,
and no script runs but the two that are meant to: the page's policy names them by their
hashes, and lets nothing be fetched.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ldjax.files.whole import whole_file
from ldjax.report.content import constants, run_content
from ldjax.report.packing import compressed
from ldjax.runs.folder import Run

__all__ = ["page", "write_page"]

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def write_page(runs: Sequence[Run], out: Path | None = None) -> Path:
    """Write the page about some runs.

    Args:
      runs: At least one; the first one is shown first.
      out: The file; by default `report.html` of the first run.

    Returns:
      The file.

    Raises:
      FileNotFoundError: If a run has no metrics yet.
      ValueError: If they are damaged; what else is damaged is left out.
      WriteError: If the machine refuses; a page that was there stays.

    Examples:
      >>> import tempfile
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "mine", {})
      >>> run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
      >>> write_page([run]).name
      'report.html'
    """
    path = runs[0].path / "report.html" if out is None else out
    text = page(runs)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file for the page.")
    with whole_file(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode(errors="replace"))
    return path


def page(runs: Sequence[Run]) -> str:
    """The page about some runs, as text.

    Examples:
      >>> import tempfile
      >>> from ldjax.runs.folder import create_run
      >>> run = create_run(Path(tempfile.mkdtemp()) / "<b>", {})
      >>> run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
      >>> "<title>&lt;b&gt;" in page([run])
      True
    """
    from plotly.offline import get_plotlyjs

    template = resources.files("ldjax.report") / "template"
    files = {
        name: (template / f"page.{name}").read_text(encoding="utf-8")
        for name in ("html", "css", "js")
    }
    library = get_plotlyjs()
    names = ", ".join(run.path.resolve().name for run in runs)
    content = {"constants": constants(), "runs": [run_content(run) for run in runs]}
    scripts = " ".join(_hash(script) for script in (library, files["js"]))
    parts = {
        "POLICY": html.escape(_POLICY.format(scripts=scripts), quote=False),
        "TITLE": html.escape(names),
        "STYLE": files["css"],
        "LIBRARY": compressed(library),
        "DATA": compressed(json.dumps(content, allow_nan=False)),
        "SCRIPT": files["js"],
    }
    # In one go: what is put in may itself hold such a name.
    pieces = files["html"].split("@@")
    return "".join(
        parts[piece] if place % 2 else piece for place, piece in enumerate(pieces)
    )


def _hash(script: str) -> str:
    """What the policy calls a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
