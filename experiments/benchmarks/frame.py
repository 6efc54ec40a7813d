"""What the benchmarks share: two options, a page that is printed, and its verdict."""

import dataclasses
import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldjax.theory.claims import Claim, failures, told

__all__ = ["Options", "Page", "highest_memory", "in_process"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark is asked."""

    out: Path | None = None
    """Folder for the page, as `NAME.md`; printed only if not given."""
    smoke: bool = False
    """Tiny sizes: the whole path and its identities, not the claims."""


class Page:
    """Lines that are printed as they come, and kept.

    Args:
      name: Of the benchmark.
      options: Those it was asked with.
    """

    def __init__(self, name: str, options: Options):
        self._name, self._options, self._lines = name, options, list[str]()

    def say(self, *lines: str) -> None:
        """Print some lines."""
        print(*lines, sep="\n", flush=True)
        self._lines += lines

    def end(self, claims: Sequence[Claim] = ()) -> int:
        """Say what holds, of a smoke the identities alone; the exit status."""
        if self._options.smoke:
            claims = [claim for claim in claims if claim.kind == "identity"]
        if claims:
            self.say("", told(claims))
        if (out := self._options.out) is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{self._name}.md").write_text("\n".join(self._lines) + "\n")
        return 1 if failures(claims) else 0


def in_process(module: str, options: Options, **changes: Any) -> Any:
    """What a part of a benchmark prints as JSON, in a process of its own.

    Args:
      module: Of the benchmark.
      options: Those it was asked with.
      **changes: Options that are others.
    """
    words = []
    for name, value in {**vars(options), "out": None, **changes}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        elif value is not None:
            words.append(f"{flag}={value}")
    done = subprocess.run(
        [sys.executable, "-m", module, *words], check=False, stdout=subprocess.PIPE
    )
    if done.returncode:
        sys.exit(f"{module.rpartition('.')[-1]}: {' '.join(words)} failed, see above")
    return json.loads(done.stdout.splitlines()[-1])


def highest_memory() -> int:
    """The most bytes this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
