"""A page about runs: one file with its data, its style and its script.

Texts of a run may be anything. They reach the page compressed, become text nodes there,
and no script runs but the one that is meant to: the page's policy names it by its hash,
and lets nothing be fetched.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ldjax.files.whole import whole_file
from ldjax.report.content import constants, run_content
from ldjax.report.following import following
from ldjax.report.packing import compressed
from ldjax.runs.folder import Run

__all__ = ["page", "write_page"]

_POLICY = (
    "default-src 'none'; script-src {script}; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
#: They share one scope, in this order: what runs at once comes after what it needs.
_SCRIPTS = (
    *("data.js", "numbers.js", "elements.js", "glossary.js", "address.js"),
    *("export.js", "plot.js", "lines.js", "bars.js", "heat.js"),
    *("difference.js", "view.js"),
    *("overview.js", "curves.js", "account.js"),
    *("responses.js", "detail.js", "tokens.js"),
    *("balance.js", "ledger.js", "trained.js"),
    *("sections.js", "start.js"),
)
_STYLES = ("base.css", "overview.css", "charts.css", "responses.css", "ledger.css")


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
    template = resources.files("ldjax.report") / "template"
    read = lambda name: (template / name).read_text(encoding="utf-8")
    script = "".join(
        ("'use strict';\n(async () => {\n", *map(read, _SCRIPTS), "})();\n")
    )
    content = {"constants": constants(), "runs": _runs(runs)}
    parts = {
        "POLICY": html.escape(_POLICY.format(script=_hash(script)), quote=False),
        "TITLE": html.escape(", ".join(run["name"] for run in content["runs"])),
        "STYLE": "\n".join(map(read, _STYLES)),
        "DATA": compressed(json.dumps(content, allow_nan=False)),
        "SCRIPT": script,
    }
    # In one go: what is put in may itself hold such a name.
    pieces = read("page.html").split("@@")
    return "".join(
        parts[piece] if place % 2 else piece for place, piece in enumerate(pieces)
    )


def _runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The content of each run, under a name of its own."""
    contents = [run_content(run) for run in runs]
    seen: dict[str, int] = {}
    for content, after in zip(contents, following(runs), strict=True):
        name = content["name"]
        seen[name] = seen.get(name, 0) + 1
        more = f" ({seen[name]})" if seen[name] > 1 else ""
        content |= {"name": f"{name}{more}", "after": after}
    return contents


def _hash(script: str) -> str:
    """What the policy calls a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
