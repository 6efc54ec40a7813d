"""Processes of `benchmarks.ntk` that answer questions, and what they take.

Methods that share a process change each other's highest memory, and times. In
processes of their own, asked one at a time, they still take turns.
"""

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

__all__ = ["PeakResident", "Process", "serve"]


class PeakResident:
    """Samples the resident memory of this process, in bytes, while it is entered.

    Every 2 ms: what lives shorter is missed.
    """

    def __enter__(self) -> "PeakResident":
        self._process, self._stop = psutil.Process(), threading.Event()
        self.start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)


class Process:
    """A module that answers questions, as `serve` does, until it is closed."""

    def __init__(self, module: str, python: Path | str = sys.executable):
        self._process = subprocess.Popen(
            [str(python), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, question: Any) -> Any:
        """Its answer; what it raised is raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        try:
            answer = pickle.load(self._process.stdout)
        except EOFError:
            status = self._process.wait()
            raise RuntimeError(f"its process ended with status {status}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()  # without a question left, it ends


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer questions on standard input until there are no more."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        try:
            reply = pickle.dumps(answer(question))
        except Exception as error:  # the one that asked decides
            reply = pickle.dumps(RuntimeError(repr(error)))
        answers.write(reply)
        answers.flush()
