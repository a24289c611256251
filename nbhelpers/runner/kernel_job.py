"""The process that holds the kernel: papermill over one notebook, told by a file, answering with a
file.

It stands apart from ``execute`` so that a run that must end can be ended from outside with
everything under it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

DEAD_KERNEL = 138


def main(order_file: str) -> int:
    """Run the notebook of an order file. Exit status 0: all cells ran; 1: a cell failed; 138:
    kernel killed.
    """
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    _end_with(order["execute_pid"])
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    outcome = Path(order_file).parent / "outcome.json"
    try:
        papermill.execute_notebook(
            order["source"],
            order["executed"],
            parameters=order["values"],
            kernel_name="python3",
            cwd=order["cwd"],
            progress_bar=False,
            start_timeout=180,
        )
    except DeadKernelError:
        return DEAD_KERNEL
    except PapermillExecutionError as error:
        outcome.write_text(
            json.dumps({"name": error.ename, "message": error.evalue, "cell": error.cell_index}),
            encoding="utf-8",
        )
        return 1
    return 0


def _end_with(parent: int) -> None:
    """End this process and its kernel when ``parent`` is gone, killed without a
    chance to clean up."""

    def watch() -> None:
        import psutil

        while os.getppid() == parent:
            time.sleep(0.2)
        for process in psutil.Process().children(recursive=True):
            process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
