"""A process ends with the one that it works for, and takes along what it has started."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

WORKER = """
import subprocess, sys, time
from nbhelpers.reports.parent import end_with

end_with(int(sys.argv[1]))
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("already_gone", [False, True])
def test_a_process_and_its_children_end_with_the_watched_one(already_gone):
    watched = subprocess.Popen(["sleep", "600"])
    if already_gone:
        watched.kill()
        watched.wait()
    command = [sys.executable, "-c", WORKER, str(watched.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        line = worker.stdout.readline()  # empty where the worker was ended before its child began
        if not already_gone:
            time.sleep(0.5)
            assert worker.poll() is None and alive(int(line))
            watched.kill()  # and not waited for: a zombie is as good as gone
        assert worker.wait(60) == -9
    until = time.monotonic() + 10
    while line and alive(int(line)):
        assert time.monotonic() < until
        time.sleep(0.05)
    watched.wait()
