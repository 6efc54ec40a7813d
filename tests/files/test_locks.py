"""One writer of a folder: what other processes meet, dead or alive."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import ldjax.files.locks
from ldjax.files.locks import LOCK, held_locks, lock_folder

# The module by itself: JAX, which it does not need, takes seconds to import.
HOLD = f"""
import runpy, sys, time
from pathlib import Path
lock_folder = runpy.run_path({ldjax.files.locks.__file__!r})["lock_folder"]
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""
TRY = f"""
import runpy, sys, time
from pathlib import Path
lock_folder = runpy.run_path({ldjax.files.locks.__file__!r})["lock_folder"]
while time.time() < float(sys.argv[2]):
    pass
try:
    lock = lock_folder(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(1)
except BlockingIOError as error:
    print(error)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_told_which_one_writes(tmp_path, holder):
    with pytest.raises(BlockingIOError) as error:
        lock_folder(tmp_path)
    assert f"being written by process {holder.pid} on {os.uname().nodename}" in str(
        error.value
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_none(tmp_path, holder, sent):
    holder.send_signal(sent)
    holder.wait()
    assert (tmp_path / LOCK).is_file()  # it is only not held
    lock_folder(tmp_path).release()
    assert not (tmp_path / LOCK).exists()


def test_a_number_that_another_process_got_later_holds_nothing(tmp_path):
    living = {"pid": os.getppid(), "host": os.uname().nodename, "since": time.time()}
    (tmp_path / LOCK).write_text(json.dumps(living))
    lock_folder(tmp_path).release()


def test_one_process_locks_as_often_as_it_likes(tmp_path):
    lock = lock_folder(tmp_path)
    again = lock_folder(tmp_path)
    assert again is lock
    del lock
    assert (tmp_path / LOCK).is_file()
    del again
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_was_given_back_is_no_lock(tmp_path):
    """Though somebody keeps it, and a new file may get the number of the old one."""
    kept = [lock_folder(tmp_path)]
    kept[0].release()
    assert kept[0] not in held_locks()
    kept += [lock_folder(tmp_path) for _ in range(3)]
    assert (tmp_path / LOCK).is_file()
    assert kept[1] is kept[2]
    assert kept[0] is not kept[1]


def test_what_is_to_be_done_at_the_end_is_done_once(tmp_path):
    done = []
    lock = lock_folder(tmp_path, at_end=lambda folder: done.append(folder) or "told")
    assert lock.release() == "told"
    assert lock.release() is None
    assert done == [tmp_path.resolve()]


def test_of_processes_that_start_at_once_one_wins(tmp_path):
    at = time.time() + 1
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", TRY, str(tmp_path), str(at)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = sorted(process.communicate()[0] for process in starts)
    assert [text == "held\n" for text in said].count(True) == 1, said
    assert sum("is being written by process" in text for text in said) == 2
