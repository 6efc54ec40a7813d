"""Kill an experiment at a moment, as a machine does."""

import os
import signal
import subprocess
import time

from shell.scripts import ROOT, command, environment


def start_script(script, *args, cache):
    """An experiment that goes on while the test does."""
    return subprocess.Popen(
        command(script, *args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(cache),
    )


def kill_at(process, checkpoints, step, delay):
    """SIGKILL some time after the checkpoint of a step has appeared."""
    while process.poll() is None:
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        if max((int(name) for name in names if name.isdigit()), default=0) >= step:
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
