"""Processes of `benchmarks.ntk` that answer questions, and what they take.

Methods that share a process change each other's highest memory, and times. In
processes of their own, asked one at a time, they still take turns.
"""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import psutil

__all__ = [
    "First",
    "PeakResident",
    "Process",
    "Remote",
    "Timed",
    "serve",
    "serve_kernel",
]


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


class First(NamedTuple):
    """The first run of a kernel.

    Attributes:
      result: What is compared.
      seconds: The time of the run.
      start: Resident bytes of the process before it.
      peak: The most resident bytes during it.
    """

    result: np.ndarray
    seconds: float
    start: int
    peak: int


class Timed:
    """A kernel in this process, run whenever it is asked for.

    Args:
      run: Computes it, and comes back when it is there.
      as_array: What to compare of what `run` gives.
    """

    def __init__(
        self, run: Callable[[], Any], as_array: Callable[[Any], np.ndarray] = np.asarray
    ):
        self._run, self._as_array = run, as_array

    def first(self) -> First:
        """The first run, with its result and the memory of the process."""
        with PeakResident() as resident:
            start = time.perf_counter()
            result = self._run()
            seconds = time.perf_counter() - start
        return First(self._as_array(result), seconds, resident.start, resident.peak)

    def seconds(self) -> float:
        """The seconds of one more run."""
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start

    def close(self) -> None:
        """Free what the runs need."""
        del self._run


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


class Remote:
    """A kernel in a process of its own, which `serve_kernel` serves.

    Args:
      module: What the process runs.
      *question: What its `prepare` takes.
      python: Its interpreter.

    Attributes:
      told: What `prepare` says besides the kernel.
    """

    def __init__(
        self, module: str, *question: Any, python: Path | str = sys.executable
    ):
        self._process = Process(module, python)
        self.told = self._process.ask(question)

    def first(self) -> First:
        """The first run, with its result and the memory of the process."""
        return self._process.ask("first")

    def seconds(self) -> float:
        """The seconds of one more run."""
        return self._process.ask("again")

    def close(self) -> None:
        """End the process."""
        self._process.close()


def serve_kernel(prepare: Callable[..., tuple[Timed | None, Any]]) -> None:
    """Serve a `Remote`: prepare its kernel, then run it whenever it is asked for.

    Args:
      prepare: The kernel, None if it does not fit, and what is told of it.
    """
    kernel: Timed | None = None

    def answer(question: Any) -> Any:
        nonlocal kernel
        if isinstance(question, tuple):
            kernel, told = prepare(*question)
            return told
        assert kernel is not None
        return kernel.first() if question == "first" else kernel.seconds()

    serve(answer)


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
