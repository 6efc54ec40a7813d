"""Runs experiments in processes that need not import anything: forks of this one.

Reads jobs as JSON lines and answers each with what became of it. A job has the
`script`, its `args`, the folder `cwd`, and maybe a limit `bytes` on the size of files,
or a `signal` that is sent when the text `when` was printed, or after `seconds`.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from ldjax.cli import COMMANDS, STUDIES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LIMIT = 60.0  # seconds, after which it hangs


def main():
    for place, _ in (COMMANDS | STUDIES).values():
        importlib.import_module(place)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_done(json.loads(line))), flush=True)


def _done(job):
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        begin = time.monotonic()
        if not (child := os.fork()):
            _become(job, out.fileno(), err.fileno())
        status, is_sent = None, "signal" not in job
        while status is None:
            seconds = time.monotonic() - begin
            if not is_sent and (
                job["when"].encode() in _all(out)
                if "when" in job
                else seconds > job["seconds"]
            ):
                os.kill(child, job["signal"])
                is_sent = True
            if seconds > job.get("limit", LIMIT):
                os.kill(child, signal.SIGKILL)
            pid, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if pid else None
            time.sleep(0.02)
        text = [_all(file).decode(errors="replace") for file in (out, err)]
        seconds = time.monotonic() - begin
        return {"status": status, "out": text[0], "err": text[1], "seconds": seconds}


def _all(file):
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def _become(job, out, err):
    """The process of a job, which does not come back."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(job["cwd"])
    os.environ["HOME"] = job.get("HOME", os.environ["HOME"])
    script = job["script"]
    words = [os.fsdecode(word.encode("latin-1")) for word in job["args"]]
    sys.argv = [str(EXPERIMENTS / script), *words]
    if (limit := job.get("bytes")) is not None:
        # What is printed goes to a file here too, which has room enough.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    code = 1
    try:
        if script == "ldjax.report":
            runpy.run_module("ldjax.report", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 0 if end.code is None else code
    except BaseException:
        traceback.print_exc()
    sys.exit(code)  # as any process does, with what it does at its end


if __name__ == "__main__":
    main()
