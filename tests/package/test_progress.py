"""What is written where no one watches, and what is shown where someone does."""

import io
import re
import time

import pytest

from ldjax.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(log, lines):
    deadline = time.monotonic() + 10
    while log.getvalue().count("\n") < lines and time.monotonic() < deadline:
        time.sleep(0.005)
    return log.getvalue().splitlines()


def test_a_line_comes_again_and_again_while_a_single_step_goes_on():
    log = io.StringIO()
    settings = {"unit": "updates", "interval": 0.02, "stream": log}
    with progress("training", 8, done=2, **settings) as tell:
        (first, *_) = wait_for(log, 1)
        tell(4, "0.500 nats/token")
        start = len(log.getvalue().splitlines())
        *_, last = wait_for(log, start + 3)
    assert first == "training: 2 of 8 updates, 0 s so far"
    assert re.fullmatch(
        r"training: 4 of 8 updates, 0\.500 nats/token, \d s so far, about \d s left",
        last,
    )
    ended = log.getvalue()
    time.sleep(0.1)
    assert log.getvalue() == ended


def test_of_two_within_each_other_the_inner_one_writes():
    log = io.StringIO()
    with progress("outer", interval=0.02, stream=log):
        with progress("inner", interval=0.02, stream=log):
            inner = wait_for(log, 3)
        both = wait_for(log, len(inner) + 3)
    names = [line.partition(":")[0] for line in inner]
    assert set(names[names.index("inner") :]) == {"inner"}
    assert both[-1].startswith("outer: ")


def test_it_ends_with_what_it_is_about():
    log = io.StringIO()
    with pytest.raises(KeyError), progress("x", interval=0.01, stream=log):
        raise KeyError
    ended = log.getvalue()
    time.sleep(0.05)
    assert log.getvalue() == ended


def test_a_terminal_has_a_bar_that_says_what_goes_on_and_no_lines():
    log = Terminal()
    scale = (1000, "token")
    with progress("training", 4, scale=scale, interval=0.01, stream=log) as tell:
        tell(0, "compiling")
        assert "compiling" in log.getvalue()  # before anything is done
        time.sleep(0.05)
        tell(4, "0.500 nats/token")
    assert "4.00k/4.00k" in log.getvalue()
    assert "so far" not in log.getvalue()


def test_on_a_terminal_what_has_no_bar_has_lines():
    log = Terminal()
    with progress("reading", interval=0.02, stream=log):
        first, *_ = wait_for(log, 1)
    assert first == "reading: 0 s so far"
