"""Processes that do not outlive the command that they work for.

A notebook runs several processes deep: command, workflow engine, execution, kernel job, kernel. One
that is killed (SIGKILL, out of memory) has no chance to clean up, so each of the lower ones watches
the one that it works for, and ends with it.
"""

from __future__ import annotations

import os
import threading
import time


def end_with(pid: int) -> None:
    """End this process, and all that it started, as soon as process ``pid`` is gone.

    A thread looks five times a second: unlike a signal at the parent's death, which only Linux
    has, it also serves where ``pid`` is not the direct parent.
    """
    threading.Thread(target=_watch, args=(pid,), daemon=True).start()


def _watch(pid: int) -> None:
    import psutil

    try:
        watched = psutil.Process(pid)
        # Process numbers are given anew; is_running compares the time of birth as well.
        while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    except psutil.NoSuchProcess:
        pass
    kill_tree(os.getpid())


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, also what has a session of its own, as kernels do."""
    import psutil

    try:
        process = psutil.Process(pid)
        members = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
