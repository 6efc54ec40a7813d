"""How far a long computation is: a bar on a terminal, elsewhere a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["INTERVAL", "Tell", "progress", "seconds_in_words"]

#: Seconds between two lines.
INTERVAL = 30.0

#: From the number of steps done so far, and what is to be said besides.
Tell = Callable[[int, str], None]


def progress(
    what: str,
    total: int = 0,
    *,
    done: int = 0,
    unit: str = "",
    scale: tuple[int, str] = (1, "it"),
    interval: float = INTERVAL,
    stream: Any = None,
) -> AbstractContextManager[Tell]:
    """Shows how far something is, as long as it goes on.

    On a terminal as a bar. Where no one watches, such as in a batch job, and where it
    is not known how many steps there are, a line is written in intervals, by a thread:
    also while a single step is compiled or computed.
    Of several that go on within each other only the innermost writes.

    Args:
      what: What goes on, such as `"training"`.
      total: How many steps it has; 0 where that is not known, which has no bar.
      done: Steps that were done before.
      unit: What a step is, for the lines, such as `"updates"`.
      scale: For the bar, how much a step is of another unit, and its name, such as
        `(1024, "token")`.
      interval: Seconds between two lines.
      stream: A text file to write to; by default the standard error stream.

    Returns:
      A context with a function `tell(done, note)`.

    Examples:
      >>> import io
      >>> log = io.StringIO()
      >>> with progress("counting", 4, unit="sheep", interval=0.01, stream=log) as tell:
      ...     tell(2, "all white")
      ...     while not log.getvalue():
      ...         time.sleep(0.01)
      >>> print(log.getvalue())
      counting: 2 of 4 sheep, all white, 0 s so far, about 0 s left...
    """
    stream = sys.stderr if stream is None else stream
    if total and stream.isatty():
        return _bar(total, done, scale, stream)
    return _lines(_State(what, total, done, unit), interval, stream)


@contextmanager
def _bar(total: int, done: int, scale: tuple[int, str], stream: Any) -> Iterator[Tell]:
    size, unit = scale
    with tqdm(
        initial=done * size,
        total=total * size,
        unit=unit,
        unit_scale=True,
        file=stream,
    ) as bar:

        def tell(done: int, note: str) -> None:
            bar.set_postfix_str(note)
            bar.update(done * size - bar.n)

        yield tell


class _State:
    """What is known of something that goes on; its text is a line."""

    def __init__(self, what: str, total: int, done: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._first = self._done = done
        self._note = ""
        self._start = time.monotonic()

    def tell(self, done: int, note: str) -> None:
        self._done, self._note = done, note

    def __str__(self) -> str:
        passed = time.monotonic() - self._start
        new = self._done - self._first
        count = left = ""
        if self._total:
            count = f"{self._done} of {self._total} {self._unit}".strip()
        if self._total and new > 0:
            rest = passed / new * (self._total - self._done)
            left = f"about {seconds_in_words(rest)} left"
        parts = count, self._note, f"{seconds_in_words(passed)} so far", left
        return f"{self._what}: {', '.join(filter(None, parts))}"


_going_on: list[_State] = []


@contextmanager
def _lines(state: _State, interval: float, stream: Any) -> Iterator[Tell]:
    is_over = threading.Event()

    def write() -> None:
        while not is_over.wait(interval):
            if _going_on[-1] is state:
                print(state, file=stream, flush=True)

    writer = threading.Thread(target=write, daemon=True)
    _going_on.append(state)
    writer.start()
    try:
        yield state.tell
    finally:
        is_over.set()
        writer.join()
        _going_on.remove(state)


def seconds_in_words(seconds: float) -> str:
    """A duration as people say it.

    Examples:
      >>> seconds_in_words(42.3), seconds_in_words(125.0), seconds_in_words(7260.0)
      ('42 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
