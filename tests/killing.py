"""Kill an experiment at a moment, as a machine does."""

import os
import signal
import time


def environment(cache):
    """With a compilation cache, which spares the repeats."""
    return os.environ | (
        {}
        if cache is None
        else {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
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
