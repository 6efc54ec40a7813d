"""The wheel has every file of the package that git has, and nothing else.

As a `.gitignore` that names a folder of the package would leave that folder out.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from shell.scripts import ROOT


def tracked():
    """Files of the package, as git knows them."""
    listed = subprocess.run(
        ["git", "ls-files", "ldjax"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    return set(listed.stdout.split())


def built(folder):
    """Files in a wheel that is built now, but for those about it."""
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"no wheel can be built here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_nothing_else(tmp_path):
    found, wanted = built(tmp_path), tracked()
    assert {"ldjax/py.typed", "ldjax/report/template/page.html"} <= wanted
    assert "ldjax/runs/folder.py" in wanted
    assert found == wanted
