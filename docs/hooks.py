"""What the site's build needs besides its settings (`mkdocs.yml`)."""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

_DISPLAYED = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +.*|\n *(?=\n\1 +))*)", re.M)
_INLINE = re.compile(r":math:`([^`]*)`")
_LINKED = re.compile(r"`([^`<]*?)\s*<(https?://[^>]*)>`_")


def on_files(files: Any, config: Any) -> Any:
    """The notebooks, as files of the site."""
    for path in sorted(ROOT.glob("experiments/notebooks/*.ipynb")):
        place = f"learn/{path.name}"
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def as_markdown(docstring: str) -> str:
    """A docstring with its formulas and links as Markdown has them."""
    docstring = _DISPLAYED.sub(_displayed, docstring)
    docstring = _INLINE.sub(lambda found: f"${' '.join(found[1].split())}$", docstring)
    return _LINKED.sub(lambda found: f"[{found[1]}]({found[2]})", docstring)


def _displayed(found: re.Match[str]) -> str:
    formula = " ".join(found[2].split())
    return textwrap.indent(f"$$\n{formula}\n$$\n", found[1])


class Mathematics(griffe.Extension):
    """Docstrings as Markdown; the sources keep the notation of Sphinx."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of whatever has been read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
